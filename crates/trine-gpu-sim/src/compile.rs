//! The library of a simulator: compiled once for each text, and kept.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The simulator itself: name and text of each file.
const RUNTIME: [Source<'static>; 24] = [
    Source { name: "codes.cpp", text: include_str!("../cpp/codes.cpp") },
    Source { name: "codes.hpp", text: include_str!("../cpp/codes.hpp") },
    Source { name: "driver.cpp", text: include_str!("../cpp/driver.cpp") },
    Source { name: "fiber.cpp", text: include_str!("../cpp/fiber.cpp") },
    Source { name: "fiber.hpp", text: include_str!("../cpp/fiber.hpp") },
    Source { name: "image.cpp", text: include_str!("../cpp/image.cpp") },
    Source { name: "image.hpp", text: include_str!("../cpp/image.hpp") },
    Source { name: "kernel.cpp", text: include_str!("../cpp/kernel.cpp") },
    Source { name: "kernel.hpp", text: include_str!("../cpp/kernel.hpp") },
    Source { name: "lt.cpp", text: include_str!("../cpp/lt.cpp") },
    Source { name: "memory.cpp", text: include_str!("../cpp/memory.cpp") },
    Source { name: "memory.hpp", text: include_str!("../cpp/memory.hpp") },
    Source { name: "nccl.cpp", text: include_str!("../cpp/nccl.cpp") },
    Source { name: "nccl.hpp", text: include_str!("../cpp/nccl.hpp") },
    Source { name: "order.cpp", text: include_str!("../cpp/order.cpp") },
    Source { name: "order.hpp", text: include_str!("../cpp/order.hpp") },
    Source { name: "processes.cpp", text: include_str!("../cpp/processes.cpp") },
    Source { name: "processes.hpp", text: include_str!("../cpp/processes.hpp") },
    Source { name: "report.cpp", text: include_str!("../cpp/report.cpp") },
    Source { name: "report.hpp", text: include_str!("../cpp/report.hpp") },
    Source { name: "streams.cpp", text: include_str!("../cpp/streams.cpp") },
    Source { name: "streams.hpp", text: include_str!("../cpp/streams.hpp") },
    Source { name: "world.cpp", text: include_str!("../cpp/world.cpp") },
    Source { name: "world.hpp", text: include_str!("../cpp/world.hpp") },
];

/// What kernels include.
const DIALECT: Source<'static> =
    Source { name: "trine_sim.hpp", text: include_str!("../cpp/trine_sim.hpp") };

/// No warning is asked for: those of another compiler must not fail a test.
const RUNTIME_FLAGS: &[&str] = &["-std=c++17", "-O2", "-g1", "-fPIC", "-fvisibility=hidden"];

/// Sums as they are written: nothing is contracted that the source does not contract.
const KERNEL_FLAGS: &[&str] = &[
    "-std=c++17",
    "-O2",
    "-g1",
    "-fPIC",
    "-fno-exceptions",
    "-fno-rtti",
    "-ffp-contract=off",
    "-I.",
];

/// A file of kernels, or a header that they include.
#[derive(Debug, Clone, Copy, Hash)]
pub struct Source<'a> {
    /// Its name, without folders; kernels end with `.cu`.
    pub name: &'a str,
    /// What is in it.
    pub text: &'a str,
}

/// Whether the accesses of kernels are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Checks {
    /// Each one.
    On,
    /// Those of copies only: kernels run as plain compiled code.
    Off,
}

/// The library with these kernels, in the folder `kept`: compiled if it is not there yet. Several
/// threads and processes may ask at once.
///
/// # Errors
/// If g++ is missing or refuses the sources, the folder cannot be written, or this is not Linux on x86-64.
pub fn compile(kept: &Path, sources: &[Source<'_>], checks: Checks) -> io::Result<PathBuf> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        return Err(io::Error::other("the simulated GPU runs on Linux on x86-64 only"));
    }
    let sanitizer: &[&str] = if checks == Checks::On { &["-fsanitize=thread"] } else { &[] };
    fs::create_dir_all(kept)?;
    let lock = File::create(kept.join("lock"))?;
    lock.lock()?;
    let runtime =
        Objects { files: RUNTIME.to_vec(), flags: RUNTIME_FLAGS.to_vec(), ending: ".cpp" };
    let kernels = Objects {
        files: [&[DIALECT], sources].concat(),
        flags: [KERNEL_FLAGS, sanitizer].concat(),
        ending: ".cu",
    };
    let (runtime, kernels) = (runtime.made(kept)?, kernels.made(kept)?);
    let name = runtime.file_name().expect("invariant: a folder below the kept one");
    let library = kernels.join(name).with_extension("so");
    if library.exists() {
        return Ok(library);
    }
    let unfinished = library.with_extension("part");
    let mut linker = Command::new("g++");
    // The sanitizer's functions are the simulator's: the linker is not told of it, and nothing may be left open.
    linker.args(["-shared", "-Wl,-z,defs", "-o"]).arg(&unfinished);
    run(linker.args(objects(&runtime)?).args(objects(&kernels)?))?;
    fs::rename(unfinished, &library)?;
    Ok(library)
}

/// Files that are compiled together.
struct Objects<'a> {
    files: Vec<Source<'a>>,
    flags: Vec<&'a str>,
    /// How the names of files end that are compiled; the others are included.
    ending: &'a str,
}

impl Objects<'_> {
    /// The folder with their objects, named after what they are made of.
    fn made(&self, kept: &Path) -> io::Result<PathBuf> {
        let mut hasher = DefaultHasher::new();
        (&self.files, &self.flags).hash(&mut hasher);
        let folder = kept.join(format!("{:016x}", hasher.finish()));
        let done = folder.join("done");
        if done.exists() {
            return Ok(folder);
        }
        fs::create_dir_all(&folder)?;
        for Source { name, text } in &self.files {
            fs::write(folder.join(name), text)?;
        }
        for Source { name, .. } in self.files.iter().filter(|file| file.name.ends_with(self.ending))
        {
            let mut compiler = Command::new("g++");
            compiler.current_dir(&folder).args(&self.flags);
            run(compiler.args(["-x", "c++", "-c", name, "-o"]).arg(format!("{name}.o")))?;
        }
        fs::write(done, "")?;
        Ok(folder)
    }
}

fn objects(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        found.extend(path.extension().is_some_and(|ending| ending == "o").then_some(path));
    }
    found.sort();
    Ok(found)
}

fn run(command: &mut Command) -> io::Result<()> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{command:?} ended: {}\n{errors}", output.status)))
}
