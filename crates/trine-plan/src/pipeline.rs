//! What a pipeline rank has to do, and how long it waits for the others.

use crate::stack::Partition;
use crate::{Layout, Stack};
use trine_schedule::UniformStage;

/// Blocks on a pipeline rank, over all its virtual stages.
pub fn blocks_of(layers: usize, layout: &Layout, stack: &Stack, stage: usize) -> f64 {
    let ranks = layout.degrees.pp;
    let (each, over) = (layers / ranks, layers % ranks);
    let blocks = match stack.partition {
        Partition::Blocks => each + usize::from(stage < over),
        Partition::ShortEnds => {
            // Whoever is short: the last, then the first, then from the end.
            let order = match stage {
                0 => 1,
                stage if stage == ranks - 1 => 0,
                stage => ranks - stage,
            };
            each + usize::from(over > 0 && order >= ranks - over)
        }
        Partition::AllLayers => {
            // The embedding before the blocks; norm and head after them.
            let (each, over) = ((layers + 3) / ranks, (layers + 3) % ranks);
            let start = |stage: usize| stage * each + stage.min(over);
            let blocks = |end: usize| end.clamp(1, layers + 1);
            blocks(start(stage + 1)) - blocks(start(stage))
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
/// GPipe and 1F1B that is exact for stages of any kind where messages are not hidden: the pipeline fills and drains through
/// the others once.
///
/// `others` is the sum over all ranks but the slowest; a rank waits `blocked` for each message, which arrives `transfer`
/// after it was sent. `steps_overlap`: ranks begin the next step one after the other, so that what a rank takes by
/// itself counts.
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
