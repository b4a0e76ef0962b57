//! The schedules that have a name, as a table.

use std::fmt;
use std::str::FromStr;

use crate::nearest::nearest;
use crate::{Purpose, Schedule, ScheduleError, generate};

/// A schedule that can be asked for by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ScheduleKind {
    /// [`generate::gpipe`].
    GPipe,
    /// [`generate::one_f_one_b`].
    OneFOneB,
    /// [`generate::forward_only`].
    ForwardOnly,
}

/// What is known of a [`ScheduleKind`].
#[derive(Debug, Clone, Copy)]
pub struct KindInfo {
    /// The kind described.
    pub kind: ScheduleKind,
    /// Its name, as configurations and command lines spell it.
    pub name: &'static str,
    /// Training or evaluation.
    pub purpose: Purpose,
    /// One line for people.
    pub summary: &'static str,
    /// Where it was published; empty if it never was.
    pub paper: &'static str,
    generate: fn(usize, usize) -> Result<Schedule, ScheduleError>,
}

const KINDS: [KindInfo; 3] = [
    KindInfo {
        kind: ScheduleKind::GPipe,
        name: "gpipe",
        purpose: Purpose::Train,
        summary: "all forwards, then all backwards; m micro-batches in flight",
        paper: "arXiv 1811.06965",
        generate: generate::gpipe,
    },
    KindInfo {
        kind: ScheduleKind::OneFOneB,
        name: "1f1b",
        purpose: Purpose::Train,
        summary: "one forward, one backward; min(p - rank, m) micro-batches in flight",
        paper: "arXiv 2006.09503",
        generate: generate::one_f_one_b,
    },
    KindInfo {
        kind: ScheduleKind::ForwardOnly,
        name: "forward-only",
        purpose: Purpose::Evaluate,
        summary: "forwards for evaluation; nothing in flight",
        paper: "",
        generate: generate::forward_only,
    },
];

impl ScheduleKind {
    /// All kinds, with what is known of them.
    pub fn all() -> &'static [KindInfo] {
        &KINDS
    }

    /// What is known of this kind.
    pub fn info(self) -> &'static KindInfo {
        KINDS.iter().find(|info| info.kind == self).expect("invariant: every kind has a row")
    }

    /// Its name, as configurations and command lines spell it.
    pub fn name(self) -> &'static str {
        self.info().name
    }

    /// The compute-only lists of this kind; the declared bounds of activations in flight are in
    /// [`Schedule::in_flight_max`].
    ///
    /// # Errors
    /// [`ScheduleError::Zero`] or [`ScheduleError::TooLarge`].
    pub fn generate(self, stages: usize, micro_batches: usize) -> Result<Schedule, ScheduleError> {
        (self.info().generate)(stages, micro_batches)
    }
}

impl fmt::Display for ScheduleKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for ScheduleKind {
    type Err = ScheduleError;

    fn from_str(asked: &str) -> Result<Self, ScheduleError> {
        if let Some(info) = KINDS.iter().find(|info| info.name == asked) {
            return Ok(info.kind);
        }
        let names = KINDS.map(|info| info.name);
        Err(ScheduleError::UnknownKind {
            asked: asked.to_owned(),
            nearest: nearest(asked, names).expect("invariant: the table has rows"),
            all: names.join(", "),
        })
    }
}

impl TryFrom<String> for ScheduleKind {
    type Error = ScheduleError;

    fn try_from(name: String) -> Result<Self, ScheduleError> {
        name.parse()
    }
}

impl From<ScheduleKind> for String {
    fn from(kind: ScheduleKind) -> String {
        kind.name().to_owned()
    }
}
