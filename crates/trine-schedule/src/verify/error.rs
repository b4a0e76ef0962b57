//! What the verifier says.

use std::fmt;

use crate::grid::grid;
use crate::{Action, Delivery, Schedule};

/// What is wrong with a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum VerifyErrorKind {
    /// Its parts do not fit together.
    Shape,
    /// A stage, micro-batch, segment or peer does not exist, or is not where the action says.
    OutOfPlace,
    /// The action has no business in this schedule (a backward in an evaluation, a reduction without
    /// a plan).
    Unexpected,
    /// F, B or W of a micro-batch is missing.
    Missing,
    /// Something is done twice.
    Duplicate,
    /// F, B and W of a micro-batch, or its segments, are in the wrong order.
    Order,
    /// A message is sent that its receiver never receives.
    UnmatchedSend,
    /// A message is received that its sender never sends.
    UnmatchedReceive,
    /// Two ranks send and receive the same messages in different orders.
    TransferOrder,
    /// F or B runs before its input is there.
    MissingInput,
    /// A message is sent before its content is computed.
    SendTooEarly,
    /// More activations in flight than declared.
    InFlightAboveBound,
    /// Fewer activations in flight than declared: the bound is looser than it must be.
    InFlightBelowBound,
    /// Ranks wait for each other for ever.
    Deadlock(Delivery),
    /// A bucket, or the tied parameter, is never reduced.
    MissingReduce,
    /// A bucket is reduced before its last W.
    ReduceTooEarly,
    /// A tied bucket is reduced over the replicas before it is summed over its copies.
    TiedAfterReduce,
    /// A posted reduction is never awaited.
    MissingAwait,
    /// A reduction is awaited before it is posted.
    AwaitTooEarly,
    /// Two ranks order the collectives of overlapping groups differently.
    CollectiveOrder,
}

impl fmt::Display for VerifyErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shape => "the schedule does not fit together",
            Self::OutOfPlace => "action out of place",
            Self::Unexpected => "unexpected action",
            Self::Missing => "action missing",
            Self::Duplicate => "done twice",
            Self::Order => "wrong order",
            Self::UnmatchedSend => "send without receive",
            Self::UnmatchedReceive => "receive without send",
            Self::TransferOrder => "messages in different orders",
            Self::MissingInput => "input not there",
            Self::SendTooEarly => "sent before it is computed",
            Self::InFlightAboveBound => "more activations in flight than declared",
            Self::InFlightBelowBound => "fewer activations in flight than declared",
            Self::Deadlock(Delivery::Buffered) => "deadlock with buffered sends",
            Self::Deadlock(Delivery::Rendezvous) => "deadlock with rendezvous sends",
            Self::MissingReduce => "gradient never reduced",
            Self::ReduceTooEarly => "gradient reduced too early",
            Self::TiedAfterReduce => "tied gradient reduced before its copies are summed",
            Self::MissingAwait => "reduction never awaited",
            Self::AwaitTooEarly => "reduction awaited before it is posted",
            Self::CollectiveOrder => "collectives in different orders",
        })
    }
}

/// Why a schedule is wrong, where, and what was expected there.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct VerifyError {
    /// What is wrong.
    pub kind: VerifyErrorKind,
    /// The rank in whose list it was found, if it was found in one.
    pub rank: Option<usize>,
    /// The position in that list.
    pub position: Option<usize>,
    /// The action there (boxed: errors travel through many returns).
    pub action: Option<Box<Action>>,
    /// What was expected.
    pub expected: String,
    /// The step × rank grid around the place, the offending cells marked.
    pub grid: String,
}

impl VerifyError {
    /// The action at `position` of `rank` is wrong.
    pub(super) fn at(
        schedule: &Schedule,
        kind: VerifyErrorKind,
        (rank, position): (usize, usize),
        expected: String,
    ) -> Self {
        Self::marked(schedule, kind, &[(rank, position)], expected)
    }

    /// The actions at `cells` are wrong together; the first is the one reported.
    pub(super) fn marked(
        schedule: &Schedule,
        kind: VerifyErrorKind,
        cells: &[(usize, usize)],
        expected: String,
    ) -> Self {
        let first = cells.first().copied();
        Self {
            kind,
            rank: first.map(|cell| cell.0),
            position: first.map(|cell| cell.1),
            action: first.and_then(|(rank, position)| {
                schedule.actions.get(rank)?.get(position).copied().map(Box::new)
            }),
            expected,
            grid: grid(schedule, cells),
        }
    }

    /// Something is missing in the list of `rank`.
    pub(super) fn missing(
        schedule: &Schedule,
        kind: VerifyErrorKind,
        rank: usize,
        expected: String,
    ) -> Self {
        let end = schedule.actions[rank].len();
        Self { position: None, ..Self::marked(schedule, kind, &[(rank, end)], expected) }
    }
}

impl fmt::Display for VerifyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.kind)?;
        if let Some(rank) = self.rank {
            write!(f, "rank {rank}, ")?;
        }
        if let Some(position) = self.position {
            write!(f, "position {position}, ")?;
        }
        if let Some(action) = &self.action {
            write!(f, "`{action}`: ")?;
        }
        write!(f, "expected {}", self.expected)?;
        if !self.grid.is_empty() {
            write!(f, "\n{}", self.grid)?;
        }
        Ok(())
    }
}

impl std::error::Error for VerifyError {}
