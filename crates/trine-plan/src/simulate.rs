//! A layout's step on the schedule that would be executed: the same lists, timed with the planned costs.

use crate::pipeline::{StageTime, blocks_of};
use crate::{Estimate, Layout, PlanError, Planner};
use trine_schedule::{StageCosts, step_times};

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
        let (block, head, message) = self.unit_times(layout);
        let stages = blocks.len();
        let (blocked, transfer) = self.stack.message_waits(message, layout.degrees.pp);
        let time = |stage: usize, of: fn(&StageTime) -> f64| {
            blocks[stage] as f64 * of(&block) + if stage + 1 == stages { of(&head) } else { 0.0 }
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
    /// Blocks of each virtual stage: those of its rank, as even as possible over its chunks. Where they do not divide,
    /// the first chunks take one more, but on the first rank the last ones: its first has the embedding.
    fn stage_blocks(&self, layout: &Layout, placement: &[usize]) -> Vec<usize> {
        let chunks = layout.virtual_stages;
        let mut seen = vec![0; layout.degrees.pp];
        let place = |&rank: &usize| {
            let blocks = blocks_of(&self.model.spec, layout, self.stack, rank) as usize;
            let (each, over) = (blocks / chunks, blocks % chunks);
            let chunk = seen[rank];
            seen[rank] += 1;
            let more = if rank == 0 && layout.degrees.pp > 1 {
                chunk >= chunks - over
            } else {
                chunk < over
            };
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
    let schedule = layout.schedule()?;
    let costs = planner.stage_costs(layout, &schedule.placement);
    let times = step_times(&schedule, &costs)?;
    let time = &estimate.time;
    let slowed = time.step / (time.step - time.straggling);
    Ok(SimulatedStep {
        pipeline: times.makespan,
        bubble_fraction: times.bubble_fraction(),
        step: (times.makespan + time.data + time.optimizer) * slowed,
    })
}
