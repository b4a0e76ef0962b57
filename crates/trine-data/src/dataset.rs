//! Tokens on disk: a folder of plain files and an index that describes and checks them.
//!
//! | file | holds |
//! |---|---|
//! | `train.bin`, `val.bin` | tokens, little-endian u16 (u32 for more than 65536 entries), no header |
//! | `train.documents.bin`, `val.documents.bin` | where documents begin, little-endian u64 token offsets |
//! | `tokenizer.json` | the tokenizer, in the format of the tokenizers crate |
//! | `index.json` | format, sizes, XXH3-128 of each file, and how the corpus was made |

use crate::index::{FileCheck, INDEX_FILE, Index, SplitIndex, TOKENIZER_FILE, TokenType, altered};
use crate::tokens::{Tokens, needs_u32};
use crate::{CorpusReport, DataError, Skips, TokenStream, Tokenizer};
use bytemuck::Pod;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use xxhash_rust::xxh3::Xxh3;

/// A corpus as tokens, held in memory.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// What is trained on.
    pub train: Arc<TokenStream>,
    /// What is held out.
    pub validation: Arc<TokenStream>,
    /// What the tokens mean.
    pub tokenizer: Arc<Tokenizer>,
    /// How the corpus was made.
    pub report: CorpusReport,
}

impl Dataset {
    /// Reads and checks the folder that [`crate::prepare`] wrote.
    ///
    /// # Errors
    /// A folder that is none, of another format version, or whose files are missing, truncated or
    /// altered; tokens outside of the vocabulary.
    pub fn open(folder: &Path) -> Result<Self, DataError> {
        if !folder.is_dir() {
            return Err(DataError::missing(folder));
        }
        let index = Index::read(folder)?;
        let json = read_checked::<u8>(folder, &index.tokenizer)?;
        let place = folder.join(&index.tokenizer.file);
        let json = String::from_utf8(json)
            .map_err(|_| altered(&place, "it is no longer UTF-8".to_owned()))?;
        let tokenizer = Tokenizer::from_json(&json, &place.display().to_string())?;
        let found = (tokenizer.vocab_size(), tokenizer.end_of_text());
        let expected = (index.vocab_size, index.end_of_text);
        if found != expected {
            let why = format!(
                "its (vocabulary, end-of-text id) are {found:?}, the index says {expected:?}; \
                 restore the file or prepare the data again"
            );
            return Err(altered(&place, why));
        }
        let train = index.stream(folder, &index.train)?;
        let validation = index.stream(folder, &index.validation)?;
        let report = index.report.unwrap_or_else(|| made_elsewhere(&train, &validation));
        Ok(Self {
            train: Arc::new(train),
            validation: Arc::new(validation),
            tokenizer: Arc::new(tokenizer),
            report,
        })
    }

    /// Writes all files into a folder that exists, the index last, and waits until they are on disk.
    pub(crate) fn write(&self, folder: &Path) -> Result<(), DataError> {
        let dtype =
            if needs_u32(self.train.vocab_size()) { TokenType::U32 } else { TokenType::U16 };
        let index = Index::new(
            dtype,
            self.train.vocab_size(),
            self.train.end_of_text(),
            write_file(folder, TOKENIZER_FILE, self.tokenizer.to_json()?.as_bytes())?,
            [
                write_split(folder, "train", &self.train)?,
                write_split(folder, "val", &self.validation)?,
            ],
            self.report.clone(),
        );
        let mut json =
            serde_json::to_string_pretty(&index).expect("invariant: an index has string keys only");
        json.push('\n');
        write_file(folder, INDEX_FILE, json.as_bytes())?;
        sync_folder(folder)
    }
}

impl Index {
    fn stream(&self, folder: &Path, split: &SplitIndex) -> Result<TokenStream, DataError> {
        let tokens = match self.dtype {
            TokenType::U16 => {
                let values = read_checked::<u16>(folder, &split.tokens)?;
                Tokens::U16(values.into_iter().map(u16::from_le).collect())
            }
            TokenType::U32 => {
                let values = read_checked::<u32>(folder, &split.tokens)?;
                Tokens::U32(values.into_iter().map(u32::from_le).collect())
            }
        };
        let starts = read_checked::<u64>(folder, &split.documents)?;
        let starts = starts.into_iter().map(u64::from_le).collect();
        let (bytes, vocab_size) = (split.raw_bytes, self.vocab_size);
        TokenStream::from_parts(tokens, starts, bytes, vocab_size, self.end_of_text)
            .map_err(|error| altered(&folder.join(&split.tokens.file), error.to_string()))
    }
}

/// The report of a dataset whose writer gave none: the tokens take the place of the text.
fn made_elsewhere(train: &TokenStream, validation: &TokenStream) -> CorpusReport {
    let mut hash = Xxh3::new();
    for stream in [train, validation] {
        hash.update(&stream.len().to_le_bytes());
        stream.iter().for_each(|token| hash.update(&token.to_le_bytes()));
    }
    CorpusReport {
        corpus_hash: format!("{:032x}", hash.digest128()),
        train_documents: train.document_starts().len() as u64,
        validation_documents: validation.document_starts().len() as u64,
        train_bytes: train.raw_bytes(),
        validation_bytes: validation.raw_bytes(),
        held_out: Vec::new(),
        skipped: Skips::default(),
    }
}

/// Reads a file of `check.count` elements and compares size and hash.
fn read_checked<T: Pod>(folder: &Path, check: &FileCheck) -> Result<Vec<T>, DataError> {
    let (mut file, size) = check.open(folder, size_of::<T>())?;
    let mut values = vec![T::zeroed(); size / size_of::<T>()];
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut values);
    file.read_exact(bytes).map_err(DataError::io("read", &folder.join(&check.file)))?;
    check.check(folder, bytes)?;
    Ok(values)
}

fn write_split(folder: &Path, name: &str, stream: &TokenStream) -> Result<SplitIndex, DataError> {
    let file = format!("{name}.bin");
    let mut tokens = match stream.tokens() {
        Tokens::U16(values) => {
            let values: Vec<u16> = values.iter().map(|value| value.to_le()).collect();
            write_file(folder, &file, bytemuck::cast_slice(&values))?
        }
        Tokens::U32(values) => {
            let values: Vec<u32> = values.iter().map(|value| value.to_le()).collect();
            write_file(folder, &file, bytemuck::cast_slice(&values))?
        }
    };
    tokens.count = stream.len();
    let starts: Vec<u64> = stream.document_starts().iter().map(|start| start.to_le()).collect();
    let file = format!("{name}.documents.bin");
    let mut documents = write_file(folder, &file, bytemuck::cast_slice(&starts))?;
    documents.count = starts.len() as u64;
    Ok(SplitIndex { raw_bytes: stream.raw_bytes(), tokens, documents })
}

fn write_file(folder: &Path, name: &str, bytes: &[u8]) -> Result<FileCheck, DataError> {
    let path = folder.join(name);
    let mut file = File::create(&path).map_err(DataError::io("create", &path))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(DataError::io("write", &path))?;
    Ok(FileCheck::of(name, bytes))
}

/// Makes new names in a folder durable. Only Unix lets a folder be opened for that.
pub(crate) fn sync_folder(folder: &Path) -> Result<(), DataError> {
    if cfg!(unix) {
        let sync = File::open(folder).and_then(|file| file.sync_all());
        sync.map_err(DataError::io("sync", folder))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::toy;
    use std::fs;

    fn written(vocab_size: usize) -> (tempfile::TempDir, Dataset) {
        let text = toy::text(20_000);
        let tokenizer = Tokenizer::train([text.as_str()], 300).unwrap();
        let stream = |text: &str| {
            let mut tokens = tokenizer.encode(text).unwrap();
            tokens.push(0);
            let bytes = text.len() as u64;
            Arc::new(TokenStream::new(tokens, vec![0], bytes, vocab_size, 0).unwrap())
        };
        let report = CorpusReport {
            corpus_hash: "0".repeat(32),
            train_documents: 1,
            validation_documents: 1,
            train_bytes: 15_000,
            validation_bytes: 5_000,
            held_out: vec!["x".to_owned()],
            skipped: Skips::default(),
        };
        let dataset = Dataset {
            train: stream(&text[..15_000]),
            validation: stream(&text[15_000..]),
            tokenizer: Arc::new(tokenizer.clone()),
            report,
        };
        let folder = tempfile::tempdir().unwrap();
        dataset.write(folder.path()).unwrap();
        (folder, dataset)
    }

    #[test]
    fn written_datasets_open_again() {
        let (folder, dataset) = written(300);
        let opened = Dataset::open(folder.path()).unwrap();
        assert_eq!(opened.train, dataset.train);
        assert_eq!(opened.validation, dataset.validation);
        assert_eq!(opened.report, dataset.report);
        assert_eq!(opened.tokenizer.hash().unwrap(), dataset.tokenizer.hash().unwrap());
        let size = fs::metadata(folder.path().join("train.bin")).unwrap().len();
        assert_eq!(size, 2 * dataset.train.len());
    }

    #[test]
    fn damage_is_named() {
        let mut damages = 0;
        let mut check = |damage: &dyn Fn(&Path), expected: &[&str]| {
            let (folder, _) = written(300);
            damage(folder.path());
            let error = Dataset::open(folder.path()).unwrap_err().to_string();
            assert!(expected.iter().all(|part| error.contains(part)), "{error}");
            damages += 1;
        };
        let edit = |name: &'static str, change: fn(&mut Vec<u8>)| {
            move |folder: &Path| {
                let mut bytes = fs::read(folder.join(name)).unwrap();
                change(&mut bytes);
                fs::write(folder.join(name), bytes).unwrap();
            }
        };
        let cut = |bytes: &mut Vec<u8>| bytes.truncate(bytes.len() - 10);
        let flip = |bytes: &mut Vec<u8>| bytes[7] ^= 1;
        check(&edit("train.bin", cut), &["train.bin", "truncated", "expected"]);
        check(&edit("val.bin", |bytes| bytes.push(0)), &["val.bin", "too long"]);
        check(&edit("val.bin", flip), &["val.bin", "altered"]);
        check(&edit("train.documents.bin", flip), &["train.documents.bin", "altered"]);
        check(&edit("tokenizer.json", flip), &["tokenizer.json", "altered"]);
        check(&edit("index.json", cut), &["index.json", "not a valid index"]);
        check(&edit("index.json", |b| b.retain(|&c| c != b'1')), &["index.json"]);
        let missing =
            |name: &'static str| move |folder: &Path| fs::remove_file(folder.join(name)).unwrap();
        check(&missing("val.bin"), &["val.bin", "missing"]);
        check(&missing("index.json"), &["index.json", "no prepared dataset"]);
        assert_eq!(damages, 9);
    }

    #[test]
    fn other_versions_are_refused() {
        let (folder, _) = written(300);
        let path = folder.path().join(INDEX_FILE);
        let json = fs::read_to_string(&path).unwrap();
        fs::write(&path, json.replace("\"version\": 1", "\"version\": 2, \"new\": 0")).unwrap();
        let error = Dataset::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("version 2") && error.contains("reads"), "{error}");
    }
}
