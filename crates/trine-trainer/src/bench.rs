//! Training steps on synthetic tokens through the real engine: their speed, and their gradients.

mod core_time;
mod gradients;
mod rank;

pub use core_time::{CoreTime, Overhead, Part};
pub use gradients::{GRADIENT, GradientStep, STEP_FILE, STEP_FIRST, gradients};

use crate::TrainError;
use crate::config::{Config, Times};
use crate::cores::rank_team;
use crate::engine::{Batch, Engine, EngineConfig, Wrap};
use crate::plan::RunPlan;
use core_time::{RankTime, RankWatch};
use rank::{RankBench, Timed};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use trine_comm::threads::{self, Explained, WorldOptions};
use trine_kernels::ceiling::MultiplyAdds;
use trine_kernels::{CpuOps, Isa, KernelTime, Ops, Profiled};
use trine_rng::Stream;

/// What to measure.
#[derive(Debug, Clone, Copy)]
pub struct StepRequest {
    /// Cores to share out among the ranks.
    pub cores: usize,
    /// Timed steps at least.
    pub steps_min: u64,
    /// Go on until so much time has been measured.
    pub time_min: Duration,
    /// Another instruction set than the best.
    pub isa: Option<Isa>,
    /// Time each kernel of each rank, at the cost of two looks at the clock a call.
    pub profile: bool,
    /// Find out between the steps what multiply-adds on registers reach just then.
    pub ceiling: bool,
}

impl StepRequest {
    /// So many steps for so long, with the best instruction set, and nothing beside them.
    pub fn plain(cores: usize, steps_min: u64, time_min: Duration) -> Self {
        Self { cores, steps_min, time_min, isa: None, profile: false, ceiling: false }
    }
}

/// Times of training steps: forward, backward, reduction and update.
#[derive(Debug, Clone)]
pub struct StepTimes {
    /// Wall time of each timed step, until all ranks are through with it.
    pub steps: Vec<Duration>,
    /// Tokens of a step over all ranks.
    pub tokens: usize,
    /// Model FLOPs of a step over all ranks.
    pub flops: f64,
    /// The loss of the last step.
    pub loss: f64,
    /// Threads that computed for each rank.
    pub threads: usize,
    /// The instruction set.
    pub isa: Isa,
    /// Operations between ranks in a step, of the rank that has most.
    pub operations: f64,
    /// Actions of the schedule in a step, of the rank that has most.
    pub actions: usize,
    /// What the cores did in all timed steps together.
    pub core_time: CoreTime,
    /// Time by kernel, added up over the ranks and the timed steps; empty unless asked for.
    pub kernels: BTreeMap<&'static str, KernelTime>,
    /// FLOP/s of multiply-adds on registers between the steps, on average, of all cores together; if asked for.
    pub ceiling: Option<f64>,
}

impl StepTimes {
    /// Tokens per second over all timed steps.
    pub fn tokens_per_second(&self) -> f64 {
        let seconds: f64 = self.steps.iter().map(Duration::as_secs_f64).sum();
        (self.tokens * self.steps.len()) as f64 / seconds
    }

    /// The median step in seconds.
    pub fn median_s(&self) -> f64 {
        self.turn().median_s()
    }

    /// The part of it that is known as soon as a turn is over.
    pub fn turn(&self) -> Turn<'_> {
        let Self { steps, tokens, flops, loss, threads, isa, .. } = self;
        Turn { steps, tokens: *tokens, flops: *flops, loss: *loss, threads: *threads, isa: *isa }
    }
}

/// Steps that rank 0 has timed one after another.
#[derive(Debug, Clone, Copy)]
pub struct Turn<'a> {
    /// Wall time of each, until all ranks are through with it.
    pub steps: &'a [Duration],
    /// Tokens of a step over all ranks.
    pub tokens: usize,
    /// Model FLOPs of a step over all ranks.
    pub flops: f64,
    /// The loss of the last step.
    pub loss: f64,
    /// Threads that computed for each rank.
    pub threads: usize,
    /// The instruction set.
    pub isa: Isa,
}

impl Turn<'_> {
    /// The median step in seconds; of an even number of steps, halfway between the two in the middle.
    pub fn median_s(&self) -> f64 {
        let mut steps = self.steps.to_vec();
        steps.sort();
        let (low, high) = (steps[(steps.len() - 1) / 2], steps[steps.len() / 2]);
        (low + high).as_secs_f64() / 2.0
    }
}

/// Runs `config`'s training steps on synthetic tokens and times them.
///
/// # Errors
/// What does not fit, an instruction set that this processor lacks, or the first failure of a rank.
pub fn steps(config: &Config, request: StepRequest) -> Result<StepTimes, TrainError> {
    steps_through(config, request, &|comm| comm)
}

/// [`steps`], turn after turn of so many steps: `is_next` is called with each turn that is over, and says whether there
/// is another.
///
/// It may take its time. The other ranks wait for rank 0 meanwhile, as long as the configuration's deadline lets them.
///
/// # Errors
/// As [`steps`].
pub fn steps_in_turns(
    config: &Config,
    request: StepRequest,
    is_next: IsNext<'_>,
) -> Result<StepTimes, TrainError> {
    run(config, request, &|comm| comm, is_next)
}

/// Says whether there is another turn after this one.
pub type IsNext<'a> = &'a (dyn Fn(Turn<'_>) -> bool + Sync);

/// [`steps`], with a wrapper between the ranks: a slow link, a counter.
///
/// # Errors
/// As [`steps`].
pub fn steps_through(
    config: &Config,
    request: StepRequest,
    wrap: Wrap<'_>,
) -> Result<StepTimes, TrainError> {
    run(config, request, wrap, &|_| false)
}

fn run(
    config: &Config,
    request: StepRequest,
    wrap: Wrap<'_>,
    is_next: IsNext<'_>,
) -> Result<StepTimes, TrainError> {
    let engine = engine_of(config, request.cores)?;
    let tokens = engine.global_batch * engine.seq;
    let flops = tokens as f64 * engine.model.flops_per_token(engine.seq);
    let options = WorldOptions { deadline: config.deadline(), ..Default::default() };
    let plan = Arc::new(RunPlan::new(&engine)?);
    let ranks = threads::run_explained(engine.degrees.world(), &options, |comm| {
        let (ranks, rank) = (comm.size(), comm.rank());
        let (team, _pinned) = rank_team(config.threads.pin, ranks, rank, engine.threads);
        // Where there are more ranks than cores, as many as there are cores for find out what all of them reach.
        let has_cores = rank == 0 || (rank + 1) * engine.threads <= request.cores;
        let cpu = CpuOps::with_isa(team, request.isa.unwrap_or_else(|| engine.numerics.isa()))?;
        let (isa, cpu) = (cpu.isa(), Arc::new(cpu));
        let profiled = request.profile.then(|| Arc::new(Profiled::new(cpu.clone())));
        let ops = profiled.clone().map_or(cpu.clone() as Arc<dyn Ops>, |ops| ops);
        let watch = RankWatch::new();
        let rank = Engine::with_ops(plan.clone(), watch.around(wrap(comm)), ops)?;
        let actions = plan.training.actions[rank.coordinate().pp].len();
        let dtype = config.train.precision.dtype();
        let adds = (request.ceiling && has_cores)
            .then(|| MultiplyAdds::new(cpu.team(), isa, dtype))
            .transpose()?;
        let mut bench = RankBench::new(config, request, rank, watch, profiled, adds);
        let timed = bench.turns(&|turn: &Timed| {
            let (threads, steps, loss) = (engine.threads, &turn.steps, turn.loss);
            is_next(Turn { steps, tokens, flops, loss, threads, isa })
        })?;
        Ok::<_, TrainError>((timed, actions, isa))
    })
    .map_err(|failed: Explained<TrainError>| TrainError::Ranks {
        diagnosis: Box::new(failed.post_mortem.diagnosis),
        flight: None,
    })?;
    let operations = ranks.iter().map(|(timed, ..)| timed.operations).fold(0.0, f64::max);
    let actions = ranks.iter().map(|(_, actions, _)| *actions).max().unwrap_or(0);
    let (Timed { loss, steps, .. }, _, isa) = ranks[0].clone();
    let ceiling = request.ceiling.then(|| ranks.iter().filter_map(|(t, ..)| t.ceiling).sum());
    let wall = steps.iter().map(Duration::as_secs_f64).sum();
    let own: Vec<RankTime> = ranks.iter().map(|(timed, ..)| timed.time).collect();
    let core_time = CoreTime::shared_out(request.cores, engine.threads, wall, &own);
    let mut kernels = BTreeMap::<_, KernelTime>::new();
    for (kernel, time) in ranks.into_iter().flat_map(|(timed, ..)| timed.kernels) {
        let sum = kernels.entry(kernel).or_default();
        sum.calls += time.calls;
        sum.time += time.time;
        sum.flops += time.flops;
    }
    let threads = engine.threads;
    Ok(StepTimes {
        steps,
        tokens,
        flops,
        loss,
        threads,
        isa,
        operations,
        actions,
        core_time,
        kernels,
        ceiling,
    })
}

/// What the engine needs, where the schedule is known.
fn engine_of(config: &Config, cores: usize) -> Result<EngineConfig, TrainError> {
    if config.layout.times == Times::Measured {
        let rule = "layout.times = \"measured\": the ranks of a run measure them, those of a benchmark do not; \
                    nearest valid: the times in the config.toml of such a run, or []";
        return Err(TrainError::Refused(rule.into()));
    }
    Ok(config.engine(cores)?)
}

/// Tokens drawn evenly from the vocabulary, each the target of the one before.
fn synthetic(tokens: usize, vocab: usize, seed: u64) -> Batch {
    let stream = Stream::new(seed, "bench tokens");
    let id = |at: usize| (stream.uniform(at as u64) * vocab as f32) as u32;
    let inputs: Vec<u32> = (0..tokens).map(id).collect();
    let targets = (1..=tokens).map(id).collect();
    Batch { inputs, targets, document_start: None }
}
