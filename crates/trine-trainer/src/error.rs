//! What can go wrong in a run.

use trine_buffer::BufferError;
use trine_comm::CommError;
use trine_dp::DpError;
use trine_mesh::MeshError;
use trine_nn::NnError;
use trine_optim::OptimError;
use trine_pipeline::PipelineError;
use trine_schedule::{ScheduleError, VerifyError};
use trine_spec::SpecError;

/// What can go wrong in a run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The batch does not divide over ranks and micro-batches.
    #[error("a batch of {global} sequences is not a multiple of dp × micro-batch = {each}")]
    Batch {
        /// Sequences of a step.
        global: usize,
        /// Data-parallel ranks × sequences of a micro-batch.
        each: usize,
    },
    /// Rows cannot be split evenly.
    #[error(
        "sequence parallelism: the {tokens} tokens of a micro-batch do not divide over tp {tp}"
    )]
    SequenceParallel {
        /// Tokens of a micro-batch.
        tokens: usize,
        /// Tensor-parallel ranks.
        tp: usize,
    },
    /// A batch of the wrong size was handed in.
    #[error("the batch holds {held} {what}, this layout needs {expected}")]
    BatchLen {
        /// Inputs or targets.
        what: &'static str,
        /// How many there are.
        held: usize,
        /// How many there must be.
        expected: usize,
    },
    /// The loss is not a finite number.
    #[error("step {step}: the loss is {loss}; the run stops before it spoils the weights")]
    Loss {
        /// The step.
        step: u64,
        /// The loss.
        loss: f64,
    },
    /// A schedule runs a backward pass without its forward pass.
    #[error("micro-batch {micro_batch} is not in flight; the schedule has not been verified")]
    NotInFlight {
        /// The micro-batch.
        micro_batch: usize,
    },
    /// The optimizer keeps no such quantity.
    #[error("this run keeps no \"{0}\"")]
    Quantity(String),
    /// A mesh that does not fit.
    #[error(transparent)]
    Mesh(#[from] MeshError),
    /// A model that does not fit.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// A schedule that does not fit.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// A schedule that fails its proof.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// A failed operation between ranks.
    #[error(transparent)]
    Comm(#[from] CommError),
    /// A layer or a store refused.
    #[error(transparent)]
    Nn(#[from] NnError),
    /// Gradient synchronisation failed.
    #[error(transparent)]
    Dp(#[from] DpError),
    /// The optimizer failed.
    #[error(transparent)]
    Optim(#[from] OptimError),
    /// The pipeline failed.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    /// A buffer has the wrong type or length.
    #[error(transparent)]
    Buffer(#[from] BufferError),
}
