//! `cargo xtask gpu`: the kernels of GPUs, compiled without one, and the checks of a machine that has one.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::Context;
use clap::Subcommand;

use crate::trine;
use crate::workspace::{Workspace, executable};

const CRATE: &str = "trine-kernels-gpu";

/// Where `.ci/run` puts the compiler, relative to the root folder.
pub(crate) const LIBRARIES: &str = "target/gpu-libraries";

#[derive(Debug, Subcommand)]
pub(crate) enum Gpu {
    /// Compile the kernels of trine-kernels-gpu to PTX, which is committed; needs no GPU, but NVRTC of one version
    Kernels {
        /// Write nothing: fail if the committed files are not what the compiler makes of the sources
        #[arg(long)]
        check: bool,
        /// Where NVRTC is; without it, wherever the system has it
        #[arg(long, value_name = "DIR")]
        gpu_libraries: Vec<PathBuf>,
    },
    /// Hold a machine with a GPU against the CPU, in parts of two minutes at most
    #[command(disable_help_flag = true)]
    Check {
        /// Handed to the checks as they are; `--help` lists them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
        args: Vec<OsString>,
    },
}

pub(crate) fn run(workspace: &Workspace, gpu: &Gpu) -> anyhow::Result<ExitCode> {
    match gpu {
        Gpu::Kernels { check, gpu_libraries } => kernels(workspace, *check, gpu_libraries),
        Gpu::Check { args } => checks(workspace, args),
    }
}

/// Builds the checks and `trine`, and runs the checks with the arguments as typed.
fn checks(workspace: &Workspace, args: &[OsString]) -> anyhow::Result<ExitCode> {
    let mut cargo = workspace.cargo();
    cargo.args(["build", "--release", "--locked", "--package", "trine-tests"]);
    cargo.args(["--bin", "gpu_check"]);
    let program = executable(cargo, "gpu_check")?;
    let mut command = Command::new(&program);
    command.arg("--trine").arg(trine::build(workspace)?).args(args);
    let status = command.status().with_context(|| format!("cannot run {}", program.display()))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn kernels(
    workspace: &Workspace,
    check: bool,
    gpu_libraries: &[PathBuf],
) -> anyhow::Result<ExitCode> {
    let mut cargo = workspace.cargo();
    cargo.args(["run", "--quiet", "--locked", "--package", CRATE, "--example", "ptx", "--"]);
    cargo.arg(workspace.root.join("crates").join(CRATE));
    cargo.args(check.then_some("--check"));
    for folder in gpu_libraries {
        // The program runs in the workspace's folder.
        cargo.arg("--gpu-libraries").arg(std::path::absolute(folder)?);
    }
    let status = cargo.status().context("cannot run cargo")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Why kernels cannot be compiled with what `.ci/run` fetches, if they cannot.
pub(crate) fn no_compiler(root: &Path) -> Option<String> {
    let is_there = root.join(LIBRARIES).join("nvidia/cuda_nvrtc/lib/libnvrtc.so.12").is_file();
    (!is_there)
        .then(|| format!("DID NOT RUN: there is no NVRTC in {LIBRARIES}; .ci/run fetches it"))
}
