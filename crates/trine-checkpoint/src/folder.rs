//! A folder of checkpoints: which there are, and what an interrupted save has left.

use crate::error::During;
use crate::manifest::MANIFEST;
use crate::storage::Storage;
use crate::{Checkpoint, CheckpointError};
use std::fs;
use std::path::{Path, PathBuf};

/// The name of a checkpoint.
pub(crate) fn step_name(step: u64) -> String {
    format!("step-{step}")
}

/// The name under which a checkpoint is written, and under which an old one is deleted. The folder
/// belongs to one run at a time, so one such name a step is enough.
pub(crate) fn temporary_name(step: u64) -> String {
    format!(".tmp-step-{step}")
}

/// The name of a checkpoint that is about to be replaced by another of the same step.
pub(crate) fn replaced_name(step: u64) -> String {
    format!(".replaced-step-{step}")
}

/// What a directory in the folder is. Everything else is somebody else's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entry {
    Step(u64),
    Temporary,
    Replaced(u64),
}

fn classify(name: &str) -> Option<Entry> {
    let step =
        |digits: &str| digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok());
    if let Some(digits) = name.strip_prefix("step-") {
        return step(digits)?.map(Entry::Step);
    }
    if let Some(digits) = name.strip_prefix(".tmp-step-") {
        return step(digits)?.map(|_| Entry::Temporary);
    }
    step(name.strip_prefix(".replaced-step-")?)?.map(Entry::Replaced)
}

/// The entries of the folder that are ours. A folder that does not exist has none.
fn entries(dir: &Path) -> Result<Vec<(Entry, PathBuf)>, CheckpointError> {
    if !dir.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).during("listing", dir)? {
        let path = entry.during("listing", dir)?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        if let Some(entry) = name.and_then(classify).filter(|_| path.is_dir()) {
            found.push((entry, path));
        }
    }
    Ok(found)
}

/// All checkpoints of a folder, complete or not, newest first.
///
/// # Errors
/// A folder that cannot be read. One that does not exist has no checkpoints.
pub fn list(dir: &Path) -> Result<Vec<(u64, PathBuf)>, CheckpointError> {
    let mut found: Vec<(u64, PathBuf)> = Vec::new();
    let mut replaced = Vec::new();
    for (entry, path) in entries(dir)? {
        match entry {
            Entry::Step(step) => found.push((step, path)),
            Entry::Replaced(step) => replaced.push((step, path)),
            Entry::Temporary => {}
        }
    }
    // The save that was to replace it got no further: it is still the checkpoint of its step.
    replaced.retain(|(step, _)| found.iter().all(|(other, _)| other != step));
    found.extend(replaced);
    found.sort_by_key(|(step, _)| std::cmp::Reverse(*step));
    Ok(found)
}

/// How closely a checkpoint is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// The manifest, the headers and the sizes of all files.
    Sizes,
    /// Also the checksums of all files: reads everything.
    Checksums,
}

/// What [`latest`] has found.
#[derive(Debug)]
pub struct Latest {
    /// The newest whole checkpoint, if there is one.
    pub checkpoint: Option<Checkpoint>,
    /// What is wrong with those that are newer, newest first.
    pub damaged: Vec<CheckpointError>,
}

/// Finds the newest whole checkpoint of a folder; what an interrupted save has left does not
/// count.
///
/// # Errors
/// A folder that cannot be read.
pub fn latest(dir: &Path, check: Check) -> Result<Latest, CheckpointError> {
    let mut damaged = Vec::new();
    for (_, path) in list(dir)? {
        let opened = Checkpoint::open(&path).and_then(|checkpoint| {
            match check {
                Check::Sizes => {}
                Check::Checksums => checkpoint.verify()?,
            }
            Ok(checkpoint)
        });
        match opened {
            Ok(checkpoint) => return Ok(Latest { checkpoint: Some(checkpoint), damaged }),
            Err(error) => damaged.push(error),
        }
    }
    Ok(Latest { checkpoint: None, damaged })
}

/// Removes what interrupted saves have left, and puts back what they were about to replace.
pub(crate) fn tidy(storage: &dyn Storage, dir: &Path) -> Result<(), CheckpointError> {
    for (entry, path) in entries(dir)? {
        match entry {
            Entry::Step(_) => {}
            Entry::Temporary => storage.remove_dir(&path).during("removing", &path)?,
            Entry::Replaced(step) => {
                let home = dir.join(step_name(step));
                if home.exists() {
                    storage.remove_dir(&path).during("removing", &path)?;
                } else {
                    storage.rename(&path, &home).during("renaming", &path)?;
                }
            }
        }
    }
    Ok(())
}

/// Gives a finished directory its name. A checkpoint of the same step steps aside first, so that
/// one of the two exists at every moment.
pub(crate) fn publish(
    storage: &dyn Storage,
    dir: &Path,
    step: u64,
) -> Result<PathBuf, CheckpointError> {
    let (finished, home) = (dir.join(temporary_name(step)), dir.join(step_name(step)));
    let aside = dir.join(replaced_name(step));
    let replaces = home.exists();
    if replaces {
        storage.rename(&home, &aside).during("renaming", &home)?;
    }
    storage.rename(&finished, &home).during("renaming", &finished)?;
    storage.sync_dir(dir).during("syncing", dir)?;
    if replaces {
        storage.remove_dir(&aside).during("removing", &aside)?;
    }
    Ok(home)
}

/// Which checkpoints stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// How many, the one of `step` included.
    pub last: usize,
    /// The step that the run has reached. Its checkpoint stays even where later ones lie beside it.
    pub step: u64,
    /// The step of one that stays however old it is, beside the last ones.
    pub best: Option<u64>,
}

/// Removes the oldest complete checkpoints until those are left that `keep` says. To be called when the
/// newest has been shown to be good.
///
/// # Errors
/// A file system that refuses. What is left of a checkpoint has no name that [`list`] knows.
pub fn prune(storage: &dyn Storage, dir: &Path, keep: Keep) -> Result<(), CheckpointError> {
    let mut complete = list(dir)?;
    complete.retain(|(step, path)| {
        *step != keep.step && Some(*step) != keep.best && path.join(MANIFEST).is_file()
    });
    for (step, path) in complete.into_iter().skip(keep.last.saturating_sub(1)) {
        // Renamed first: half a checkpoint under a good name would look damaged.
        let doomed = dir.join(temporary_name(step));
        storage.rename(&path, &doomed).during("renaming", &path)?;
        storage.remove_dir(&doomed).during("removing", &doomed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Disk;

    #[test]
    fn only_names_of_ours_count() {
        let cases = [
            ("step-12", Some(Entry::Step(12))),
            (".tmp-step-3", Some(Entry::Temporary)),
            (".replaced-step-4", Some(Entry::Replaced(4))),
            ("step-", None),
            ("step-+1", None),
            ("step-1b", None),
            ("step-99999999999999999999", None),
            (".tmp-step-x", None),
            (".tmp-other", None),
            ("notes", None),
        ];
        for (name, entry) in cases {
            assert_eq!(classify(name), entry, "{name}");
        }
    }

    #[test]
    fn a_checkpoint_that_was_about_to_be_replaced_is_found_and_put_back() {
        let dir = tempfile::tempdir().unwrap();
        for name in [".replaced-step-4", ".replaced-step-6", "step-6", ".tmp-step-4", "other"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let steps = |dir: &Path| -> Vec<(u64, String)> {
            let name = |path: PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
            list(dir).unwrap().into_iter().map(|(step, path)| (step, name(path))).collect()
        };
        let before = [(6, "step-6".into()), (4, ".replaced-step-4".into())];
        assert_eq!(steps(dir.path()), before);
        tidy(&Disk, dir.path()).unwrap();
        assert_eq!(steps(dir.path()), [(6, "step-6".into()), (4, "step-4".into())]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3, "other is not ours");
        assert!(list(&dir.path().join("nowhere")).unwrap().is_empty());
    }
}
