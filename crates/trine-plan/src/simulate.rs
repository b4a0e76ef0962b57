//! A layout's step on the schedule that would be executed: the same lists, timed with the planned costs.

use crate::pipeline::{StageTime, blocks_of};
use crate::stack::Partition;
use crate::{Estimate, Layout, PlanError, Planner};
use trine_schedule::{ScheduleError, Shape, StageCosts, StepTimes, step_times};
use trine_spec::stage_blocks;

/// A step with more actions (a forward and two backwards of every stage and micro-batch) is not simulated as a whole.
const ACTIONS_MAX: usize = 1 << 18;
/// So many micro-batches for each rank after the pipeline has filled, every further one takes as long as the one
/// before.
const FILLED: usize = 4;

/// A step whose pipeline was simulated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SimulatedStep {
    /// Seconds from the first action of the pipeline to its last.
    pub pipeline: f64,
    /// The share of all ranks' pipeline time that is not work.
    pub bubble_fraction: f64,
    /// Seconds of the step: the pipeline, then what [`crate::Time`] has beside it.
    pub step: f64,
}

impl Planner<'_> {
    /// What each virtual stage of a layout costs for one micro-batch, seconds. The last stage has the head. Where
    /// messages are not hidden, those who send them wait.
    pub fn stage_costs(&self, layout: &Layout, placement: &[usize]) -> StageCosts {
        self.costs_of(layout, &self.stage_blocks(layout, placement))
    }

    /// The same for stages of so many blocks.
    pub(crate) fn costs_of(&self, layout: &Layout, blocks: &[usize]) -> StageCosts {
        let (head, message) = self.head_time(layout);
        let stages = blocks.len();
        let (blocked, transfer) = self.stack.message_waits(message, layout.degrees.pp);
        let mut first = 0;
        let each: Vec<StageTime> = blocks
            .iter()
            .map(|count| {
                let trained = self.model.trained.products_of(first..first + count);
                first += count;
                self.block_time(layout, trained)
            })
            .collect();
        let time = |stage: usize, of: fn(&StageTime) -> f64| {
            let ends = if stage + 1 == stages { of(&head) } else { 0.0 };
            blocks[stage] as f64 * of(&each[stage]) + ends
        };
        StageCosts {
            forward: (0..stages).map(|s| time(s, |t| t.forward) + blocked).collect(),
            backward_input: (0..stages).map(|s| time(s, |t| t.backward) + blocked).collect(),
            backward_weight: (0..stages).map(|s| time(s, |t| t.weight)).collect(),
            transfer: vec![transfer; stages.saturating_sub(1)],
        }
    }
}

impl Planner<'_> {
    /// Blocks of each virtual stage: by work, where the stack cuts so. Else those of its rank, as even as possible
    /// over its chunks. Where they do not divide, the first chunks take one more, but where the first has the embedding
    /// and the last not the head, the last ones do.
    fn stage_blocks(&self, layout: &Layout, placement: &[usize]) -> Vec<usize> {
        let (spec, stages, chunks) = (&self.model.spec, placement.len(), layout.virtual_stages);
        if self.stack.partition == Partition::Work && stages <= spec.layers {
            return (0..stages).map(|stage| stage_blocks(spec, stages, stage)).collect();
        }
        let mut seen = vec![0; layout.degrees.pp];
        let place = |&rank: &usize| {
            let blocks = blocks_of(&self.model.spec, layout, self.stack, rank) as usize;
            let (each, over) = (blocks / chunks, blocks % chunks);
            let chunk = seen[rank];
            seen[rank] += 1;
            let ends = layout.ends_of(rank);
            let more =
                if ends.embedding && !ends.head { chunk >= chunks - over } else { chunk < over };
            each + usize::from(more)
        };
        placement.iter().map(place).collect()
    }
}

/// Simulates the pipeline of a layout and adds what its estimate has beside the pipeline: exposed gradient traffic,
/// the optimizer, stragglers.
///
/// # Errors
/// A shape for which the schedule is not defined.
pub fn simulate_step(
    planner: &Planner<'_>,
    layout: &Layout,
    estimate: &Estimate,
) -> Result<SimulatedStep, PlanError> {
    let (pipeline, bubble_fraction) = match sampled_micro_batches(layout) {
        None => {
            let times = times(planner, layout, layout.micro_batches())?;
            (times.makespan, times.bubble_fraction())
        }
        Some([fewer, more]) => {
            let [less, times] = [times(planner, layout, fewer)?, times(planner, layout, more)?];
            let each = (times.makespan - less.makespan) / (more - fewer) as f64;
            let pipeline = times.makespan + each * (layout.micro_batches() - more) as f64;
            let work: f64 = times.busy.iter().sum();
            let work = work * layout.micro_batches() as f64 / more as f64;
            (pipeline, 1.0 - work / (pipeline * times.busy.len() as f64))
        }
    };
    let time = &estimate.time;
    let slowed = time.step / (time.step - time.straggling);
    let step = (pipeline + time.data + time.optimizer) * slowed;
    Ok(SimulatedStep { pipeline, bubble_fraction, step })
}

/// Two numbers of micro-batches from which a step with many more follows, as its pipeline has long been filled: the
/// work is linear in time by then.
fn sampled_micro_batches(layout: &Layout) -> Option<[usize; 2]> {
    let shape = layout.shape();
    let groups = (ACTIONS_MAX / (3 * shape.stages() * shape.ranks)).max(2 * FILLED);
    let most = groups * shape.ranks;
    (shape.micro_batches > most).then_some([groups / 2 * shape.ranks, most])
}

/// The pipeline of a layout with so many micro-batches.
fn times(
    planner: &Planner<'_>,
    layout: &Layout,
    micro_batches: usize,
) -> Result<StepTimes, ScheduleError> {
    let schedule = layout.pipeline.generate_shape(Shape { micro_batches, ..layout.shape() })?;
    step_times(&schedule, &planner.stage_costs(layout, &schedule.placement))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Constants, Model, clusters, find_cluster, find_stack, stacks};
    use crate::{Fixed, Request, rank};
    use trine_schedule::ScheduleKind;

    /// A step that is sampled takes as long as one that is simulated as a whole.
    #[test]
    fn a_long_step_follows_from_two_shorter_ones() {
        let (machines, all) = (clusters(&[]).unwrap(), stacks().unwrap());
        let constants = Constants::built_in().unwrap();
        let model = Model::new(&trine_spec::presets::find("gpt2-124m").unwrap().model).unwrap();
        let machine = find_cluster(&machines, "h100").unwrap();
        let stack = find_stack(&all, "megatron-core").unwrap();
        let planner = Planner::new(&model, machine, stack, &constants).unwrap();
        let mut cases = 0;
        for info in ScheduleKind::all() {
            let fixed = Fixed {
                pp: Some(2),
                tp: Some(1),
                micro_batch: Some(1),
                pipeline: Some(info.kind),
                ..Fixed::default()
            };
            let request = Request {
                devices: 2,
                global_batch: 70_000,
                seq: 128,
                headroom: 0.0,
                precision: crate::Precision::Bf16,
                attention: crate::Attention::Flash2,
                fixed,
            };
            // One that does not train, or keeps all of the activations.
            let Ok(found) = rank(&planner, &request) else { continue };
            let layout = found.best[0].layout;
            assert!(sampled_micro_batches(&layout).is_some(), "{layout:?}");
            let sampled = simulate_step(&planner, &layout, &found.best[0].estimate).unwrap();
            let whole = times(&planner, &layout, layout.micro_batches()).unwrap();
            let error = sampled.pipeline / whole.makespan - 1.0;
            assert!(error.abs() < 1e-9, "{}: {error}", info.name);
            let error = sampled.bubble_fraction - whole.bubble_fraction();
            assert!(error.abs() < 1e-9, "{}: {error}", info.name);
            cases += 1;
        }
        assert!(cases >= 5, "{cases}");
    }
}
