//! Closed forms: what a step of each named schedule takes and keeps, without making its lists.
//!
//! Stages are alike. The time of a step is that of its longest chain of actions that wait for each
//! other, and in each schedule few chains can be the longest: the time is a maximum over them. The
//! chains were found by tracing simulated steps; that the maxima equal [`crate::step_times`] is
//! tested for every generator, p ≤ 16 and m ≤ 64, over the whole range in which
//! [`ClosedForm::exact`] says so.

use crate::flow::UniformStage;
use crate::generate::Shape;
use crate::{ScheduleError, ScheduleKind};

/// F, B and W may differ by this factor for the zero-bubble and interleaved forms to be exact.
const TIMES_RATIO_MAX: f64 = 3.0;
/// A transfer may take this part of the shortest of F, B and W for them to be exact.
const TRANSFER_RATIO_MAX: f64 = 0.2;

/// The times of a step by formula.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClosedForm {
    /// From the first action of all ranks to the last.
    pub makespan: f64,
    /// The most that any one rank spends from its first action to its last: the time from step to step
    /// where ranks begin the next step one after the other, as zero-bubble runs do (Qi et al. check an
    /// optimizer step after it was taken). [`crate::StepTimes::rank_span_max`] in the simulator.
    pub rank_span: f64,
    /// True where the formulas equal the simulation. Where they do not claim to, they are estimates,
    /// and whoever needs the numbers simulates.
    ///
    /// GPipe, 1F1B, forward-only and breadth-first: always. Interleaved 1F1B, ZB-H1 (any m), ZB-H2
    /// (m ≥ p) and ZB-V (m ≥ 2p): if F, B and W differ by a factor of at most 3, and a transfer takes
    /// at most a fifth of the shortest. DualPipeV: never.
    pub exact: bool,
}

impl ClosedForm {
    /// The share of all ranks' time that is not work.
    pub fn bubble_fraction(&self, shape: &Shape, one: &UniformStage) -> f64 {
        let work = one.forward + one.backward_input + one.backward_weight;
        let busy = (shape.chunks * shape.micro_batches) as f64 * work;
        if self.makespan == 0.0 { 0.0 } else { 1.0 - busy / self.makespan }
    }
}

/// How often F, B, W and a transfer occur on a chain of actions.
type Chain = [f64; 4];

impl UniformStage {
    fn longest(&self, chains: &[Chain]) -> f64 {
        let time = |[f, b, w, c]: &Chain| {
            f * self.forward
                + b * self.backward_input
                + w * self.backward_weight
                + c * self.transfer
        };
        chains.iter().map(time).fold(f64::NEG_INFINITY, f64::max)
    }

    /// True if times differ little enough for the chains of [`zb_v`] and the like to be the longest.
    fn is_balanced(&self) -> bool {
        let times = [self.forward, self.backward_input, self.backward_weight];
        let least = times.iter().copied().fold(f64::INFINITY, f64::min);
        let most = times.iter().copied().fold(0.0, f64::max);
        most <= TIMES_RATIO_MAX * least && self.transfer <= TRANSFER_RATIO_MAX * least
    }
}

impl ScheduleKind {
    /// The time of a step on stages that are all alike, by formula.
    ///
    /// # Errors
    /// As [`ScheduleKind::generate_shape`]: exactly where there are no lists there is no form.
    pub fn closed_form(
        self,
        shape: &Shape,
        one: &UniformStage,
    ) -> Result<ClosedForm, ScheduleError> {
        self.check_shape(shape)?;
        let UniformStage { forward, backward_input, backward_weight, .. } = *one;
        let backward = backward_input + backward_weight;
        let (p, v) = (shape.ranks as f64, shape.chunks as f64);
        let m = shape.micro_batches as f64;
        let work = m * v * (forward + backward);
        let balanced = one.is_balanced();
        let (extra, exact) = match self {
            ScheduleKind::GPipe => (one.longest(&gpipe(p)), true),
            ScheduleKind::OneFOneB => (one.longest(&one_f_one_b(p, m)), true),
            ScheduleKind::Interleaved if v == 1.0 => (one.longest(&one_f_one_b(p, m)), true),
            ScheduleKind::Interleaved => (one.longest(&interleaved(p, v)), p == 1.0 || balanced),
            ScheduleKind::BreadthFirst => (breadth_first(p, v, m, one) - work, true),
            // Nothing stands apart in one micro-batch.
            ScheduleKind::ZbH1 | ScheduleKind::ZbH2 if m == 1.0 => (one.longest(&gpipe(p)), true),
            ScheduleKind::ZbH1 => (one.longest(&zb_h1(p, m)), p == 1.0 || balanced),
            ScheduleKind::ZbH2 => (one.longest(&zb_h2(p, m)), p == 1.0 || (balanced && m >= p)),
            ScheduleKind::ZbV if m >= 2.0 * p || p == 1.0 => {
                (one.longest(&zb_v(p)), p == 1.0 || balanced)
            }
            ScheduleKind::ZbV => (zb_v_short(p, m, one), false),
            ScheduleKind::DualPipeV => (one.longest(&dual_pipe_v(p)), false),
            // Neither B nor W.
            ScheduleKind::ForwardOnly => {
                ((p - 1.0) * (forward + one.transfer) - m * backward, true)
            }
        };
        // What the rank that begins last waits for before it does.
        let late = (p - 1.0) * (forward + one.transfer);
        let alone = match self {
            ScheduleKind::ZbH1 if m > 1.0 => one.longest(&zb_h1_span(p, m)),
            ScheduleKind::ZbH2 if m >= p && m > 1.0 => one.longest(&zb_h2_span(p, m)),
            ScheduleKind::ZbV if m >= 2.0 * p => one.longest(&zb_v_span(p)),
            ScheduleKind::ForwardOnly => extra - late,
            // The first rank begins first and ends last; so it does in any with few micro-batches.
            _ => extra,
        };
        Ok(ClosedForm { makespan: work + extra, rank_span: work + alone, exact })
    }

    /// The most activations of a stage that `rank` keeps at once, over all its stages.
    ///
    /// # Panics
    /// If the rank is none of the shape's.
    pub fn in_flight_max(self, shape: &Shape, rank: usize) -> usize {
        assert!(rank < shape.ranks, "rank {rank} of {}", shape.ranks);
        let (p, m) = (shape.ranks, shape.micro_batches);
        match self {
            ScheduleKind::GPipe => m,
            ScheduleKind::OneFOneB => m.min(p - rank),
            ScheduleKind::Interleaved if shape.chunks == 1 => m.min(p - rank),
            ScheduleKind::Interleaved => {
                (shape.chunks * m).min(2 * (p - rank - 1) + (shape.chunks - 1) * p + 1)
            }
            ScheduleKind::BreadthFirst => shape.chunks * m,
            ScheduleKind::ZbH1 => m.min(p),
            ScheduleKind::ZbH2 => m.min(2 * p - 1),
            // Before the first W: those on their way down, and those that have come back up.
            ScheduleKind::ZbV => m.min(2 * p - 1 - rank) + m.min(rank + 1),
            // When F of both stages has begun, one of each is done before the first W.
            ScheduleKind::DualPipeV => 2 * p + 1,
            ScheduleKind::ForwardOnly => 0,
        }
    }
}

/// Beyond the work of one rank: the pipeline fills and drains once.
fn gpipe(p: f64) -> [Chain; 1] {
    [[p - 1.0, p - 1.0, p - 1.0, 2.0 * (p - 1.0)]]
}

/// As GPipe; but a rank that waits for its gradient before its next forward pays for both ways. A
/// round trip over d ranks advances d + 1 micro-batches and costs 2d transfers; as few as possible of
/// the m − 1 are spent on turning around.
fn one_f_one_b(p: f64, m: f64) -> [Chain; 1] {
    let turns = ((m - 1.0) / p).ceil();
    [[p - 1.0, p - 1.0, p - 1.0, 2.0 * (p - 1.0) + 2.0 * (m - 1.0 - turns)]]
}

/// The pipeline fills and drains by one chunk a rank, and the first micro-batch goes through all.
fn interleaved(p: f64, v: f64) -> [Chain; 1] {
    [[p - 1.0, p - 1.0, p - 1.0, if p > 1.0 { 2.0 * (v * p - 1.0) } else { 0.0 }]]
}

/// The whole step: a chunk takes the micro-batches of a rank or, with few, the way around all ranks.
fn breadth_first(p: f64, v: f64, m: f64, one: &UniformStage) -> f64 {
    let transfer = if p > 1.0 { one.transfer } else { 0.0 };
    let pass = |time: f64| {
        let chunk = (m * time).max(p * (time + transfer));
        (v - 1.0) * chunk + m * time + (p - 1.0) * (time + transfer)
    };
    pass(one.forward) + pass(one.backward_input + one.backward_weight)
}

/// Qi et al.'s (p − 1)(F + B − W) is the first; the others begin where B or F is longer than the rest.
fn zb_h1(p: f64, m: f64) -> [Chain; 3] {
    let q = p - 1.0;
    let turns = 2.0 * (m - 2.0).clamp(0.0, q);
    [
        [q, q, -(m - 1.0).min(q), 2.0 * q + turns],
        [q, 0.0, 0.0, q + turns],
        [(p - m).max(0.0), q, 0.0, 2.0 * q],
    ]
}

/// The last rank begins (p − 1)(F + transfer) late and then does not wait, if F, B and W are alike.
fn zb_h2(p: f64, m: f64) -> [Chain; 3] {
    let q = p - 1.0;
    [[q, 0.0, 0.0, q], [q, q, -(m - 1.0).min(2.0 * q), 2.0 * q], [(p - m).max(-q), q, 0.0, 2.0 * q]]
}

/// The chains of [`zb_h1`] that begin and end on the same rank.
fn zb_h1_span(p: f64, m: f64) -> [Chain; 2] {
    let [first, _, last] = zb_h1(p, m);
    [first, last]
}

/// The same of [`zb_h2`]: the last rank does not wait once it has begun.
fn zb_h2_span(p: f64, m: f64) -> [Chain; 3] {
    let [_, first, last] = zb_h2(p, m);
    [[0.0; 4], first, last]
}

/// The same of ZB-V, found as those of [`zb_v`] were.
fn zb_v_span(p: f64) -> [Chain; 7] {
    let q = p - 1.0;
    if q == 0.0 {
        return [[0.0; 4]; 7];
    }
    [
        [0.0, 2.0 * q, -2.0 * q, 6.0 * p - 8.0],
        [p - 2.0, p, -2.0 * q, 6.0 * p - 8.0],
        [2.0 * q, 0.0, -2.0 * q - 1.0, 4.0 * q],
        [2.0 * q, -q, -q, 2.0 * q],
        [-q, q, 0.0, 4.0 * p - 6.0],
        [-q, 1.0, p - 2.0, 2.0 * q],
        [p - 2.0, -(p - 2.0), 0.0, 4.0 * p - 6.0],
    ]
}

/// Without transfers exact where F, B and W differ by a factor of 2 at most. How many transfers a chain has depends on
/// whether p is even; these are means.
fn dual_pipe_v(p: f64) -> [Chain; 5] {
    let q = p - 1.0;
    if q == 0.0 {
        return [[0.0; 4]; 5];
    }
    [
        [q, q, -q, 2.5 * q],
        [q, 0.0, 0.0, 1.5 * q],
        [-1.0, 2.0 * q, -q, 4.5 * q],
        [2.0 * q, -q, -q, 2.0 * q],
        [-1.0, q, 0.0, 3.5 * q],
    ]
}

fn zb_v(p: f64) -> [Chain; 10] {
    let q = p - 1.0;
    if q == 0.0 {
        return [[0.0; 4]; 10];
    }
    [
        [2.0 * p - 3.0, -(p - 2.0), 0.0, 3.0 * p - 5.0],
        [0.0, q, 0.0, 5.0 * p - 7.0],
        [0.0, 1.0, p - 2.0, 3.0 * p - 3.0],
        [1.0, 0.0, p - 2.0, 3.0 * p - 5.0],
        [0.0, 2.0 * q, -2.0 * q, 6.0 * p - 8.0],
        [2.0 * q, -q, -1.0, 3.0 * p - 3.0],
        [p - 2.0, 1.0, 0.0, 5.0 * p - 7.0],
        [p - 2.0, p, -2.0 * q, 6.0 * p - 8.0],
        [2.0 * p - 3.0, 1.0, -2.0 * q, 4.0 * p - 6.0],
        [2.0 * q, 0.0, -2.0 * q - 1.0, 4.0 * q],
    ]
}

/// An estimate for fewer than 2p micro-batches: exact for F = B = W without transfers, and scaled.
fn zb_v_short(p: f64, m: f64, one: &UniformStage) -> f64 {
    let q = p - 1.0;
    let units = (4.0 * q - 3.0 * (m - 1.0)).max(3.0 * q - m).max(q);
    let work = one.forward + one.backward_input + one.backward_weight;
    units * work / 3.0 + 4.0 * q * one.transfer
}
