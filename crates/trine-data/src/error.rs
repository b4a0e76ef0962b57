//! What can go wrong between a path and a batch.

use std::path::{Path, PathBuf};

/// Errors of this crate. Each message says what, where, and the nearest thing that would do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// A path that does not exist.
    #[error("no such file or folder: {path}; the nearest folder that exists is {nearest}")]
    Missing {
        /// The path as asked.
        path: PathBuf,
        /// Its deepest ancestor that exists.
        nearest: PathBuf,
    },
    /// The operating system refused.
    #[error("cannot {doing} {path}: {source}")]
    Io {
        /// What was tried: "read", "write", …
        doing: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A text file that is not text.
    #[error(
        "{path} is not UTF-8 text: byte {offset} begins no valid character; \
         give a UTF-8 file, a folder, or a prepared dataset"
    )]
    NotText {
        /// The file.
        path: PathBuf,
        /// Offset of the first bad byte.
        offset: usize,
    },
    /// A text file with a NUL character, which no text has.
    #[error(
        "{path} is not plain text: byte {offset} is NUL; \
         give a UTF-8 file, a folder, or a prepared dataset"
    )]
    Nul {
        /// The file.
        path: PathBuf,
        /// Offset of the first NUL.
        offset: usize,
    },
    /// A file that holds text or tokens in a form that is not plain text.
    #[error("{path} is {what}, which is not trained on as it stands; {remedy}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: &'static str,
        /// What to do instead.
        remedy: &'static str,
    },
    /// A path that should be a file and is something else.
    #[error("{path} is {found}, not a regular file; write what it gives to a file first")]
    NotRegular {
        /// The path.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// A file of settings that is too large to be one.
    #[error("{path} has {bytes} bytes; a file of this kind has at most {bytes_max}")]
    FileTooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The limit.
        bytes_max: u64,
    },
    /// A part to hold out that leaves nothing to train on, or nothing to measure with.
    #[error(
        "validation share {asked}: it must be above 0 and at most 0.5; the nearest is {nearest}"
    )]
    ValidationShare {
        /// The share as asked.
        asked: f64,
        /// The nearest that works.
        nearest: f64,
    },
    /// A source in which no text is left.
    #[error("no usable text in {place}: {why}")]
    NoText {
        /// The source.
        place: String,
        /// What was found instead.
        why: String,
    },
    /// A list of crates that cannot be read.
    #[error("crate list {path} is not valid: {why}")]
    Manifest {
        /// The JSON file.
        path: PathBuf,
        /// Reason, with line and column.
        why: String,
    },
    /// A tokenizer that cannot be made, read or used.
    #[error("tokenizer {place}: {why}")]
    Tokenizer {
        /// File, or what was being done.
        place: String,
        /// Reason.
        why: String,
    },
    /// A vocabulary that cannot hold every byte.
    #[error(
        "a vocabulary of size {asked}: byte-level tokenizers need 256 bytes and one end-of-text \
         token; the nearest size that works is {nearest}"
    )]
    Vocabulary {
        /// The size as asked.
        asked: usize,
        /// The nearest size that works.
        nearest: usize,
    },
    /// A split that is shorter than one window.
    #[error(
        "the {split} data is shorter than a window: tokens in it: {tokens}, in a window: {seq}; \
         set data.seq to {tokens} at most, or use more text"
    )]
    TooShort {
        /// Which split.
        split: &'static str,
        /// Its tokens.
        tokens: u64,
        /// The window asked for.
        seq: usize,
    },
    /// A token beyond the vocabulary.
    #[error(
        "token {token} at position {position} of {place} is outside of the vocabulary of {vocab_size} \
         entries (largest id {largest}); the tokens belong to another tokenizer",
        largest = vocab_size.saturating_sub(1)
    )]
    TokenRange {
        /// File or stream.
        place: String,
        /// Index of the token.
        position: u64,
        /// Its id.
        token: u32,
        /// Entries of the vocabulary.
        vocab_size: usize,
    },
    /// A prepared dataset that is not as it was written.
    #[error("prepared dataset {path}: {why}")]
    Dataset {
        /// File or folder.
        path: PathBuf,
        /// What differs.
        why: String,
    },
    /// A place for a dataset that is taken.
    #[error("{path} is not empty; give a folder that does not exist yet")]
    Occupied {
        /// The folder.
        path: PathBuf,
    },
    /// Sizes of a batch that do not fit together.
    #[error("{what}: {asked} does not fit; {rule}; the nearest that does is {nearest}")]
    Shape {
        /// Which size.
        what: &'static str,
        /// As asked.
        asked: u64,
        /// The rule it breaks.
        rule: String,
        /// The nearest valid value.
        nearest: u64,
    },
}

impl DataError {
    /// For `map_err` of file operations.
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }

    /// The error for `path` that does not exist.
    pub(crate) fn missing(path: &Path) -> Self {
        let nearest = path.ancestors().skip(1).find(|folder| folder.is_dir());
        // A relative path without a folder part stands in the current one.
        let nearest = nearest.filter(|folder| !folder.as_os_str().is_empty());
        Self::Missing {
            path: path.to_owned(),
            nearest: nearest.unwrap_or(Path::new(".")).to_owned(),
        }
    }
}
