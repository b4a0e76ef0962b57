//! What can go wrong: a library that cannot be had, and a call that fails.

use std::ffi::{CStr, c_char, c_int};
use std::fmt;
use std::path::PathBuf;

/// A version of a library.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The first number.
    pub major: u32,
    /// The second number.
    pub minor: u32,
    /// The third number; 0 where a library has two.
    pub patch: u32,
}

impl Version {
    /// A version of two numbers.
    pub const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor, patch: 0 }
    }

    /// From a number whose last two digits are the patch, and `minors` times these the minor version:
    /// 12.8.3 is 120803 with 100, and was 12803 with 10.
    pub(crate) fn from_number(number: u32, minors: u32) -> Self {
        let major = number / (100 * minors);
        Self { major, minor: number / 100 - major * minors, patch: number % 100 }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { major, minor, patch } = self;
        match patch {
            0 => write!(f, "{major}.{minor}"),
            _ => write!(f, "{major}.{minor}.{patch}"),
        }
    }
}

/// A function of a library that has failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallError {
    /// Its symbol.
    pub function: &'static str,
    /// What it has returned; never 0.
    pub code: c_int,
    /// The code's name, as the library or its header calls it.
    pub name: String,
    /// What the library says of the code; empty if it says nothing more.
    pub text: String,
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { function, code, name, text } = self;
        write!(f, "{function} failed with {name} ({code})")?;
        if text.is_empty() { Ok(()) } else { write!(f, ": {text}") }
    }
}

impl std::error::Error for CallError {}

/// The name of a code that a library does not know itself.
pub(crate) const UNKNOWN: &str = "an unknown code";

/// The text at an address that a library has given.
///
/// # Safety
/// The address is null or of a text that ends with a zero byte.
pub(crate) unsafe fn text_at(address: *const c_char) -> Option<String> {
    if address.is_null() {
        return None;
    }
    // SAFETY: the caller promises a text that ends.
    Some(unsafe { CStr::from_ptr(address) }.to_string_lossy().into_owned())
}

/// A file with the name of a library that could not be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The file, or the name that the system's loader was asked for.
    pub path: PathBuf,
    /// Why, in the words of the system.
    pub why: String,
}

/// A library that cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// None of its files is anywhere, or none could be opened.
    #[error("{library} was not found; looked for {} {}{}", all_of(files), places(*system, folders), among(refused))]
    Missing {
        /// What the library is called.
        library: &'static str,
        /// The names of its files.
        files: &'static [&'static str],
        /// Whether the system's loader was asked.
        system: bool,
        /// The folders that were looked in, with the folders of libraries below them.
        folders: Vec<PathBuf>,
        /// Files that are there, but could not be opened.
        refused: Vec<Refused>,
    },
    /// It is open, but lacks a function.
    #[error("{library} in {} has no function {symbol}: it is too old, or another library", path.display())]
    Symbol {
        /// What the library is called.
        library: &'static str,
        /// Its file.
        path: PathBuf,
        /// The function.
        symbol: &'static str,
    },
    /// It is older than the oldest version that has what is needed.
    #[error("{library} in {} is of version {found}; the oldest that can be used is {least}", path.display())]
    Old {
        /// What the library is called.
        library: &'static str,
        /// Its file.
        path: PathBuf,
        /// Its version.
        found: Version,
        /// The oldest that can be used.
        least: Version,
    },
    /// It does not say which version it is.
    #[error("{library} in {} does not say its version: {source}", path.display())]
    Version {
        /// What the library is called.
        library: &'static str,
        /// Its file.
        path: PathBuf,
        /// The call that failed.
        source: CallError,
    },
}

/// `a`, `a and b`, `a, b and c`.
fn all_of(names: &[impl fmt::Display]) -> String {
    let names: Vec<_> = names.iter().map(ToString::to_string).collect();
    match names.split_last() {
        Some((last, others)) if !others.is_empty() => format!("{} and {last}", others.join(", ")),
        Some((last, _)) => last.clone(),
        None => String::new(),
    }
}

fn places(system: bool, folders: &[PathBuf]) -> String {
    let folders: Vec<_> = folders.iter().map(|folder| folder.display()).collect();
    match (system, folders.is_empty()) {
        (true, true) => "among the system's libraries".into(),
        (true, false) => format!("among the system's libraries and in {}", all_of(&folders)),
        (false, false) => format!("in {}", all_of(&folders)),
        (false, true) => "nowhere".into(),
    }
}

fn among(refused: &[Refused]) -> String {
    let say =
        |Refused { path, why }: &Refused| format!("; {} cannot be opened: {why}", path.display());
    refused.iter().map(say).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_versions() {
        let of = |number, minors| Version::from_number(number, minors).to_string();
        assert_eq!(of(120_803, 100), "12.8.3");
        assert_eq!(of(131_000, 100), "13.10");
        assert_eq!(of(11_605, 10), "11.6.5");
        assert!(Version::new(2, 9) < Version::new(2, 18));
    }

    #[test]
    fn a_missing_library_says_what_was_looked_for_and_where() {
        let missing = |system, folders: &[&str], refused| LoadError::Missing {
            library: "NCCL",
            files: &["libnccl.so.2"],
            system,
            folders: folders.iter().map(Into::into).collect(),
            refused,
        };
        let text = |system, folders| missing(system, folders, Vec::new()).to_string();
        let start = "NCCL was not found; looked for libnccl.so.2";
        assert_eq!(text(true, &[]), format!("{start} among the system's libraries"));
        let both = format!("{start} among the system's libraries and in a, b and c");
        assert_eq!(text(true, &["a", "b", "c"]), both);
        let broken = vec![Refused { path: "a/libnccl.so.2".into(), why: "file too short".into() }];
        let refused = missing(false, &["a"], broken).to_string();
        let why = "; a/libnccl.so.2 cannot be opened: file too short";
        assert_eq!(refused, format!("{start} in a{why}"));
    }
}
