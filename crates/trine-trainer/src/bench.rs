//! Training steps on synthetic tokens through the real engine: their speed, and their gradients.

mod core_time;
mod gradients;

pub use core_time::{CoreTime, Overhead, Part};
pub use gradients::{GRADIENT, GradientStep, STEP_FILE, gradients};

use crate::TrainError;
use crate::config::Config;
use crate::cores::rank_team;
use crate::engine::{Batch, Engine, EngineConfig, RankPlan};
use core_time::{RankTime, RankWatch};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use trine_buffer::Buf;
use trine_comm::threads::{self, Explained, WorldOptions};
use trine_comm::{Communicator, Name};
use trine_kernels::{CpuOps, Isa, KernelTime, Ops, Profiled};
use trine_rng::Stream;

/// Steps that are not timed: memory is first touched there.
const WARM_UP_STEPS: u64 = 3;

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
}

impl StepTimes {
    /// Tokens per second over all timed steps.
    pub fn tokens_per_second(&self) -> f64 {
        let seconds: f64 = self.steps.iter().map(Duration::as_secs_f64).sum();
        (self.tokens * self.steps.len()) as f64 / seconds
    }

    /// The median step in seconds.
    pub fn median_s(&self) -> f64 {
        let mut steps = self.steps.clone();
        steps.sort();
        steps[steps.len() / 2].as_secs_f64()
    }
}

/// Runs `config`'s training steps on synthetic tokens and times them.
///
/// # Errors
/// What does not fit, an instruction set that this processor lacks, or the first failure of a rank.
pub fn steps(config: &Config, request: StepRequest) -> Result<StepTimes, TrainError> {
    steps_through(config, request, &|comm| comm)
}

/// Put in front of each rank's communicator.
pub type Wrap<'a> = &'a (dyn Fn(Arc<dyn Communicator>) -> Arc<dyn Communicator> + Sync);

/// [`steps`], with a wrapper between the ranks: a slow link, a counter.
///
/// # Errors
/// As [`steps`].
pub fn steps_through(
    config: &Config,
    request: StepRequest,
    wrap: Wrap<'_>,
) -> Result<StepTimes, TrainError> {
    let engine = config.engine(request.cores)?;
    let options = WorldOptions { deadline: config.deadline(), ..Default::default() };
    let ranks = threads::run_explained(engine.degrees.world(), &options, |comm| {
        let plan = RankPlan::new(&engine, comm.rank())?;
        let (ranks, rank) = (comm.size(), comm.rank());
        let (team, _pinned) = rank_team(config.threads.pin, ranks, rank, engine.threads);
        let cpu = match request.isa {
            Some(isa) => CpuOps::with_isa(team, isa)?,
            None => CpuOps::new(team),
        };
        let isa = cpu.isa();
        let cpu: Arc<dyn Ops> = Arc::new(cpu);
        let profiled = request.profile.then(|| Arc::new(Profiled::new(cpu.clone())));
        let ops = profiled.clone().map_or(cpu, |ops| ops as Arc<dyn Ops>);
        let watch = RankWatch::new();
        let mut rank = Engine::with_ops(&engine, plan, watch.around(wrap(comm)), ops)?;
        let actions = rank.plan().training.actions[rank.plan().coordinate.pp].len();
        let timed = timed(config, &engine, &mut rank, request, &watch, &mut || {
            profiled.as_ref().map(|ops| ops.take()).unwrap_or_default()
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
    let tokens = engine.global_batch * engine.seq;
    let flops = tokens as f64 * engine.model.flops_per_token(engine.seq);
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
    })
}

/// What one rank has measured.
#[derive(Debug, Clone)]
struct Timed {
    loss: f64,
    steps: Vec<Duration>,
    /// Operations of a step.
    operations: f64,
    /// What the rank's thread did in all steps.
    time: RankTime,
    kernels: BTreeMap<&'static str, KernelTime>,
}

/// Warms up, then repeats steps until there are enough of them; rank 0's clock decides for all.
fn timed(
    config: &Config,
    engine: &EngineConfig,
    rank: &mut Engine,
    request: StepRequest,
    watch: &RankWatch,
    profile: &mut dyn FnMut() -> BTreeMap<&'static str, KernelTime>,
) -> Result<Timed, TrainError> {
    let samples = engine.global_batch / engine.degrees.dp;
    let batch = synthetic(samples * engine.seq, engine.model.vocab, config.seed);
    let step = |rank: &mut Engine, number: u64| {
        let (loss, _) =
            rank.train(number, config.optimizer.lr, &batch, &mut |_, action, moment| {
                watch.observe(action, moment);
            })?;
        Ok::<_, TrainError>(loss.mean())
    };
    for number in 0..WARM_UP_STEPS {
        step(rank, number)?;
    }
    profile();
    rank.world().barrier("bench")?;
    let (mut steps, mut total) = (Vec::new(), Duration::ZERO);
    let operations = |rank: &Engine| rank.world().recorder().operations();
    let before = operations(rank);
    watch.take();
    loop {
        let started = Instant::now();
        let loss = step(rank, WARM_UP_STEPS + steps.len() as u64)?;
        // The ranks meet here, so that a step is over when the last of them is through with it.
        let done = steps.len() as u64 + 1;
        let enough = done >= request.steps_min && total + started.elapsed() >= request.time_min;
        let word = Buf::from_vec(vec![u64::from(enough)]);
        let word = rank.world().broadcast(word, 0, Name::new("bench"))?;
        steps.push(started.elapsed());
        total += started.elapsed();
        if word.typed::<u64>()?[0] == 1 {
            let operations = (operations(rank) - before) as f64 / done as f64;
            return Ok(Timed { loss, steps, operations, time: watch.take(), kernels: profile() });
        }
    }
}

/// Tokens drawn evenly from the vocabulary, each the target of the one before.
fn synthetic(tokens: usize, vocab: usize, seed: u64) -> Batch {
    let stream = Stream::new(seed, "bench tokens");
    let id = |at: usize| (stream.uniform(at as u64) * vocab as f32) as u32;
    let inputs: Vec<u32> = (0..tokens).map(id).collect();
    let targets = (1..=tokens).map(id).collect();
    Batch { inputs, targets, document_start: None }
}
