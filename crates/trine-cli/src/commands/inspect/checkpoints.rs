//! The checkpoints of a run: steps, sizes, and whether they are whole.

use super::history::History;
use crate::failure::Failure;
use crate::output::{Align, Table, human_bytes};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use trine_checkpoint::Checkpoint;

/// Checkpoints up to this size are read whole to compare their checksums; it takes seconds.
const VERIFIED_BYTES_MAX: u64 = 4 << 30;

/// One of them.
#[derive(Debug)]
pub(super) struct Saved {
    step: u64,
    path: PathBuf,
    bytes: u64,
    /// The validation loss after its step.
    val_loss: Option<f64>,
    is_best: bool,
    is_last: bool,
    /// Its blocks that this program does not have.
    own: Vec<String>,
    health: Health,
}

/// How closely one was looked at, and what was found.
#[derive(Debug)]
enum Health {
    ChecksumsRight,
    SizesRight,
    Damaged(String),
}

impl Saved {
    /// The step after which it was saved.
    pub(super) fn step(&self) -> u64 {
        self.step
    }

    /// Whether nothing of it is lost or altered.
    pub(super) fn is_whole(&self) -> bool {
        !matches!(self.health, Health::Damaged(_))
    }

    /// Whether this program can use it.
    pub(super) fn is_usable(&self) -> bool {
        self.is_whole() && self.own.is_empty()
    }

    /// Its blocks that this program does not have, each in a few words.
    pub(super) fn own(&self) -> &[String] {
        &self.own
    }

    pub(super) fn as_json(&self) -> Value {
        let (verified, damage) = match &self.health {
            Health::ChecksumsRight => ("checksums", None),
            Health::SizesRight => ("sizes", None),
            Health::Damaged(why) => ("", Some(why)),
        };
        json!({
            "step": self.step,
            "path": self.path.to_string_lossy(),
            "bytes": self.bytes,
            "val_loss": self.val_loss,
            "best": self.is_best,
            "last": self.is_last,
            "verified": verified,
            "damage": damage,
        })
    }
}

/// Those of a run, oldest first. The last and the best are read whole.
pub(super) fn read(run: &Path, history: &History) -> Result<Vec<Saved>, Failure> {
    let found = trine_checkpoint::list(&run.join("checkpoints"));
    let found = found.map_err(|error| Failure::Run(error.into()))?;
    let loss = |step: u64| history.evaluations().find(|(at, _)| *at == step).map(|(_, loss)| loss);
    let losses = found.iter().filter_map(|(step, _)| Some((*step, loss(*step)?)));
    let best = losses.min_by(|one, other| one.1.total_cmp(&other.1)).map(|(step, _)| step);
    let last = found.first().map(|(step, _)| *step);
    let saved = found.into_iter().rev().map(|(step, path)| {
        let (is_best, is_last) = (best == Some(step), last == Some(step));
        let ((bytes, own), health) = look_at(&path, is_best || is_last);
        Saved { step, path, bytes, val_loss: loss(step), is_best, is_last, own, health }
    });
    Ok(saved.collect())
}

/// Its bytes and its blocks that this program does not have, and how it is.
fn look_at(path: &Path, closely: bool) -> ((u64, Vec<String>), Health) {
    let opened = Checkpoint::open(path).and_then(|checkpoint| {
        let manifest = checkpoint.manifest();
        let bytes = manifest.files.iter().map(|file| file.bytes).sum();
        let own = manifest.own.iter().map(|own| format!("block {} is \"{}\"", own.block, own.kind));
        let held = (bytes, own.collect());
        if !closely || bytes > VERIFIED_BYTES_MAX {
            return Ok((held, Health::SizesRight));
        }
        checkpoint.verify()?;
        Ok((held, Health::ChecksumsRight))
    });
    opened.unwrap_or_else(|error| ((0, Vec::new()), Health::Damaged(error.to_string())))
}

/// One a line.
pub(super) fn table(all: &[Saved]) -> String {
    if all.is_empty() {
        return "checkpoints: none yet\n".into();
    }
    let mut table = Table::new(&[
        ("checkpoint", Align::Left),
        ("size", Align::Right),
        ("validation", Align::Right),
        ("", Align::Left),
    ]);
    for saved in all {
        let health = match &saved.health {
            Health::ChecksumsRight => "whole (checksums compared)".to_owned(),
            Health::SizesRight => "whole (sizes compared)".to_owned(),
            Health::Damaged(why) => format!("damaged: {why}"),
        };
        let roles = [(saved.is_last, "; last"), (saved.is_best, "; best")];
        let roles: String = roles.iter().filter(|(is, _)| *is).map(|(_, role)| *role).collect();
        table.row([
            format!("step-{}", saved.step),
            human_bytes(saved.bytes),
            saved.val_loss.map_or_else(|| "–".into(), |loss| format!("{loss:.4}")),
            health + &roles,
        ]);
    }
    table.render()
}
