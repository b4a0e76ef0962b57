//! What a run is planned to take, beside what it took (contract C10).

use crate::TrainError;
use crate::settings::EngineConfig;
use serde::{Deserialize, Serialize};
use trine_buffer::DType;
use trine_dp::element_bytes;
use trine_nn::Numerics;
use trine_plan::{
    ActivationRequest, Attention, Cluster, Constants, Convention, Flops, Layout, Model, Planner,
    Precision, Recompute, SharedStep, activation_peak, find_stack, stacks,
};
use trine_schedule::{Order, Schedule};
use trine_spec::{ModelParts, Piece, RankBytes, RankLayout, StagePieces};

/// The machine that a run is planned for.
#[derive(Debug, Clone, PartialEq)]
pub struct Machine {
    /// What it can do. A device is one core, or a GPU.
    pub cluster: Cluster,
    /// Where that is from, in words.
    pub source: String,
}

/// What one rank holds in a run, bytes. `None` is what is not planned, or cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RankMemory {
    /// Weights, gradients, master weights and moments, between steps.
    pub state: RankBytes,
    /// Parts of buckets under way between replicas, at most.
    pub buffers: Option<usize>,
    /// Activations and messages in use at once, at most.
    pub activations: Option<usize>,
    /// What the pool of activations has taken from the system: buffers are used again for the same shape only.
    pub arena: Option<usize>,
}

/// Planned and measured bytes of one rank.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RankCheck {
    /// World rank.
    pub rank: usize,
    /// Where it stands.
    pub place: String,
    /// What the plan says.
    pub planned: RankMemory,
    /// What it held.
    pub measured: RankMemory,
}

/// A run's plan beside its first steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlanCheck {
    /// Steps of this process after which it was made.
    pub after_steps: u64,
    /// For which machine, and where its figures are from; or why none is known.
    pub machine: String,
    /// Why time and bubble are not planned, if they are not.
    pub unplanned: Option<String>,
    /// Seconds of a step, as planned.
    pub step_s_planned: Option<f64>,
    /// Seconds of a step: the median of the timed ones, by rank 0's clock.
    pub step_s_measured: f64,
    /// How many steps that is the median of: the first two are not timed.
    pub timed_steps: usize,
    /// The pipeline's bubble with planned times of F, B and W, each rank on cores of its own.
    pub bubble_planned: Option<f64>,
    /// The bubble when the simulator replays the measured times of all actions: of the processor, or of devices. None
    /// where ranks share a device, as one's time is then also that of the others.
    pub bubble_measured: Option<f64>,
    /// Bytes, rank by rank.
    pub ranks: Vec<RankCheck>,
}

impl RankMemory {
    /// What the rank at (pipeline, tensor) coordinates will hold, given its layout and the run's training schedule.
    /// Pure.
    ///
    /// Reference numerics keep gradients of single samples and trees of partial sums for a while, which nothing
    /// predicts.
    pub fn planned(
        config: &EngineConfig,
        parts: &ModelParts,
        (pp, tp): (usize, usize),
        layout: &RankLayout,
        training: &Schedule,
    ) -> Self {
        let moments = config.optimizer.moments().len();
        let each = element_bytes(config.compute, moments);
        let fast = config.numerics == Numerics::Fast;
        let request = ActivationRequest {
            model: parts,
            shape: config.pass_shape(tp),
            schedule: training,
            rank: pp,
            layout,
        };
        Self {
            state: RankBytes::of(layout, &each, &config.degrees),
            buffers: fast.then(|| each.exchanged_of(layout, &config.degrees)),
            activations: fast.then(|| activation_peak(&request)),
            arena: None,
        }
    }

    /// What it takes at most, of what is planned.
    pub fn planned_bytes(&self) -> u64 {
        let more = self.buffers.unwrap_or(0) + self.activations.unwrap_or(0);
        (self.state.total() + more) as u64
    }
}

/// FLOPs of a token of a run: what the model needs, and with what is computed again.
///
/// # Errors
/// A model that the planner does not know.
pub(crate) fn flops_per_token(config: &EngineConfig) -> Result<Flops, TrainError> {
    let mut model = Model::new(&config.model)?;
    model.freeze(&config.frozen)?;
    let again = model.drop_tensors(&config.recompute)?;
    Ok(trine_plan::flops_per_token(&model, again, config.seq, Convention::CausalHalf))
}

/// The step of a run on a machine, or why the planner has none for it.
///
/// # Errors
/// A model that does not fit the layout.
pub fn planned_step(
    config: &EngineConfig,
    machine: &Machine,
) -> Result<Result<SharedStep, String>, TrainError> {
    let mut model = Model::new(&config.model)?;
    model.freeze(&config.frozen)?;
    let again = model.drop_tensors(&config.recompute)?;
    let layout = match layout(config, again) {
        Ok(layout) => layout,
        Err(why) => return Ok(Err(why)),
    };
    let all = stacks()?;
    let constants = Constants::built_in()?;
    let world = config.degrees.world();
    // A rank has as many cores as threads, or a GPU.
    let each = if machine.cluster.device.is_gpu() { 1 } else { config.threads };
    let cluster = machine.cluster.of_ranks(each, world);
    let planner = Planner::new(&model, &cluster, find_stack(&all, STACK)?, &constants)?;
    let at_once = machine.cluster.devices() as f64 / each as f64;
    let is_block = |piece: &&Piece| matches!(piece, Piece::Block(_));
    let count = |stage: &StagePieces| stage.pieces.iter().filter(is_block).count();
    let blocks: Vec<usize> =
        config.stages(&config.model.parts(config.degrees.tp)?)?.iter().map(count).collect();
    let lists = config.schedule.generate(config.shape(), config.times.as_ref())?;
    Ok(Ok(planner.shared_step(&layout, &lists, &blocks, at_once.min(world as f64))?))
}

/// The software that runs.
const STACK: &str = "trine";

/// A run as the planner sees it, or what it does not know of it.
fn layout(config: &EngineConfig, recompute: Recompute) -> Result<Layout, String> {
    if config.numerics == Numerics::Reference {
        return Err("the planner knows no times for reference numerics".into());
    }
    let Order::Named(pipeline) = config.schedule else {
        return Err("the planner knows no times for a schedule of one's own".into());
    };
    let precision = match config.compute {
        DType::F32 => Precision::F32,
        DType::Bf16 => Precision::Bf16,
        other => return Err(format!("the planner knows no times for {other}")),
    };
    Ok(Layout {
        degrees: config.degrees,
        virtual_stages: config.virtual_stages,
        pipeline,
        micro_batch: config.micro_batch,
        global_batch: config.global_batch,
        seq: config.seq,
        sequence_parallel: config.sequence_parallel && config.degrees.tp > 1,
        recompute,
        attention: Attention::Flash2,
        zero: config.zero.number(),
        precision,
    })
}

impl PlanCheck {
    /// Puts plan and measurement together. `timed` are the seconds of the steps that count; `ranks` are in world order.
    pub(crate) fn new(
        config: &EngineConfig,
        machine: &Result<Machine, String>,
        measured: Measured<'_>,
        ranks: Vec<RankCheck>,
    ) -> Self {
        let planned = match machine {
            Err(why) => Err(why.clone()),
            // A plan that fails is no reason to end a run.
            Ok(machine) => {
                planned_step(config, machine).unwrap_or_else(|error| Err(error.to_string()))
            }
        };
        let step = planned.as_ref().ok();
        Self {
            after_steps: measured.steps,
            machine: machine.as_ref().map_or_else(|_| "not known".into(), Machine::to_string),
            unplanned: planned.as_ref().err().cloned(),
            step_s_planned: step.map(|step| step.step),
            step_s_measured: median(measured.timed),
            timed_steps: measured.timed.len(),
            bubble_planned: step.map(|step| step.bubble_fraction),
            bubble_measured: measured.bubble,
            ranks,
        }
    }
}

/// What a run has measured so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measured<'a> {
    pub(crate) steps: u64,
    pub(crate) timed: &'a [f64],
    pub(crate) bubble: Option<f64>,
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.cluster.name, self.source)
    }
}

/// The value in the middle; of an even number, halfway between the two there.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (low, high) = (sorted.len().saturating_sub(1) / 2, sorted.len() / 2);
    match (sorted.get(low), sorted.get(high)) {
        (Some(low), Some(high)) => (low + high) / 2.0,
        _ => f64::NAN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is frozen is planned with neither weight gradients nor an update.
    #[test]
    fn a_step_is_planned_without_the_weight_gradients_of_what_is_frozen() {
        let clusters = trine_plan::clusters(&[]).unwrap();
        let cluster = trine_plan::find_cluster(&clusters, "h100").unwrap().clone();
        let machine = Machine { cluster, source: "a test".into() };
        let step = |frozen: &str| {
            // Wide enough that kernels take longer than their launches.
            let text = format!("train.frozen=[{frozen}]");
            let settings = ["model.hidden=2048", &text].map(crate::config::Setting::set).into();
            let typed = crate::config::Typed { settings, ..Default::default() };
            let config = crate::config::Config::load(&typed).unwrap().engine(4).unwrap();
            planned_step(&config, &machine).unwrap().unwrap().step
        };
        let (whole, some) = (step(""), step("\"block.*\", \"embedding.position\""));
        assert!(some < 0.98 * whole, "{some} {whole}");
    }

    #[test]
    fn the_middle_of_even_and_odd_numbers_of_steps() {
        assert_eq!((median(&[3.0, 1.0, 2.0]), median(&[4.0, 1.0, 2.0, 3.0])), (2.0, 2.5));
    }
}
