//! Files below a folder, in an order that is the same everywhere, and what counts as text.

use crate::{DataError, SkipReason, Skips};
use std::fs;
use std::path::{Path, PathBuf};

/// A file below a folder.
#[derive(Debug)]
pub(crate) struct FileEntry {
    pub(crate) path: PathBuf,
    /// Path from the folder, with `/` between its parts.
    pub(crate) name: String,
    pub(crate) bytes: u64,
}

/// All regular files below `root`, sorted by name. Hidden files and folders are passed over, and so
/// are symbolic links, which could lead outside or in a circle.
pub(crate) fn files_below(root: &Path) -> Result<Vec<FileEntry>, DataError> {
    if !root.is_dir() {
        return Err(DataError::missing(root));
    }
    let mut found = Vec::new();
    let mut folders = vec![(root.to_owned(), String::new())];
    while let Some((folder, prefix)) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(DataError::io("list", &folder))? {
            let entry = entry.map_err(DataError::io("list", &folder))?;
            let file_name = entry.file_name().to_string_lossy().into_owned();
            if file_name.starts_with('.') {
                continue;
            }
            let (path, name) = (entry.path(), format!("{prefix}{file_name}"));
            // Does not follow links.
            let metadata = entry.metadata().map_err(DataError::io("look at", &path))?;
            if metadata.is_dir() {
                folders.push((path, format!("{name}/")));
            } else if metadata.is_file() {
                found.push(FileEntry { path, name, bytes: metadata.len() });
            }
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// The text of a file of at most `bytes_max`, or why it is none; `name` is what reports call it.
pub(crate) fn read_text(
    file: &FileEntry,
    name: &str,
    bytes_max: u64,
    skips: &mut Skips,
) -> Result<Option<String>, DataError> {
    if file.bytes > bytes_max {
        skips.add(SkipReason::TooLarge, name, file.bytes);
        return Ok(None);
    }
    let bytes = fs::read(&file.path).map_err(DataError::io("read", &file.path))?;
    // NUL is valid UTF-8 and a sure sign of something else than text.
    let text = String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'));
    let reason = match &text {
        None => SkipReason::NotText,
        Some(text) if text.trim().is_empty() => SkipReason::Empty,
        Some(_) => return Ok(text),
    };
    skips.add(reason, name, file.bytes);
    Ok(None)
}
