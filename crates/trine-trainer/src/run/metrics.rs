//! `metrics.jsonl`: one line a step.

use crate::TrainError;
use crate::run::directory::{METRICS, io, replace};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, Write};
use std::path::{Path, PathBuf};
use trine_mesh::plural;

/// Bytes of the longest metrics: 16 million steps.
const BYTES_MAX: u64 = 4 << 30;

/// One line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MetricsLine {
    /// The step, from 1.
    pub step: u64,
    /// Nats per token over the step's samples.
    pub loss: f64,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// Learning rate of the update.
    pub lr: f64,
    /// Training tokens since the run began.
    pub tokens: u64,
    /// Tokens of the step over its wall time.
    pub tokens_per_s: f64,
    /// Wall time of the step in milliseconds.
    pub step_ms: f64,
    /// Nats per token on the validation windows, at the steps that evaluate and at the last one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub val_loss: Option<f64>,
    /// When the step was done: UTC by RFC 3339. Empty in lines of releases that did not say.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub time: String,
}

/// All that is read of a line to find its place.
#[derive(Deserialize)]
struct Place {
    step: u64,
}

/// The metrics of a run, to append to.
#[derive(Debug)]
pub(super) struct Metrics {
    path: PathBuf,
    file: File,
}

impl Metrics {
    /// Those of the run in `run`, cut back to `step`.
    pub(super) fn open(run: &Path, step: u64) -> Result<Self, TrainError> {
        let path = run.join(METRICS);
        let text = read(&path)?;
        let file = rewritten(&path, until(&text, step))?;
        Ok(Self { path, file })
    }

    /// Writes the file again if it has been removed or replaced, and says whether it had to: what it held is still
    /// to be read.
    pub(super) fn mend(&mut self) -> Result<bool, TrainError> {
        if trine_files::is_at(&self.file, &self.path) {
            return Ok(false);
        }
        let mut text = Vec::new();
        let read = self.file.rewind().and_then(|()| self.file.read_to_end(&mut text));
        read.map_err(io("read what was in", &self.path))?;
        self.file = rewritten(&self.path, &text)?;
        Ok(true)
    }

    pub(super) fn append(&mut self, line: &MetricsLine) -> Result<(), TrainError> {
        self.file.write_all(written(line)?.as_bytes()).map_err(io("write to", &self.path))
    }

    /// Puts `line` in the place of the last one, which is of the same step.
    pub(super) fn amend(&mut self, line: &MetricsLine) -> Result<(), TrainError> {
        self.mend()?;
        let text = read(&self.path)?;
        let mut amended = until(&text, line.step - 1).to_vec();
        amended.extend(written(line)?.into_bytes());
        self.file = rewritten(&self.path, &amended)?;
        Ok(())
    }
}

/// The file with this text, to append to and to read.
fn rewritten(path: &Path, text: &[u8]) -> Result<File, TrainError> {
    replace(path, text)?;
    OpenOptions::new().read(true).append(true).open(path).map_err(io("open", path))
}

/// Refuses to go on with a run whose metrics are something else than a file, before anything is written.
pub(super) fn check(run: &Path) -> Result<(), TrainError> {
    let path = run.join(METRICS);
    match trine_files::open(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            let text = format!("{}: {error}: the run cannot go on", path.display());
            Err(TrainError::Refused(text))
        }
        Ok(_) | Err(_) => Ok(()),
    }
}

/// What a run that goes on from `step` should know of its metrics, a line each.
pub(super) fn notes(run: &Path, step: u64) -> Result<Vec<String>, TrainError> {
    let text = read(&run.join(METRICS))?;
    let kept = until(&text, step);
    let last = lines(kept).filter_map(|(step, _)| step).max().unwrap_or(0);
    let mut notes = Vec::new();
    if last < step {
        let lost = last + 1;
        notes.push(format!("{METRICS} has no lines of steps {lost} to {step}; it goes on without"));
    }
    let strange = lines(&text[kept.len()..]).filter(|(step, _)| step.is_none()).count();
    if strange > 0 {
        let noun = plural(strange as u64, "line");
        notes.push(format!(
            "{METRICS}: {strange} {noun} behind that of step {step} cannot be read, and will be removed"
        ));
    }
    Ok(notes)
}

/// The last step that the metrics of a run tell of.
///
/// # Errors
/// A file that cannot be read.
pub(super) fn last_step(run: &Path) -> Result<Option<u64>, TrainError> {
    Ok(lines(&read(&run.join(METRICS))?).filter_map(|(step, _)| step).max())
}

fn written(line: &MetricsLine) -> Result<String, TrainError> {
    Ok(serde_json::to_string(line).map_err(|error| TrainError::Json(error.to_string()))? + "\n")
}

fn read(path: &Path) -> Result<Vec<u8>, TrainError> {
    match trine_files::read(path, BYTES_MAX) {
        Ok(bytes) => Ok(bytes),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(io("read", path)(error)),
    }
}

/// The complete lines: the step of each, if it can be read, and the byte that it ends at.
fn lines(text: &[u8]) -> impl Iterator<Item = (Option<u64>, usize)> + '_ {
    let complete = text.split_inclusive(|byte| *byte == b'\n').filter(|l| l.ends_with(b"\n"));
    complete.scan(0, |end, line| {
        *end += line.len();
        Some((serde_json::from_slice(line).ok().map(|place: Place| place.step), *end))
    })
}

/// The metrics up to the line of `step`, as they were written, lines between that cannot be read
/// included. A line cut off by a crash comes after it.
fn until(text: &[u8], step: u64) -> &[u8] {
    let kept = lines(text).filter(|(line, _)| line.is_some_and(|line| line <= step));
    &text[..kept.last().map_or(0, |(_, end)| end)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_cut_to_the_byte() {
        let text =
            b"{\"step\":1}\n{\"step\":2,\"x\":\xff}\n{\"step\":3}\n{\"step\":4}\n{\"step\":5";
        let first = &text[..11];
        assert_eq!(until(text, 0), b"");
        assert_eq!(until(text, 1), first);
        // The second line is damaged: it does not count, and is not lost.
        assert_eq!(until(text, 2), first);
        assert_eq!(until(text, 3).len(), text.len() - 11 - 9);
        assert_eq!(until(text, 9).len(), text.len() - 9);
        let steps: Vec<Option<u64>> = lines(text).map(|(step, _)| step).collect();
        assert_eq!(steps, [Some(1), None, Some(3), Some(4)]);
    }
}
