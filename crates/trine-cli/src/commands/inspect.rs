//! `trine inspect`: what a run directory holds.

use crate::args::InspectArgs;
use crate::failure::Failure;
use crate::output::{self, human_bytes};
use crate::{corpus, dry_run, select};
use anyhow::Context;
use serde_json::Value;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use trine_trainer::config::{Config, Typed};
use trine_trainer::run::DataSummary;

/// Runs the command.
pub(crate) fn run(args: &InspectArgs) -> Result<(), Failure> {
    let file = Some(select::run_config(&args.run)?);
    let config = Config::load(&Typed { file, ..Typed::default() })?;
    let mut text = format!("{}\n{}", args.run.display(), dry_run::summary(&config));
    text.push_str(&metrics(&args.run)?);
    text.push_str(&summary(&args.run)?);
    text.push_str(&checkpoints(&args.run.join("checkpoints"))?);
    output::print(&text)
}

/// The last complete line of metrics.jsonl; a killed run may have left half a line behind it.
fn metrics(run: &Path) -> Result<String, Failure> {
    let path = run.join("metrics.jsonl");
    let Some(bytes) = if_there(&path, trine_files::read(&path, u64::MAX))? else {
        return Ok("metrics: none yet\n".into());
    };
    // A damaged line is passed over, as `--resume` does.
    let text = String::from_utf8_lossy(&bytes);
    let last = text.lines().rev().find_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok(match last.as_ref().and_then(Value::as_object) {
        None => "metrics: none yet\n".into(),
        Some(metrics) => {
            let fields: Vec<String> =
                metrics.iter().map(|(name, value)| format!("{name} {value}")).collect();
            format!("last metrics: {}\n", fields.join(", "))
        }
    })
}

/// The single values of summary.json; lists are for programs.
fn summary(run: &Path) -> Result<String, Failure> {
    let path = run.join("summary.json");
    let read = trine_files::read_text(&path, trine_files::TEXT_BYTES_MAX);
    let Some(text) = if_there(&path, read)? else {
        return Ok("summary: none yet; the run has not ended\n".into());
    };
    let value: Value = serde_json::from_str(&text)
        .with_context(|| format!("{}: not valid JSON", path.display()))?;
    let mut lines = String::from("summary:\n");
    for (name, value) in value.as_object().into_iter().flatten() {
        if !value.is_array() && !value.is_object() {
            lines.push_str(&format!("  {name} {value}\n"));
        }
    }
    // Summaries of older versions have none.
    if let Ok(data) = serde_json::from_value::<DataSummary>(value["data"].clone()) {
        let left_out = corpus::left_out(&data).map(|text| format!("; {text}"));
        lines.push_str(&format!(
            "data: {}{}\n",
            corpus::taken(&data),
            left_out.unwrap_or_default()
        ));
    }
    Ok(lines)
}

/// The checkpoints by step, with their sizes.
fn checkpoints(folder: &Path) -> Result<String, Failure> {
    let cannot = || format!("cannot read {}", folder.display());
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Ok("checkpoints: none yet\n".into());
        }
        Err(error) => return Err(anyhow::Error::from(error).context(cannot()).into()),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.with_context(cannot)?;
        let name = entry.file_name();
        // Unfinished ones have another name until they are complete.
        let step = name.to_str().and_then(|name| name.strip_prefix("step-")?.parse::<u64>().ok());
        if let Some(step) = step {
            found.push((step, folder_bytes(&entry.path()).with_context(cannot)?));
        }
    }
    found.sort_unstable();
    if found.is_empty() {
        return Ok("checkpoints: none yet\n".into());
    }
    let lines = found.iter().map(|(step, bytes)| {
        format!("  {}/step-{step}: {}\n", folder.display(), human_bytes(*bytes))
    });
    Ok("checkpoints:\n".to_owned() + &lines.collect::<String>())
}

/// Bytes of the files right in a folder.
fn folder_bytes(folder: &Path) -> std::io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        bytes += entry?.metadata()?.len();
    }
    Ok(bytes)
}

/// What was read of a file that may not be there yet.
fn if_there<T>(path: &Path, read: std::io::Result<T>) -> Result<Option<T>, Failure> {
    match read {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(anyhow::Error::from(error)
            .context(format!("cannot read {}", path.display()))
            .into()),
    }
}
