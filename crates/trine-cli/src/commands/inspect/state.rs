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
    /// It ended, and what it said of that cannot be read.
    Unreadable,
    /// No step is done.
    NotBegun,
}

impl State {
    /// From the step that a run which does not go on has come to, its summary, and what a failure has left.
    pub(super) fn of(run: &Path, done: u64, summary: &Told) -> Self {
        // A failure's record stays when a later process goes on.
        let diagnosis = run.join("flight").join("diagnosis.txt");
        if is_newest(&diagnosis, run)
            && let Ok(text) = trine_files::read_text(&diagnosis, TEXT_BYTES_MAX)
        {
            return Self::Failed(text.lines().next().unwrap_or_default().to_owned());
        }
        match summary {
            Told::Summary(summary) if summary["steps"].as_u64() == Some(done) => {
                match summary["stopped_early"].as_str() {
                    Some(why) => Self::Stopped(why.to_owned()),
                    None => Self::Complete,
                }
            }
            Told::Nothing | Told::Summary(_) if done == 0 => Self::NotBegun,
            Told::Nothing | Told::Summary(_) => Self::Killed,
            Told::Unreadable => Self::Unreadable,
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
            Self::Unreadable => "unreadable",
            Self::NotBegun => "not begun",
        }
    }

    /// Why it is not complete, where that is known.
    pub(super) fn why(&self) -> Option<&str> {
        match self {
            Self::Stopped(why) | Self::Failed(why) => Some(why),
            Self::Running | Self::Complete | Self::Killed | Self::Unreadable | Self::NotBegun => {
                None
            }
        }
    }

    pub(super) fn style(&self) -> Style {
        match self {
            Self::Running | Self::Complete => Style::Good,
            Self::Stopped(_) | Self::Unreadable | Self::NotBegun => Style::Warning,
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
            Self::Unreadable => f.write_str("ended; how is not known, its summary cannot be read"),
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

/// What the last process that came to its end has said of that.
#[derive(Debug)]
pub(super) enum Told {
    /// None has come to its end.
    Nothing,
    /// It said this.
    Summary(Value),
    /// It is no JSON.
    Unreadable,
}

impl Told {
    /// The summary, if there is one.
    pub(super) fn summary(&self) -> Option<&Value> {
        match self {
            Self::Summary(summary) => Some(summary),
            Self::Nothing | Self::Unreadable => None,
        }
    }
}

/// Reads the summary; what is wrong with one goes to `notes`.
pub(super) fn told(run: &Path, notes: &mut Vec<String>) -> Result<Told, Failure> {
    let path = run.join("summary.json");
    let text = match trine_files::read_text(&path, TEXT_BYTES_MAX) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Told::Nothing),
        read => read.with_context(|| format!("cannot read {}", path.display()))?,
    };
    Ok(serde_json::from_str(&text).map_or_else(
        |error| {
            notes.push(format!("summary.json is not valid JSON: {error}"));
            Told::Unreadable
        },
        Told::Summary,
    ))
}
