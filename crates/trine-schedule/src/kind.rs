//! The schedules that have a name, as a table.

use std::fmt;
use std::str::FromStr;

use crate::generate::{self, Shape};
use crate::nearest::nearest;
use crate::{Purpose, Schedule, ScheduleError, UniformStage};

/// A schedule that can be asked for by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ScheduleKind {
    /// [`generate::gpipe`].
    GPipe,
    /// [`generate::one_f_one_b`].
    OneFOneB,
    /// [`generate::interleaved`].
    Interleaved,
    /// [`generate::breadth_first`].
    BreadthFirst,
    /// [`generate::zb_h1`].
    ZbH1,
    /// [`generate::zb_h2`].
    ZbH2,
    /// [`generate::zb_v`].
    ZbV,
    /// [`generate::dual_pipe_v`].
    DualPipeV,
    /// [`generate::forward_only`].
    ForwardOnly,
}

/// How the stages of a pipeline lie on its ranks. With one stage a rank both are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Placement {
    /// Each chunk goes down the ranks as the one before did.
    Loops,
    /// Every second chunk comes back up.
    V,
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
    /// The fewest and the most stages that a rank may hold (virtual stages).
    pub chunks: (usize, usize),
    /// The usual number of stages of a rank.
    pub chunks_usual: usize,
    /// How stages lie on ranks.
    pub placement: Placement,
    /// Whether its lists can be made for other times than equal ones ([`ScheduleKind::generate_for`]).
    pub takes_times: bool,
    generate: fn(Shape) -> Result<Schedule, ScheduleError>,
}

/// More chunks than this are refused; real models have fewer layers a rank.
const CHUNKS_MAX: usize = 1 << 10;

const KINDS: [KindInfo; 9] = [
    KindInfo {
        kind: ScheduleKind::GPipe,
        name: "gpipe",
        purpose: Purpose::Train,
        summary: "all forwards, then all backwards; m micro-batches in flight",
        paper: "arXiv 1811.06965",
        chunks: (1, 1),
        chunks_usual: 1,
        placement: Placement::Loops,
        takes_times: false,
        generate: |shape| generate::gpipe(shape.ranks, shape.micro_batches),
    },
    KindInfo {
        kind: ScheduleKind::OneFOneB,
        name: "1f1b",
        purpose: Purpose::Train,
        summary: "one forward, one backward; min(p - rank, m) micro-batches in flight",
        paper: "arXiv 2006.09503",
        chunks: (1, 1),
        chunks_usual: 1,
        placement: Placement::Loops,
        takes_times: false,
        generate: |shape| generate::one_f_one_b(shape.ranks, shape.micro_batches),
    },
    KindInfo {
        kind: ScheduleKind::Interleaved,
        name: "interleaved",
        purpose: Purpose::Train,
        summary: "1F1B over the chunks of a rank; a bubble v times shorter, v times the messages",
        paper: "arXiv 2104.04473",
        chunks: (1, CHUNKS_MAX),
        chunks_usual: 2,
        placement: Placement::Loops,
        takes_times: false,
        generate: |shape| generate::interleaved(shape.ranks, shape.chunks, shape.micro_batches),
    },
    KindInfo {
        kind: ScheduleKind::BreadthFirst,
        name: "breadth-first",
        purpose: Purpose::Train,
        summary: "every micro-batch through a chunk, then the next chunk; v m in flight",
        paper: "arXiv 2211.05953",
        chunks: (1, CHUNKS_MAX),
        chunks_usual: 2,
        placement: Placement::Loops,
        takes_times: false,
        generate: |shape| generate::breadth_first(shape.ranks, shape.chunks, shape.micro_batches),
    },
    KindInfo {
        kind: ScheduleKind::ZbH1,
        name: "zb-h1",
        purpose: Purpose::Train,
        summary: "B and W apart: a third of the bubble of 1F1B, min(p, m) in flight",
        paper: "arXiv 2401.10241",
        chunks: (1, 1),
        chunks_usual: 1,
        placement: Placement::Loops,
        takes_times: true,
        generate: |shape| generate::zb_h1(shape.ranks, shape.micro_batches),
    },
    KindInfo {
        kind: ScheduleKind::ZbH2,
        name: "zb-h2",
        purpose: Purpose::Train,
        summary: "B and W apart: no rank waits once begun, min(2p - 1, m) in flight",
        paper: "arXiv 2401.10241",
        chunks: (1, 1),
        chunks_usual: 1,
        placement: Placement::Loops,
        takes_times: true,
        generate: |shape| generate::zb_h2(shape.ranks, shape.micro_batches),
    },
    KindInfo {
        kind: ScheduleKind::ZbV,
        name: "zb-v",
        purpose: Purpose::Train,
        summary: "two chunks a rank as a V: no rank waits once begun, 2p half-size activations in flight",
        paper: "arXiv 2401.10241",
        chunks: (2, 2),
        chunks_usual: 2,
        placement: Placement::V,
        takes_times: true,
        generate: |shape| generate::zb_v(shape.ranks, shape.micro_batches),
    },
    KindInfo {
        kind: ScheduleKind::DualPipeV,
        name: "dualpipe-v",
        purpose: Purpose::Train,
        summary: "a V in which each F stands beside a B and W; 2p + 1 half-size activations in flight",
        paper: "arXiv 2412.19437",
        chunks: (2, 2),
        chunks_usual: 2,
        placement: Placement::V,
        takes_times: false,
        generate: |shape| generate::dual_pipe_v(shape.ranks, shape.micro_batches),
    },
    KindInfo {
        kind: ScheduleKind::ForwardOnly,
        name: "forward-only",
        purpose: Purpose::Evaluate,
        summary: "forwards for evaluation; nothing in flight",
        paper: "",
        chunks: (1, 1),
        chunks_usual: 1,
        placement: Placement::Loops,
        takes_times: false,
        generate: |shape| generate::forward_only(shape.ranks, shape.micro_batches),
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

    /// The compute-only lists of this kind, with its usual number of stages on each rank; see
    /// [`ScheduleKind::generate_shape`].
    ///
    /// # Errors
    /// As [`ScheduleKind::generate_shape`].
    pub fn generate(self, ranks: usize, micro_batches: usize) -> Result<Schedule, ScheduleError> {
        self.generate_shape(Shape { ranks, chunks: self.info().chunks_usual, micro_batches })
    }

    /// The compute-only lists of this kind; the declared bounds of activations in flight are in
    /// [`Schedule::in_flight_max`].
    ///
    /// # Errors
    /// [`ScheduleError::Zero`], [`ScheduleError::TooLarge`]; [`ScheduleError::Chunks`],
    /// [`ScheduleError::Groups`] or [`ScheduleError::Few`] if the kind is not defined for so many stages
    /// on a rank, or so many micro-batches.
    pub fn generate_shape(self, shape: Shape) -> Result<Schedule, ScheduleError> {
        self.check_shape(&shape)?;
        (self.info().generate)(shape)
    }

    /// The compute-only lists of this kind for stages whose F, B and W take these times. Where they take equally long,
    /// the lists are those of [`ScheduleKind::generate_shape`]. Else they may be others with a shorter step, which keep
    /// no more activations.
    ///
    /// # Errors
    /// As [`ScheduleKind::generate_shape`], or [`ScheduleError::Untimed`].
    pub fn generate_for(
        self,
        shape: Shape,
        times: &UniformStage,
    ) -> Result<Schedule, ScheduleError> {
        if !self.info().takes_times {
            return Err(untimed(self.name()));
        }
        generate::fit(self.generate_shape(shape)?, times)
    }

    /// The stage that is chunk `chunk` of a rank: in loops, or as a V. With [`Shape::ranks`] ranks of [`Shape::chunks`]
    /// chunks each, every stage has one place.
    pub fn stage_of(self, shape: &Shape, rank: usize, chunk: usize) -> usize {
        chunk * shape.ranks + self.mirrored(shape, rank, chunk)
    }

    /// The rank that has a stage.
    pub fn rank_of(self, shape: &Shape, stage: usize) -> usize {
        self.mirrored(shape, stage % shape.ranks, stage / shape.ranks)
    }

    /// The rank of each stage.
    pub fn placement(self, shape: &Shape) -> Vec<usize> {
        (0..shape.stages()).map(|stage| self.rank_of(shape, stage)).collect()
    }

    /// Which rank has the `place`-th stage of a chunk; and, the other way round, which stage a rank has.
    fn mirrored(self, shape: &Shape, place: usize, chunk: usize) -> usize {
        let is_on_the_way_up = self.info().placement == Placement::V && chunk % 2 == 1;
        if is_on_the_way_up { shape.ranks - 1 - place } else { place }
    }

    /// Says whether the kind is defined for a shape.
    ///
    /// # Errors
    /// As [`ScheduleKind::generate_shape`].
    pub fn check_shape(self, shape: &Shape) -> Result<(), ScheduleError> {
        shape.check()?;
        let (fewest, most) = self.info().chunks;
        let (asked, nearest) = (shape.chunks, shape.chunks.clamp(fewest, most));
        if asked != nearest {
            return Err(ScheduleError::Chunks { name: self.name(), asked, fewest, most, nearest });
        }
        let (ranks, asked) = (shape.ranks, shape.micro_batches);
        let in_groups = self == ScheduleKind::Interleaved && shape.chunks > 1;
        if in_groups && !asked.is_multiple_of(ranks) {
            let nearest = ((asked + ranks / 2) / ranks).max(1) * ranks;
            return Err(ScheduleError::Groups { name: self.name(), ranks, asked, nearest });
        }
        let nearest = 2 * ranks;
        if self == ScheduleKind::DualPipeV && asked < nearest {
            return Err(ScheduleError::Few { name: self.name(), ranks, asked, nearest });
        }
        Ok(())
    }
}

/// The error of a schedule that takes no times.
pub(crate) fn untimed(name: &str) -> ScheduleError {
    let all: Vec<&str> =
        KINDS.iter().filter(|info| info.takes_times).map(|info| info.name).collect();
    ScheduleError::Untimed { name: name.to_owned(), all: all.join(", ") }
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
