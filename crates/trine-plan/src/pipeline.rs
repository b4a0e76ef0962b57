//! What a pipeline rank has to do, and how long it waits for the others.

use crate::stack::Partition;
use crate::{Layout, Stack};
use trine_schedule::UniformStage;
use trine_spec::{ModelSpec, stage_blocks};

/// Blocks on a pipeline rank, over all its virtual stages.
pub fn blocks_of(model: &ModelSpec, layout: &Layout, stack: &Stack, rank: usize) -> f64 {
    let (layers, ranks) = (model.layers, layout.degrees.pp);
    let (each, over) = (layers / ranks, layers % ranks);
    let blocks = match stack.partition {
        Partition::Work if layout.shape().stages() <= layers => {
            let stages = layout.shape().stages();
            layout.stages_of(rank).map(|stage| stage_blocks(model, stages, stage)).sum()
        }
        Partition::Work | Partition::Blocks => each + usize::from(rank < over),
        Partition::ShortEnds => {
            // Whoever is short: the rank with the head, then that with the embedding, then from the end.
            let ends = layout.ends_of(rank);
            let order = match (ends.head, ends.embedding) {
                (true, _) => 0,
                (false, true) => 1,
                (false, false) => ranks - rank,
            };
            each + usize::from(over > 0 && order >= ranks - over)
        }
        Partition::AllLayers => {
            // The embedding before the blocks; norm and head after them.
            let stages = layout.shape().stages();
            let (each, over) = ((layers + 3) / stages, (layers + 3) % stages);
            let start = |stage: usize| stage * each + stage.min(over);
            let blocks = |end: usize| end.clamp(1, layers + 1);
            let of = |stage: usize| blocks(start(stage + 1)) - blocks(start(stage));
            layout.stages_of(rank).map(of).sum()
        }
    };
    blocks as f64
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

/// The bubble of a step: what is added to the work of the slowest rank, by the closed form of the schedule
/// ([`ScheduleKind::closed_form`](trine_schedule::ScheduleKind::closed_form)) on stages like the mean of the others. For
/// GPipe with W as a part of B that is exact for stages of any kind where messages are not hidden: the pipeline fills
/// and drains through the others once. In 1F1B, stages behind the slowest may work while it does, and W by itself lets
/// the next stage begin sooner: up to 2 % less.
///
/// `others` is the sum over all ranks but the slowest; a rank waits `blocked` for each message, which arrives
/// `transfer` after it was sent. `steps_overlap`: ranks begin the next step one after the other, so that what a rank
/// takes by itself counts.
pub(crate) fn bubble_s(
    layout: &Layout,
    others: StageTime,
    (blocked, transfer): (f64, f64),
    steps_overlap: bool,
) -> f64 {
    let shape = layout.shape();
    if shape.ranks == 1 {
        return 0.0;
    }
    let stages = ((shape.ranks - 1) * shape.chunks) as f64;
    let one = UniformStage {
        forward: others.forward / stages + blocked,
        backward_input: others.backward / stages + blocked,
        backward_weight: others.weight / stages,
        transfer,
    };
    let form = layout.pipeline.closed_form(&shape, &one);
    let form = form.expect("invariant: Layout::check has passed the shape");
    let work = one.forward + one.backward_input + one.backward_weight;
    let takes = if steps_overlap { form.rank_span } else { form.makespan };
    takes - (shape.chunks * shape.micro_batches) as f64 * work
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Attention, Precision, Recompute, stacks};
    use trine_mesh::Degrees;
    use trine_schedule::{ScheduleKind, StageCosts, step_times};
    use trine_spec::presets;

    fn layout(ranks: usize, micro_batches: usize, pipeline: ScheduleKind) -> Layout {
        Layout {
            degrees: Degrees { pp: ranks, ..Degrees::SERIAL },
            virtual_stages: 1,
            pipeline,
            micro_batch: 1,
            global_batch: micro_batches,
            seq: 2048,
            sequence_parallel: false,
            recompute: Recompute::None,
            attention: Attention::Flash2,
            zero: 0,
            precision: Precision::Bf16,
        }
    }

    #[test]
    fn layers_are_cut_as_each_framework_cuts_them() {
        let stacks = stacks().unwrap();
        let gpt = presets::find("gpt2-124m").unwrap().model;
        let of = |partition: Partition, layers: usize, ranks: usize| -> Vec<f64> {
            let stack = Stack { partition, ..stacks[0].clone() };
            let layout = layout(ranks, 1, ScheduleKind::OneFOneB);
            let model = ModelSpec { layers, ..gpt.clone() };
            (0..ranks).map(|stage| blocks_of(&model, &layout, &stack, stage)).collect()
        };
        assert_eq!(of(Partition::Blocks, 10, 4), [3.0, 3.0, 2.0, 2.0]);
        assert_eq!(of(Partition::ShortEnds, 22, 4), [5.0, 6.0, 6.0, 5.0]);
        // Embedding, 60 blocks, norm and head: lists of 16, 16, 16 and 15.
        assert_eq!(of(Partition::AllLayers, 60, 4), [15.0, 16.0, 16.0, 13.0]);
        assert_eq!(of(Partition::AllLayers, 40, 1), [40.0]);
        // The output layer is worth more than four blocks.
        assert_eq!(of(Partition::Work, 12, 2), [8.0, 4.0]);
        for (partition, ranks) in [(Partition::ShortEnds, 8), (Partition::AllLayers, 16)] {
            assert_eq!(of(partition, 60, ranks).iter().sum::<f64>(), 60.0);
        }
    }

    #[test]
    fn the_bubble_of_uneven_stages_is_the_simulated_one() {
        let blocks = [2.0, 3.0, 3.0, 2.5];
        let time = |scale: f64, w: f64| StageTime {
            forward: scale,
            backward: scale * (2.0 - w),
            weight: scale * w,
        };
        for (pipeline, w, off) in [
            (ScheduleKind::GPipe, 0.0, 1e-12),
            (ScheduleKind::OneFOneB, 0.0, 0.02),
            (ScheduleKind::GPipe, 0.75, 0.02),
            (ScheduleKind::OneFOneB, 0.75, 0.02),
        ] {
            let layout = layout(4, 12, pipeline);
            let bubble = bubble_s(&layout, time(7.5, w), (0.0, 0.0), false);
            let each =
                |of: fn(&StageTime) -> f64| blocks.iter().map(|b| of(&time(*b, w))).collect();
            let costs = StageCosts {
                forward: each(|t| t.forward),
                backward_input: each(|t| t.backward),
                backward_weight: each(|t| t.weight),
                transfer: vec![0.0; 3],
            };
            let schedule = layout.schedule().unwrap();
            let simulated = step_times(&schedule, &costs).unwrap().makespan;
            let planned = 12.0 * time(3.0, w).total() + bubble;
            assert!((planned / simulated - 1.0).abs() <= off, "{pipeline}: {planned} {simulated}");
        }
        // Where steps overlap, ranks of ZB-H2 do not wait for the first forward to arrive.
        let all = layout(4, 12, ScheduleKind::ZbH2);
        let even = |overlap| bubble_s(&all, time(9.0, 1.0), (0.0, 0.0), overlap);
        let saved = even(false) - even(true);
        assert!((saved - 9.0).abs() < 1e-9, "{saved}");
        let alone = layout(1, 12, ScheduleKind::OneFOneB);
        assert_eq!(bubble_s(&alone, StageTime::default(), (1.0, 1.0), false), 0.0);
    }
}
