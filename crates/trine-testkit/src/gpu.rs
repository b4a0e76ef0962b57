//! Libraries of GPUs that answer and compute nothing, compiled by g++ where a test needs them.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{fs, io};

const SOURCE: &str = include_str!("gpu_stub.cpp");

/// The files that a whole set of libraries has.
pub const FILES: [&str; 4] =
    ["libcuda.so.1", "libcublasLt.so.12", "libnccl.so.2", "libnvrtc.so.12"];

/// Compiles the stub to `folder/file`, with more arguments for g++: the source says which macros change what.
///
/// # Errors
/// If g++ is missing, or fails.
pub fn stub(folder: &Path, file: &str, args: &[&str]) -> io::Result<PathBuf> {
    fs::create_dir_all(folder)?;
    let path = folder.join(file);
    let mut compiler = Command::new("g++");
    compiler.args(["-shared", "-fPIC", "-O0", "-x", "c++", "-", "-o"]).arg(&path).args(args);
    let mut running = compiler.stdin(Stdio::piped()).spawn()?;
    if let Some(mut input) = running.stdin.take() {
        input.write_all(SOURCE.as_bytes())?;
    }
    let status = running.wait()?;
    if status.success() { Ok(path) } else { Err(io::Error::other(format!("g++ ended: {status}"))) }
}

/// A whole set of stubs in `folder`.
///
/// # Errors
/// As [`stub`].
pub fn stubs(folder: &Path) -> io::Result<()> {
    let [first, others @ ..] = FILES;
    let first = stub(folder, first, &[])?;
    others.iter().try_for_each(|file| fs::copy(&first, folder.join(file)).map(drop))
}
