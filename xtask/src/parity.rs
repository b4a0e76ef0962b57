//! `cargo xtask parity`: the search of `trine-tests` for a layout that is not the serial run.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Context;

use crate::workspace::Workspace;

/// Builds the search and runs it with the arguments as typed.
pub(crate) fn run(workspace: &Workspace, args: &[OsString]) -> anyhow::Result<ExitCode> {
    let mut cargo = workspace.cargo();
    cargo.args(["run", "--quiet", "--package", "trine-tests", "--bin", "parity", "--"]).args(args);
    let status = cargo.status().context("cannot run cargo")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
