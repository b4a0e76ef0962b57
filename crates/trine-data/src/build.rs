//! A dataset in a folder of its own, for other machines and later runs.

use crate::prepare::{tokenize, write_entry};
use crate::{DataError, Dataset, PrepareOptions, Progress, Skips, Source, Tokenizer};
use std::fs;
use std::path::{Path, PathBuf};

/// Makes the dataset of a source in `folder`, which does not exist yet or is empty. It is written
/// beside its place and renamed when it is whole.
///
/// # Errors
/// As [`crate::prepare`]; a folder that holds something, or cannot be written.
pub fn build(
    source: &Source,
    options: &PrepareOptions,
    folder: &Path,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Dataset, DataError> {
    let part = part_beside(folder)?;
    let ready = options.tokenizer.as_deref().map(Tokenizer::load).transpose()?;
    progress(Progress::Reading);
    let mut skips = Skips::default();
    let candidates = source.candidates(&options.selection, &mut skips)?;
    progress(Progress::Selecting);
    let corpus = source.select(candidates, &options.selection, skips)?;
    let dataset = tokenize(&corpus, options, ready, progress)?;
    progress(Progress::Writing);
    write_entry(&dataset, &part, folder)?;
    Ok(dataset)
}

/// Where the files are written first: beside `folder`, in a parent that exists then.
fn part_beside(folder: &Path) -> Result<PathBuf, DataError> {
    let occupied = || DataError::Occupied { path: folder.to_owned() };
    match fs::read_dir(folder) {
        Ok(mut entries) => {
            if entries.next().is_some() {
                return Err(occupied());
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(DataError::io("list", folder)(error)),
    }
    let name = folder.file_name().ok_or_else(occupied)?.to_string_lossy().into_owned();
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(DataError::io("create", parent))?;
    Ok(parent.join(format!(".{name}.part")))
}
