//! Zero-bubble schedules (Qi et al., arXiv 2401.10241): W apart from B, put where a rank would wait.

use super::{Shape, backward_input, backward_weight, forward, schedule};
use crate::{Action, Schedule, ScheduleError, ScheduleKind};
use std::collections::VecDeque;

/// ZB-H1: the memory of 1F1B's first rank on every rank, and a third of its bubble when F, B and W
/// take equally long.
///
/// Rank r of p warms up as in 1F1B; W is put off until p micro-batches are in flight.
///
/// # Errors
/// [`ScheduleError::Zero`] or [`ScheduleError::TooLarge`].
pub fn zb_h1(ranks: usize, micro_batches: usize) -> Result<Schedule, ScheduleError> {
    handcrafted(ScheduleKind::ZbH1, ranks, micro_batches, |rank| ranks - rank)
}

/// ZB-H2: with up to 2p − 1 micro-batches in flight, and at least so many in a step, no rank waits
/// between its first and its last action when F, B and W take equally long.
///
/// Ranks still begin and end one after the other. The step as a whole is shorter only if the next
/// one may begin on a rank before the last rank has ended.
///
/// # Errors
/// [`ScheduleError::Zero`] or [`ScheduleError::TooLarge`].
pub fn zb_h2(ranks: usize, micro_batches: usize) -> Result<Schedule, ScheduleError> {
    handcrafted(ScheduleKind::ZbH2, ranks, micro_batches, |rank| 2 * (ranks - rank) - 1)
}

/// F `warm_up(rank)` times, then B and F in turn. W makes room for an F when the kind's bound of
/// micro-batches in flight is reached, and follows each B when no F is left.
fn handcrafted(
    kind: ScheduleKind,
    ranks: usize,
    micro_batches: usize,
    warm_up: impl Fn(usize) -> usize,
) -> Result<Schedule, ScheduleError> {
    let shape = Shape::plain(ranks, micro_batches);
    let list = |rank: usize| {
        let in_flight_max = kind.in_flight_max(&shape, rank);
        let mut forwards = 0..micro_batches;
        let mut weights = 0..micro_batches;
        let mut list = Vec::with_capacity(3 * micro_batches);
        list.extend(forwards.by_ref().take(warm_up(rank)).map(|i| forward(rank, i)));
        for i in 0..micro_batches {
            list.push(backward_input(rank, i));
            if weights.len() - forwards.len() == in_flight_max || forwards.is_empty() {
                list.extend(weights.next().map(|i| backward_weight(rank, i)));
            }
            list.extend(forwards.next().map(|i| forward(rank, i)));
        }
        list.extend(weights.map(|i| backward_weight(rank, i)));
        list
    };
    schedule(kind, shape, list)
}

/// ZB-V: two chunks a rank in the shape of a V, rank r of p holding the stages r and 2p − 1 − r. No
/// rank waits between its first and its last action when F, B and W take equally long and there are
/// at least 2p − 1 micro-batches, with 2p activations of half a rank's layers in flight: the memory of
/// 1F1B's first rank, on every rank.
///
/// # Errors
/// [`ScheduleError::Zero`] or [`ScheduleError::TooLarge`].
pub fn zb_v(ranks: usize, micro_batches: usize) -> Result<Schedule, ScheduleError> {
    let shape = Shape { ranks, chunks: 2, micro_batches };
    let list = |rank| VList::new(rank, ranks, micro_batches).fill();
    schedule(ScheduleKind::ZbV, shape, list)
}

/// DualPipeV: DualPipe (DeepSeek-V3, arXiv 2412.19437) with each rank's second half folded back, so that rank r of p
/// holds the stages r and 2p − 1 − r, as in ZB-V, and no second copy of the weights. In the middle every F of one stage
/// stands beside the B and W of the other, which is what a device may run at once to hide its messages. W leaves its B
/// in the warm-up and at the end only, where ranks would wait.
///
/// At least 2p micro-batches; 2p + 1 activations of half a rank's layers are in flight.
///
/// # Errors
/// [`ScheduleError::Zero`], [`ScheduleError::TooLarge`], or [`ScheduleError::Few`].
pub fn dual_pipe_v(ranks: usize, micro_batches: usize) -> Result<Schedule, ScheduleError> {
    let (kind, shape) = (ScheduleKind::DualPipeV, Shape { ranks, chunks: 2, micro_batches });
    kind.check_shape(&shape)?;
    schedule(kind, shape, |rank| VList::new(rank, ranks, micro_batches).fill_both_ways())
}

/// The list of one rank of a V while it grows.
struct VList {
    /// The stages on the way down and up.
    stages: [usize; 2],
    rank: usize,
    ranks: usize,
    micro_batches: usize,
    /// F, B and W done on each stage.
    forwards: [usize; 2],
    inputs: [usize; 2],
    weights: [usize; 2],
    list: Vec<Action>,
}

/// The stage on the way down and the one on the way up.
const DOWN: usize = 0;
const UP: usize = 1;

impl VList {
    fn new(rank: usize, ranks: usize, micro_batches: usize) -> Self {
        Self {
            stages: [rank, 2 * ranks - 1 - rank],
            rank,
            ranks,
            micro_batches,
            forwards: [0; 2],
            inputs: [0; 2],
            weights: [0; 2],
            list: Vec::with_capacity(6 * micro_batches),
        }
    }

    fn fill(mut self) -> Vec<Action> {
        // Down until the first micro-batch comes back up, then both ways in turn.
        for _ in 0..2 * (self.ranks - self.rank) - 1 {
            self.forward(DOWN);
        }
        for _ in 0..self.rank {
            self.forward(UP);
            self.forward(DOWN);
        }
        // Backward begins: on this rank's upper stage alone, until the lower one's turn comes.
        for _ in 0..self.ranks - self.rank {
            self.forward(UP);
            self.input(UP);
            self.weight(UP);
        }
        while self.forwards[UP] < self.micro_batches {
            self.forward(DOWN);
            self.input(DOWN);
            self.weight(DOWN);
            self.forward(UP);
            self.input(UP);
            self.weight(UP);
        }
        // No forward is left: the other ranks wait for B, and W fills the gaps.
        for _ in 0..self.rank {
            self.input(DOWN);
            self.input(UP);
        }
        while self.inputs[DOWN] < self.micro_batches {
            self.input(UP);
            self.input(DOWN);
            self.weight(DOWN);
        }
        while self.weights != [self.micro_batches; 2] {
            self.weight(UP);
            self.weight(DOWN);
        }
        self.list
    }

    /// DualPipeV, phase by phase. `after` ranks come behind this one on the way down.
    fn fill_both_ways(mut self) -> Vec<Action> {
        let (after, here) = (self.ranks - self.rank - 1, self.rank + 1);
        let steady = self.micro_batches + here - 2 * self.ranks;
        (0..2 * after).for_each(|_| self.forward(DOWN));
        for _ in 0..here {
            self.forward(DOWN);
            self.forward(UP);
        }
        for _ in 0..after {
            self.backward(UP);
            self.forward(UP);
        }
        for _ in 0..steady {
            self.forward(DOWN);
            self.backward(UP);
            self.forward(UP);
            self.backward(DOWN);
        }
        for _ in 0..after {
            self.backward(UP);
            self.forward(UP);
            self.backward(DOWN);
        }
        // No forward is left. The second half of what both stages have to do here leaves W for later.
        let mut put_off = VecDeque::new();
        for place in 0..2 * here {
            let way = if place % 2 == 0 { UP } else { DOWN };
            self.input(way);
            if place < here {
                self.weight(way);
            } else {
                put_off.push_back(way);
            }
        }
        for _ in 0..after {
            put_off.pop_front().into_iter().for_each(|way| self.weight(way));
            self.input(DOWN);
            put_off.push_back(DOWN);
        }
        put_off.into_iter().for_each(|way| self.weight(way));
        self.list
    }

    /// The next B and W of a stage.
    fn backward(&mut self, way: usize) {
        self.input(way);
        self.weight(way);
    }

    /// The next F of a stage, if there is one: what goes up has come down.
    fn forward(&mut self, way: usize) {
        let ready = if way == UP { self.forwards[DOWN] } else { self.micro_batches };
        if self.forwards[way] < ready {
            self.list.push(forward(self.stages[way], self.forwards[way]));
            self.forwards[way] += 1;
        }
    }

    /// The next B of a stage, if there is one.
    fn input(&mut self, way: usize) {
        let ready = if way == UP { self.forwards[UP] } else { self.inputs[UP] };
        if self.inputs[way] < ready {
            self.list.push(backward_input(self.stages[way], self.inputs[way]));
            self.inputs[way] += 1;
        }
    }

    /// The next W of a stage, if there is one.
    fn weight(&mut self, way: usize) {
        if self.weights[way] < self.inputs[way] {
            self.list.push(backward_weight(self.stages[way], self.weights[way]));
            self.weights[way] += 1;
        }
    }
}
