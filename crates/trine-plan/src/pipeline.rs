//! Pipeline schedules in closed form: blocks of a stage, micro-batches in flight, time of a step.

use crate::{Layout, Pipeline, Stack};

/// Blocks on a pipeline rank, over all its virtual stages.
///
/// Where the blocks do not divide, the first ranks take one more (as trine splits), or the first and last rank one
/// less, because they also hold the embedding and the head.
pub fn blocks_of(layers: usize, layout: &Layout, stack: &Stack, stage: usize) -> f64 {
    let ranks = layout.degrees.pp;
    let (each, over) = (layers / ranks, layers % ranks);
    let more = if !stack.short_ends {
        stage < over
    } else {
        // Whoever is short: the last, then the first, then from the end.
        let order = match stage {
            0 => 1,
            stage if stage == ranks - 1 => 0,
            stage => ranks - stage,
        };
        over > 0 && order >= ranks - over
    };
    (each + usize::from(more)) as f64
}

/// Activations that a rank holds at most, as a multiple of those of one micro-batch through its whole stage.
/// `weight_part` is the share of a micro-batch's activations that stays after B for the W that was put off.
pub fn in_flight(layout: &Layout, stage: usize, weight_part: f64) -> f64 {
    let (p, m) = (layout.degrees.pp, layout.micro_batches().max(1));
    let v = layout.virtual_stages;
    let after = p - 1 - stage;
    match layout.pipeline {
        Pipeline::GPipe | Pipeline::BreadthFirst => m as f64,
        Pipeline::OneFOneB => m.min(after + 1) as f64,
        // Megatron's warm-up: 2 (p - i - 1) + (v - 1) p chunks, and the one in work.
        Pipeline::Interleaved => {
            let chunks = 2 * after + (v - 1) * p + 1;
            chunks.min(m * v) as f64 / v as f64
        }
        Pipeline::ZbH1 => (m as f64).min(after as f64 + 1.0 + stage as f64 * weight_part),
        Pipeline::ZbH2 => m.min(2 * p - 1) as f64,
        Pipeline::ZbV => m.min(p) as f64,
    }
}

/// Times of one micro-batch on one rank, all virtual stages together, seconds.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct StageTime {
    /// Forward.
    pub forward: f64,
    /// Input gradients, recompute included.
    pub backward: f64,
    /// Weight gradients.
    pub weight: f64,
}

impl StageTime {
    /// All of it.
    pub fn total(&self) -> f64 {
        self.forward + self.backward + self.weight
    }
}

/// The bubble of a step: what is added to the work of the slowest rank until the last rank is done. `slowest` and
/// `others` are that rank's times and the sum over all other ranks.
///
/// With equal stages: (p − 1)(F + B + W) for GPipe and 1F1B, divided by v when interleaved or breadth-first
/// (2104.04473, 2211.05953); (p − 1)(F + B − W) for ZB-H1, (p − 1)(F + B − 2W) for ZB-H2, none for ZB-V when F, B
/// and W are alike (2401.10241).
pub fn bubble_s(layout: &Layout, slowest: StageTime, others: StageTime) -> f64 {
    if layout.degrees.pp == 1 {
        return 0.0;
    }
    let v = layout.virtual_stages as f64;
    let all = others.total();
    match layout.pipeline {
        Pipeline::GPipe | Pipeline::OneFOneB => all,
        Pipeline::Interleaved | Pipeline::BreadthFirst => all / v,
        Pipeline::ZbH1 => (all - 2.0 * others.weight).max(0.0),
        Pipeline::ZbH2 => (all - 3.0 * others.weight).max(0.0),
        // F, B and W fill one another; what is unequal remains.
        Pipeline::ZbV => {
            let spread = (slowest.forward + slowest.backward - 2.0 * slowest.weight).abs();
            spread * (layout.degrees.pp - 1) as f64 / v.max(2.0)
        }
    }
}
