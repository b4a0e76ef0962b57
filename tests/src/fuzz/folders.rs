//! Checkpoints and datasets of which one file is changed and all checksums are right: what somebody
//! makes on purpose.

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use xxhash_rust::xxh3::xxh3_128;

/// The folder of what version 0.1 wrote.
const WRITTEN: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/trine-cli/tests/fixtures/v0.1");

/// A file of what version 0.1 wrote.
pub(super) fn written(name: &str) -> Vec<u8> {
    fs::read(Path::new(WRITTEN).join(name)).expect("invariant: the fixtures are in the repository")
}

/// A copy of a folder of files that is changed over and over.
#[derive(Debug)]
pub(super) struct Folder {
    home: TempDir,
    /// The file that lists the others.
    list: &'static str,
}

impl Folder {
    /// A copy of a folder of version 0.1.
    pub(super) fn new(name: &str, list: &'static str) -> Self {
        let home = tempfile::tempdir().expect("invariant: there is a place for temporary files");
        let folder = Self { home, list };
        let files = fs::read_dir(Path::new(WRITTEN).join(name));
        for file in files.expect("invariant: the fixtures are in the repository").flatten() {
            let name = file.file_name();
            fs::copy(file.path(), folder.path().join(name)).expect("invariant: it can be written");
        }
        folder
    }

    pub(super) fn path(&self) -> &Path {
        self.home.path()
    }

    /// Puts `bytes` in the place of a file, and what the list says of it right.
    pub(super) fn put(&self, name: &str, bytes: &[u8]) -> Result<(), String> {
        write(&self.path().join(name), bytes)?;
        if name == self.list {
            return self.put_list(bytes);
        }
        let list = fs::read(self.path().join(self.list)).map_err(|error| error.to_string())?;
        let mut list: Value = serde_json::from_slice(&list).map_err(|error| error.to_string())?;
        describe(&mut list, name, bytes);
        self.put_list(list.to_string().as_bytes())
    }

    /// Writes the list. That of a checkpoint ends with the checksum of itself.
    fn put_list(&self, bytes: &[u8]) -> Result<(), String> {
        let path = self.path().join(self.list);
        let Ok(Value::Object(mut list)) = serde_json::from_slice(bytes) else {
            return write(&path, bytes);
        };
        if self.list != "manifest.json" {
            return write(&path, Value::Object(list).to_string().as_bytes());
        }
        list.remove("checksum");
        let text = format!("{:#}", Value::Object(list));
        let body = text.strip_suffix("\n}").unwrap_or("{");
        let checksum = hash(body.as_bytes());
        write(&path, format!("{body},\n  \"checksum\": \"{checksum}\"\n}}\n").as_bytes())
    }
}

fn write(path: &PathBuf, bytes: &[u8]) -> Result<(), String> {
    fs::write(path, bytes).map_err(|error| error.to_string())
}

fn hash(bytes: &[u8]) -> String {
    format!("{:032x}", xxh3_128(bytes))
}

/// Corrects what an entry of a list says of a file: of a checkpoint `name`, `bytes`, `xxh3_128`; of a
/// dataset `file`, `count`, `xxh3`, where the count stays, so that lengths are wrong now and then.
fn describe(list: &mut Value, name: &str, bytes: &[u8]) {
    match list {
        Value::Array(items) => items.iter_mut().for_each(|item| describe(item, name, bytes)),
        Value::Object(fields) => {
            if fields.get("name").is_some_and(|found| found == name) {
                fields.insert("bytes".to_owned(), bytes.len().into());
                fields.insert("xxh3_128".to_owned(), hash(bytes).into());
            } else if fields.get("file").is_some_and(|found| found == name) {
                fields.insert("xxh3".to_owned(), hash(bytes).into());
            }
            fields.values_mut().for_each(|field| describe(field, name, bytes));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
