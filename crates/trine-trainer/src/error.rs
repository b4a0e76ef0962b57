//! What can go wrong in a run.

use crate::config::ConfigError;
use std::path::{Path, PathBuf};
use trine_buffer::BufferError;
use trine_checkpoint::CheckpointError;
use trine_comm::{CommError, Diagnosis};
use trine_data::DataError;
use trine_dp::DpError;
use trine_generate::GenerateError;
use trine_kernels::KernelError;
use trine_mesh::MeshError;
use trine_nn::NnError;
use trine_optim::OptimError;
use trine_pipeline::PipelineError;
use trine_plan::PlanError;
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
    /// The default corpus needs the list of packages that `cargo xtask train` makes.
    #[error(
        "data.source = \"crates\" needs the list of packages that `cargo xtask train` hands over; \
         run `cargo xtask train`, or give a text with --data PATH"
    )]
    NoManifest,
    /// The tokenizer has more entries than the model.
    #[error(
        "the tokenizer has {tokenizer} entries, the model's vocabulary {model}; \
         nearest valid value: model.vocab = {tokenizer}"
    )]
    Vocabulary {
        /// Entries of the tokenizer.
        tokenizer: usize,
        /// Entries of the model.
        model: usize,
    },
    /// A run cannot go on with other data.
    #[error(
        "the run was made with the corpus {theirs}, this is {ours}: resume needs the same text"
    )]
    OtherData {
        /// This data's hash.
        ours: String,
        /// The checkpoint's.
        theirs: String,
    },
    /// The directory holds a run already.
    #[error(
        "{} already holds a run; go on with it by --resume {}, or choose another --out",
        .0.display(), .0.display()
    )]
    RunExists(PathBuf),
    /// The directory to resume is none.
    #[error("{} is not a run directory: it has no config.toml", .0.display())]
    NotARun(PathBuf),
    /// Another process holds the run directory.
    #[error("{} is in use by another process", .0.display())]
    InUse(PathBuf),
    /// There is nothing to sample from.
    #[error("{} has no checkpoint yet", .0.display())]
    NoCheckpoint(PathBuf),
    /// A file could not be used.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Metrics could not be written as JSON.
    #[error("metrics: {0}")]
    Json(String),
    /// Arguments or files were refused before the run; the message says why.
    #[error("{0}")]
    Refused(String),
    /// Another rank, in another process, could not go on.
    #[error("{place}: {message}")]
    Elsewhere {
        /// Which, and where.
        place: String,
        /// What it said.
        message: String,
        /// Whether other arguments or files would help.
        is_usage: bool,
    },
    /// Processes that should have the same have not.
    #[error("the ranks do not have the same {what}: {first}, {other}")]
    Unlike {
        /// What.
        what: String,
        /// One of them.
        first: String,
        /// The first that differs.
        other: String,
    },
    /// A rank failed: the first cause, and what everybody did then.
    #[error("{diagnosis}{}", kept(flight.as_deref()))]
    Ranks {
        /// Which rank, what happened, where everybody was.
        diagnosis: Box<Diagnosis>,
        /// The folder with the flight recorders, if there is one.
        flight: Option<PathBuf>,
    },
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data could not be made ready.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A checkpoint could not be written or read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Sampling failed.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// A mesh that does not fit.
    #[error(transparent)]
    Mesh(#[from] MeshError),
    /// A model that does not fit.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// A run that cannot be planned.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A schedule that does not fit.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// A schedule that fails its proof.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// A failed operation between ranks.
    #[error(transparent)]
    Comm(#[from] CommError),
    /// Kernels for an instruction set that this processor lacks.
    #[error(transparent)]
    Kernel(#[from] KernelError),
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

fn kept(flight: Option<&Path>) -> String {
    flight.map_or_else(String::new, |folder| format!("\n  flight recorders: {}", folder.display()))
}

impl TrainError {
    /// The one world rank that an error is about that every rank returns.
    pub(crate) fn concerned(&self) -> Option<usize> {
        if let Self::Dp(DpError::NonFinite { rank, .. }) = self {
            return Some(*rank);
        }
        // World rank 0 writes.
        matches!(self, Self::Checkpoint(CheckpointError::Writer(_))).then_some(0)
    }

    /// Whether other arguments, another configuration or other files would help: the run has not
    /// begun.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::Batch { .. }
                | Self::SequenceParallel { .. }
                | Self::NoManifest
                | Self::Vocabulary { .. }
                | Self::OtherData { .. }
                | Self::RunExists(_)
                | Self::NotARun(_)
                | Self::InUse(_)
                | Self::NoCheckpoint(_)
                | Self::Config(_)
                | Self::Data(_)
                | Self::Mesh(_)
                | Self::Spec(_)
                | Self::Refused(_)
                | Self::Unlike { .. }
                | Self::Elsewhere { is_usage: true, .. }
        )
    }
}
