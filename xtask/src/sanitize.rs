//! `cargo xtask sanitize`: the tests of trine-kernels, where all unsafe code lives, under AddressSanitizer.
//!
//! It finds accesses outside of an allocation and after its end, on every instruction set of the machine. What AMX
//! reads and writes it does not see: the tiles are loaded and stored by inline assembly.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, ensure};

use crate::workspace::{Workspace, host_triple, sysroot};

/// Runs the tests.
pub(crate) fn run(workspace: &Workspace) -> anyhow::Result<ExitCode> {
    let host = host_triple()?;
    find_runtime(&sysroot()?.join("lib/rustlib").join(&host).join("lib"))?;
    let status = command(workspace, &host).status().context("cannot run cargo")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn command(workspace: &Workspace, host: &str) -> Command {
    let mut cargo = workspace.cargo();
    cargo.args(["test", "--package", "trine-kernels", "--lib", "--tests"]);
    // With a target named, flags are for what runs there, not for procedural macros.
    cargo.args(["--target", host]);
    // The variable makes build scripts run again; in the common folder they would do so at every change between the
    // two.
    cargo.arg("--target-dir").arg(workspace.target.join("sanitize"));
    // The stable compiler has the sanitizers, and calls the flag unstable.
    cargo.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", "-Zsanitizer=address");
    cargo.env_remove("CARGO_ENCODED_RUSTFLAGS");
    // A test asks for a block that no machine has: the allocator is to refuse it, as the system's does.
    cargo.env("ASAN_OPTIONS", "allocator_may_return_null=1");
    cargo
}

/// Fails if the compiler came without the sanitizer's library, as those of some distributions do.
fn find_runtime(folder: &Path) -> anyhow::Result<()> {
    let entries =
        std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    ensure!(
        entries.filter_map(Result::ok).any(|entry| is_runtime(&entry.file_name())),
        "this compiler has no AddressSanitizer (no `librustc…_rt.asan…` in {}); rustup's for Linux has it",
        folder.display()
    );
    Ok(())
}

fn is_runtime(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| name.starts_with("librustc") && name.contains("_rt.asan"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runtime_is_known_by_its_name() {
        assert!(is_runtime(OsStr::new("librustc-stable_rt.asan.a")));
        assert!(is_runtime(OsStr::new("librustc-nightly_rt.asan.dylib")));
        assert!(!is_runtime(OsStr::new("librustc-stable_rt.tsan.a")));
        assert!(!is_runtime(OsStr::new("libstd-d1237ef7.so")));
    }

    #[test]
    fn a_compiler_without_it_is_an_error() {
        let error = find_runtime(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap_err();
        assert!(error.to_string().contains("no AddressSanitizer"), "{error}");
    }
}
