//! Where text comes from.

use crate::copies::drop_copies;
use crate::crates::{self, CorpusManifest};
use crate::report::Candidate;
use crate::split::{hold_out, split_text};
use crate::text::Limit;
use crate::walk::folder_files;
use crate::{Corpus, CorpusReport, DataError, Document, SkipReason, Skips, index, text};
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3;

/// Changes whenever the rules below choose differently, so that cached corpora are made anew.
pub(crate) const RULES_VERSION: u32 = 2;

/// The least number of crates that are held out, where there are enough.
const HELD_OUT_CRATES_MIN: usize = 3;
/// The part of the bytes that is held out by default.
const VALIDATION_SHARE: f64 = 0.05;
/// The largest part that may be held out.
const VALIDATION_SHARE_MAX: f64 = 0.5;

/// A source of text, or of tokens made earlier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// One UTF-8 text file. The last 5 % of its bytes are held out, from a line's start on.
    File(PathBuf),
    /// All UTF-8 text files below a folder, of any size; links are followed. Hidden files, what a
    /// `.gitignore` of the folder names, binary files and copies are left out. About 5 % of the bytes
    /// are held out, whole files by a hash of their path.
    Folder(PathBuf),
    /// Several files and folders, as if they lay in one.
    Several(Vec<PathBuf>),
    /// A folder that [`crate::prepare`] or [`crate::build`] wrote.
    Prepared(PathBuf),
    /// Rust sources of crates, see [`CorpusManifest`]. About 5 % of the bytes are held out, whole
    /// crates by a hash of their name.
    Crates(CorpusManifest),
}

/// What is taken of a source, and which part of it is held out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Selection {
    /// Files of a folder over this size are left out; a file that is the source itself, and crates,
    /// which have a limit of their own, are not concerned.
    pub file_bytes_max: Option<u64>,
    /// The part of the bytes to hold out: above 0, at most 0.5.
    pub validation_share: f64,
    /// Chooses among the documents that could be held out.
    pub seed: u64,
}

impl Default for Selection {
    /// Files of any size; 5 % held out.
    fn default() -> Self {
        Self { file_bytes_max: None, validation_share: VALIDATION_SHARE, seed: 0 }
    }
}

impl Source {
    /// The source at `path`: a file, a folder, or a prepared dataset, if its index says so.
    ///
    /// # Errors
    /// A path that does not exist or cannot be looked at, or is a pipe or a device; a folder with the
    /// files of a dataset but without its index.
    pub fn at(path: &Path) -> Result<Self, DataError> {
        Ok(if !path.is_dir() {
            crate::files::regular(path)?;
            Self::File(path.to_owned())
        } else if index::expect_dataset(path)? {
            Self::Prepared(path.to_owned())
        } else {
            Self::Folder(path.to_owned())
        })
    }

    /// Reads the text, selects and splits it. All text is held in memory.
    ///
    /// # Errors
    /// Files that cannot be read; a source without usable text, or with too little to split; a
    /// prepared dataset, which has no text; a share outside of its range.
    pub fn corpus(&self, selection: &Selection) -> Result<Corpus, DataError> {
        let mut skips = Skips::default();
        let candidates = self.candidates(selection, &mut skips)?;
        self.select(candidates, selection, skips)
    }

    /// Every document that could be part of the corpus, sorted by name.
    pub(crate) fn candidates(
        &self,
        selection: &Selection,
        skips: &mut Skips,
    ) -> Result<Vec<Candidate>, DataError> {
        check_share(selection.validation_share)?;
        let mut found = match self {
            Self::File(path) => vec![whole_file(path)?],
            Self::Folder(path) => folder(path, "", selection, skips)?,
            Self::Several(paths) => several(paths, selection, skips)?,
            Self::Crates(manifest) => crates::candidates(manifest, skips)?,
            Self::Prepared(path) => return Err(no_text_in_dataset(path)),
        };
        found.sort_by(|a, b| a.name.cmp(&b.name));
        if found.is_empty() {
            return Err(DataError::NoText { place: self.place(), why: skips.summary() });
        }
        Ok(found)
    }

    /// Removes copies and excess, splits, and describes the result.
    pub(crate) fn select(
        &self,
        candidates: Vec<Candidate>,
        selection: &Selection,
        mut skips: Skips,
    ) -> Result<Corpus, DataError> {
        let distinct = drop_copies(candidates, &mut skips);
        let files = match self {
            Self::Crates(_) => crates::limit_shares(distinct, &mut skips),
            Self::File(_) | Self::Folder(_) | Self::Several(_) | Self::Prepared(_) => distinct,
        };
        let (train, validation, held_out) = self.split(files, selection)?;
        let bytes = |documents: &[Document]| documents.iter().map(|d| d.text.len() as u64).sum();
        let report = CorpusReport {
            corpus_hash: corpus_hash(&train, &validation),
            train_documents: train.len() as u64,
            validation_documents: validation.len() as u64,
            train_bytes: bytes(&train),
            validation_bytes: bytes(&validation),
            held_out,
            skipped: skips,
        };
        Ok(Corpus { train, validation, report })
    }

    fn split(&self, mut files: Vec<Candidate>, selection: &Selection) -> Result<Split, DataError> {
        let groups_min = match self {
            Self::Crates(_) => HELD_OUT_CRATES_MIN,
            Self::File(_) | Self::Folder(_) | Self::Several(_) | Self::Prepared(_) => 1,
        };
        if files.len() == 1 {
            let only = files.remove(0);
            let document = Document { name: only.name, text: only.text };
            return self.split_one(document, selection.validation_share);
        }
        let held_out = hold_out(&files, groups_min, selection.validation_share, selection.seed);
        if held_out.is_empty() {
            let why = "all of it is from one crate, and crates are held out whole; \
                       at least 2 crates are needed";
            return Err(DataError::NoText { place: self.place(), why: why.to_owned() });
        }
        let (validation, train): (Vec<_>, Vec<_>) =
            files.into_iter().partition(|file| held_out.contains(&file.group));
        let documents = |files: Vec<Candidate>| {
            files.into_iter().map(|file| Document { name: file.name, text: file.text }).collect()
        };
        Ok((documents(train), documents(validation), held_out.into_iter().collect()))
    }

    /// One document is split inside.
    fn split_one(&self, document: Document, share: f64) -> Result<Split, DataError> {
        let no_split = |rule: &str| DataError::NoText {
            place: self.place(),
            why: format!(
                "a text of {} B cannot be split into training and validation text; {rule}",
                document.text.len()
            ),
        };
        let cut = split_text(&document.text, share)
            .ok_or_else(|| no_split("at least 2 characters are needed"))?;
        let (train, validation) = document.text.split_at(cut);
        if train == validation {
            return Err(no_split("its two halves are equal; give more text"));
        }
        let held_out = format!("{} from byte {cut} on", document.name);
        let part =
            |text: &str| vec![Document { name: document.name.clone(), text: text.to_owned() }];
        Ok((part(train), part(validation), vec![held_out]))
    }

    /// What messages call this source.
    fn place(&self) -> String {
        match self {
            Self::File(path) | Self::Folder(path) | Self::Prepared(path) => {
                path.display().to_string()
            }
            Self::Several(paths) => {
                let names: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
                names.join(", ")
            }
            Self::Crates(manifest) => format!("the listed crates ({})", manifest.packages.len()),
        }
    }
}

/// Training documents, validation documents, and the names of what was held out.
type Split = (Vec<Document>, Vec<Document>, Vec<String>);

fn check_share(share: f64) -> Result<(), DataError> {
    if share > 0.0 && share <= VALIDATION_SHARE_MAX {
        return Ok(());
    }
    let nearest =
        if share > VALIDATION_SHARE_MAX { VALIDATION_SHARE_MAX } else { VALIDATION_SHARE };
    Err(DataError::ValidationShare { asked: share, nearest })
}

fn no_text_in_dataset(path: &Path) -> DataError {
    let why = "it is a prepared dataset, which has tokens only".to_owned();
    DataError::NoText { place: path.display().to_string(), why }
}

/// A path's own name, not where it lies: the corpus hash must not depend on that.
fn own_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

fn whole_file(path: &Path) -> Result<Candidate, DataError> {
    let text = text::read(path)?.map_err(|no_text| no_text.error(path))?;
    Ok(Candidate::file(own_name(path), text))
}

/// The text files of a folder, their names behind `prefix`.
fn folder(
    path: &Path,
    prefix: &str,
    selection: &Selection,
    skips: &mut Skips,
) -> Result<Vec<Candidate>, DataError> {
    let bytes_max = selection.file_bytes_max.unwrap_or(u64::MAX);
    let limit = Limit { bytes_max, reason: SkipReason::OverLimit };
    let mut found = Vec::new();
    for file in folder_files(path, skips)? {
        if let Some(text) = text::read_or_skip(&file, &file.name, limit, skips)? {
            found.push(Candidate::file(format!("{prefix}{}", file.name), text));
        }
    }
    Ok(found)
}

fn several(
    paths: &[PathBuf],
    selection: &Selection,
    skips: &mut Skips,
) -> Result<Vec<Candidate>, DataError> {
    let mut found = Vec::new();
    for path in paths {
        match Source::at(path)? {
            Source::Folder(path) => {
                let prefix = format!("{}/", own_name(&path));
                found.extend(folder(&path, &prefix, selection, skips)?);
            }
            Source::Prepared(path) => return Err(no_text_in_dataset(&path)),
            Source::File(path) => found.push(whole_file(&path)?),
            Source::Several(_) | Source::Crates(_) => {
                unreachable!("a path is a file, a folder or a dataset")
            }
        }
    }
    Ok(found)
}

/// XXH3-128 over both splits: for each document its name and text, each preceded by its length.
fn corpus_hash(train: &[Document], validation: &[Document]) -> String {
    let mut hash = Xxh3::new();
    for split in [train, validation] {
        hash.update(&(split.len() as u64).to_le_bytes());
        for document in split {
            hash_texts(&mut hash, &[&document.name, &document.text]);
        }
    }
    format!("{:032x}", hash.digest128())
}

/// Adds texts to a hash, each preceded by its length so that their borders count.
pub(crate) fn hash_texts(hash: &mut Xxh3, texts: &[&str]) {
    for text in texts {
        hash.update(&(text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    }
}
