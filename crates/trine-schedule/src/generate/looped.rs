//! Several stages on each rank, placed in loops: rank r of p holds the stages r, r + p, r + 2p, ….

use super::{Shape, backward, forward, one_f_one_b, schedule};
use crate::{Action, Schedule, ScheduleError, ScheduleKind};

/// Interleaved 1F1B (Narayanan et al., arXiv 2104.04473): 1F1B over the chunks of a rank, so that the
/// pipeline fills and drains in a `chunks`-th of the time, for that many times the messages.
///
/// Micro-batches go through in groups of p, each group through all chunks before the next. Rank r keeps
/// min(2 (p − r − 1) + (v − 1) p + 1, v m) activations, each of a v-th of its layers. With one chunk
/// the schedule is 1F1B.
///
/// # Errors
/// [`ScheduleError::Zero`], [`ScheduleError::TooLarge`], [`ScheduleError::Chunks`], or
/// [`ScheduleError::Groups`] if there are several chunks and m is no multiple of p.
pub fn interleaved(
    ranks: usize,
    chunks: usize,
    micro_batches: usize,
) -> Result<Schedule, ScheduleError> {
    let (kind, shape) = (ScheduleKind::Interleaved, Shape { ranks, chunks, micro_batches });
    kind.check_shape(&shape)?;
    if chunks == 1 {
        return Ok(Schedule { name: kind.name().into(), ..one_f_one_b(ranks, micro_batches)? });
    }
    let order = grouped(&shape);
    let warm_up = |rank: usize| 2 * (ranks - rank - 1) + (chunks - 1) * ranks;
    let list = |rank: usize| {
        let stage = |chunk: usize| chunk * ranks + rank;
        let forwards = order.iter().map(|&(chunk, i)| forward(stage(chunk), i));
        let backwards = order.iter().map(|&(chunk, i)| backward(stage(chunks - 1 - chunk), i));
        let mut backwards = backwards.fuse();
        let mut list = Vec::with_capacity(3 * order.len());
        for (index, forward) in forwards.enumerate() {
            list.push(forward);
            if index >= warm_up(rank) {
                list.extend(backwards.next().into_iter().flatten());
            }
        }
        list.extend(backwards.flatten());
        list
    };
    schedule(kind, shape, list)
}

/// (chunk, micro-batch) in the order of the forwards: groups of as many micro-batches as ranks, each
/// through all chunks.
fn grouped(shape: &Shape) -> Vec<(usize, usize)> {
    let mut order = Vec::with_capacity(shape.chunks * shape.micro_batches);
    for first in (0..shape.micro_batches).step_by(shape.ranks) {
        for chunk in 0..shape.chunks {
            order.extend((first..first + shape.ranks).map(|micro_batch| (chunk, micro_batch)));
        }
    }
    order
}

/// Breadth-first (Lamy-Poirier, arXiv 2211.05953): all micro-batches go through a chunk before any
/// goes through the next, and back in the same way.
///
/// As short a bubble as interleaved 1F1B for any number of micro-batches from p on, and each chunk's
/// weights are needed, and its gradients complete, in one piece: what fully sharded data parallelism
/// wants. Every rank keeps all v m activations. With one chunk the schedule is GPipe.
///
/// # Errors
/// [`ScheduleError::Zero`], [`ScheduleError::TooLarge`] or [`ScheduleError::Chunks`].
pub fn breadth_first(
    ranks: usize,
    chunks: usize,
    micro_batches: usize,
) -> Result<Schedule, ScheduleError> {
    let shape = Shape { ranks, chunks, micro_batches };
    let stages = |rank: usize| (0..chunks).map(move |chunk| chunk * ranks + rank);
    let list = |rank: usize| -> Vec<Action> {
        let all = |stage: usize| (0..micro_batches).map(move |i| (stage, i));
        let forwards = stages(rank).flat_map(all).map(|(stage, i)| forward(stage, i));
        let backwards = stages(rank).rev().flat_map(all).flat_map(|(stage, i)| backward(stage, i));
        forwards.chain(backwards).collect()
    };
    schedule(ScheduleKind::BreadthFirst, shape, list)
}
