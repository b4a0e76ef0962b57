//! The GPUs of the machine and their libraries.

use super::{Options, Outcome, text};
use std::path::Path;
use std::process::Command;
use trine_gpu::Checks;
use trine_trainer::run::Devices;
use trine_trainer_gpu::Libraries;

pub(super) fn run(options: &Options) -> Result<Outcome, String> {
    let machine = options.sharing(1)?;
    let free = machine.ranks.free_bytes(0).map_err(text)?;
    let search = machine.sim.as_ref().map(|sim| vec![sim.folder().to_owned()]);
    let folders = search.unwrap_or_else(|| options.gpu_libraries.clone());
    let search = Options { gpu_libraries: folders.clone(), ..Options::default() }.search();
    let libraries = Libraries::find(&search, Checks::default()).map_err(text)?;
    let seen = format!("{}, {} MiB free", libraries.named(), free >> 20);
    let asked = match &options.trine {
        Some(trine) if options.simulated => ask(trine, &[], "CUDA driver")?,
        Some(trine) => ask(trine, &folders, "GPU 0")?,
        None => return Ok(Outcome::Passed(format!("{seen}; `trine doctor` was not asked"))),
    };
    machine.found()?;
    Ok(Outcome::Passed(format!("{seen}; trine doctor: {asked}")))
}

/// The row of `trine doctor` that begins with `row`.
fn ask(trine: &Path, folders: &[std::path::PathBuf], row: &str) -> Result<String, String> {
    let mut command = Command::new(trine);
    command.args(["doctor", "--quick"]);
    for folder in folders {
        command.arg("--gpu-libraries").arg(folder);
    }
    let output = command.output().map_err(|error| format!("{}: {error}", trine.display()))?;
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        return Err(format!("`trine doctor` ended: {}: {}", output.status, errors.trim()));
    }
    let found = said.lines().map(str::trim).find(|line| line.starts_with(row));
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    found.map(words).ok_or_else(|| format!("`trine doctor` has no row `{row}`: {said}"))
}
