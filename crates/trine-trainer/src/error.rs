//! What can go wrong in a run.

use crate::config::ConfigError;
use crate::memory::MemoryPlan;
use std::error::Error;
use std::path::{Path, PathBuf};
use trine_buffer::{BufferError, DType};
use trine_checkpoint::CheckpointError;
use trine_comm::{CommError, Diagnosis};
use trine_data::DataError;
use trine_dp::DpError;
use trine_generate::GenerateError;
use trine_kernels::KernelError;
use trine_mesh::{Axis, MeshError, plural};
use trine_nn::NnError;
use trine_optim::OptimError;
use trine_pipeline::PipelineError;
use trine_plan::PlanError;
use trine_schedule::{ScheduleError, Shape, VerifyError};
use trine_spec::{Pattern, SpecError};

/// What can go wrong in a run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The batch does not divide over ranks and micro-batches.
    #[error("batch.global = {global} is not a multiple of dp × micro-batch = {each}")]
    Batch {
        /// Sequences of a step.
        global: usize,
        /// Data-parallel ranks × sequences of a micro-batch.
        each: usize,
    },
    /// The mesh has the axis, but nothing is split along it: its ranks would add up the same samples.
    #[error(
        "{axis} = {degree}: the engine splits nothing along {axis}; \
         nearest valid value: {axis} = 1"
    )]
    AxisNotSplit {
        /// The axis.
        axis: Axis,
        /// Ranks along it.
        degree: usize,
    },
    /// A type whose sums reference numerics do not order.
    #[error(
        "reference numerics are defined for f32 and f64, not for {0}; nearest valid value: f32"
    )]
    ReferenceType(DType),
    /// Rows cannot be split evenly.
    #[error(
        "sequence parallelism: tp {tp} does not divide the {tokens} {} of a micro-batch",
        plural(*tokens as u64, "token")
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
        /// The step, from 1.
        step: u64,
        /// The loss.
        loss: f64,
    },
    /// The gradients of a step cannot be used: one of them, or their norm, is not finite.
    #[error("step {step}: {source}")]
    Gradients {
        /// The step, from 1.
        step: u64,
        /// Which gradient, and where.
        source: DpError,
    },
    /// A schedule runs a backward pass without its forward pass.
    #[error(
        "micro-batch {micro_batch} is not in flight on stage {stage}; the schedule has not been \
         verified"
    )]
    NotInFlight {
        /// The stage.
        stage: usize,
        /// The micro-batch.
        micro_batch: usize,
    },
    /// A schedule asks a rank for a stage, or for a segment of one, that it does not hold.
    #[error("this rank does not hold what the schedule asks of stage {stage}")]
    NotHere {
        /// The stage.
        stage: usize,
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
        "the run was made with the corpus {theirs}, this is {ours}: resume needs the same text. A file \
         or folder may be moved or renamed as a whole; with files renamed, added or removed in it, it is another text"
    )]
    OtherData {
        /// This data's hash.
        ours: String,
        /// The checkpoint's.
        theirs: String,
    },
    /// A run cannot go on with the same text in other tokens.
    #[error(
        "the run was made with the tokenizer {theirs}, this is {ours}: its tokens would mean something \
         else to the weights. {way}, or begin a new run with another --out"
    )]
    OtherTokenizer {
        /// This tokenizer's hash.
        ours: String,
        /// The checkpoint's.
        theirs: String,
        /// What would do.
        way: String,
    },
    /// A run cannot go on with another value of this key.
    #[error(
        "{key} = {ours}: the checkpoint of step {step} was made with {key} = {theirs}, and a run goes on \
         with the same; leave {key} = {theirs}, or begin a new run with another --out"
    )]
    OtherSetting {
        /// The key.
        key: &'static str,
        /// Its value now.
        ours: String,
        /// Its value in the checkpoint.
        theirs: String,
        /// The checkpoint's step.
        step: u64,
    },
    /// The run has lost its checkpoints.
    #[error(
        "{} cannot go on: {why}. Bring its checkpoints back (is a disk not mounted?), or begin anew: \
         trine train {}/config.toml --out NEW", run.display(), run.display()
    )]
    NothingToResume {
        /// The run.
        run: PathBuf,
        /// What is there, and what is not.
        why: String,
    },
    /// The loss on validation text is not a finite number.
    #[error("step {step}: the validation loss is {loss}: the weights are ruined and are not saved")]
    Validation {
        /// The step, from 1.
        step: u64,
        /// The loss.
        loss: f64,
    },
    /// The directory of a new run has files that are not a run's.
    #[error(
        "{} is not empty: it has {first}{}, and no run; choose another --out, or an empty folder",
        path.display(), others(*entries)
    )]
    Occupied {
        /// The directory.
        path: PathBuf,
        /// Files and folders in it.
        entries: usize,
        /// The first of them.
        first: String,
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
    /// Somebody has removed what the run has written, and it cannot be written again.
    #[error("{} was removed while the run went on: there is nothing to go on from or to sample from", .0.display())]
    Removed(PathBuf),
    /// There is nothing to sample from.
    #[error("{} has no checkpoint yet", .0.display())]
    NoCheckpoint(PathBuf),
    /// More memory is planned than may be used.
    #[error("{memory}; {}; train.memory_check = false starts all the same", nearest_of(.nearest.as_deref()))]
    Memory {
        /// What is planned.
        memory: MemoryPlan,
        /// What must change for it to fit: `batch.micro = 1, train.recompute = true`. None if nothing was found.
        nearest: Option<String>,
    },
    /// The lists of a step would take too long to make.
    #[error(
        "{} micro-batches × {} stages are too many for a step: at most {} pairs, on at most {} pipeline ranks",
        .0.micro_batches, .0.stages(), Shape::STEP_PAIRS_MAX, Shape::STEP_RANKS_MAX
    )]
    TooLong(Shape),
    /// The parts are not those of the configuration.
    #[error(
        "the model's parts are of another model than the configuration's, or for tp {tp} instead of {expected}"
    )]
    OtherParts {
        /// The degree that they are for.
        tp: usize,
        /// The configuration's.
        expected: usize,
    },
    /// A group of parameters is empty.
    #[error("\"{pattern}\" names no parameter of the model")]
    NoSuchParameter {
        /// Its pattern.
        pattern: Pattern,
    },
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
    /// The system has no thread to give.
    #[error("cannot start a thread to {what}: {source}; fewer ranks or threads may fit its limits")]
    Thread {
        /// What it is for.
        what: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Metrics could not be written as JSON.
    #[error("metrics: {0}")]
    Json(String),
    /// Arguments or files were refused before the run; the message says why.
    #[error("{0}")]
    Refused(String),
    /// What watches over the ranks of a run cannot be reached; another attempt may reach it.
    #[error("{0}")]
    Unwatched(String),
    /// Another rank, in another process, could not go on.
    #[error("rank {rank} on {host}: {message}")]
    Elsewhere {
        /// Its rank.
        rank: usize,
        /// Its machine.
        host: String,
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
    /// The rank of this process could not go on with a run that has begun everywhere.
    #[error(transparent)]
    Begun(Box<TrainError>),
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
    /// Ranks that fail or disagree while a layout is held against the serial run.
    #[error("a layout cannot be compared with the serial run: {0}")]
    Parity(String),
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

fn others(entries: usize) -> String {
    match entries {
        0 | 1 => String::new(),
        2 => " and 1 other".into(),
        more => format!(" and {} others", more - 1),
    }
}

/// What to change where memory is short.
fn nearest_of(nearest: Option<&str>) -> String {
    match nearest {
        Some(changes) => format!("the nearest that fits has {changes}"),
        None => "no other layout, micro-batch or recompute was found to fit".into(),
    }
}

fn kept(flight: Option<&Path>) -> String {
    flight.map_or_else(String::new, |folder| format!("\n  flight recorders: {}", folder.display()))
}

impl TrainError {
    /// [`DpError`]s of a step's gradients, with the step (from 1).
    pub(crate) fn in_step(step: u64) -> impl Fn(DpError) -> Self {
        move |error| match error {
            DpError::NonFinite { .. } | DpError::NormOverflow { .. } => {
                Self::Gradients { step, source: error }
            }
            other => other.into(),
        }
    }

    /// The one world rank that an error is about that every rank returns.
    pub(crate) fn concerned(&self) -> Option<usize> {
        match self {
            Self::Gradients { source: DpError::NonFinite { rank, .. }, .. } => Some(*rank),
            // World rank 0 writes.
            Self::Checkpoint(CheckpointError::Writer(_)) => Some(0),
            _ => None,
        }
    }

    /// The world rank that has failed, if that is another one than this process's, and what it said.
    pub fn elsewhere(&self) -> Option<(usize, &str)> {
        match self {
            Self::Elsewhere { rank, message, .. } => Some((*rank, message)),
            _ => None,
        }
    }

    /// Whether another rank has failed first, and this one was only stopped.
    pub fn is_aborted(&self) -> bool {
        matches!(between_ranks(self), Some(CommError::Aborted { .. }))
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
                | Self::OtherTokenizer { .. }
                | Self::OtherSetting { .. }
                | Self::NothingToResume { .. }
                | Self::Occupied { .. }
                | Self::Checkpoint(
                    CheckpointError::OtherModel { .. } | CheckpointError::OtherPieces { .. }
                )
                | Self::RunExists(_)
                | Self::NotARun(_)
                | Self::InUse(_)
                | Self::NoCheckpoint(_)
                | Self::Memory { .. }
                | Self::TooLong(_)
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

/// The failed operation between ranks that an error comes from, if it comes from one.
fn between_ranks<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a CommError> {
    error.downcast_ref().or_else(|| between_ranks(inner(error)?))
}

/// What an error of a run's crates hands on. Variants that are transparent hide it from
/// [`Error::source`], so they are known by name here.
fn inner<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    match error.downcast_ref() {
        Some(TrainError::Begun(inner)) => return Some(&**inner),
        Some(TrainError::Comm(inner)) => return Some(inner),
        Some(TrainError::Nn(inner)) => return Some(inner),
        Some(TrainError::Dp(inner)) => return Some(inner),
        Some(TrainError::Pipeline(inner)) => return Some(inner),
        Some(TrainError::Checkpoint(inner)) => return Some(inner),
        Some(_) | None => {}
    }
    if let Some(PipelineError::Stage { cause, .. }) = error.downcast_ref() {
        return Some(&**cause);
    }
    match error.downcast_ref() {
        Some(DpError::Comm(inner)) => return Some(inner),
        Some(DpError::Nn(inner)) => return Some(inner),
        Some(_) | None => {}
    }
    if let Some(NnError::Communication(inner)) = error.downcast_ref() {
        return Some(&**inner);
    }
    match error.downcast_ref() {
        Some(CheckpointError::Comm(inner)) => return Some(inner),
        Some(CheckpointError::Source { source, .. }) => return Some(&**source),
        Some(_) | None => {}
    }
    error.source()
}

#[cfg(test)]
mod tests {
    use super::*;
    use trine_comm::Cause;
    use trine_schedule::{Action, Compute};

    fn stage(cause: impl Into<trine_pipeline::StageError>) -> TrainError {
        let action = Action::Compute(Compute::Forward { stage: 1, micro_batch: 3 });
        PipelineError::Stage { rank: 1, position: 7, action, cause: cause.into() }.into()
    }

    /// Every way by which the failure of an operation comes up through the layers of a run.
    fn wrapped(error: &CommError) -> [TrainError; 8] {
        let layer = || NnError::Communication(Box::new(error.clone()));
        let bucket = TrainError::from(DpError::from(error.clone()));
        let (quantity, source) = ("weights".to_owned(), Box::new(bucket));
        [
            error.clone().into(),
            TrainError::Begun(Box::new(error.clone().into())),
            layer().into(),
            DpError::from(layer()).into(),
            stage(layer()),
            stage(DpError::from(error.clone())),
            CheckpointError::from(error.clone()).into(),
            CheckpointError::Source { quantity, bucket: 2, source }.into(),
        ]
    }

    /// What would be refused before a run is a failure once other ranks wait for this one.
    #[test]
    fn a_run_that_has_begun_fails() {
        let begun = |error: TrainError| TrainError::Begun(Box::new(error));
        assert!(TrainError::NoManifest.is_usage() && !begun(TrainError::NoManifest).is_usage());
        assert_eq!(begun(TrainError::NoManifest).to_string(), TrainError::NoManifest.to_string());
    }

    #[test]
    fn a_rank_that_was_stopped_is_told_from_one_that_failed() {
        let cause = Cause { rank: 3, message: "out of memory".into() };
        let aborted = CommError::Aborted { cause };
        for error in wrapped(&aborted) {
            assert!(error.is_aborted(), "{error:?}");
            assert!(error.to_string().contains("stopped by rank 3: out of memory"), "{error}");
        }
        // The words do not make it so.
        let backend = CommError::Backend { backend: "MPI_Isend", message: aborted.to_string() };
        for error in wrapped(&backend).into_iter().chain([
            TrainError::Refused(aborted.to_string()),
            stage(aborted.to_string()),
            TrainError::NoManifest,
        ]) {
            assert!(!error.is_aborted(), "{error:?}");
        }
    }
}
