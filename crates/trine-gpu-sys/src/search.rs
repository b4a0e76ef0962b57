//! Where libraries are looked for.

use std::fs;
use std::path::{Path, PathBuf};

/// Where a folder has libraries. `*` is any rest of a name: itself, a toolkit's, an environment's with the wheels of
/// PyPI, a `site-packages` itself, and versions of a toolkit side by side.
const INSIDE: [&str; 7] = [
    "",
    "lib64",
    "lib",
    "nvidia/*/lib",
    "lib/python3*/site-packages/nvidia/*/lib",
    "lib/python3*/dist-packages/nvidia/*/lib",
    "cuda*/lib64",
];

/// The places for libraries that no loader knows: toolkits and wheels that were installed for all, and the driver of
/// Windows in its Linux.
const USUAL: [&str; 3] = ["/usr/local", "/usr", "/usr/lib/wsl"];

/// The places to look for libraries in: the system's first, then folders, each with those below it that libraries are
/// in (`lib64`, `lib`, `cuda*/lib64`, and `nvidia/*/lib` of Python's packages).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Search {
    /// Whether the system's loader is asked first, by the name alone (`LD_LIBRARY_PATH`, its cache).
    pub system: bool,
    /// In order: toolkits, Python environments, `site-packages`, or folders with the libraries themselves.
    pub folders: Vec<PathBuf>,
}

impl Search {
    /// In these folders and nowhere else.
    pub fn only(folders: Vec<PathBuf>) -> Self {
        Self { system: false, folders }
    }

    /// Wherever libraries usually are: the system's, those of the `named` folders, and what is installed for all.
    pub fn usual(named: Vec<PathBuf>) -> Self {
        let folders = named.into_iter().chain(USUAL.map(PathBuf::from)).collect();
        Self { system: true, folders }
    }

    /// The folders that there are, first to last.
    pub(crate) fn places(&self) -> impl Iterator<Item = PathBuf> {
        self.folders
            .iter()
            .flat_map(|folder| INSIDE.iter().flat_map(|inside| expand(folder, inside)))
    }
}

/// The folders at `pattern` under `folder`.
fn expand(folder: &Path, pattern: &str) -> Vec<PathBuf> {
    let parts = pattern.split('/').filter(|part| !part.is_empty());
    parts.fold(vec![folder.to_owned()], |found, part| match part.strip_suffix('*') {
        Some(start) => found.iter().flat_map(|folder| beginning(folder, start)).collect(),
        None => {
            found.iter().map(|folder| folder.join(part)).filter(|folder| folder.is_dir()).collect()
        }
    })
}

/// The entries of a folder whose name begins so, the newest version first.
pub(crate) fn beginning(folder: &Path, start: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let named = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(start));
    let mut found: Vec<_> = named.map(|entry| entry.path()).collect();
    found.sort_unstable_by(|a, b| b.cmp(a));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_searched_in_order_with_what_is_below_them() {
        let root = tempfile::tempdir().unwrap();
        let folder = |name: &str| {
            let path = root.path().join(name);
            fs::create_dir_all(&path).unwrap();
            path
        };
        let (first, second) = (folder("venv"), folder("local"));
        let expected = [
            first.clone(),
            folder("venv/lib"),
            folder("venv/lib/python3.12/site-packages/nvidia/nccl/lib"),
            folder("venv/lib/python3.12/site-packages/nvidia/cublas/lib"),
            second.clone(),
            folder("local/lib"),
            folder("local/lib/python3.9/dist-packages/nvidia/cu13/lib"),
            folder("local/cuda-13.0/lib64"),
            folder("local/cuda-12.4/lib64"),
        ];
        let search = Search::only(vec![first, root.path().join("no such folder"), second]);
        let found: Vec<_> = search.places().filter(|place| place.is_dir()).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn named_folders_come_before_those_for_all() {
        let search = Search::usual(vec!["mine".into()]);
        assert!(search.system);
        assert_eq!(search.folders[..2], [PathBuf::from("mine"), PathBuf::from("/usr/local")]);
    }
}
