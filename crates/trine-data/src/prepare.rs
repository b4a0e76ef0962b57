//! From a source to a dataset, once: later calls find it in a cache folder.

use crate::dataset::sync_folder;
use crate::encode::encode_documents;
use crate::index::FORMAT_VERSION;
use crate::report::Candidate;
use crate::source::{RULES_VERSION, hash_texts};
use crate::tokenizer::sample;
use crate::{Corpus, DataError, Dataset, Selection, Skips, Source, Tokenizer};
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use xxhash_rust::xxh3::Xxh3;

/// Text that a tokenizer is trained on by default: more changes few merges.
const SAMPLE_BYTES: usize = 8 << 20;

/// How to make tokens of text.
#[derive(Debug, Clone, PartialEq)]
pub struct PrepareOptions {
    /// Entries of the vocabulary to train.
    pub vocab_size: usize,
    /// A `tokenizer.json` to use instead of training one.
    pub tokenizer: Option<PathBuf>,
    /// Bytes of the training split that the tokenizer is trained on.
    pub sample_bytes_max: usize,
    /// What is taken, and which part of it is held out.
    pub selection: Selection,
    /// Threads that encode.
    pub threads: usize,
}

impl PrepareOptions {
    /// A vocabulary of `vocab_size` entries trained on 8 MiB, everything taken, 5 % held out.
    pub fn new(vocab_size: usize, threads: usize) -> Self {
        Self {
            vocab_size,
            tokenizer: None,
            sample_bytes_max: SAMPLE_BYTES,
            selection: Selection::default(),
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
        let dataset = Dataset::open(path)?;
        if let Some(asked) = &options.tokenizer {
            check_same_tokenizer(&dataset, path, asked)?;
        }
        return Ok(Prepared { dataset, path: path.clone(), is_reused: true });
    }
    let ready = options.tokenizer.as_deref().map(Tokenizer::load).transpose()?;
    progress(Progress::Reading);
    let mut skips = Skips::default();
    let candidates = source.candidates(&options.selection, &mut skips)?;
    let path = cache.join(entry_name(source, &candidates, options, ready.as_ref())?);

    fs::create_dir_all(cache).map_err(DataError::io("create", cache))?;
    let _lock = lock(&path.with_extension("lock"), progress)?;
    if path.exists() {
        if let Ok(mut dataset) = Dataset::open(&path) {
            // What is left out may have changed where the text has not.
            dataset.report.skipped.take_unselected(skips);
            progress(Progress::Reusing(&path));
            return Ok(Prepared { dataset, path, is_reused: true });
        }
        progress(Progress::Damaged(&path));
        fs::remove_dir_all(&path).map_err(DataError::io("remove", &path))?;
    }
    progress(Progress::Selecting);
    let corpus = source.select(candidates, &options.selection, skips)?;
    let dataset = tokenize(&corpus, options, ready, progress)?;
    progress(Progress::Writing);
    write_entry(&dataset, &path.with_extension("tmp"), &path)?;
    Ok(Prepared { dataset, path, is_reused: false })
}

/// The tokens of a dataset mean what its own tokenizer says.
fn check_same_tokenizer(dataset: &Dataset, path: &Path, asked: &Path) -> Result<(), DataError> {
    if Tokenizer::load(asked)?.hash()? == dataset.tokenizer.hash()? {
        return Ok(());
    }
    let why = format!(
        "its tokens were made by another tokenizer than {}; leave data.tokenizer empty, or give the \
         text instead of the dataset",
        asked.display()
    );
    Err(DataError::Dataset { path: path.to_owned(), why })
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
        Source::Several(_) => "several",
        Source::Prepared(_) => "prepared",
        Source::Crates(_) => "crates",
    };
    let tokenizer = match ready {
        Some(tokenizer) => tokenizer.hash()?,
        None => format!("{} entries of {} bytes", options.vocab_size, options.sample_bytes_max),
    };
    // The limit of a file's size has done its work: what is over it is no candidate.
    let Selection { file_bytes_max: _, validation_share, seed } = options.selection;
    let rules = format!("{FORMAT_VERSION} {RULES_VERSION} {kind} {validation_share} {seed}");
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

pub(crate) fn tokenize(
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

/// Writes a dataset into `part` and renames that to `path`. What a process that was stopped has left in
/// `part` is removed; so is what a failure leaves.
pub(crate) fn write_entry(dataset: &Dataset, part: &Path, path: &Path) -> Result<(), DataError> {
    if part.exists() {
        fs::remove_dir_all(part).map_err(DataError::io("remove", part))?;
    }
    fs::create_dir(part).map_err(DataError::io("create", part))?;
    let written = dataset
        .write(part)
        .and_then(|()| fs::rename(part, path).map_err(DataError::io("rename", part)));
    if written.is_err() {
        // The first failure is what counts.
        let _ = fs::remove_dir_all(part);
    }
    written?;
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).map_or(Ok(()), sync_folder)
}
