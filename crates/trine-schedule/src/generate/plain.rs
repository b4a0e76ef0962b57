//! One stage on each rank, B and W together.

use super::{Shape, backward, forward, schedule};
use crate::{Action, Schedule, ScheduleError, ScheduleKind};

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
    schedule(ScheduleKind::GPipe, shape, list)
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
    schedule(ScheduleKind::OneFOneB, shape, list)
}

/// Evaluation: forwards only, nothing kept.
///
/// # Errors
/// [`ScheduleError::Zero`] or [`ScheduleError::TooLarge`].
pub fn forward_only(stages: usize, micro_batches: usize) -> Result<Schedule, ScheduleError> {
    forward_only_on(&(0..stages).collect::<Vec<_>>(), micro_batches)
}

/// Evaluation where stages lie as in a training schedule: on rank `placement[stage]`, with every rank from 0 on in it.
/// Micro-batches go through in groups of as many as there are ranks, each group through all stages before the next.
///
/// # Errors
/// [`ScheduleError::Zero`] or [`ScheduleError::TooLarge`].
pub fn forward_only_on(
    placement: &[usize],
    micro_batches: usize,
) -> Result<Schedule, ScheduleError> {
    Shape::plain(placement.len(), micro_batches).check()?;
    let kind = ScheduleKind::ForwardOnly;
    let ranks = placement.iter().max().map_or(0, |last| last + 1);
    let list = |rank: usize| -> Vec<Action> {
        let groups = (0..micro_batches).step_by(ranks);
        let of_group = |first: usize| {
            let held = placement.iter().enumerate().filter(|(_, home)| **home == rank);
            let last = (first + ranks).min(micro_batches);
            held.flat_map(move |(stage, _)| (first..last).map(move |i| forward(stage, i)))
        };
        groups.flat_map(of_group).collect()
    };
    Ok(Schedule {
        name: kind.name().to_owned(),
        purpose: kind.info().purpose,
        micro_batches,
        placement: placement.to_vec(),
        in_flight_max: vec![0; ranks],
        sync: None,
        actions: (0..ranks).map(list).collect(),
    })
}
