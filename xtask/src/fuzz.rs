//! `cargo xtask fuzz`: the fuzzer of `trine-tests`, with debug assertions and checked arithmetic.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Context;

use crate::workspace::Workspace;

/// Builds the fuzzer and runs it with the arguments as typed. What fails is kept in `fuzz` of the target folder.
pub(crate) fn run(workspace: &Workspace, args: &[OsString]) -> anyhow::Result<ExitCode> {
    let mut cargo = workspace.cargo();
    cargo.args(["run", "--quiet", "--package", "trine-tests", "--bin", "fuzz", "--", "--save"]);
    cargo.arg(workspace.target.join("fuzz")).args(args);
    let status = cargo.status().context("cannot run cargo")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
