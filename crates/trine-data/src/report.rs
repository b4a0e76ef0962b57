//! What a source gave and what was left out of it, in a form that is printed and cached.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Names kept as examples of one reason.
const EXAMPLES_MAX: usize = 5;

/// A piece of text with a name that does not depend on the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Path within the source with `/` between its parts; for crates it begins with name and version.
    pub name: String,
    /// The text.
    pub text: String,
}

/// A document that has not been selected yet.
#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    /// What is held out together: the crate, or the file itself.
    pub(crate) group: String,
    pub(crate) name: String,
    pub(crate) text: String,
}

impl Candidate {
    /// A file, which is its own group.
    pub(crate) fn file(name: String, text: String) -> Self {
        Self { group: name.clone(), name, text }
    }
}

/// Why something was left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SkipReason {
    /// A crate of which a higher version is there.
    OlderVersion,
    /// A crate that binds a system library (`*-sys`).
    SysCrate,
    /// A crate that is mostly tables of one platform's constants and declarations.
    PlatformTables,
    /// Written by a program: bindings, Unicode tables.
    Generated,
    /// Larger than the 1 MiB that a file of a crate may have.
    TooLarge,
    /// Not UTF-8, or with NUL characters.
    NotText,
    /// Nothing but white space.
    Empty,
    /// Nearly the same lines as a file that is kept.
    NearDuplicate,
    /// Beyond its crate's share of the corpus.
    OverShare,
    /// Its name begins with a full stop. A folder counts once and is not looked into.
    Hidden,
    /// Named by a `.gitignore` of the folder. A folder counts once and is not looked into.
    Ignored,
    /// Text or numbers in a form that is not plain text, such as `.jsonl`, `.gz` or `.parquet`.
    Format,
    /// Larger than `data.file_bytes_max`.
    OverLimit,
    /// A pipe, a device or a socket.
    NotRegular,
    /// A link that leads nowhere.
    BrokenLink,
    /// A folder that was met before, through a link.
    Again,
    /// A prepared dataset inside a folder of text.
    Dataset,
    /// The directory of a run inside a folder of text.
    Run,
}

impl SkipReason {
    /// The reason in words, to follow a count.
    pub fn describe(self, count: u64) -> &'static str {
        let (one, more) = match self {
            Self::OlderVersion => {
                ("crate with a higher version present", "crates with a higher version present")
            }
            Self::SysCrate => {
                ("crate that binds a system library", "crates that bind system libraries")
            }
            Self::PlatformTables => ("crate of platform constants", "crates of platform constants"),
            Self::Generated => ("generated file", "generated files"),
            Self::TooLarge => ("file over 1 MiB", "files over 1 MiB"),
            Self::NotText => ("file that is not UTF-8 text", "files that are not UTF-8 text"),
            Self::Empty => ("empty file", "empty files"),
            Self::NearDuplicate => {
                ("file equal or nearly equal to another", "files equal or nearly equal to others")
            }
            Self::OverShare => ("file over its crate's share", "files over their crate's share"),
            Self::Hidden => ("hidden file or folder", "hidden files or folders"),
            Self::Ignored => {
                ("file or folder named by .gitignore", "files or folders named by .gitignore")
            }
            Self::Format => (
                "file in a format that is not plain text",
                "files in a format that is not plain text",
            ),
            Self::OverLimit => ("file over data.file_bytes_max", "files over data.file_bytes_max"),
            Self::NotRegular => ("pipe, device or socket", "pipes, devices or sockets"),
            Self::BrokenLink => ("link that leads nowhere", "links that lead nowhere"),
            Self::Again => (
                "link to a folder that was read already",
                "links to folders that were read already",
            ),
            Self::Dataset => ("prepared dataset", "prepared datasets"),
            Self::Run => ("run directory", "run directories"),
        };
        if count == 1 { one } else { more }
    }
}

/// How much was left out for one reason.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkipCount {
    /// Files, or crates where the reason concerns crates.
    pub count: u64,
    /// Their bytes; 0 for crates, whose files are not looked at.
    pub bytes: u64,
    /// The first few names.
    pub examples: Vec<String>,
}

/// What was left out, by reason.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Skips(BTreeMap<SkipReason, SkipCount>);

impl Skips {
    /// Counts one file or crate.
    pub(crate) fn add(&mut self, reason: SkipReason, name: &str, bytes: u64) {
        let entry = self.0.entry(reason).or_default();
        entry.count += 1;
        entry.bytes += bytes;
        if entry.examples.len() < EXAMPLES_MAX {
            entry.examples.push(name.to_owned());
        }
    }

    /// Puts what `found` says of the source in the place of what is said here: all but the reasons
    /// that are found by comparing documents.
    pub(crate) fn take_unselected(&mut self, found: Self) {
        let is_selected = |reason: &SkipReason, _: &mut SkipCount| {
            matches!(reason, SkipReason::NearDuplicate | SkipReason::OverShare)
        };
        self.0.retain(is_selected);
        self.0.extend(found.0);
    }

    /// Reasons with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (SkipReason, &SkipCount)> {
        self.0.iter().map(|(reason, count)| (*reason, count))
    }

    /// What was left out for `reason`.
    pub fn of(&self, reason: SkipReason) -> SkipCount {
        self.0.get(&reason).cloned().unwrap_or_default()
    }

    /// One line, as for an error: "3 empty files (such as a.txt), 1 generated file (such as b.rs)".
    pub(crate) fn summary(&self) -> String {
        let part = |(why, skip): (SkipReason, &SkipCount)| {
            let such = skip.examples.first().map(|name| format!(" (such as {name})"));
            format!("{} {}{}", skip.count, why.describe(skip.count), such.unwrap_or_default())
        };
        let parts: Vec<_> = self.iter().map(part).collect();
        if parts.is_empty() { "it holds no files".to_owned() } else { parts.join(", ") }
    }
}

/// What a corpus is made of. Stored with a prepared dataset, so that a cached one can be described.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CorpusReport {
    /// 128-bit XXH3 over names and contents of all documents, as 32 hexadecimal digits.
    pub corpus_hash: String,
    /// Documents of the training split.
    pub train_documents: u64,
    /// Documents of the validation split.
    pub validation_documents: u64,
    /// UTF-8 bytes of the training split.
    pub train_bytes: u64,
    /// UTF-8 bytes of the validation split.
    pub validation_bytes: u64,
    /// What was held out for validation: crates, documents, or the end of the one document.
    pub held_out: Vec<String>,
    /// What was left out.
    pub skipped: Skips,
}

/// A source's text, selected, split and sorted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Corpus {
    /// What is trained on, sorted by name.
    pub train: Vec<Document>,
    /// What is held out, sorted by name.
    pub validation: Vec<Document>,
    /// Counts, hash, and what was left out.
    pub report: CorpusReport,
}
