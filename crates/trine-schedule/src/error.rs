//! The errors of this crate, except the verifier's.

use crate::parse::line_of;
use crate::{Action, ParseError, VerifyError};
use trine_mesh::plural;

/// What can be wrong with a schedule, or with what one asks of it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ScheduleError {
    /// A generator was asked for nothing.
    #[error("{}: each must be at least 1", pairs(*stages, *micro_batches))]
    Zero {
        /// Stages asked for.
        stages: usize,
        /// Micro-batches asked for.
        micro_batches: usize,
    },
    /// A generator was asked for more than fits in memory.
    #[error(
        "{} are more than {max} pairs; with so many stages, at most {nearest} {}",
        pairs(*stages, *micro_batches), plural(*nearest as u64, "micro-batch")
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
        "{name} takes at least {nearest} micro-batches on {ranks} {}, not {asked}; the nearest is \
         {nearest}", plural(*ranks as u64, "rank")
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
    /// Times of F, B, W and a message that there cannot be.
    #[error(
        "times {times:?}: F, B and W take more than 0, a message 0 or more, and all are finite"
    )]
    Times {
        /// The times given.
        times: [f64; 4],
    },
    /// Another number of times than four.
    #[error("{0} times; F, B, W and a message are four")]
    TimesCount(usize),
    /// A schedule is the same for all times.
    #[error("{name} is made without times; those that take them: {all}")]
    Untimed {
        /// Its name.
        name: String,
        /// The kinds that take times.
        all: String,
    },
    /// A schedule of one's own has another shape.
    #[error("the schedule {name} is for {has} {}, not {asked}", plural(*has as u64, what))]
    OtherShape {
        /// Its name.
        name: String,
        /// What there is another number of.
        what: &'static str,
        /// How many it has.
        has: usize,
        /// How many were asked for.
        asked: usize,
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
    /// The forwards of a stage stand in the lists of two ranks.
    #[error(
        "rank {rank}, position {position}: `{action}`, but the forwards of stage {} before it are on rank {home}; \
         a stage has one rank",
        action.stage()
    )]
    TwoHomes {
        /// The second rank.
        rank: usize,
        /// The position in its list.
        position: usize,
        /// The forward there.
        action: Action,
        /// The first rank.
        home: usize,
    },
    /// A run was given a schedule that reduces gradients itself.
    #[error(
        "it reduces gradients ({what}), which a run adds for its own buckets; leave out `segments`, `tied`, \
         every T, G and A, and the segments behind B and W"
    )]
    Reduces {
        /// Where it says so.
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
        action: Action,
        /// What the pass takes.
        expected: &'static str,
    },
    /// The lists cannot be executed: ranks wait for what never comes.
    #[error("the schedule cannot be executed: {what}\n{grid}")]
    Stuck {
        /// Which action of each rank waits for which.
        what: String,
        /// The first that waits, with its rank (boxed: errors travel through many returns).
        first: Option<Box<(usize, Action)>>,
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

impl ScheduleError {
    /// The error of a schedule that was read from `text`, with the line of the action that it is about.
    pub fn in_text(&self, text: &str) -> String {
        let line = self.place().and_then(|(rank, action)| line_of(text, rank, action));
        line.map_or_else(|| self.to_string(), |line| format!("line {line}: {self}"))
    }

    /// The action that it is about, with its rank.
    fn place(&self) -> Option<(usize, Action)> {
        match self {
            Self::Lowered { rank, action, .. } | Self::TwoHomes { rank, action, .. } => {
                Some((*rank, *action))
            }
            Self::Stuck { first, .. } => first.as_deref().copied(),
            Self::Verify(VerifyError { rank, action, .. }) => Some(((*rank)?, **action.as_ref()?)),
            Self::Zero { .. }
            | Self::TooLarge { .. }
            | Self::Chunks { .. }
            | Self::Groups { .. }
            | Self::Few { .. }
            | Self::Times { .. }
            | Self::TimesCount(_)
            | Self::Untimed { .. }
            | Self::OtherShape { .. }
            | Self::UnknownKind { .. }
            | Self::Shape { .. }
            | Self::Reduces { .. }
            | Self::Cost { .. }
            | Self::Parse(_) => None,
        }
    }
}

/// `2 stages`, or `1 to 4 stages`.
fn stages(fewest: usize, most: usize) -> String {
    match (fewest, most) {
        (fewest, most) if fewest == most => format!("{fewest} {}", plural(most as u64, "stage")),
        (fewest, most) => format!("{fewest} to {most} stages"),
    }
}

/// `4 stages × 8 micro-batches`.
fn pairs(stages: usize, micro_batches: usize) -> String {
    let (stage, micro_batch) =
        (plural(stages as u64, "stage"), plural(micro_batches as u64, "micro-batch"));
    format!("{stages} {stage} × {micro_batches} {micro_batch}")
}
