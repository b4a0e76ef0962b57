//! What can go wrong with a checkpoint: each message says what and where.

use std::io;
use std::path::{Path, PathBuf};
use trine_buffer::{BufferError, DType};
use trine_comm::CommError;

/// What can go wrong with a checkpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The file system refused.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was tried, such as `writing`.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The disk is too full for the next checkpoint.
    #[error(
        "no disk space for a checkpoint: it needs {needed} bytes, {free} are free in {}; \
         free at least {} more", path.display(), needed - free
    )]
    Space {
        /// Bytes that the checkpoint will have.
        needed: u64,
        /// Bytes that are free.
        free: u64,
        /// The folder of checkpoints.
        path: PathBuf,
    },
    /// The directory is something else.
    #[error("{} is not a checkpoint: {why}", path.display())]
    NotACheckpoint {
        /// The directory.
        path: PathBuf,
        /// What is missing or wrong.
        why: String,
    },
    /// A manifest of a format that this release does not know.
    #[error("{} has format version {found}; this release reads version {known}", path.display())]
    Version {
        /// The manifest.
        path: PathBuf,
        /// Its version.
        found: u64,
        /// The version that is read and written here.
        known: u64,
    },
    /// A file has another size than when it was written.
    #[error(
        "{} has {found} B instead of {expected} B: it was truncated or replaced; \
         use an earlier checkpoint", path.display()
    )]
    Size {
        /// The file.
        path: PathBuf,
        /// Bytes according to the manifest or the file's own header.
        expected: u64,
        /// Bytes now.
        found: u64,
    },
    /// A file has other contents than when it was written.
    #[error(
        "{} was altered: its xxh3-128 checksum is {found}, expected {expected}; \
         use an earlier checkpoint", path.display()
    )]
    Altered {
        /// The file.
        path: PathBuf,
        /// The checksum in the manifest.
        expected: String,
        /// The checksum now.
        found: String,
    },
    /// A file cannot be understood.
    #[error("{} is malformed: {why}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A `config.json` describes a model that the zoo does not have.
    #[error("{} describes a model that trine does not have: {why}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it asks for, and what there is.
        why: String,
    },
    /// The checkpoint belongs to another model.
    #[error(
        "{} is a checkpoint of another model: model.{field} is {theirs} there and {ours} here; \
         set model.{field} = {theirs}", path.display()
    )]
    OtherModel {
        /// The checkpoint.
        path: PathBuf,
        /// The first field that differs.
        field: &'static str,
        /// Its value in the model to load.
        ours: String,
        /// Its value in the checkpoint.
        theirs: String,
    },
    /// The checkpoint has pieces that the model to load does not have, or the other way round.
    #[error("{} is a checkpoint of another model: {}", path.display(), pieces.join("; "))]
    OtherPieces {
        /// The checkpoint.
        path: PathBuf,
        /// For each piece that differs, what it is there and here.
        pieces: Vec<String>,
    },
    /// A file lacks a tensor that the model needs.
    #[error("{} has no tensor \"{tensor}\"", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// The tensor's Hugging Face name.
        tensor: String,
    },
    /// A tensor has another shape or type than the model needs.
    #[error("{}: tensor \"{tensor}\" is {found}, the model needs {expected}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor's Hugging Face name.
        tensor: String,
        /// What the model needs.
        expected: String,
        /// What the file has.
        found: String,
    },
    /// The checkpoint does not hold such values.
    #[error("{} holds no \"{quantity}\"; it holds {}", path.display(), held.join(", "))]
    Quantity {
        /// The checkpoint.
        path: PathBuf,
        /// What was asked for.
        quantity: String,
        /// What there is.
        held: Vec<String>,
    },
    /// The ranks do not hold the model, or not as it was described.
    #[error("the layout does not fit the model: {0}")]
    Layout(String),
    /// A bucket to save, or to load into, is not what the layout says.
    #[error("{quantity} of bucket {bucket}: {found} × {found_len} instead of {expected} × {len}")]
    Bucket {
        /// Which values.
        quantity: String,
        /// The bucket.
        bucket: usize,
        /// The element type wanted.
        expected: DType,
        /// The number of elements wanted.
        len: usize,
        /// The element type given.
        found: DType,
        /// The number of elements given.
        found_len: usize,
    },
    /// A value to save is not a finite number.
    #[error(
        "{quantity} of \"{tensor}\" are not finite from element {element} on: the checkpoint is \
         not written, those before it stay"
    )]
    NotFinite {
        /// Which values.
        quantity: String,
        /// The tensor's Hugging Face name.
        tensor: String,
        /// The first such element.
        element: usize,
    },
    /// The caller could not hand out a bucket.
    #[error("{quantity} of bucket {bucket}: {source}")]
    Source {
        /// Which values.
        quantity: String,
        /// The bucket.
        bucket: usize,
        /// The caller's reason.
        source: BoxError,
    },
    /// The rank that writes has failed; every other rank gets its message.
    #[error("rank 0 could not save the checkpoint: {0}")]
    Writer(String),
    /// Ranks could not exchange what they hold.
    #[error(transparent)]
    Comm(#[from] CommError),
    /// A buffer refused.
    #[error(transparent)]
    Buffer(#[from] BufferError),
}

/// Any error of a caller.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Says what was tried when the file system refuses.
pub(crate) trait During<T> {
    fn during(self, action: &'static str, path: &Path) -> Result<T, CheckpointError>;
}

impl<T> During<T> for io::Result<T> {
    fn during(self, action: &'static str, path: &Path) -> Result<T, CheckpointError> {
        self.map_err(|source| CheckpointError::Io { action, path: path.into(), source })
    }
}
