//! Files below a folder, in an order that is the same everywhere.

use crate::{DataError, SkipReason, Skips, index};
use ignore::gitignore::Gitignore;
use std::collections::{HashSet, VecDeque};
use std::fs::{self, DirEntry, Metadata};
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// A file below a folder.
#[derive(Debug)]
pub(crate) struct FileEntry {
    pub(crate) path: PathBuf,
    /// Path from the folder, with `/` between its parts.
    pub(crate) name: String,
    pub(crate) bytes: u64,
}

/// All regular files of a package, sorted by name. Hidden files and folders are passed over, and so
/// are links: a package as published has none.
pub(crate) fn package_files(root: &Path) -> Result<Vec<FileEntry>, DataError> {
    let mut passed_over = Skips::default();
    Walk::files(root, false, &mut passed_over)
}

/// All regular files of a user's folder, sorted by name. Links are followed; a folder that is met
/// again through one is not read again. Hidden files, what a `.gitignore` of the folder names, and
/// datasets are left out and counted.
pub(crate) fn folder_files(root: &Path, skips: &mut Skips) -> Result<Vec<FileEntry>, DataError> {
    Walk::files(root, true, skips)
}

/// A folder that is being read.
struct Folder {
    path: PathBuf,
    /// The name of what lies in it begins with this.
    prefix: String,
    /// The rules of `.gitignore` files that hold here, the outermost first.
    rules: Vec<Rc<Gitignore>>,
}

struct Walk<'a> {
    /// Whether this is a user's folder: links and `.gitignore` count.
    is_users: bool,
    /// The first folder without links in its path.
    root: PathBuf,
    /// Folders to read next.
    folders: Vec<Folder>,
    /// Links to look at when all folders have been read, so that what a link repeats keeps its own
    /// name.
    links: VecDeque<(PathBuf, String, Vec<Rc<Gitignore>>)>,
    /// Folders read, without links in their paths.
    seen: HashSet<PathBuf>,
    found: Vec<FileEntry>,
    skips: &'a mut Skips,
}

impl Walk<'_> {
    fn files(root: &Path, is_users: bool, skips: &mut Skips) -> Result<Vec<FileEntry>, DataError> {
        if !root.is_dir() {
            return Err(DataError::missing(root));
        }
        let resolved = fs::canonicalize(root).map_err(DataError::io("look at", root))?;
        let first = Folder { path: root.to_owned(), prefix: String::new(), rules: Vec::new() };
        let (folders, seen) = (vec![first], HashSet::from([resolved.clone()]));
        let (links, found) = (VecDeque::new(), Vec::new());
        let mut walk = Walk { is_users, root: resolved, folders, links, seen, found, skips };
        loop {
            if let Some(folder) = walk.folders.pop() {
                walk.read(folder)?;
            } else if let Some((path, name, rules)) = walk.links.pop_front() {
                walk.follow(path, name, rules)?;
            } else {
                walk.found.sort_by(|a, b| a.name.cmp(&b.name));
                return Ok(walk.found);
            }
        }
    }

    fn read(&mut self, mut folder: Folder) -> Result<(), DataError> {
        if self.is_users {
            folder.rules.extend(gitignore(&folder.path)?);
        }
        let listed = fs::read_dir(&folder.path).and_then(Iterator::collect);
        let mut entries: Vec<DirEntry> = listed.map_err(DataError::io("list", &folder.path))?;
        // Which of two links to a folder is read must not depend on the file system.
        entries.sort_by_key(DirEntry::file_name);
        for entry in entries {
            self.entry(&entry, &folder)?;
        }
        Ok(())
    }

    fn entry(&mut self, entry: &DirEntry, folder: &Folder) -> Result<(), DataError> {
        let file_name = entry.file_name().to_string_lossy().into_owned();
        let (path, name) = (entry.path(), format!("{}{file_name}", folder.prefix));
        // Does not follow links.
        let metadata = entry.metadata().map_err(DataError::io("look at", &path))?;
        if file_name.starts_with('.') {
            self.leave_out(SkipReason::Hidden, &name, &metadata);
        } else if is_ignored(&folder.rules, &path, metadata.is_dir()) {
            self.leave_out(SkipReason::Ignored, &name, &metadata);
        } else if !metadata.is_symlink() {
            self.take(path, name, &metadata, folder.rules.clone())?;
        } else if self.is_users {
            self.links.push_back((path, name, folder.rules.clone()));
        }
        Ok(())
    }

    /// Looks at what a link leads to.
    fn follow(
        &mut self,
        path: PathBuf,
        name: String,
        rules: Vec<Rc<Gitignore>>,
    ) -> Result<(), DataError> {
        let Ok(metadata) = fs::metadata(&path) else {
            self.skips.add(SkipReason::BrokenLink, &name, 0);
            return Ok(());
        };
        self.take(path, name, &metadata, rules)
    }

    /// Takes what is no link: a folder to read next, a file, or something that is neither.
    fn take(
        &mut self,
        path: PathBuf,
        name: String,
        metadata: &Metadata,
        rules: Vec<Rc<Gitignore>>,
    ) -> Result<(), DataError> {
        if metadata.is_file() {
            self.found.push(FileEntry { path, name, bytes: metadata.len() });
        } else if !metadata.is_dir() {
            self.skips.add(SkipReason::NotRegular, &name, 0);
        } else if self.is_users && index::is_dataset(&path) {
            self.skips.add(SkipReason::Dataset, &name, 0);
        } else if self.is_users && trine_files::is_run(&path) {
            // What a run writes must not count as its text: it could never be resumed.
            self.skips.add(SkipReason::Run, &name, 0);
        } else {
            let resolved = fs::canonicalize(&path).map_err(DataError::io("look at", &path))?;
            // A folder around the first one holds it again.
            if self.root.starts_with(&resolved) || !self.seen.insert(resolved) {
                self.skips.add(SkipReason::Again, &name, 0);
            } else {
                self.folders.push(Folder { path, prefix: format!("{name}/"), rules });
            }
        }
        Ok(())
    }

    fn leave_out(&mut self, reason: SkipReason, name: &str, metadata: &Metadata) {
        let bytes = if metadata.is_file() { metadata.len() } else { 0 };
        self.skips.add(reason, name, bytes);
    }
}

/// The rules of a folder's `.gitignore`. Lines that are no pattern are passed over, as Git does.
fn gitignore(folder: &Path) -> Result<Option<Rc<Gitignore>>, DataError> {
    let path = folder.join(".gitignore");
    // Not a pipe: reading one would wait.
    if !path.is_file() {
        return Ok(None);
    }
    // Says at once whether it can be read; what the crate reports also holds bad patterns.
    fs::File::open(&path).map_err(DataError::io("open", &path))?;
    Ok(Some(Rc::new(Gitignore::new(&path).0)))
}

/// Whether the innermost rule that speaks of a path leaves it out.
fn is_ignored(rules: &[Rc<Gitignore>], path: &Path, is_dir: bool) -> bool {
    let mut said = rules.iter().rev().map(|rules| rules.matched(path, is_dir));
    said.find(|said| !said.is_none()).is_some_and(|said| said.is_ignore())
}
