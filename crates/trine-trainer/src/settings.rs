//! An engine's configuration: usual values, and what it must satisfy before anything is planned.

use crate::TrainError;
use std::sync::Arc;
use trine_buffer::DType;
use trine_kernels::{CpuOps, Team};
use trine_mesh::{Axis, AxisSet, Degrees};
use trine_nn::Numerics;
use trine_optim::{Group, OptimizerConfig};
use trine_schedule::{Order, ScheduleKind, Shape, UniformStage};
use trine_spec::{BUCKET_ELEMENTS, ModelSpec, PassShape, Pattern, Recompute, Shares};

/// Axes that the mesh has and the engine does not split anything on.
const NOT_SPLIT: [Axis; 2] = [Axis::Cp, Axis::Ep];

/// What data-parallel ranks share out among themselves, as a configuration says it. The plan turns it into the
/// [`Shares`] of each bucket; nobody else asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ZeroStage {
    /// Nothing: every rank updates all weights and keeps all optimizer state.
    Zero0,
    /// Optimizer state: each rank updates one part of each bucket, and the parts are gathered.
    Zero1,
}

impl ZeroStage {
    /// Its number.
    pub fn number(self) -> u8 {
        match self {
            Self::Zero0 => 0,
            Self::Zero1 => 1,
        }
    }

    /// What ranks divide, over `summed`: the axes that gradients are summed over.
    pub fn shares(self, summed: AxisSet) -> Shares {
        Shares::zero(self.number(), summed)
    }
}

/// Everything that determines the numbers of a run, and how they are computed.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// The model.
    pub model: ModelSpec,
    /// The layout.
    pub degrees: Degrees,
    /// Stages of the pipeline on each rank (virtual stages); 1 but for schedules that take several. A schedule of one's
    /// own says it itself.
    pub virtual_stages: usize,
    /// Blocks of each stage; `None`: by work ([`trine_spec::stage_blocks`]).
    pub layers: Option<Vec<usize>>,
    /// Split the residual stream by rows over tensor parallelism.
    pub sequence_parallel: bool,
    /// The pipeline's order of work.
    pub schedule: Order,
    /// Times of a stage and a message for which its lists are made; `None`: equal ones.
    pub times: Option<UniformStage>,
    /// How sums are ordered.
    pub numerics: Numerics,
    /// Type of weights and activations.
    pub compute: DType,
    /// What of the activations is computed again in backward instead of kept.
    pub recompute: Recompute,
    /// What data-parallel ranks share out.
    pub zero: ZeroStage,
    /// Sequences of a step over all ranks.
    pub global_batch: usize,
    /// Sequences of a micro-batch.
    pub micro_batch: usize,
    /// Tokens of a sequence.
    pub seq: usize,
    /// Seed of weights and dropout masks.
    pub seed: u64,
    /// The update.
    pub optimizer: OptimizerConfig,
    /// Parameters that are updated in another way.
    pub groups: Vec<Group>,
    /// Parameters that are not trained.
    pub frozen: Vec<Pattern>,
    /// Largest global gradient norm; 0: no clipping.
    pub clip_norm: f64,
    /// Threads that compute for this rank.
    pub threads: usize,
    /// Elements at which a gradient bucket is closed.
    pub bucket_elements: usize,
}

impl EngineConfig {
    /// One rank, one sequence of the model's full length a step, in f32 by AdamW with usual
    /// constants: where a loop of one's own begins.
    pub fn serial(model: ModelSpec) -> Self {
        Self {
            degrees: Degrees::SERIAL,
            virtual_stages: 1,
            layers: None,
            sequence_parallel: true,
            schedule: Order::Named(ScheduleKind::OneFOneB),
            times: None,
            numerics: Numerics::Fast,
            compute: DType::F32,
            recompute: Recompute::None,
            zero: ZeroStage::Zero1,
            global_batch: 1,
            micro_batch: 1,
            seq: model.seq_max,
            seed: 1,
            optimizer: OptimizerConfig::AdamW {
                beta1: 0.9,
                beta2: 0.95,
                eps: 1e-8,
                weight_decay: 0.1,
            },
            groups: Vec::new(),
            frozen: Vec::new(),
            clip_norm: 1.0,
            threads: 1,
            bucket_elements: BUCKET_ELEMENTS,
            model,
        }
    }

    /// Micro-batches of a step on each data-parallel rank.
    pub fn micro_batches(&self) -> usize {
        self.global_batch / self.degrees.dp / self.micro_batch
    }

    /// The pipeline's shape.
    pub fn shape(&self) -> Shape {
        let (ranks, chunks) = (self.degrees.pp, self.virtual_stages);
        Shape { ranks, chunks, micro_batches: self.micro_batches() }
    }

    /// Stages of the pipeline, on all ranks together.
    pub fn stage_count(&self) -> usize {
        self.schedule.stages(self.degrees.pp, self.virtual_stages)
    }

    /// The kernels that compute for a rank: on its threads, with the instructions that its numerics allow.
    ///
    /// # Errors
    /// Instructions that this machine does not have.
    pub fn cpu_ops(&self) -> Result<Arc<CpuOps>, TrainError> {
        Ok(Arc::new(CpuOps::with_isa(Team::new(self.threads), self.numerics.isa())?))
    }

    /// How a micro-batch runs through a piece on a tensor-parallel rank.
    pub fn pass_shape(&self, tp_index: usize) -> PassShape {
        PassShape {
            tp_index,
            tokens: self.micro_batch * self.seq,
            sequence_parallel: self.sequence_parallel,
            compute_bytes: self.compute.bytes(),
            sum_bytes: self.compute.accumulator().bytes(),
        }
    }

    /// Checks the parts against each other. [`crate::RunPlan::new`] does it first.
    ///
    /// # Errors
    /// A degree of `cp` or `ep` other than 1, a model or batch that does not fit the layout, a type or sizes that do
    /// not fit the numerics, a step of too many actions, or a schedule that is not defined for so many stages or
    /// micro-batches, or not made for times.
    pub fn check(&self) -> Result<(), TrainError> {
        for axis in NOT_SPLIT {
            let degree = self.degrees.of(axis);
            if degree != 1 {
                return Err(TrainError::AxisNotSplit { axis, degree });
            }
        }
        self.model.check()?;
        self.model.check_layout(self.degrees.tp, self.degrees.pp)?;
        if self.numerics == Numerics::Reference {
            if self.compute.bytes() < DType::F32.bytes() {
                return Err(TrainError::ReferenceType(self.compute));
            }
            self.model.check_reference(self.degrees.tp)?;
        }
        self.check_batch()?;
        if self.shape().is_too_long() {
            return Err(TrainError::TooLong(self.shape()));
        }
        self.schedule.check_times(self.times.as_ref())?;
        Ok(self.schedule.check_shape(&self.shape())?)
    }

    fn check_batch(&self) -> Result<(), TrainError> {
        let each = self.degrees.dp * self.micro_batch;
        if each == 0 || self.global_batch == 0 || !self.global_batch.is_multiple_of(each) {
            return Err(TrainError::Batch { global: self.global_batch, each });
        }
        let tokens = self.micro_batch * self.seq;
        if self.sequence_parallel && !tokens.is_multiple_of(self.degrees.tp) {
            return Err(TrainError::SequenceParallel { tokens, tp: self.degrees.tp });
        }
        Ok(())
    }
}
