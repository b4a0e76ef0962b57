//! From a source to a dataset, once: later calls find it in a cache folder.

use crate::dataset::{FORMAT_VERSION, sync_folder};
use crate::encode::encode_documents;
use crate::source::{Candidate, RULES_VERSION, hash_texts};
use crate::tokenizer::sample;
use crate::{Corpus, DataError, Dataset, Skips, Source, Tokenizer};
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use xxhash_rust::xxh3::Xxh3;

/// Text that a tokenizer is trained on by default: more changes few merges.
const SAMPLE_BYTES: usize = 8 << 20;
/// Largest file of a folder or crate by default.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// How to make tokens of text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrepareOptions {
    /// Entries of the vocabulary to train.
    pub vocab_size: usize,
    /// A `tokenizer.json` to use instead of training one.
    pub tokenizer: Option<PathBuf>,
    /// Bytes of the training split that the tokenizer is trained on.
    pub sample_bytes_max: usize,
    /// Files of a folder or crate over this size are left out.
    pub file_bytes_max: u64,
    /// Threads that encode.
    pub threads: usize,
}

impl PrepareOptions {
    /// A vocabulary of `vocab_size` entries trained on 8 MiB, files up to 1 MiB.
    pub fn new(vocab_size: usize, threads: usize) -> Self {
        Self {
            vocab_size,
            tokenizer: None,
            sample_bytes_max: SAMPLE_BYTES,
            file_bytes_max: FILE_BYTES_MAX,
            threads,
        }
    }
}

/// What [`prepare`] is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress<'a> {
    /// Files are being read.
    Reading,
    /// Another process prepares the same data; waiting for it.
    Waiting,
    /// A finished dataset was found in this folder.
    Reusing(&'a Path),
    /// A dataset was found in this folder but is damaged, and is made again.
    Damaged(&'a Path),
    /// Copies are removed, shares limited, documents held out.
    Selecting,
    /// The tokenizer is trained on so many bytes.
    TrainingTokenizer {
        /// Bytes of the sample.
        bytes: u64,
    },
    /// Text becomes tokens.
    Encoding {
        /// Bytes done, of both splits.
        bytes: u64,
        /// Bytes of both splits.
        bytes_total: u64,
    },
    /// Files are being written.
    Writing,
}

/// A dataset and where it lies.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// The tokens.
    pub dataset: Dataset,
    /// The folder they were read from or written to.
    pub path: PathBuf,
    /// Whether it was there already.
    pub is_reused: bool,
}

/// Makes the dataset of a source, or finds it in `cache`, a folder that is created when needed.
///
/// The cache's key is a hash of the text read and of everything that decides what becomes of it, so
/// an entry is never out of date; it is written under another name, synced, and renamed. Processes
/// that ask for the same data at once wait for the first of them.
///
/// # Errors
/// As [`Source::corpus`], [`Tokenizer::train`] or [`Tokenizer::load`], and [`Dataset::open`] for a
/// prepared dataset; a cache folder that cannot be written.
pub fn prepare(
    source: &Source,
    options: &PrepareOptions,
    cache: &Path,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Prepared, DataError> {
    if let Source::Prepared(path) = source {
        progress(Progress::Reusing(path));
        return Ok(Prepared { dataset: Dataset::open(path)?, path: path.clone(), is_reused: true });
    }
    let ready = options.tokenizer.as_deref().map(Tokenizer::load).transpose()?;
    progress(Progress::Reading);
    let mut skips = Skips::default();
    let candidates = source.candidates(options.file_bytes_max, &mut skips)?;
    let path = cache.join(entry_name(source, &candidates, options, ready.as_ref())?);

    fs::create_dir_all(cache).map_err(DataError::io("create", cache))?;
    let _lock = lock(&path.with_extension("lock"), progress)?;
    if path.exists() {
        if let Ok(dataset) = Dataset::open(&path) {
            progress(Progress::Reusing(&path));
            return Ok(Prepared { dataset, path, is_reused: true });
        }
        progress(Progress::Damaged(&path));
        fs::remove_dir_all(&path).map_err(DataError::io("remove", &path))?;
    }
    progress(Progress::Selecting);
    let corpus = source.select(candidates, skips)?;
    let dataset = tokenize(&corpus, options, ready, progress)?;
    progress(Progress::Writing);
    write_entry(&dataset, &path)?;
    Ok(Prepared { dataset, path, is_reused: false })
}

/// The entry's name: a hash of the text and of everything that decides what becomes of it.
fn entry_name(
    source: &Source,
    candidates: &[Candidate],
    options: &PrepareOptions,
    ready: Option<&Tokenizer>,
) -> Result<String, DataError> {
    let kind = match source {
        Source::File(_) => "file",
        Source::Folder(_) => "folder",
        Source::Prepared(_) => "prepared",
        Source::Crates(_) => "crates",
    };
    let tokenizer = match ready {
        Some(tokenizer) => tokenizer.hash()?,
        None => format!("{} entries of {} bytes", options.vocab_size, options.sample_bytes_max),
    };
    let rules = format!("{FORMAT_VERSION} {RULES_VERSION} {kind} {}", options.file_bytes_max);
    let mut hash = Xxh3::new();
    hash_texts(&mut hash, &[&rules, &tokenizer]);
    for file in candidates {
        hash_texts(&mut hash, &[&file.group, &file.name, &file.text]);
    }
    Ok(format!("data-{:032x}", hash.digest128()))
}

/// Held until dropped.
fn lock(path: &Path, progress: &mut dyn FnMut(Progress<'_>)) -> Result<File, DataError> {
    let file = File::create(path).map_err(DataError::io("create", path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            progress(Progress::Waiting);
            file.lock().map_err(DataError::io("lock", path))?;
        }
        Err(TryLockError::Error(source)) => return Err(DataError::io("lock", path)(source)),
    }
    Ok(file)
}

fn tokenize(
    corpus: &Corpus,
    options: &PrepareOptions,
    ready: Option<Tokenizer>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Dataset, DataError> {
    let tokenizer = match ready {
        Some(tokenizer) => tokenizer,
        None => {
            let texts = sample(&corpus.train, options.sample_bytes_max);
            let bytes = texts.iter().map(|text| text.len() as u64).sum();
            progress(Progress::TrainingTokenizer { bytes });
            Tokenizer::train(texts, options.vocab_size)?
        }
    };
    let bytes_total = corpus.report.train_bytes + corpus.report.validation_bytes;
    let mut encode = |documents, before| {
        encode_documents(&tokenizer, documents, options.threads, |bytes| {
            progress(Progress::Encoding { bytes: before + bytes, bytes_total });
        })
    };
    let train = encode(&corpus.train, 0)?;
    let validation = encode(&corpus.validation, corpus.report.train_bytes)?;
    Ok(Dataset {
        train: Arc::new(train),
        validation: Arc::new(validation),
        tokenizer: Arc::new(tokenizer),
        report: corpus.report.clone(),
    })
}

/// Writes beside the final place and renames. The lock is held, so leftovers there are of a process
/// that was stopped.
fn write_entry(dataset: &Dataset, path: &Path) -> Result<(), DataError> {
    let part = path.with_extension("tmp");
    if part.exists() {
        fs::remove_dir_all(&part).map_err(DataError::io("remove", &part))?;
    }
    fs::create_dir(&part).map_err(DataError::io("create", &part))?;
    dataset.write(&part)?;
    fs::rename(&part, path).map_err(DataError::io("rename", &part))?;
    path.parent().map_or(Ok(()), sync_folder)
}
