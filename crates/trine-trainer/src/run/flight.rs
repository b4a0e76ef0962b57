//! `flight/`: what a failed run leaves for those who look for the reason.

use crate::TrainError;
use std::fs;
use std::path::{Path, PathBuf};
use trine_comm::{FlightRecord, PostMortem};

/// Writes the diagnosis and every rank's flight recorder into `DIR/flight`, in place of those of an
/// earlier failure; gives back the folder.
///
/// # Errors
/// A folder that cannot be written.
pub fn write_post_mortem(dir: &Path, post_mortem: &PostMortem) -> Result<PathBuf, TrainError> {
    let folder = dir.join("flight");
    let io = |what: &'static str, path: &Path| {
        let path = path.to_path_buf();
        move |source| TrainError::Io { what, path, source }
    };
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(io("replace", &folder))?;
    }
    fs::create_dir_all(&folder).map_err(io("create", &folder))?;
    let diagnosis = folder.join("diagnosis.txt");
    let text = format!("{}\n", post_mortem.diagnosis);
    fs::write(&diagnosis, text).map_err(io("write", &diagnosis))?;
    for record in &post_mortem.records {
        let path = folder.join(format!("rank-{}.jsonl", record.rank));
        fs::write(&path, lines(record)?).map_err(io("write", &path))?;
    }
    Ok(folder)
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
