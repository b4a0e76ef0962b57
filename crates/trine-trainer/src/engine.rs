//! One rank's training engine: stores, layers, schedule and synchronisation, and one step of it.
//!
//! The engine knows nothing of files, clocks or progress. It takes the samples of a step and gives
//! back losses, gradients and updated weights, in any layout; the parity tests drive it directly.

mod messages;
mod settings;
mod state;

pub use settings::{EngineConfig, ZeroStage};

use crate::TrainError;
use crate::plan::RunPlan;
use crate::stage::{MicroBatches, StageRun};
use crate::update::{AtOnce, Updating};
use std::ops::Range;
use std::sync::Arc;
use trine_buffer::{Buf, Pool};
use trine_comm::{Communicator, Groups, Name, ReduceOp};
use trine_dp::{
    DpError, GlobalNorm, GradNorm, GradSync, GradSyncOptions, Squares, WeightSync, check_replicas,
    clip_scale, measured_bytes, own_ranges,
};
use trine_kernels::{CpuOps, Ops, Team};
use trine_mesh::{AxisSet, Coordinate};
use trine_models::{BuildPiece, RankParts, StageModel, zoo};
use trine_nn::{GradStore, Mode, ParamStore, initial_weights};
use trine_optim::{Optimizer, Update};
use trine_pipeline::{Execution, Moment, execute};
use trine_schedule::{Action, Schedule};
use trine_spec::{RankBytes, RankLayout};

/// The samples of one data-parallel rank for one step: `global_batch / dp` sequences, row after row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Token ids.
    pub inputs: Vec<u32>,
    /// For each token the next one; `u32::MAX` where there is nothing to predict.
    pub targets: Vec<u32>,
    /// For each token, the first position of its sequence that it may attend to.
    pub document_start: Option<Vec<u32>>,
}

impl Batch {
    /// Tokens with something to predict.
    pub fn valid_tokens(&self) -> u64 {
        self.targets.iter().filter(|target| **target != u32::MAX).count() as u64
    }
}

/// The loss of a step or an evaluation over all ranks (contract C2).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Loss {
    /// Σ token losses in nats, over all valid tokens of all ranks.
    pub sum: f64,
    /// Valid tokens.
    pub tokens: u64,
}

impl Loss {
    /// Nats per token.
    pub fn mean(&self) -> f64 {
        self.sum / self.tokens.max(1) as f64
    }
}

/// What an update did.
#[derive(Debug, Clone)]
pub struct Updated {
    /// The gradients' norm before clipping.
    pub norm: GlobalNorm,
}

/// Called before and after each action of a schedule: traces and measurements.
pub type Observe<'a> = &'a mut dyn FnMut(usize, &Action, Moment);

/// One rank of a run.
#[derive(Debug)]
pub struct Engine {
    plan: Arc<RunPlan>,
    coordinate: Coordinate,
    layout: Arc<RankLayout>,
    world: Arc<dyn Communicator>,
    groups: Groups,
    pp: Arc<dyn Communicator>,
    dp: Arc<dyn Communicator>,
    /// The two ranks that hold a tied embedding's copies, if this is one.
    tied: Option<Arc<dyn Communicator>>,
    ops: Arc<dyn Ops>,
    pool: Pool,
    stages: Vec<StageModel>,
    weights: ParamStore,
    grads: GradStore,
    optimizer: Optimizer,
    sync: GradSync,
    weight_sync: WeightSync,
    norm: GradNorm,
    /// What the last backward pass has counted of it.
    squares: Option<Squares>,
}

impl Engine {
    /// Builds the rank that `world` says it is, with initial weights. A collective call.
    ///
    /// # Errors
    /// What does not fit, or a failed collective.
    pub fn new(config: &EngineConfig, world: Arc<dyn Communicator>) -> Result<Self, TrainError> {
        Self::from_plan(Arc::new(RunPlan::new(config)?), world)
    }

    /// [`Engine::new`] with a plan made before, for all ranks.
    ///
    /// # Errors
    /// As [`Engine::new`].
    pub fn from_plan(plan: Arc<RunPlan>, world: Arc<dyn Communicator>) -> Result<Self, TrainError> {
        let (threads, isa) = (plan.config.threads, plan.config.numerics.isa());
        let ops = Arc::new(CpuOps::with_isa(Team::new(threads), isa)?);
        Self::with_ops(plan, world, ops)
    }

    /// [`Engine::from_plan`] with kernels made elsewhere: another instruction set, a profile.
    ///
    /// # Errors
    /// As [`Engine::new`].
    pub fn with_ops(
        plan: Arc<RunPlan>,
        world: Arc<dyn Communicator>,
        ops: Arc<dyn Ops>,
    ) -> Result<Self, TrainError> {
        Self::with_pieces(plan, world, ops, &zoo)
    }

    /// [`Engine::with_ops`] with layers of one's own: `build` builds those of the pieces that it knows, and leaves the
    /// others to [`zoo`].
    ///
    /// # Errors
    /// As [`Engine::new`], or what `build` returns.
    pub fn with_pieces(
        plan: Arc<RunPlan>,
        world: Arc<dyn Communicator>,
        ops: Arc<dyn Ops>,
        build: BuildPiece<'_>,
    ) -> Result<Self, TrainError> {
        let groups = Groups::new(&plan.mesh, &world, plan.axis_sets())?;
        let along = |axes| groups.of(axes).cloned();
        let (pp, dp, tp) = (along(AxisSet::PP)?, along(AxisSet::DP)?, along(AxisSet::TP)?);
        let tied = tied_link(&plan, &pp)?;
        messages::make_room(&plan, &*pp);
        let (config, coordinate) = (&plan.config, plan.mesh.coordinate(world.rank()));
        let layout = Arc::new(plan.layout(coordinate).clone());
        // Before any memory: it refuses what is not built.
        let own = own_ranges(&layout, &groups)?;
        let numerics = config.numerics;
        let parts = RankParts {
            model: &plan.parts,
            layout: &layout,
            comm: tp,
            sequence_parallel: config.sequence_parallel,
            recompute: config.recompute,
            numerics,
            compute: config.compute,
            seed: config.seed,
        };
        let stages = StageModel::of_rank(&parts, build)?;
        let mut weights = ParamStore::zeros(layout.clone(), config.compute);
        let optimizer = Optimizer::new(&layout, own, config.compute, config.optimizer, |bucket| {
            let dtype = config.compute.accumulator();
            let initial = initial_weights(&layout, bucket, config.seed, dtype)?;
            weights.load(bucket, initial.slice(), &*ops)?;
            Ok(initial)
        })?;
        let tied_peer = tied.clone();
        let options = GradSyncOptions { numerics, global_batch: config.global_batch, tied_peer };
        let names = plan.parts.names();
        Ok(Self {
            sync: GradSync::new(&layout, options, &groups)?,
            weight_sync: WeightSync::new(&layout, &groups)?,
            norm: GradNorm::new(names, &layout, &groups, numerics, world.clone())?,
            squares: None,
            grads: GradStore::new(layout.clone(), config.compute, numerics),
            pool: Pool::new(),
            coordinate,
            plan,
            layout,
            world,
            groups,
            pp,
            dp,
            tied,
            ops,
            stages,
            weights,
            optimizer,
        })
    }

    /// What the run is made of.
    pub fn config(&self) -> &EngineConfig {
        &self.plan.config
    }

    /// The decisions about all ranks.
    pub fn plan(&self) -> &Arc<RunPlan> {
        &self.plan
    }

    /// Where this rank stands.
    pub fn coordinate(&self) -> Coordinate {
        self.coordinate
    }

    /// What it holds.
    pub fn layout(&self) -> &Arc<RankLayout> {
        &self.layout
    }

    /// All ranks of the run.
    pub fn world(&self) -> &Arc<dyn Communicator> {
        &self.world
    }

    /// The ranks that differ from this one along the pipeline, data or tensor parallelism alone, or along the axes
    /// of a bucket.
    pub fn groups(&self) -> &Groups {
        &self.groups
    }

    /// The weights.
    pub fn weights(&self) -> &ParamStore {
        &self.weights
    }

    /// The gradients of the last [`Engine::backward`].
    pub fn grads(&self) -> &GradStore {
        &self.grads
    }

    /// The elements of a bucket whose reduced gradient is valid on this rank: [`GradSync::reduced`].
    pub fn reduced(&self, bucket: usize) -> Range<usize> {
        self.sync.reduced(bucket)
    }

    /// Where activations come from: its statistics are the activation memory.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Most bytes that reductions and gathers needed beside the buckets.
    pub fn buffer_bytes_max(&self) -> usize {
        self.sync.buffer_bytes_max() + self.weight_sync.buffer_bytes_max()
    }

    /// Bytes that this rank holds between steps.
    pub fn bytes(&self) -> RankBytes {
        let (master, moments) = (self.optimizer.master_bytes(), self.optimizer.moment_bytes());
        measured_bytes(&self.weights, &self.grads, master, moments)
    }

    /// One training step: forward, backward, the reduction of gradients, and the update. `step` counts
    /// from 0. A collective call.
    ///
    /// With clipping the update begins when the norm of all gradients is known. Without, each bucket is
    /// updated as soon as it is reduced, with the same bits; a gradient that is not finite is noticed
    /// before its bucket is touched, but buckets before it are updated by then.
    ///
    /// # Errors
    /// As [`Engine::backward`] and [`Engine::update`]. After an error the weights may be those of a step
    /// half done, and the engine must not be used any more: a run stops, its checkpoints as they were.
    pub fn train(
        &mut self,
        step: u64,
        lr: f64,
        batch: &Batch,
        observe: Observe<'_>,
    ) -> Result<(Loss, Updated), TrainError> {
        if self.plan.config.clip_norm > 0.0 {
            let loss = self.backward(step, batch, observe)?;
            return Ok((loss, self.update(step + 1, lr)?));
        }
        let update = Update { lr, grad_scale: 1.0, step: step + 1 };
        let (loss, refused) = self.gradients(step, batch, Some(update), observe)?;
        // Ranks that found no fault of their own learn here of others'. Weights are gathered after it:
        // a rank that has refused a bucket has posted no gather of it.
        let norm = self.total_norm(step + 1)?;
        refused.map_or(Ok(()), Err).map_err(TrainError::in_step(step + 1))?;
        self.weight_sync.wait(&mut self.weights)?;
        Ok((loss, Updated { norm }))
    }

    /// Forward and backward over a step's samples, and the reduction of all gradients. Weights stay
    /// as they are. `step`, from 0, is a coordinate of dropout masks. A collective call.
    ///
    /// # Errors
    /// The first failure of any rank.
    pub fn backward(
        &mut self,
        step: u64,
        batch: &Batch,
        observe: Observe<'_>,
    ) -> Result<Loss, TrainError> {
        Ok(self.gradients(step, batch, None, observe)?.0)
    }

    /// [`Engine::backward`], with an update of each bucket if there is one to be made at once. Gives
    /// also the gradient that this rank has refused to update with.
    fn gradients(
        &mut self,
        step: u64,
        batch: &Batch,
        at_once: Option<Update>,
        observe: Observe<'_>,
    ) -> Result<(Loss, Option<DpError>), TrainError> {
        self.grads.clear()?;
        self.squares = Some(self.norm.squares());
        let plan = self.plan.clone();
        let run = self.run(&plan.training, Mode::Train, step, batch, at_once, observe);
        let (loss, refused) = run?;
        if !loss.sum.is_finite() {
            // All ranks know the same loss. The gradients tell which rank and parameter is concerned.
            let measured = self.norm.measure(&self.grads, &*self.ops);
            measured.map_err(TrainError::in_step(step + 1))?;
            return Err(TrainError::Loss { step: step + 1, loss: loss.mean() });
        }
        Ok((loss, refused))
    }

    /// The loss of `global_batch` sequences, of which `batch` is this data-parallel rank's part. A
    /// collective call.
    ///
    /// # Errors
    /// The first failure of any rank.
    pub fn evaluate(&mut self, batch: &Batch) -> Result<Loss, TrainError> {
        let plan = self.plan.clone();
        Ok(self.run(&plan.evaluation, Mode::Eval, 0, batch, None, &mut |_, _, _| {})?.0)
    }

    fn run(
        &mut self,
        schedule: &Schedule,
        mode: Mode,
        step: u64,
        batch: &Batch,
        at_once: Option<Update>,
        observe: Observe<'_>,
    ) -> Result<(Loss, Option<DpError>), TrainError> {
        let tokens = self.valid_tokens(batch)?;
        let (optimizer, weight_sync) = (&mut self.optimizer, &mut self.weight_sync);
        let rank = self.world.rank();
        let at_once = at_once.map(|update| AtOnce {
            updating: Updating { optimizer, weight_sync, update },
            rank,
            refused: None,
        });
        let micro_batches = MicroBatches::new(&self.plan.config, self.coordinate.dp, batch)?;
        let mut run = StageRun {
            config: &self.plan.config,
            stages: &self.stages,
            weights: &mut self.weights,
            grads: &mut self.grads,
            sync: &mut self.sync,
            norm: &self.norm,
            squares: self.squares.as_mut(),
            at_once,
            ops: &*self.ops,
            pool: &self.pool,
            micro_batches,
            mode,
            step,
            loss_scale: 1.0 / tokens.max(1) as f64,
            in_flight: Default::default(),
            losses: vec![0.0; self.plan.config.global_batch],
        };
        let execution = Execution { schedule, comm: &*self.pp, pool: &self.pool };
        execute(&execution, &mut run, observe)?;
        let (losses, refused) = (run.losses, run.at_once.and_then(|at_once| at_once.refused));
        Ok((Loss { sum: self.total(losses)?, tokens }, refused))
    }

    /// Valid tokens of the step over all data-parallel ranks: counted before the first forward pass,
    /// because the loss's gradient is scaled by it (contract C2).
    fn valid_tokens(&self, batch: &Batch) -> Result<u64, TrainError> {
        let own = Buf::from_vec(vec![batch.valid_tokens()]);
        let all = self.dp.all_reduce(own, ReduceOp::Sum, Name::new("valid tokens"))?;
        Ok(all.typed::<u64>()?[0])
    }

    /// The sum of all samples' losses, added in the order of the samples whatever rank has them: each
    /// sample's is at its place on one rank and zero elsewhere.
    fn total(&self, mut losses: Vec<f64>) -> Result<f64, TrainError> {
        let has_head = self.stages.iter().any(StageModel::has_head);
        if !(has_head && self.coordinate.tp == 0) {
            losses.fill(0.0);
        }
        let all = Buf::from_vec(losses);
        let all = self.world.all_reduce(all, ReduceOp::Sum, Name::new("loss"))?;
        Ok(all.typed::<f64>()?.iter().sum())
    }

    /// Measures the gradients' norm, clips, updates the owned weights and gathers the others'. `step`
    /// counts from 1. A collective call.
    ///
    /// # Errors
    /// A gradient that is not finite (step, rank and parameter named), or a failed collective.
    pub fn update(&mut self, step: u64, lr: f64) -> Result<Updated, TrainError> {
        let norm = self.total_norm(step)?;
        let clip = self.plan.config.clip_norm;
        let grad_scale = if clip > 0.0 { clip_scale(norm.norm(), clip) } else { 1.0 };
        let update = Update { lr, grad_scale, step };
        let (optimizer, weight_sync) = (&mut self.optimizer, &mut self.weight_sync);
        let mut updating = Updating { optimizer, weight_sync, update };
        for bucket in 0..self.layout.buckets.len() {
            updating.bucket(bucket, &mut self.weights, &self.grads, &*self.ops)?;
        }
        self.weight_sync.wait(&mut self.weights)?;
        Ok(Updated { norm })
    }

    /// The norm, from what the backward pass of a step (from 1) has counted of it.
    fn total_norm(&mut self, step: u64) -> Result<GlobalNorm, TrainError> {
        let squares = self.squares.take().unwrap_or_else(|| self.norm.squares());
        let norm = self.norm.total(squares, &self.grads, &*self.ops);
        norm.map_err(TrainError::in_step(step))
    }

    /// The gradients' norm without an update. A collective call.
    ///
    /// # Errors
    /// As [`Engine::update`].
    pub fn measure_norm(&self) -> Result<GlobalNorm, TrainError> {
        Ok(self.norm.measure(&self.grads, &*self.ops)?)
    }

    /// Compares the weights of all replicas. A collective call.
    ///
    /// # Errors
    /// The parameter and the ranks that differ.
    pub fn check_replicas(&self) -> Result<(), TrainError> {
        Ok(check_replicas(&self.weights, &self.groups, self.tied.as_ref())?)
    }
}

/// The quantity of a checkpoint that is the model itself.
pub const WEIGHTS: &str = "weights";

/// The two ranks that hold the copies of a tied embedding, on those two. All pipeline ranks call it.
fn tied_link(
    plan: &RunPlan,
    pp: &Arc<dyn Communicator>,
) -> Result<Option<Arc<dyn Communicator>>, TrainError> {
    let holders = plan.tied_ranks();
    if holders.len() < 2 {
        return Ok(None);
    }
    let holds = holders.contains(&pp.rank());
    let link = pp.split(u64::from(!holds), if holds { "tied" } else { "not tied" })?;
    Ok(holds.then_some(link))
}
