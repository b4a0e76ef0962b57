//! Generators: pure functions from a pipeline's shape to compute-only lists.
//!
//! They know nothing of messages or reductions; [`crate::lower()`] adds those.

mod looped;
mod plain;
mod timed;
mod zero_bubble;

pub use looped::{breadth_first, interleaved};
pub use plain::{forward_only, forward_only_on, gpipe, one_f_one_b};
pub(crate) use timed::fit;
pub use zero_bubble::{dual_pipe_v, zb_h1, zb_h2, zb_v};

use crate::{Action, Compute, Schedule, ScheduleError, ScheduleKind};

/// More pairs of stage and micro-batch than this are refused (the lists would not fit in memory).
const PAIRS_MAX: usize = 1 << 24;

/// How long a pipeline is and how much goes through it in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Pipeline ranks.
    pub ranks: usize,
    /// Stages of each rank (virtual stages).
    pub chunks: usize,
    /// Micro-batches of a step.
    pub micro_batches: usize,
}

impl Shape {
    /// The most pairs of stage and micro-batch of a step that is trained: its lists are made in about a second.
    pub const STEP_PAIRS_MAX: usize = 1 << 18;

    /// The most ranks of a pipeline that is trained: the time to lower its lists grows with their square.
    pub const STEP_RANKS_MAX: usize = 1 << 10;

    /// Whether a step of this shape is refused, because its lists would take too long to make.
    pub fn is_too_long(&self) -> bool {
        let pairs = self.stages().saturating_mul(self.micro_batches);
        pairs > Self::STEP_PAIRS_MAX || self.ranks > Self::STEP_RANKS_MAX
    }

    /// One stage on each rank.
    pub fn plain(stages: usize, micro_batches: usize) -> Self {
        Self { ranks: stages, chunks: 1, micro_batches }
    }

    /// Stages of all ranks together.
    pub fn stages(&self) -> usize {
        self.ranks.saturating_mul(self.chunks)
    }

    /// Checks that lists of this shape exist and fit in memory.
    ///
    /// # Errors
    /// [`ScheduleError::Zero`] or [`ScheduleError::TooLarge`].
    pub fn check(&self) -> Result<(), ScheduleError> {
        let (stages, micro_batches) = (self.stages(), self.micro_batches);
        if stages == 0 || micro_batches == 0 {
            return Err(ScheduleError::Zero { stages, micro_batches });
        }
        if stages.saturating_mul(micro_batches) > PAIRS_MAX {
            let nearest = PAIRS_MAX / stages;
            return Err(ScheduleError::TooLarge { stages, micro_batches, max: PAIRS_MAX, nearest });
        }
        Ok(())
    }
}

fn forward(stage: usize, micro_batch: usize) -> Action {
    Compute::Forward { stage, micro_batch }.into()
}

fn backward_input(stage: usize, micro_batch: usize) -> Action {
    Compute::BackwardInput { stage, micro_batch, segment: None }.into()
}

fn backward_weight(stage: usize, micro_batch: usize) -> Action {
    Compute::BackwardWeight { stage, micro_batch, segment: None }.into()
}

/// B and W back to back: what F kept is still warm, and is freed at once.
fn backward(stage: usize, micro_batch: usize) -> [Action; 2] {
    [backward_input(stage, micro_batch), backward_weight(stage, micro_batch)]
}

/// Puts a schedule together.
fn schedule(
    kind: ScheduleKind,
    shape: Shape,
    list: impl Fn(usize) -> Vec<Action>,
) -> Result<Schedule, ScheduleError> {
    kind.check_shape(&shape)?;
    Ok(Schedule {
        name: kind.name().to_owned(),
        purpose: kind.info().purpose,
        micro_batches: shape.micro_batches,
        placement: kind.placement(&shape),
        in_flight_max: (0..shape.ranks).map(|rank| kind.in_flight_max(&shape, rank)).collect(),
        sync: None,
        actions: (0..shape.ranks).map(list).collect(),
    })
}
