//! Opening files: only regular ones, and only of a size that can be meant.

use crate::DataError;
use std::fs::{File, Metadata};
use std::io::{ErrorKind, Read};
use std::path::Path;

/// The metadata of a regular file, links followed.
///
/// # Errors
/// A path that does not exist or cannot be looked at; a folder, pipe, device or socket: opening one
/// may wait for ever, and reading one may never end.
pub(crate) fn regular(path: &Path) -> Result<Metadata, DataError> {
    let metadata = std::fs::metadata(path).map_err(|source| match source.kind() {
        ErrorKind::NotFound => DataError::missing(path),
        _ => DataError::io("look at", path)(source),
    })?;
    if metadata.is_file() {
        return Ok(metadata);
    }
    Err(DataError::NotRegular {
        path: path.to_owned(),
        found: trine_files::describe(metadata.file_type()),
    })
}

/// Opens a regular file.
///
/// # Errors
/// As [`regular`], and a file that cannot be opened.
pub(crate) fn open(path: &Path) -> Result<(File, Metadata), DataError> {
    let metadata = regular(path)?;
    Ok((trine_files::open(path).map_err(DataError::io("open", path))?, metadata))
}

/// The text of a small file, without a byte order mark.
///
/// # Errors
/// As [`open`]; a file over `bytes_max`; one that is not UTF-8.
pub(crate) fn read_small(path: &Path, bytes_max: u64) -> Result<String, DataError> {
    let (file, metadata) = open(path)?;
    if metadata.len() > bytes_max {
        return Err(DataError::FileTooLarge {
            path: path.to_owned(),
            bytes: metadata.len(),
            bytes_max,
        });
    }
    let mut bytes = Vec::new();
    // A file that grows meanwhile does not grow beyond the limit.
    file.take(bytes_max).read_to_end(&mut bytes).map_err(DataError::io("read", path))?;
    let text = String::from_utf8(bytes).map_err(|error| DataError::NotText {
        path: path.to_owned(),
        offset: error.utf8_error().valid_up_to(),
    })?;
    Ok(trine_files::without_mark(text))
}
