//! One stage on each rank, B and W together.

use super::{Shape, backward, forward, schedule};
use crate::{Schedule, ScheduleError, ScheduleKind};

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
    let shape = Shape::plain(stages, micro_batches);
    schedule(ScheduleKind::GPipe, shape, |stage| stage, list)
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
    let shape = Shape::plain(stages, micro_batches);
    schedule(ScheduleKind::OneFOneB, shape, |stage| stage, list)
}

/// Evaluation: forwards only, nothing kept.
///
/// # Errors
/// [`ScheduleError::Zero`] or [`ScheduleError::TooLarge`].
pub fn forward_only(stages: usize, micro_batches: usize) -> Result<Schedule, ScheduleError> {
    let list = |rank| (0..micro_batches).map(|i| forward(rank, i)).collect();
    let shape = Shape::plain(stages, micro_batches);
    schedule(ScheduleKind::ForwardOnly, shape, |stage| stage, list)
}
