//! How a run stands: going on, over, or broken off, and why.

use crate::failure::Failure;
use crate::terminal::Style;
use anyhow::Context;
use serde_json::Value;
use std::fmt;
use std::io::ErrorKind;
use std::path::Path;
use trine_files::TEXT_BYTES_MAX;

/// How a run stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    /// A process holds its directory.
    Running,
    /// All steps are done.
    Complete,
    /// It was told to stop.
    Stopped(String),
    /// A rank has failed.
    Failed(String),
    /// It ended without a word.
    Killed,
    /// No step is done.
    NotBegun,
}

impl State {
    /// From the lock, the step it has come to, its summary, and what a failure has left.
    pub(super) fn of(run: &Path, done: u64, summary: Option<&Value>) -> Self {
        if trine_trainer::run::is_in_use(run) {
            return Self::Running;
        }
        // A failure's record stays when a later process goes on.
        let diagnosis = run.join("flight").join("diagnosis.txt");
        if is_newest(&diagnosis, run)
            && let Ok(text) = trine_files::read_text(&diagnosis, TEXT_BYTES_MAX)
        {
            return Self::Failed(text.lines().next().unwrap_or_default().to_owned());
        }
        let ended = summary.filter(|summary| summary["steps"].as_u64() == Some(done));
        match ended {
            Some(summary) => match summary["stopped_early"].as_str() {
                Some(why) => Self::Stopped(why.to_owned()),
                None => Self::Complete,
            },
            None if done == 0 => Self::NotBegun,
            None => Self::Killed,
        }
    }

    /// For programs.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Complete => "complete",
            Self::Stopped(_) => "stopped",
            Self::Failed(_) => "failed",
            Self::Killed => "killed",
            Self::NotBegun => "not begun",
        }
    }

    /// Why it is not complete, where that is known.
    pub(super) fn why(&self) -> Option<&str> {
        match self {
            Self::Stopped(why) | Self::Failed(why) => Some(why),
            Self::Running | Self::Complete | Self::Killed | Self::NotBegun => None,
        }
    }

    pub(super) fn style(&self) -> Style {
        match self {
            Self::Running | Self::Complete => Style::Good,
            Self::Stopped(_) | Self::NotBegun => Style::Warning,
            Self::Failed(_) | Self::Killed => Style::Error,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Running => f.write_str("running"),
            Self::Complete => f.write_str("complete"),
            Self::Stopped(why) => write!(f, "stopped ({why})"),
            Self::Failed(why) => write!(f, "failed: {why}"),
            Self::Killed => {
                f.write_str("ended without a summary: killed, or the machine went down")
            }
            Self::NotBegun => f.write_str("no step is done"),
        }
    }
}

/// Whether a file is as new as the metrics and the summary of the run.
fn is_newest(path: &Path, run: &Path) -> bool {
    let written = |path: &Path| std::fs::metadata(path).and_then(|file| file.modified()).ok();
    let others = ["metrics.jsonl", "summary.json"].map(|name| written(&run.join(name)));
    written(path).is_some_and(|own| others.into_iter().flatten().all(|other| other <= own))
}

/// The summary, if a process has come to its end; one that is damaged goes to `notes`.
pub(super) fn summary(run: &Path, notes: &mut Vec<String>) -> Result<Option<Value>, Failure> {
    let path = run.join("summary.json");
    let text = match trine_files::read_text(&path, TEXT_BYTES_MAX) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        read => read.with_context(|| format!("cannot read {}", path.display()))?,
    };
    let value = serde_json::from_str(&text);
    Ok(value.map_err(|error| notes.push(format!("summary.json is not valid JSON: {error}"))).ok())
}
