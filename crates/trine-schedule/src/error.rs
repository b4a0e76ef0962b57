//! The errors of this crate, except the verifier's.

use crate::{ParseError, VerifyError};

/// What can be wrong with a schedule, or with what one asks of it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ScheduleError {
    /// A generator was asked for nothing.
    #[error("{stages} stages × {micro_batches} micro-batches: each must be at least 1")]
    Zero {
        /// Stages asked for.
        stages: usize,
        /// Micro-batches asked for.
        micro_batches: usize,
    },
    /// A generator was asked for more than fits in memory.
    #[error(
        "{stages} stages × {micro_batches} micro-batches are more than {max} pairs; \
         with {stages} stages, at most {nearest} micro-batches"
    )]
    TooLarge {
        /// Stages asked for.
        stages: usize,
        /// Micro-batches asked for.
        micro_batches: usize,
        /// The most (stage, micro-batch) pairs a schedule may have.
        max: usize,
        /// The most micro-batches that are possible with that many stages.
        nearest: usize,
    },
    /// A kind of schedule is not defined for so many stages on a rank.
    #[error("{name} has {} on each rank, not {asked}; the nearest is {nearest}", stages(*fewest, *most))]
    Chunks {
        /// The kind's name.
        name: &'static str,
        /// Stages of a rank asked for.
        asked: usize,
        /// The fewest it may have.
        fewest: usize,
        /// The most it may have.
        most: usize,
        /// The nearest number it may have.
        nearest: usize,
    },
    /// A kind of schedule takes micro-batches in groups of as many as there are ranks.
    #[error(
        "{name} takes micro-batches in multiples of its {ranks} ranks, not {asked}; \
         the nearest is {nearest}"
    )]
    Groups {
        /// The kind's name.
        name: &'static str,
        /// Pipeline ranks.
        ranks: usize,
        /// Micro-batches asked for.
        asked: usize,
        /// The nearest number of micro-batches.
        nearest: usize,
    },
    /// A kind of schedule takes at least two micro-batches for each rank.
    #[error(
        "{name} takes at least {nearest} micro-batches on {ranks} ranks, not {asked}; the nearest is \
         {nearest}"
    )]
    Few {
        /// The kind's name.
        name: &'static str,
        /// Pipeline ranks.
        ranks: usize,
        /// Micro-batches asked for.
        asked: usize,
        /// The fewest micro-batches.
        nearest: usize,
    },
    /// No schedule has this name.
    #[error("no schedule is called `{asked}`; did you mean `{nearest}`? There are: {all}")]
    UnknownKind {
        /// The name asked for.
        asked: String,
        /// The nearest name.
        nearest: &'static str,
        /// All names.
        all: String,
    },
    /// The parts of a schedule or of a plan do not fit together.
    #[error("the schedule does not fit together: {what}")]
    Shape {
        /// What does not fit.
        what: String,
    },
    /// A lowering pass met an action that an earlier or the same pass should have added.
    #[error(
        "rank {rank}, position {position}: `{action}` is there already; this pass takes {expected}"
    )]
    Lowered {
        /// The rank whose list holds it.
        rank: usize,
        /// Its position in that list.
        position: usize,
        /// The action.
        action: crate::Action,
        /// What the pass takes.
        expected: &'static str,
    },
    /// The lists cannot be executed: ranks wait for what never comes.
    #[error("the schedule cannot be executed: {what}\n{grid}")]
    Stuck {
        /// Where every waiting rank is.
        what: String,
        /// The step × rank grid, the waiting actions marked.
        grid: String,
    },
    /// A cost is negative or not a number.
    #[error("rank {rank}, position {position}: a cost of {value}; costs are finite and at least 0")]
    Cost {
        /// The rank whose action it is.
        rank: usize,
        /// Its position in that rank's list.
        position: usize,
        /// The cost given.
        value: f64,
    },
    /// A text is not a schedule.
    #[error(transparent)]
    Parse(#[from] ParseError),
    /// A schedule is wrong.
    #[error(transparent)]
    Verify(#[from] VerifyError),
}

/// `2 stages`, or `1 to 4 stages`.
fn stages(fewest: usize, most: usize) -> String {
    match (fewest, most) {
        (1, 1) => "1 stage".into(),
        (fewest, most) if fewest == most => format!("{fewest} stages"),
        (fewest, most) => format!("{fewest} to {most} stages"),
    }
}
