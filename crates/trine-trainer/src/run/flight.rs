//! `flight/`: what a failed run leaves for those who look for the reason.

use crate::TrainError;
use std::fs;
use std::path::{Path, PathBuf};
use trine_comm::{FlightRecord, PostMortem};

/// Writes the diagnosis and every rank's flight recorder into `DIR/flight`, in place of those of an
/// earlier failure; gives back the folder.
///
/// # Errors
/// A folder that cannot be written, or is a link.
pub fn write_post_mortem(dir: &Path, post_mortem: &PostMortem) -> Result<PathBuf, TrainError> {
    let folder = dir.join("flight");
    let io = |what: &'static str, path: &Path| {
        let path = path.to_path_buf();
        move |source| TrainError::Io { what, path, source }
    };
    if folder.is_symlink() {
        let link =
            std::io::Error::other("it is a link, and what it leads to may be somebody else's");
        return Err(io("replace", &folder)(link));
    }
    fs::create_dir_all(&folder).map_err(io("create", &folder))?;
    for entry in fs::read_dir(&folder).map_err(io("read", &folder))?.flatten() {
        if is_ours(&entry.file_name().to_string_lossy()) {
            fs::remove_file(entry.path()).map_err(io("replace", &entry.path()))?;
        }
    }
    let diagnosis = folder.join(DIAGNOSIS);
    let text = format!("{}\n", post_mortem.diagnosis);
    fs::write(&diagnosis, text).map_err(io("write", &diagnosis))?;
    for record in &post_mortem.records {
        let path = folder.join(format!("rank-{}.jsonl", record.rank));
        fs::write(&path, lines(record)?).map_err(io("write", &path))?;
    }
    Ok(folder)
}

const DIAGNOSIS: &str = "diagnosis.txt";

/// Whether a file of the folder is one that an earlier failure has left. Others are not touched.
fn is_ours(name: &str) -> bool {
    let rank = name.strip_prefix("rank-").and_then(|name| name.strip_suffix(".jsonl"));
    name == DIAGNOSIS || rank.is_some_and(|rank| rank.parse::<usize>().is_ok())
}

/// The recorder itself on the first line, without its operations; then one operation a line, oldest
/// first.
fn lines(record: &FlightRecord) -> Result<String, TrainError> {
    let json = |error: serde_json::Error| TrainError::Json(error.to_string());
    let head = FlightRecord { operations: Vec::new(), ..record.clone() };
    let mut text = serde_json::to_string(&head).map_err(json)? + "\n";
    for operation in &record.operations {
        text += &(serde_json::to_string(operation).map_err(json)? + "\n");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use trine_comm::Diagnosis;

    #[test]
    fn an_earlier_failure_is_replaced_and_nothing_else() {
        let run = tempfile::tempdir().unwrap();
        let diagnosis = Diagnosis { rank: 1, failure: "no memory".into(), beats: vec![] };
        let post_mortem = PostMortem { diagnosis, records: vec![] };
        let folder = run.path().join("flight");
        fs::create_dir(&folder).unwrap();
        for name in [DIAGNOSIS, "rank-7.jsonl", "rank-x.jsonl", "notes.txt"] {
            fs::write(folder.join(name), "old").unwrap();
        }
        assert_eq!(write_post_mortem(run.path(), &post_mortem).unwrap(), folder);
        let read = |name: &str| fs::read_to_string(folder.join(name)).ok();
        assert_eq!(read(DIAGNOSIS).unwrap(), "rank 1: no memory\n");
        let kept = ["rank-7.jsonl", "rank-x.jsonl", "notes.txt"].map(read);
        assert_eq!(kept, [None, Some("old".into()), Some("old".into())]);
        // Nor what a link leads to.
        let other = tempfile::tempdir().unwrap();
        fs::write(other.path().join(DIAGNOSIS), "old").unwrap();
        let linked = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(other.path(), linked.path().join("flight")).unwrap();
        assert!(write_post_mortem(linked.path(), &post_mortem).is_err());
        assert_eq!(fs::read_to_string(other.path().join(DIAGNOSIS)).unwrap(), "old");
    }
}
