//! `cargo xtask fuzz`: the fuzzer of `trine-tests`, with debug assertions and checked arithmetic.

use std::process::ExitCode;

use anyhow::Context;

use crate::workspace::Workspace;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Time of all targets together
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u64,
    /// Where the inputs come from: the same seed gives the same ones
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// One target alone
    #[arg(long, value_name = "NAME")]
    target: Option<String>,
}

/// Builds the fuzzer and runs it. What fails is kept in `fuzz` of the target folder.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> anyhow::Result<ExitCode> {
    let mut cargo = workspace.cargo();
    cargo.args(["run", "--quiet", "--package", "trine-tests", "--bin", "fuzz", "--"]);
    cargo.args(["--seconds", &args.seconds.to_string(), "--seed", &args.seed.to_string()]);
    cargo.arg("--save").arg(workspace.target.join("fuzz"));
    if let Some(target) = &args.target {
        cargo.args(["--target", target]);
    }
    let status = cargo.status().context("cannot run cargo")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
