//! A layout's step on the schedule that would be executed: the same lists, timed with the planned costs.

use crate::pipeline::{StageTime, blocks_of};
use crate::{Estimate, Layout, Pipeline, PlanError, Planner, Time};
use trine_schedule::{
    Schedule, ScheduleError, ScheduleKind, Shape, StageCosts, UniformStage, step_times,
};

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

impl Pipeline {
    /// The generator of its lists.
    pub fn kind(self) -> ScheduleKind {
        match self {
            Self::GPipe => ScheduleKind::GPipe,
            Self::OneFOneB => ScheduleKind::OneFOneB,
            Self::Interleaved => ScheduleKind::Interleaved,
            Self::BreadthFirst => ScheduleKind::BreadthFirst,
            Self::ZbH1 => ScheduleKind::ZbH1,
            Self::ZbH2 => ScheduleKind::ZbH2,
            Self::ZbV => ScheduleKind::ZbV,
        }
    }
}

impl Layout {
    /// The shape of its pipeline.
    pub fn shape(&self) -> Shape {
        Shape {
            ranks: self.degrees.pp,
            chunks: self.virtual_stages,
            micro_batches: self.micro_batches(),
        }
    }

    /// The compute-only lists of its pipeline.
    ///
    /// # Errors
    /// A shape for which the schedule is not defined; the error names the nearest.
    pub fn schedule(&self) -> Result<Schedule, ScheduleError> {
        self.pipeline.kind().generate_shape(self.shape())
    }
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
        let blocked =
            if layout.degrees.pp > 1 { message * (1.0 - self.stack.message_overlap) } else { 0.0 };
        let time = |stage: usize, of: fn(&StageTime) -> f64| {
            blocks[stage] as f64 * of(&block) + if stage + 1 == stages { of(&head) } else { 0.0 }
        };
        StageCosts {
            forward: (0..stages).map(|s| time(s, |t| t.forward) + blocked).collect(),
            backward_input: (0..stages).map(|s| time(s, |t| t.backward) + blocked).collect(),
            backward_weight: (0..stages).map(|s| time(s, |t| t.weight)).collect(),
            transfer: vec![message * self.stack.message_overlap; stages.saturating_sub(1)],
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
            let blocks = blocks_of(self.model.spec.layers, layout, self.stack, rank) as usize;
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

/// The time of an estimate with the bubble of the schedule's closed form, which counts the whole step: from the first
/// action of the first rank to the last of the last.
///
/// [`Planner::time`] has the bubble that published zero-bubble runs show, whose ranks begin the next step one after
/// the other. The form takes the average stage; what the slowest has beyond it is in the other items. False if the
/// form is an estimate.
///
/// # Errors
/// A shape for which the schedule is not defined.
pub(crate) fn whole_step(
    planner: &Planner<'_>,
    layout: &Layout,
    time: &Time,
) -> Result<(Time, bool), PlanError> {
    let shape = layout.shape();
    let (block, head, message) = planner.unit_times(layout);
    let layers = planner.model.spec.layers as f64;
    let hidden = planner.stack.message_overlap;
    let blocked = if shape.ranks > 1 { message * (1.0 - hidden) } else { 0.0 };
    let average =
        |of: fn(&StageTime) -> f64| (layers * of(&block) + of(&head)) / shape.stages() as f64;
    let one = UniformStage {
        forward: average(|t| t.forward) + blocked,
        backward_input: average(|t| t.backward) + blocked,
        backward_weight: average(|t| t.weight),
        transfer: message * hidden,
    };
    let form = layout.pipeline.kind().closed_form(&shape, &one)?;
    let work = one.forward + one.backward_input + one.backward_weight;
    let bubble = form.makespan - (shape.chunks * shape.micro_batches) as f64 * work;
    let busy = time.step - time.straggling - time.bubble + bubble;
    let straggling = busy * time.straggling / (time.step - time.straggling);
    Ok((Time { bubble, straggling, step: busy + straggling, ..*time }, form.exact))
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
