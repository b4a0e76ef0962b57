//! The index of a dataset's folder: what describes and checks its files.

use crate::{CorpusReport, DataError, files};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::path::Path;
use xxhash_rust::xxh3::xxh3_128;

pub(crate) const INDEX_FILE: &str = "index.json";
pub(crate) const TOKENIZER_FILE: &str = "tokenizer.json";
/// By these two files a folder is known that has lost its index.
const DATASET_FILES: [&str; 2] = ["train.bin", TOKENIZER_FILE];
pub(crate) const FORMAT: &str = "trine-dataset";
pub(crate) const FORMAT_VERSION: u32 = 1;
/// No index is larger: it lists what is held out, a name each.
const INDEX_BYTES_MAX: u64 = 1 << 28;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Index {
    format: String,
    version: u32,
    pub(crate) dtype: TokenType,
    pub(crate) vocab_size: usize,
    pub(crate) end_of_text: u32,
    pub(crate) tokenizer: FileCheck,
    pub(crate) train: SplitIndex,
    pub(crate) validation: SplitIndex,
    /// How the corpus was made; other programs may leave it out.
    #[serde(default)]
    pub(crate) report: Option<CorpusReport>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum TokenType {
    U16,
    U32,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SplitIndex {
    pub(crate) raw_bytes: u64,
    pub(crate) tokens: FileCheck,
    pub(crate) documents: FileCheck,
}

/// A file of the folder and what must be in it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct FileCheck {
    pub(crate) file: String,
    /// Elements of the file's type; bytes for text.
    pub(crate) count: u64,
    /// XXH3-128 of the bytes, as 32 hexadecimal digits; other programs may leave it out.
    #[serde(default)]
    pub(crate) xxh3: Option<String>,
}

/// What says that a file is an index, and of which version. An index of another version may have
/// other fields.
#[derive(Deserialize)]
struct Head {
    format: String,
    version: u32,
}

impl Index {
    pub(crate) fn new(
        dtype: TokenType,
        vocab_size: usize,
        end_of_text: u32,
        tokenizer: FileCheck,
        [train, validation]: [SplitIndex; 2],
        report: CorpusReport,
    ) -> Self {
        let (format, version, report) = (FORMAT.to_owned(), FORMAT_VERSION, Some(report));
        Self {
            format,
            version,
            dtype,
            vocab_size,
            end_of_text,
            tokenizer,
            train,
            validation,
            report,
        }
    }

    /// Reads the index of a folder.
    pub(crate) fn read(folder: &Path) -> Result<Self, DataError> {
        let path = folder.join(INDEX_FILE);
        let json = files::read_small(&path, INDEX_BYTES_MAX).map_err(|error| match error {
            DataError::Missing { .. } => altered(
                &path,
                "the file is missing, so this folder is no prepared dataset; \
                 give the folder that holds it, or a text file or folder"
                    .to_owned(),
            ),
            other => other,
        })?;
        let wrong =
            |error: serde_json::Error| altered(&path, format!("not a valid index: {error}"));
        let head: Head = serde_json::from_str(&json).map_err(wrong)?;
        if (head.format.as_str(), head.version) != (FORMAT, FORMAT_VERSION) {
            let why = format!(
                "format {:?} version {}; this build reads {FORMAT:?} version {FORMAT_VERSION}; \
                 prepare the data again",
                head.format, head.version
            );
            return Err(altered(&path, why));
        }
        serde_json::from_str(&json).map_err(wrong)
    }
}

impl FileCheck {
    /// What a file of these bytes is checked by.
    pub(crate) fn of(name: &str, bytes: &[u8]) -> Self {
        Self { file: name.to_owned(), count: bytes.len() as u64, xxh3: Some(hash(bytes)) }
    }

    /// Opens the file, which lies in `folder` itself and has `element_bytes` for each element. Returns
    /// it with its size in bytes.
    pub(crate) fn open(
        &self,
        folder: &Path,
        element_bytes: usize,
    ) -> Result<(File, usize), DataError> {
        let path = folder.join(&self.file);
        self.check_place(folder)?;
        let (file, metadata) = files::open(&path).map_err(|error| match error {
            DataError::Missing { .. } => {
                let why = "the file is missing; restore it or prepare the data again";
                altered(&path, why.to_owned())
            }
            other => other,
        })?;
        let (found, expected) = (metadata.len(), self.count.saturating_mul(element_bytes as u64));
        if found != expected {
            let how = if found < expected { "truncated" } else { "too long" };
            let why = format!(
                "{how}: {found} B, {expected} B expected; restore it or prepare the data again"
            );
            return Err(altered(&path, why));
        }
        let bytes = usize::try_from(found).map_err(|_| {
            altered(&path, format!("its {found} bytes are more than this machine can address"))
        })?;
        Ok((file, bytes))
    }

    /// Compares what was read.
    pub(crate) fn check(&self, folder: &Path, bytes: &[u8]) -> Result<(), DataError> {
        if self.xxh3.as_ref().is_none_or(|expected| hash(bytes) == *expected) {
            return Ok(());
        }
        let why = "altered: its hash is not the one in the index; \
                   restore it or prepare the data again";
        Err(altered(&folder.join(&self.file), why.to_owned()))
    }

    /// An index from elsewhere may not have a file read that is not of its folder.
    fn check_place(&self, folder: &Path) -> Result<(), DataError> {
        let inside = trine_files::inside(folder, &self.file).map(drop);
        inside.map_err(|error| altered(&folder.join(INDEX_FILE), error.to_string()))
    }
}

/// Whether a folder has an index that says so. A page may have the name of one.
pub(crate) fn is_dataset(folder: &Path) -> bool {
    let Ok(json) = files::read_small(&folder.join(INDEX_FILE), INDEX_BYTES_MAX) else {
        return false;
    };
    match serde_json::from_str::<serde_json::Value>(&json) {
        Ok(value) => value.get("format").and_then(|format| format.as_str()) == Some(FORMAT),
        // Damaged: whoever reads it says where.
        Err(_) => json.contains(&format!("\"{FORMAT}\"")),
    }
}

/// Whether a folder is a dataset, which only its index can say.
///
/// # Errors
/// A folder that has the files of a dataset and no index that could be read.
pub(crate) fn expect_dataset(folder: &Path) -> Result<bool, DataError> {
    if is_dataset(folder) {
        return Ok(true);
    }
    if !DATASET_FILES.iter().all(|name| folder.join(name).exists()) {
        return Ok(false);
    }
    let why = format!(
        "the folder has {} of a prepared dataset, but no index.json of format {FORMAT:?}; restore \
         it, prepare the data again, or give the folder of the text",
        DATASET_FILES.join(" and ")
    );
    Err(altered(&folder.join(INDEX_FILE), why))
}

pub(crate) fn altered(path: &Path, why: String) -> DataError {
    DataError::Dataset { path: path.to_owned(), why }
}

fn hash(bytes: &[u8]) -> String {
    format!("{:032x}", xxh3_128(bytes))
}
