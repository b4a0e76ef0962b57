//! Makes the compiled kernels of this crate, or holds them against what the compiler makes: `cargo xtask gpu kernels`
//! runs it.
//!
//! `ptx CRATE [--check] [--gpu-libraries DIR]...`
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line program talks to its user"
)]

use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use trine_gpu::Compiler;
use trine_gpu_sys::Search;
use trine_kernels_gpu::{COMPILER, OPTIONS, compiled, headers, source_hash};

/// What is typed.
struct Args {
    folder: PathBuf,
    is_check: bool,
    libraries: Vec<PathBuf>,
}

impl Args {
    fn read(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let folder = words.next().ok_or("the folder of the crate is missing")?;
        let mut args =
            Self { folder: Path::new(&folder).join("ptx"), is_check: false, libraries: Vec::new() };
        while let Some(word) = words.next() {
            match word.as_str() {
                "--check" => args.is_check = true,
                "--gpu-libraries" => {
                    let folder = words.next().ok_or("--gpu-libraries names no folder")?;
                    args.libraries.push(folder.into());
                }
                other => return Err(format!("{other}: neither --check nor --gpu-libraries DIR")),
            }
        }
        Ok(args)
    }
}

/// A file as it should be.
struct File {
    name: String,
    text: String,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ptx: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let args = Args::read(std::env::args().skip(1))?;
    let files = made(&args.libraries)?;
    let stale: Vec<_> = files
        .iter()
        .filter(|file| {
            fs::read_to_string(args.folder.join(&file.name)).ok().as_ref() != Some(&file.text)
        })
        .collect();
    let gone = left_over(&args.folder, &files)?;
    if args.is_check {
        let names =
            stale.iter().map(|file| file.name.as_str()).chain(gone.iter().map(String::as_str));
        let names: Vec<_> = names.collect();
        if !names.is_empty() {
            let names = names.join(", ");
            return Err(format!(
                "not what NVRTC {COMPILER} makes of the sources: {names}; `cargo xtask gpu kernels` writes them"
            )
            .into());
        }
        println!("{} files are what NVRTC {COMPILER} makes of the sources", files.len());
        return Ok(());
    }
    fs::create_dir_all(&args.folder)?;
    for file in &stale {
        fs::write(args.folder.join(&file.name), &file.text)?;
    }
    for name in &gone {
        fs::remove_file(args.folder.join(name))?;
    }
    println!("{} of {} files written, {} removed", stale.len(), files.len(), gone.len());
    Ok(())
}

/// Files of the folder that no source has any more.
fn left_over(folder: &Path, files: &[File]) -> Result<Vec<String>, Box<dyn Error>> {
    let mut names = Vec::new();
    if folder.is_dir() {
        for entry in fs::read_dir(folder)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let is_known = files.iter().any(|file| file.name == name);
            names.extend((!is_known).then_some(name));
        }
    }
    names.sort();
    Ok(names)
}

/// The images, and their list.
fn made(libraries: &[PathBuf]) -> Result<Vec<File>, Box<dyn Error>> {
    let search = match libraries {
        [] => Search::usual(Vec::new()),
        // The system's own may be of another version.
        named => Search::only(named.to_vec()),
    };
    let compiler = Compiler::open(&search)?;
    let headers: Vec<_> = headers().collect();
    let mut files = Vec::new();
    let mut list = String::from(
        "//! The list of images. Written by `cargo xtask gpu kernels`.\n\nuse super::Image;\n\n\
         /// What every file of kernels is compiled to.\n#[rustfmt::skip]\npub const IMAGES: &[Image] = &[\n",
    );
    for (source, text) in compiled() {
        let ptx = compiler.ptx(source, text, &headers, &OPTIONS)?;
        if !ptx.contains(&format!("V{COMPILER}\n")) {
            let (path, version) = (compiler.path().display(), compiler.version());
            return Err(format!(
                "{path} is NVRTC {version}, kernels are compiled with {COMPILER}: \
                 `pip install --target DIR nvidia-cuda-nvrtc-cu12=={COMPILER}`, then --gpu-libraries DIR"
            )
            .into());
        }
        let name = source.replace(".cu", ".ptx");
        let hash = source_hash(source, text);
        writeln!(
            list,
            "    Image {{ source: \"{source}\", hash: \"{hash}\", ptx: include_str!(\"{name}\") }},"
        )?;
        files.push(File { name, text: ptx });
    }
    list.push_str("];\n");
    files.push(File { name: "images.rs".into(), text: list });
    Ok(files)
}
