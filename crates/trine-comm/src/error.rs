//! What can go wrong between ranks. Every message stands alone: it names the ranks, the
//! operations, their sequence numbers and their call sites.

use crate::diagnosis::ranks;
use crate::{Call, Site};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use trine_buffer::BufferError;
use trine_mesh::{AxisSet, MeshError};

/// The first failure of a world: what stopped everybody else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// World rank that failed, or that found the failure.
    pub rank: usize,
    /// What it said.
    pub message: Arc<str>,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {}: {}", self.rank, self.message)
    }
}

/// A rank that an operation waits for, and what it does instead of coming.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// World rank.
    pub rank: usize,
    /// What it is doing.
    pub state: RankState,
}

/// What a rank is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RankState {
    /// Something other than waiting; its latest operation, if any.
    Running(Option<Box<Call>>),
    /// Waiting in an operation.
    Waiting(Box<Call>),
    /// It has returned.
    Finished,
    /// A process that has not come; the latest that has been heard of it, if anything.
    Unheard(Option<Box<str>>),
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.state {
            RankState::Running(None) => {
                write!(f, "rank {} is running and has not called anything yet", self.rank)
            }
            RankState::Running(Some(call)) => {
                write!(f, "rank {} is running; its latest call was: {call}", self.rank)
            }
            RankState::Waiting(call) => write!(f, "{call} (waiting)"),
            RankState::Finished => write!(f, "rank {} has finished", self.rank),
            RankState::Unheard(None) => write!(f, "rank {} has not been heard of yet", self.rank),
            RankState::Unheard(Some(latest)) => {
                write!(f, "rank {} has not come; the latest heard of it: {latest}", self.rank)
            }
        }
    }
}

/// A rank that can never go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stuck {
    /// The operation in which it waits.
    pub call: Call,
    /// World ranks that it waits for.
    pub waits_for: Vec<usize>,
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, waits for {}", self.call, ranks(&self.waits_for))
    }
}

/// One item a line, indented.
fn lines<T: fmt::Display>(items: &[T]) -> String {
    items.iter().map(|item| format!("\n  {item}")).collect()
}

/// Why an operation failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommError {
    /// Ranks that should do the same thing do different things.
    #[error("ranks disagree on operation #{sequence} of group {group}:{}", lines(calls))]
    Mismatch {
        /// The group, such as `tp[4,5]`.
        group: String,
        /// The operation's number.
        sequence: u64,
        /// What each rank called, as far as they have come.
        calls: Vec<Call>,
    },
    /// A rank of another process does something else: what both said of themselves.
    #[error("ranks disagree on operation #{} of group {}:\n  {own}\n  {theirs}", own.sequence, own.group)]
    Conflict {
        /// This rank's call.
        own: Box<Call>,
        /// The other one's, as it described it.
        theirs: String,
    },
    /// What carries the messages failed.
    #[error("{backend}: {message}")]
    Backend {
        /// Whose message it is, such as `MPI_Isend`.
        backend: &'static str,
        /// What it said.
        message: String,
    },
    /// Ranks wait for each other in a circle, or for ranks that have finished.
    #[error(
        "deadlock: {} can never go on:{}{}", ranks(&stuck.iter().map(|s| s.call.rank).collect::<Vec<_>>()),
        lines(stuck), lines(&finished.iter().map(|rank| format!("rank {rank} has finished")).collect::<Vec<_>>())
    )]
    Deadlock {
        /// Every rank that is stuck.
        stuck: Vec<Stuck>,
        /// The ranks among those waited for that have returned.
        finished: Vec<usize>,
    },
    /// A rank that still runs did not come in time.
    #[error("{call}: waited {waited:.1?} for:{}", lines(missing))]
    Deadline {
        /// The operation in which the rank waited.
        call: Box<Call>,
        /// How long it waited.
        waited: Duration,
        /// Who did not come.
        missing: Vec<Missing>,
    },
    /// Elements arrived that were not sent.
    #[error(
        "{call}: its elements were altered on the way: checksum {found:016x} instead of {sent:016x}"
    )]
    Corrupt {
        /// The sender's side of the operation.
        call: Box<Call>,
        /// The checksum that it was sealed with.
        sent: u64,
        /// The checksum of what arrived.
        found: u64,
    },
    /// Another rank failed first.
    #[error("stopped by {cause}")]
    Aborted {
        /// The first failure.
        cause: Cause,
    },
    /// The buffers do not fit the operation.
    #[error("{call}: given {given}; it takes {wanted}")]
    Shape {
        /// The operation.
        call: Box<Call>,
        /// What was given.
        given: String,
        /// What would fit.
        wanted: String,
    },
    /// A peer or root is not one that the operation can have.
    #[error("{call}: rank {rank} within the group is not possible; it takes {wanted}")]
    Rank {
        /// The operation.
        call: Box<Call>,
        /// The index within the group.
        rank: usize,
        /// What would fit.
        wanted: String,
    },
    /// A finished operation lacks a buffer that its caller expects: a wrapper took it away.
    #[error("the operation called at {site} came back without its {which} buffer")]
    Taken {
        /// `send` or `recv`.
        which: &'static str,
        /// The call site.
        site: Site,
    },
    /// A wrapper made the operation fail.
    #[error("{call}: injected failure: {message}")]
    Injected {
        /// The operation.
        call: Box<Call>,
        /// The wrapper's words.
        message: String,
    },
    /// A run has no communicator along these axes.
    #[error(
        "this run has no group along {axes}, only along {}; name the set where the groups are made",
        there.iter().map(AxisSet::to_string).collect::<Vec<_>>().join(", ")
    )]
    NoGroup {
        /// The set asked for.
        axes: AxisSet,
        /// Those there are.
        there: Vec<AxisSet>,
    },
    /// A mesh does not fit the ranks that there are.
    #[error(transparent)]
    Mesh(#[from] MeshError),
    /// A buffer refused.
    #[error(transparent)]
    Buffer(#[from] BufferError),
}

impl CommError {
    /// The world rank that the error is about, where that is another one than the rank that found it.
    pub fn blamed(&self) -> Option<usize> {
        match self {
            Self::Deadline { missing, .. } => missing.first().map(|missing| missing.rank),
            Self::Deadlock { stuck, finished } => {
                finished.first().copied().or_else(|| stuck.first().map(|stuck| stuck.call.rank))
            }
            Self::Corrupt { call, .. } => Some(call.rank),
            Self::Mismatch { .. }
            | Self::Conflict { .. }
            | Self::Backend { .. }
            | Self::Aborted { .. }
            | Self::Shape { .. }
            | Self::Rank { .. }
            | Self::Taken { .. }
            | Self::Injected { .. }
            | Self::NoGroup { .. }
            | Self::Mesh(_)
            | Self::Buffer(_) => None,
        }
    }
}
