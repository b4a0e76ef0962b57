//! What counts as text: plain UTF-8 without NUL, in no form that holds text for other programs.

use crate::formats::{self, Format, HEAD_BYTES};
use crate::walk::FileEntry;
use crate::{DataError, SkipReason, Skips, files};
use std::io::{ErrorKind, Read};
use std::path::Path;

/// Why a file is no text to train on.
#[derive(Debug)]
pub(crate) enum NoText {
    /// It has a form of its own.
    Format(&'static Format),
    /// This byte begins no character of UTF-8.
    NotUtf8 { offset: usize },
    /// This byte is NUL: valid UTF-8, and a sure sign of something else than text.
    Nul { offset: usize },
    /// It has so many bytes of white space, and no others.
    Blank { bytes: usize },
}

impl NoText {
    fn reason(&self) -> SkipReason {
        match self {
            Self::Format(_) => SkipReason::Format,
            Self::NotUtf8 { .. } | Self::Nul { .. } => SkipReason::NotText,
            Self::Blank { .. } => SkipReason::Empty,
        }
    }

    /// The error for a file that is the source itself.
    pub(crate) fn error(&self, path: &Path) -> DataError {
        let path = path.to_owned();
        match self {
            Self::Format(Format { what, remedy, .. }) => DataError::Format { path, what, remedy },
            Self::NotUtf8 { offset } => DataError::NotText { path, offset: *offset },
            Self::Nul { offset } => DataError::Nul { path, offset: *offset },
            Self::Blank { bytes } => DataError::NoText {
                place: path.display().to_string(),
                why: format!("the file is empty ({bytes} B of white space)"),
            },
        }
    }
}

/// The largest file that is read, and the reason that a larger one is left out for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limit {
    pub(crate) bytes_max: u64,
    pub(crate) reason: SkipReason,
}

/// The text of a file within `limit`, or none, counted; `name` is what reports call it.
///
/// # Errors
/// A file that cannot be read.
pub(crate) fn read_or_skip(
    file: &FileEntry,
    name: &str,
    limit: Limit,
    skips: &mut Skips,
) -> Result<Option<String>, DataError> {
    let reason = if file.bytes > limit.bytes_max {
        limit.reason
    } else {
        match read(&file.path)? {
            Ok(text) => return Ok(Some(text)),
            Err(no_text) => no_text.reason(),
        }
    };
    skips.add(reason, name, file.bytes);
    Ok(None)
}

/// The text of a file, or why it is none. Of a file that shows it at once only the head is read.
///
/// # Errors
/// A file that is not regular or cannot be read.
pub(crate) fn read(path: &Path) -> Result<Result<String, NoText>, DataError> {
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    let (mut file, metadata) = files::open(path)?;
    if let Some(format) = formats::by_name(&name) {
        return Ok(Err(NoText::Format(format)));
    }
    let mut bytes = Vec::new();
    let mut head = file.by_ref().take(HEAD_BYTES as u64);
    head.read_to_end(&mut bytes).map_err(DataError::io("read", path))?;
    if let Some(no_text) = by_head(&bytes) {
        return Ok(Err(no_text));
    }
    let rest = usize::try_from(metadata.len()).unwrap_or(usize::MAX).saturating_sub(bytes.len());
    let reserved = bytes.try_reserve_exact(rest).map_err(|_| ErrorKind::OutOfMemory.into());
    reserved.map_err(DataError::io("hold in memory", path))?;
    file.read_to_end(&mut bytes).map_err(DataError::io("read", path))?;
    Ok(String::from_utf8(bytes)
        .map_err(|error| NoText::NotUtf8 { offset: error.utf8_error().valid_up_to() })
        .and_then(by_text))
}

fn by_head(head: &[u8]) -> Option<NoText> {
    let nul = || head.iter().position(|&byte| byte == 0).map(|offset| NoText::Nul { offset });
    formats::by_head(head).map(NoText::Format).or_else(nul)
}

fn by_text(text: String) -> Result<String, NoText> {
    if let Some(offset) = text.find('\0') {
        Err(NoText::Nul { offset })
    } else if text.trim().is_empty() {
        Err(NoText::Blank { bytes: text.len() })
    } else {
        formats::by_text(&text).map_or(Ok(text), |format| Err(NoText::Format(format)))
    }
}
