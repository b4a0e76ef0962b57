//! `cargo xtask gpu`: the kernels of GPUs, compiled without one.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Subcommand;

use crate::workspace::Workspace;

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
}

pub(crate) fn run(workspace: &Workspace, gpu: &Gpu) -> anyhow::Result<ExitCode> {
    let Gpu::Kernels { check, gpu_libraries } = gpu;
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
