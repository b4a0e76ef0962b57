//! The fast simulator: compute-only lists, messages as edges.
//!
//! [`crate::simulate()`] executes every action of a lowered schedule, and a rank that comes to a receive
//! waits there. Here a message is only a delay between what makes it and what takes it, as it is where
//! receives are posted ahead. So the lists need not be lowered, and a step of half a million actions
//! takes milliseconds. Where no rank receives before it must, the two agree to the last digit; tests
//! say where that is.

use crate::waits::stuck_inputs;
use crate::{Action, Compute, Schedule, ScheduleError};
use trine_mesh::plural;

/// What each stage costs, in any one unit of time; finite and not negative.
#[derive(Debug, Clone, PartialEq)]
pub struct StageCosts {
    /// F of each stage.
    pub forward: Vec<f64>,
    /// B of each stage.
    pub backward_input: Vec<f64>,
    /// W of each stage.
    pub backward_weight: Vec<f64>,
    /// From stage s to s + 1, and as long for the gradient on its way back; one fewer than stages.
    /// Not charged between stages of one rank.
    pub transfer: Vec<f64>,
}

/// The times of one micro-batch on stages that are all alike.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UniformStage {
    /// F of a stage.
    pub forward: f64,
    /// B of a stage.
    pub backward_input: f64,
    /// W of a stage.
    pub backward_weight: f64,
    /// From the end of an F or B to the arrival of what it made at a neighbour on another rank.
    pub transfer: f64,
}

impl UniformStage {
    /// F, B and W of a stage and a message, in any one unit of time.
    ///
    /// # Errors
    /// [`ScheduleError::Times`]: F, B or W that is not above 0, a message below 0, or what is not finite.
    pub fn new(times: [f64; 4]) -> Result<Self, ScheduleError> {
        let [forward, backward_input, backward_weight, transfer] = times;
        let is_right = times.iter().all(|time| time.is_finite())
            && times[..3].iter().all(|time| *time > 0.0)
            && transfer >= 0.0;
        if !is_right {
            return Err(ScheduleError::Times { times });
        }
        Ok(Self { forward, backward_input, backward_weight, transfer })
    }

    /// F, B and W of a stage and a message: what [`UniformStage::new`] takes.
    pub fn times(&self) -> [f64; 4] {
        [self.forward, self.backward_input, self.backward_weight, self.transfer]
    }
}

impl std::fmt::Display for UniformStage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [forward, backward_input, backward_weight, transfer] =
            [self.forward, self.backward_input, self.backward_weight, self.transfer].map(number);
        write!(f, "F {forward}, B {backward_input}, W {backward_weight}, message {transfer}")
    }
}

/// A number as people write it: one with very many digits with an exponent.
fn number(value: f64) -> String {
    let text = format!("{value:?}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

impl StageCosts {
    /// `stages` stages alike.
    pub fn uniform(stages: usize, one: UniformStage) -> Self {
        Self {
            forward: vec![one.forward; stages],
            backward_input: vec![one.backward_input; stages],
            backward_weight: vec![one.backward_weight; stages],
            transfer: vec![one.transfer; stages.saturating_sub(1)],
        }
    }

    fn check(&self, stages: usize) -> Result<(), ScheduleError> {
        let shape = |what: String| Err(ScheduleError::Shape { what });
        let parts = [
            ("forward", &self.forward, stages),
            ("backward_input", &self.backward_input, stages),
            ("backward_weight", &self.backward_weight, stages),
            ("transfer", &self.transfer, stages.saturating_sub(1)),
        ];
        for (name, costs, wanted) in parts {
            if costs.len() != wanted {
                let given = costs.len();
                let (cost, stage) = (plural(given as u64, "cost"), plural(stages as u64, "stage"));
                let what = format!("{given} {cost} of {name} for {stages} {stage}, not {wanted}");
                return shape(what);
            }
            if let Some(stage) = costs.iter().position(|cost| !(cost.is_finite() && *cost >= 0.0)) {
                let cost = costs[stage];
                return shape(format!("{name} of stage {stage} costs {cost}; at least 0, finite"));
            }
        }
        Ok(())
    }
}

/// When each rank works in a step.
#[derive(Debug, Clone, PartialEq)]
pub struct StepTimes {
    /// The end of the last action of all.
    pub makespan: f64,
    /// For each rank, when its first action began.
    pub begin: Vec<f64>,
    /// For each rank, when its last action ended.
    pub end: Vec<f64>,
    /// For each rank, how long it worked.
    pub busy: Vec<f64>,
}

impl StepTimes {
    /// 1 − busy / (ranks · makespan): the share of all ranks' time that is not work.
    pub fn bubble_fraction(&self) -> f64 {
        let total = self.makespan * self.busy.len() as f64;
        if total == 0.0 { 0.0 } else { 1.0 - self.busy.iter().sum::<f64>() / total }
    }

    /// The longest time from a rank's first action to its last. A step takes this long, not the
    /// makespan, where ranks may begin the next step without waiting for each other (Qi et al., arXiv
    /// 2401.10241, section 4: the update is validated afterwards).
    pub fn rank_span_max(&self) -> f64 {
        self.begin.iter().zip(&self.end).map(|(begin, end)| end - begin).fold(0.0, f64::max)
    }
}

/// Times a compute-only schedule of training.
///
/// # Errors
/// [`ScheduleError::Shape`] if the costs do not fit, [`ScheduleError::Lowered`] if there is anything but
/// whole F, B and W, [`ScheduleError::Stuck`] if ranks wait for what never comes.
pub fn step_times(schedule: &Schedule, costs: &StageCosts) -> Result<StepTimes, ScheduleError> {
    schedule.check()?;
    costs.check(schedule.stages())?;
    schedule.expect_only("whole F, B and W only", Action::is_whole_compute)?;
    check_places(schedule)?;
    Flow::new(schedule, costs).run()
}

fn check_places(schedule: &Schedule) -> Result<(), ScheduleError> {
    for (rank, list) in schedule.actions.iter().enumerate() {
        for (position, action) in list.iter().enumerate() {
            let Action::Compute(compute) = action else { continue };
            let (stage, micro_batch) = (compute.stage(), compute.micro_batch());
            let is_here = schedule.placement.get(stage) == Some(&rank);
            if !is_here || micro_batch >= schedule.micro_batches {
                let what = format!("rank {rank}, position {position}: `{action}` is not its work");
                return Err(ScheduleError::Shape { what });
            }
        }
    }
    Ok(())
}

/// Not computed yet.
const PENDING: f64 = f64::NAN;

/// One rank of a [`Flow`].
#[derive(Clone)]
struct Lane {
    next: usize,
    now: f64,
    begin: f64,
    busy: f64,
    /// The entry of [`Flow::arrival`] that it waits for.
    awaits: usize,
}

struct Flow<'a> {
    schedule: &'a Schedule,
    costs: &'a StageCosts,
    /// Whether gradients leave after W, not after B.
    backward_whole: bool,
    /// The delay of an activation into a stage, and of a gradient into it.
    delay: [Vec<f64>; 2],
    /// When the activation for (stage, micro-batch) is there, then when its gradient is.
    arrival: Vec<f64>,
    lanes: Vec<Lane>,
    awake: Vec<usize>,
}

impl<'a> Flow<'a> {
    fn new(schedule: &'a Schedule, costs: &'a StageCosts) -> Self {
        let (stages, placement) = (schedule.stages(), &schedule.placement);
        let between = |low: usize| match placement[low] == placement[low + 1] {
            true => 0.0,
            false => costs.transfer[low],
        };
        // What the first stage reads and where the last begins its backward is there from the start.
        let mut arrival = vec![PENDING; 2 * stages * schedule.micro_batches];
        arrival[..schedule.micro_batches].fill(0.0);
        let last_gradients = arrival.len() - schedule.micro_batches;
        arrival[last_gradients..].fill(0.0);
        let lane = Lane { next: 0, now: 0.0, begin: 0.0, busy: 0.0, awaits: usize::MAX };
        Self {
            schedule,
            costs,
            backward_whole: schedule.keeps_backward_whole(),
            delay: [
                (0..stages)
                    .map(|stage| if stage == 0 { 0.0 } else { between(stage - 1) })
                    .collect(),
                (0..stages).map(|s| if s + 1 == stages { 0.0 } else { between(s) }).collect(),
            ],
            arrival,
            lanes: vec![lane; schedule.ranks()],
            awake: (0..schedule.ranks()).rev().collect(),
        }
    }

    fn run(mut self) -> Result<StepTimes, ScheduleError> {
        while let Some(rank) = self.awake.pop() {
            self.advance(rank);
        }
        let lists = &self.schedule.actions;
        let is_blocked = |rank: &usize| self.lanes[*rank].next < lists[*rank].len();
        let blocked: Vec<(usize, usize)> =
            (0..lists.len()).filter(is_blocked).map(|rank| (rank, self.lanes[rank].next)).collect();
        if !blocked.is_empty() {
            return Err(stuck_inputs(self.schedule, &blocked));
        }
        Ok(StepTimes {
            makespan: self.lanes.iter().map(|lane| lane.now).fold(0.0, f64::max),
            begin: self.lanes.iter().map(|lane| lane.begin).collect(),
            end: self.lanes.iter().map(|lane| lane.now).collect(),
            busy: self.lanes.iter().map(|lane| lane.busy).collect(),
        })
    }

    /// Computes until the next input is not there.
    fn advance(&mut self, rank: usize) {
        let list = &self.schedule.actions[rank];
        let micro_batches = self.schedule.micro_batches;
        let gradients = self.arrival.len() / 2;
        let mut lane = self.lanes[rank].clone();
        lane.awaits = usize::MAX;
        while let Some(action) = list.get(lane.next) {
            let Action::Compute(compute) = *action else {
                unreachable!("invariant: compute-only, checked")
            };
            let (cost, input, output) = match compute {
                Compute::Forward { stage, micro_batch } => {
                    let output = (stage + 1 < self.costs.forward.len()).then(|| {
                        ((stage + 1) * micro_batches + micro_batch, self.delay[0][stage + 1])
                    });
                    (self.costs.forward[stage], Some(stage * micro_batches + micro_batch), output)
                }
                Compute::BackwardInput { stage, micro_batch, .. } => {
                    let input = Some(gradients + stage * micro_batches + micro_batch);
                    let output = (!self.backward_whole).then(|| self.gradient(stage, micro_batch));
                    (self.costs.backward_input[stage], input, output.flatten())
                }
                Compute::BackwardWeight { stage, micro_batch, .. } => {
                    let output = self.backward_whole.then(|| self.gradient(stage, micro_batch));
                    (self.costs.backward_weight[stage], None, output.flatten())
                }
            };
            if let Some(input) = input {
                let there = self.arrival[input];
                if there.is_nan() {
                    lane.awaits = input;
                    break;
                }
                lane.now = lane.now.max(there);
            }
            if lane.next == 0 {
                lane.begin = lane.now;
            }
            lane.now += cost;
            lane.busy += cost;
            lane.next += 1;
            if let Some((output, delay)) = output {
                self.arrival[output] = lane.now + delay;
                let peer = self.schedule.placement[(output % gradients) / micro_batches];
                if self.lanes[peer].awaits == output {
                    self.lanes[peer].awaits = usize::MAX;
                    self.awake.push(peer);
                }
            }
        }
        self.lanes[rank] = lane;
    }

    /// Where the gradient of a stage's input arrives, and after how long.
    fn gradient(&self, stage: usize, micro_batch: usize) -> Option<(usize, f64)> {
        let below = stage.checked_sub(1)?;
        let place = self.arrival.len() / 2 + below * self.schedule.micro_batches + micro_batch;
        Some((place, self.delay[1][below]))
    }
}
