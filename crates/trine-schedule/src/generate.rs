//! Generators: pure functions from a number of stages and micro-batches to compute-only lists.
//!
//! They know nothing of messages or reductions; [`crate::lower()`] adds those. In the generators of
//! this file stage and rank coincide.

use crate::{Action, Purpose, Schedule, ScheduleError};

/// More pairs of stage and micro-batch than this are refused (the lists would not fit in memory).
const PAIRS_MAX: usize = 1 << 24;

/// GPipe (Huang et al., arXiv 1811.06965): all forwards, then all backwards.
///
/// Every rank keeps the activations of all micro-batches. Backward takes the micro-batches in
/// forward order, so that gradients add up in the same order in every schedule.
///
/// # Errors
/// [`ScheduleError::Zero`] or [`ScheduleError::TooLarge`].
pub fn gpipe(stages: usize, micro_batches: usize) -> Result<Schedule, ScheduleError> {
    let list = |rank| {
        let forwards = (0..micro_batches).map(move |i| forward(rank, i));
        let backwards = (0..micro_batches).flat_map(move |i| backward(rank, i));
        forwards.chain(backwards).collect()
    };
    schedule("gpipe", Purpose::Train, stages, micro_batches, |_| micro_batches, list)
}

/// 1F1B, PipeDream-Flush (Narayanan et al., arXiv 2006.09503): after a warm-up that fills the
/// pipeline, each forward is followed by a backward.
///
/// As fast as GPipe, but rank r of p keeps the activations of only min(p − r, m) micro-batches.
///
/// # Errors
/// [`ScheduleError::Zero`] or [`ScheduleError::TooLarge`].
pub fn one_f_one_b(stages: usize, micro_batches: usize) -> Result<Schedule, ScheduleError> {
    let list = |rank: usize| {
        let warm_up = (stages - rank - 1).min(micro_batches);
        let warm = (0..warm_up).map(move |i| forward(rank, i));
        let steady = (warm_up..micro_batches).flat_map(move |i| {
            std::iter::once(forward(rank, i)).chain(backward(rank, i - warm_up))
        });
        let cool_down = micro_batches - warm_up..micro_batches;
        warm.chain(steady).chain(cool_down.flat_map(move |i| backward(rank, i))).collect()
    };
    let in_flight_max = |rank| micro_batches.min(stages - rank);
    schedule("1f1b", Purpose::Train, stages, micro_batches, in_flight_max, list)
}

/// Evaluation: forwards only, nothing kept.
///
/// # Errors
/// [`ScheduleError::Zero`] or [`ScheduleError::TooLarge`].
pub fn forward_only(stages: usize, micro_batches: usize) -> Result<Schedule, ScheduleError> {
    let list = |rank| (0..micro_batches).map(|i| forward(rank, i)).collect();
    schedule("forward-only", Purpose::Evaluate, stages, micro_batches, |_| 0, list)
}

fn forward(stage: usize, micro_batch: usize) -> Action {
    Action::Forward { stage, micro_batch }
}

/// B and W back to back: what F kept is still warm, and is freed at once.
fn backward(stage: usize, micro_batch: usize) -> [Action; 2] {
    [
        Action::BackwardInput { stage, micro_batch, segment: None },
        Action::BackwardWeight { stage, micro_batch, segment: None },
    ]
}

fn schedule(
    name: &str,
    purpose: Purpose,
    stages: usize,
    micro_batches: usize,
    in_flight_max: impl Fn(usize) -> usize,
    list: impl Fn(usize) -> Vec<Action>,
) -> Result<Schedule, ScheduleError> {
    if stages == 0 || micro_batches == 0 {
        return Err(ScheduleError::Zero { stages, micro_batches });
    }
    if stages.saturating_mul(micro_batches) > PAIRS_MAX {
        let nearest = PAIRS_MAX / stages;
        return Err(ScheduleError::TooLarge { stages, micro_batches, max: PAIRS_MAX, nearest });
    }
    Ok(Schedule {
        name: name.to_owned(),
        purpose,
        micro_batches,
        placement: (0..stages).collect(),
        in_flight_max: (0..stages).map(in_flight_max).collect(),
        sync: None,
        actions: (0..stages).map(list).collect(),
    })
}
