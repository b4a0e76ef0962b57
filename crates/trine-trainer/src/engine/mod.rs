//! One rank's training engine: stores, layers, schedule and synchronisation, and one step of it.
//!
//! The engine knows nothing of files, clocks or progress. It takes the samples of a step and gives
//! back losses, gradients and updated weights, in any layout; the parity tests drive it directly.

mod build;
mod messages;
mod stage;
mod state;
mod step;
mod update;

pub use crate::settings::{EngineConfig, ZeroStage};

use crate::plan::RunPlan;
use std::ops::Range;
use std::sync::Arc;
use trine_buffer::{Buf, Place, Pool};
use trine_comm::{Communicator, Groups};
use trine_dp::{GlobalNorm, GradNorm, GradSync, WeightSync, measured_bytes};
use trine_kernels::Ops;
use trine_mesh::Coordinate;
use trine_models::StageModel;
use trine_nn::{GradStore, ParamStore};
use trine_optim::Optimizer;
use trine_pipeline::Moment;
use trine_schedule::Action;
use trine_spec::{RankBytes, RankLayout};

/// Put in front of each rank's communicator: a slow link, a counter, a fault.
pub type Wrap<'a> = &'a (dyn Fn(Arc<dyn Communicator>) -> Arc<dyn Communicator> + Sync);

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
    /// Of activations.
    pool: Pool,
    /// Of what a step is given and what it tells: its samples and its figures.
    exchanged: Pool,
    stages: Vec<StageModel>,
    weights: ParamStore,
    grads: GradStore,
    optimizer: Optimizer,
    sync: GradSync,
    weight_sync: WeightSync,
    norm: GradNorm,
    /// The partial sums of the last backward pass, over all ranks.
    measured: Option<Buf>,
    splits_backward: bool,
}

impl Engine {
    /// What the run is made of.
    pub fn config(&self) -> &EngineConfig {
        &self.plan.config
    }

    /// The decisions about all ranks.
    pub fn plan(&self) -> &Arc<RunPlan> {
        &self.plan
    }

    /// Where its buffers lie and its work is done.
    pub fn place(&self) -> &Place {
        self.ops.place()
    }

    /// Computes weight gradients in W alone from now on, also where W always follows its B: to measure both.
    pub(crate) fn split_backward(&mut self) {
        self.splits_backward = true;
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
}

/// The quantity of a checkpoint that is the model itself.
pub const WEIGHTS: &str = "weights";
