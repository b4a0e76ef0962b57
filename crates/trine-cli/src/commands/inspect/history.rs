//! The metrics of a run, as far as they can be read.

use crate::failure::Failure;
use crate::output::counted;
use anyhow::Context;
use std::io::{BufRead, BufReader, ErrorKind};
use std::path::Path;
use trine_trainer::run::MetricsLine;

/// Steps that tell how fast the run is now.
const RECENT: usize = 100;

/// Numbers of lines that are named; the rest is counted.
const NAMED_MAX: usize = 5;

/// The steps of a run, in order.
#[derive(Debug, Default)]
pub(super) struct History {
    pub(super) lines: Vec<MetricsLine>,
    /// Numbers, from 1, of the lines that are no metrics.
    skipped: Vec<usize>,
    /// Whether the last line has no end: a killed run leaves half a line behind.
    is_cut: bool,
}

/// How fast a run is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Speed {
    pub(super) tokens_per_s: f64,
    pub(super) step_s: f64,
    /// Of so many steps.
    pub(super) steps: usize,
}

impl History {
    /// Reads metrics.jsonl; a run that has taken no step has none.
    pub(super) fn read(path: &Path) -> Result<Self, Failure> {
        let cannot = || format!("cannot read {}", path.display());
        let mut history = Self::default();
        let file = match trine_files::open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(history),
            opened => opened.with_context(cannot)?,
        };
        let mut reader = BufReader::new(file);
        let mut bytes = Vec::new();
        for number in 1.. {
            bytes.clear();
            if reader.read_until(b'\n', &mut bytes).with_context(cannot)? == 0 {
                break;
            }
            match serde_json::from_slice::<MetricsLine>(&bytes) {
                Ok(line) => history.lines.push(line),
                Err(_) if !bytes.ends_with(b"\n") => history.is_cut = true,
                Err(_) => history.skipped.push(number),
            }
        }
        Ok(history)
    }

    /// What of the file could not be read.
    pub(super) fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if !self.skipped.is_empty() {
            let named: Vec<String> =
                self.skipped.iter().take(NAMED_MAX).map(usize::to_string).collect();
            let more = if self.skipped.len() > NAMED_MAX { ", …" } else { "" };
            notes.push(format!(
                "left out here: {} of metrics.jsonl that {} no metrics ({}{more})",
                counted(self.skipped.len(), "line"),
                if self.skipped.len() == 1 { "is" } else { "are" },
                named.join(", ")
            ));
        }
        if self.is_cut {
            notes.push("the last line of metrics.jsonl is cut off, left out here".into());
        }
        notes
    }

    /// Steps that evaluated, with the loss.
    pub(super) fn evaluations(&self) -> impl DoubleEndedIterator<Item = (u64, f64)> {
        self.lines.iter().filter_map(|line| Some((line.step, line.val_loss?)))
    }

    /// The lowest validation loss and its step.
    pub(super) fn best(&self) -> Option<(u64, f64)> {
        self.evaluations().min_by(|one, other| one.1.total_cmp(&other.1))
    }

    /// Medians of the last steps.
    pub(super) fn speed(&self) -> Option<Speed> {
        let recent = &self.lines[self.lines.len().saturating_sub(RECENT)..];
        let median = |of: fn(&MetricsLine) -> f64| {
            let mut values: Vec<f64> = recent.iter().map(of).collect();
            values.sort_by(f64::total_cmp);
            values.get(values.len() / 2).copied()
        };
        Some(Speed {
            tokens_per_s: median(|line| line.tokens_per_s)?,
            step_s: median(|line| line.step_ms)? / 1e3,
            steps: recent.len(),
        })
    }
}
