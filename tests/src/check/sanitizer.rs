//! The kernels under compute-sanitizer, which sees each access of a real GPU.

use super::{Options, Outcome, Row};
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;

/// What it exits with if it has found something.
const FOUND: &str = "99";

pub(super) fn run(options: &Options) -> Result<Outcome, String> {
    if options.simulated && options.sanitizer.is_none() {
        let why = "it does not see simulated GPUs, which look at each access themselves";
        return Ok(Outcome::DidNotRun(why.to_owned()));
    }
    let program = options.sanitizer.as_deref().unwrap_or(Path::new("compute-sanitizer"));
    let this = std::env::current_exe().map_err(|error| format!("this program: {error}"))?;
    let mut command = Command::new(program);
    command.args(["--tool", "memcheck", "--error-exitcode", FOUND]).arg(this);
    command.args(["--alone", "kernels"]).args(options.simulated.then_some("--simulated"));
    for folder in &options.gpu_libraries {
        command.arg("--gpu-libraries").arg(folder);
    }
    let output = match command.output() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let why = format!("there is no {}; --sanitizer PATH names it", program.display());
            return Ok(Outcome::DidNotRun(why));
        }
        other => other.map_err(|error| format!("{}: {error}", program.display()))?,
    };
    let said = String::from_utf8_lossy(&output.stdout);
    let lines = said.lines().filter(|line| line.starts_with("========= "));
    let told: Vec<_> = lines.map(|line| line.trim_start_matches("========= ")).collect();
    if !output.status.success() {
        let first = told.iter().find(|line| line.starts_with("Invalid") || line.contains("rror"));
        let what = first.copied().unwrap_or_else(|| said.trim());
        return Err(format!("memcheck ended: {}: {what}", output.status));
    }
    match said.lines().find_map(|line| serde_json::from_str::<Row>(line).ok()) {
        Some(Row { outcome: Outcome::Passed(seen), .. }) => {
            let summary = told.last().copied().unwrap_or("no summary");
            Ok(Outcome::Passed(format!("{seen}; {summary}")))
        }
        other => Err(format!("the kernels did not pass under memcheck: {other:?}")),
    }
}
