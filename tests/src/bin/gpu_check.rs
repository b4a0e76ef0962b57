//! `cargo xtask gpu check`: what a machine with a GPU is held against.
#![allow(clippy::print_stdout, reason = "a command-line program talks to its user")]

use anyhow::Context;
use clap::Parser;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use trine_tests::check::{Options, PARTS, Part, alone, curve, run};

/// Checks of a machine with a GPU, in parts of two minutes at most; fails if one of them fails.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask gpu check", args_override_self = true)]
struct Args {
    /// These parts alone: doctor, kernels, communicator, sanitizer, curve, layout
    #[arg(long, value_name = "NAME", value_parser = part)]
    part: Vec<Part>,
    /// Also as JSON, to this file
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Where driver, cuBLASLt and NCCL are, and nowhere else
    #[arg(long, value_name = "DIR", conflicts_with = "simulated")]
    gpu_libraries: Vec<PathBuf>,
    /// Simulated GPUs, with smaller sizes where these would take long; needs g++
    #[arg(long)]
    simulated: bool,
    /// compute-sanitizer, if it is not found by its name
    #[arg(long, value_name = "PATH")]
    sanitizer: Option<PathBuf>,
    /// The binary `trine`, whose `doctor` is asked
    #[arg(long, value_name = "PATH")]
    trine: Option<PathBuf>,
    /// Write the curve of this CPU, which is committed; needs no GPU
    #[arg(long)]
    write_curve: bool,
    /// One part in this process, whose row is printed as JSON
    #[arg(long, value_name = "NAME", value_parser = part, hide = true)]
    alone: Option<Part>,
}

fn part(name: &str) -> Result<Part, String> {
    let names = PARTS.map(|part| part.name).join(", ");
    let found = PARTS.into_iter().find(|part| part.name == name);
    found.ok_or_else(|| format!("the parts are {names}"))
}

fn main() -> anyhow::Result<ExitCode> {
    let Args { part, out, gpu_libraries, simulated, sanitizer, trine, write_curve, alone: one } =
        Args::parse();
    if write_curve {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(curve::FILE);
        let text = curve::Curve::of_cpu().and_then(|curve| curve.to_text());
        std::fs::write(&path, text.map_err(anyhow::Error::msg)?).context("writing the curve")?;
        return Ok(ExitCode::SUCCESS);
    }
    let options = Options { simulated, gpu_libraries, trine, sanitizer };
    if let Some(part) = one {
        println!("{}", serde_json::to_string(&alone(&part, &options))?);
        return Ok(ExitCode::SUCCESS);
    }
    let parts = if part.is_empty() { PARTS.to_vec() } else { part };
    let program = std::env::current_exe()?;
    let report = run(&program, &parts, &options, &mut |row| println!("{}", row.line()));
    let report = report.map_err(anyhow::Error::msg)?;
    if let Some(path) = out {
        let text = serde_json::to_string_pretty(&report)? + "\n";
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
