//! Where text comes from.

use crate::crates::{self, CorpusManifest};
use crate::split::{hold_out, split_text};
use crate::walk::{files_below, read_text};
use crate::{Corpus, CorpusReport, DataError, Document, Skips, dataset};
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3;

/// Changes whenever the rules below choose differently, so that cached corpora are made anew.
pub(crate) const RULES_VERSION: u32 = 1;

/// The least number of crates that are held out, where there are enough.
const HELD_OUT_CRATES_MIN: usize = 3;

/// A source of text, or of tokens made earlier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// One UTF-8 text file. The last 5 % of its bytes are held out, from a line's start on.
    File(PathBuf),
    /// All UTF-8 text files below a folder, hidden ones and links apart. About 5 % of the bytes are
    /// held out, whole files by a hash of their path.
    Folder(PathBuf),
    /// A folder that [`crate::prepare`] wrote.
    Prepared(PathBuf),
    /// Rust sources of crates, see [`CorpusManifest`]. About 5 % of the bytes are held out, whole
    /// crates by a hash of their name.
    Crates(CorpusManifest),
}

/// A document that has not been selected yet.
#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    /// What is held out together: the crate, or the file itself.
    pub(crate) group: String,
    pub(crate) name: String,
    pub(crate) text: String,
}

impl Source {
    /// The source at `path`: a file, a folder, or a prepared dataset.
    ///
    /// # Errors
    /// A path that does not exist or cannot be looked at.
    pub fn at(path: &Path) -> Result<Self, DataError> {
        let metadata = std::fs::metadata(path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => DataError::missing(path),
            _ => DataError::io("look at", path)(source),
        })?;
        Ok(if !metadata.is_dir() {
            Self::File(path.to_owned())
        } else if dataset::is_dataset(path) {
            Self::Prepared(path.to_owned())
        } else {
            Self::Folder(path.to_owned())
        })
    }

    /// Reads the text, selects and splits it. Files over `file_bytes_max` bytes are left out, except
    /// that a single file may have any size. All text is held in memory.
    ///
    /// # Errors
    /// Files that cannot be read; a source without usable text, or with too little to split; a
    /// prepared dataset, which has no text.
    pub fn corpus(&self, file_bytes_max: u64) -> Result<Corpus, DataError> {
        let mut skips = Skips::default();
        let candidates = self.candidates(file_bytes_max, &mut skips)?;
        self.select(candidates, skips)
    }

    /// Every document that could be part of the corpus, sorted by name.
    pub(crate) fn candidates(
        &self,
        file_bytes_max: u64,
        skips: &mut Skips,
    ) -> Result<Vec<Candidate>, DataError> {
        let mut found = match self {
            Self::File(path) => vec![whole_file(path)?],
            Self::Folder(path) => folder(path, file_bytes_max, skips)?,
            Self::Crates(manifest) => crates::candidates(manifest, file_bytes_max, skips)?,
            Self::Prepared(path) => {
                let why = "it is a prepared dataset, which has tokens only".to_owned();
                return Err(DataError::NoText { place: path.display().to_string(), why });
            }
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
        mut skips: Skips,
    ) -> Result<Corpus, DataError> {
        let files = match self {
            Self::Crates(_) => {
                crates::limit_shares(crates::drop_copies(candidates, &mut skips), &mut skips)
            }
            Self::File(_) | Self::Folder(_) | Self::Prepared(_) => candidates,
        };
        let (train, validation, held_out) = self.split(files)?;
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

    fn split(&self, mut files: Vec<Candidate>) -> Result<Split, DataError> {
        let groups_min = match self {
            Self::Crates(_) => HELD_OUT_CRATES_MIN,
            Self::File(_) | Self::Folder(_) | Self::Prepared(_) => 1,
        };
        if files.len() == 1 {
            let only = files.remove(0);
            return self.split_one(Document { name: only.name, text: only.text });
        }
        let held_out = hold_out(&files, groups_min);
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
    fn split_one(&self, document: Document) -> Result<Split, DataError> {
        let Some(cut) = split_text(&document.text) else {
            let why = format!(
                "its {} bytes cannot be split into training and validation text; \
                 at least 2 characters are needed",
                document.text.len()
            );
            return Err(DataError::NoText { place: self.place(), why });
        };
        let (train, validation) = document.text.split_at(cut);
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
            Self::Crates(manifest) => format!("the {} crates listed", manifest.packages.len()),
        }
    }
}

/// Training documents, validation documents, and the names of what was held out.
type Split = (Vec<Document>, Vec<Document>, Vec<String>);

fn whole_file(path: &Path) -> Result<Candidate, DataError> {
    let bytes = std::fs::read(path).map_err(DataError::io("read", path))?;
    let text = String::from_utf8(bytes).map_err(|error| DataError::NotText {
        path: path.to_owned(),
        offset: error.utf8_error().valid_up_to(),
    })?;
    if text.trim().is_empty() {
        let why = format!("the file is empty ({} bytes of white space)", text.len());
        return Err(DataError::NoText { place: path.display().to_string(), why });
    }
    // The file's own name, not its path: the corpus hash must not depend on where it lies.
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    Ok(Candidate { group: name.clone(), name, text })
}

fn folder(
    path: &Path,
    file_bytes_max: u64,
    skips: &mut Skips,
) -> Result<Vec<Candidate>, DataError> {
    let mut found = Vec::new();
    for file in files_below(path)? {
        if let Some(text) = read_text(&file, &file.name, file_bytes_max, skips)? {
            found.push(Candidate { group: file.name.clone(), name: file.name, text });
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
