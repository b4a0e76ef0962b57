//! What the end-to-end tests share: one training step in any layout, its results put together from
//! all ranks, and the layouts to compare.
//!
//! A virtual manifest has no `tests/` targets of its own, so they live in this member package.

/// The programs of the tutorial: they compile, run and hold what they assert.
#[cfg(doctest)]
#[doc = include_str!("../../docs/tutorials/one-crate.md")]
struct OneCrate;

pub mod check;
pub mod compare;
pub mod condition;
pub mod faults;
pub mod fuzz;
pub mod gpu;
pub mod layouts;
pub mod own;
pub mod packed;
pub mod search;

use std::sync::Arc;
use trine_buffer::{Buf, DType};
use trine_comm::Communicator;
use trine_comm::threads::{self, WorldOptions};
use trine_kernels::Ops;
use trine_mesh::Degrees;
use trine_models::{Builder, PieceLayer, zoo};
use trine_nn::{NnError, Numerics};
use trine_optim::{LrKind, LrSchedule, OptimizerConfig, Rates};
use trine_schedule::ScheduleKind;
use trine_spec::{LocalParam, ModelSpec, PieceParts, Recompute};
use trine_testkit::assemble::{Shards, Tensors, assemble};
use trine_testkit::toy;
use trine_trainer::RunPlan;
use trine_trainer::TrainError;
use trine_trainer::engine::{Batch, Engine, EngineConfig, WEIGHTS, ZeroStage};
use trine_trainer::parity::gradients;
use trine_trainer::run::Devices;

/// A serial run of a toy model in f32: what layouts start from.
pub fn serial(model: ModelSpec) -> EngineConfig {
    EngineConfig {
        model,
        degrees: Degrees::SERIAL,
        virtual_stages: 1,
        layers: None,
        sequence_parallel: false,
        schedule: ScheduleKind::OneFOneB.into(),
        times: None,
        numerics: Numerics::Fast,
        compute: DType::F32,
        recompute: Recompute::None,
        zero: ZeroStage::Zero0,
        global_batch: 12,
        micro_batch: 1,
        seq: 8,
        seed: 11,
        optimizer: OptimizerConfig::Sgd { momentum: 0.0, weight_decay: 0.1 },
        groups: Vec::new(),
        frozen: Vec::new(),
        clip_norm: 0.5,
        threads: 1,
        bucket_elements: 10_000,
    }
}

/// AdamW with usual constants.
pub const ADAMW: OptimizerConfig =
    OptimizerConfig::AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };

/// The update's rate. A group with another schedule has another one, as if the step were in the middle of a run.
const RATE: f64 = 0.05;

fn rates() -> Rates {
    let kind = LrKind::Constant;
    LrSchedule { kind, warmup_steps: 0, min_ratio: 0.1, decay_fraction: 0.5 }.rates(RATE, 2, 4)
}

/// What one step in one layout gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Nats per token of the step.
    pub loss: f64,
    /// Nats per token of the same samples after its update.
    pub loss_after: f64,
    /// The norm of its gradients before clipping.
    pub norm: f64,
    /// The weights before the first step of the run.
    pub initial: Tensors,
    /// Every gradient.
    pub grads: Tensors,
    /// The weights after one update.
    pub weights: Tensors,
}

/// How a run is tampered with: mutants that a test must notice.
pub struct Mutation<'a> {
    /// Put in front of the world's communicator.
    pub wrap: &'a (dyn Fn(Arc<dyn Communicator>) -> Arc<dyn Communicator> + Sync),
    /// Changes the plan before the ranks are built.
    pub edit: &'a dyn Fn(&mut RunPlan),
    /// Done to each rank before its first step.
    pub begin: &'a (dyn Fn(&mut Engine) -> Result<(), TrainError> + Sync),
    /// Whether copies of an element on several ranks are compared. If not, the first rank's counts.
    pub copies_agree: bool,
    /// Which samples a data-parallel rank gets, given its place and the samples of each place.
    pub samples: &'a (dyn Fn(usize, Samples<'_>) -> Batch + Sync),
    /// What the ranks compute on; `None` is the processor.
    pub devices: Option<&'a dyn Devices>,
}

/// The samples of a data-parallel rank, by its place.
pub type Samples<'a> = &'a (dyn Fn(usize) -> Batch + Sync);

impl std::fmt::Debug for Mutation<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Mutation")
    }
}

impl Mutation<'_> {
    /// Nothing is changed.
    pub const NONE: Mutation<'static> = Mutation {
        wrap: &|comm| comm,
        edit: &|_| {},
        begin: &|_| Ok(()),
        copies_agree: true,
        samples: &|dp_index, samples| samples(dp_index),
        devices: None,
    };
}

/// One step, an update, and the loss after it, on threads.
///
/// # Errors
/// The first failure of any rank, or ranks that disagree about an element that they share.
pub fn step(config: &EngineConfig, mutation: &Mutation<'_>) -> Result<Outcome, String> {
    step_of(RunPlan::new(config).map_err(|error| error.to_string())?, &zoo, mutation)
}

/// Builds the layers of a model's pieces, on every rank.
pub type Build<'a> = &'a (dyn Fn(&Builder<'_>, &PieceParts) -> Result<PieceLayer, NnError> + Sync);

/// [`step`] of a plan whose pieces `build` builds.
///
/// # Errors
/// As [`step`].
pub fn step_of(
    plan: RunPlan,
    build: Build<'_>,
    mutation: &Mutation<'_>,
) -> Result<Outcome, String> {
    let config = plan.config.clone();
    step_on(plan, build, &|dp_index| batch(&config, dp_index), mutation)
}

/// [`step_of`] on samples of one's own: `batch` gives those of a data-parallel rank.
///
/// # Errors
/// As [`step`].
pub fn step_on(
    mut plan: RunPlan,
    build: Build<'_>,
    batch: Samples<'_>,
    mutation: &Mutation<'_>,
) -> Result<Outcome, String> {
    (mutation.edit)(&mut plan);
    let plan = Arc::new(plan);
    let Mutation { wrap, begin, samples, copies_agree, devices, .. } = *mutation;
    let options = WorldOptions { device: devices.and_then(Devices::shared), ..Default::default() };
    let ranks = threads::run(plan.mesh.world(), &options, |comm| {
        let batch = samples(plan.mesh.coordinate(comm.rank()).dp, batch);
        let (ops, comm): (Arc<dyn Ops>, _) = match devices {
            None => (plan.config.cpu_ops()?, comm),
            Some(devices) => {
                (devices.ops(comm.rank(), plan.config.numerics)?, devices.communicator(comm)?)
            }
        };
        let mut engine = Engine::with_pieces(plan.clone(), wrap(comm), ops, build)?;
        begin(&mut engine)?;
        step_of_rank(&mut engine, (0, rates()), &batch, copies_agree)
    })
    .map_err(|error| error.to_string())?;
    put_together(&plan, ranks, copies_agree)
}

/// What a rank has of a step.
#[derive(Debug)]
pub struct OfRank {
    /// Nats per token of the step and of the one after it, and the norm of the gradients.
    numbers: [f64; 3],
    /// The weights before the step, its gradients, and the weights after its update.
    shards: [Shards; 3],
}

/// Step `number`, from 0, of a rank: an update at its rates, and the loss of the same samples after it.
///
/// # Errors
/// The first failure of any rank; if `copies_agree`, ranks that disagree about an element that they share.
pub fn step_of_rank(
    engine: &mut Engine,
    (number, rates): (u64, Rates),
    batch: &Batch,
    copies_agree: bool,
) -> Result<OfRank, TrainError> {
    let initial = weights(engine)?;
    let loss = engine.backward(number, batch, &mut |_, _, _| {})?;
    let grads = gradients(engine)?;
    let norm = engine.update(number + 1, rates)?.norm.norm();
    if copies_agree {
        engine.check_replicas()?;
    }
    let after = engine.backward(number + 1, batch, &mut |_, _, _| {})?;
    let numbers = [loss.mean(), after.mean(), norm];
    Ok(OfRank { numbers, shards: [initial, grads, weights(engine)?] })
}

/// A step of all ranks of a plan.
///
/// # Errors
/// Ranks that disagree about loss or norm, or about an element that they share, if `copies_agree`. Without it the first
/// rank counts.
pub fn put_together(
    plan: &RunPlan,
    ranks: Vec<OfRank>,
    copies_agree: bool,
) -> Result<Outcome, String> {
    let [loss, loss_after, norm] = ranks[0].numbers;
    if copies_agree && ranks.iter().any(|rank| rank.numbers != ranks[0].numbers) {
        return Err("ranks disagree about loss or norm".into());
    }
    let mut parts = [vec![], vec![], vec![]];
    for (rank, of_rank) in ranks.into_iter().enumerate() {
        let first_replica = plan.mesh.coordinate(rank).dp == 0;
        for (part, mut shards) in parts.iter_mut().zip(of_rank.shards) {
            if !copies_agree {
                // What several ranks hold counts once; of a gradient that is shared out each rank has a part.
                let is_whole = |param: &LocalParam| {
                    shards.valid[param.bucket].len() == shards.buckets[param.bucket].len()
                };
                let params = shards.layout.params.iter().filter(|param| param.owner);
                let kept = params.filter(|param| first_replica || !is_whole(param));
                shards.layout.params = kept.cloned().collect();
            }
            part.push(shards);
        }
    }
    let [initial, grads, weights] = parts;
    let (initial, grads, weights) = (assemble(&initial)?, assemble(&grads)?, assemble(&weights)?);
    Ok(Outcome { loss, loss_after, norm, initial, grads, weights })
}

/// The samples of one data-parallel rank.
pub fn batch(config: &EngineConfig, dp_index: usize) -> Batch {
    let (inputs, targets) = toy::tokens(&config.model, config.global_batch, config.seq);
    let each = config.global_batch / config.degrees.dp * config.seq;
    let own = dp_index * each..(dp_index + 1) * each;
    Batch {
        inputs: inputs[own.clone()].to_vec(),
        targets: targets[own].to_vec(),
        document_start: None,
    }
}

/// A rank's weights, gathered where ranks share them out. A collective call.
///
/// # Errors
/// A failed operation.
pub fn weights(engine: &Engine) -> Result<Shards, TrainError> {
    let layout = engine.layout().as_ref().clone();
    let whole = |bucket: usize| engine.full_bucket(WEIGHTS, bucket);
    let buckets: Vec<Buf> = (0..layout.buckets.len()).map(whole).collect::<Result<_, _>>()?;
    let valid = buckets.iter().map(|bucket| 0..bucket.len()).collect();
    let buckets = buckets.iter().map(Buf::to_f64_vec).collect::<Result<_, _>>()?;
    Ok(Shards { layout, buckets, valid })
}
