//! The run directory: configuration, metrics, summary, checkpoints, and the lock on it.

use crate::TrainError;
use crate::config::Config;
use crate::run::Summary;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use trine_checkpoint::{Check, CheckpointError, Disk, Latest, Storage, estimate_bytes, latest};
use trine_files::TEXT_BYTES_MAX;
use trine_spec::ModelSpec;

/// Bytes of the longest metrics: 16 million steps.
const METRICS_BYTES_MAX: u64 = 4 << 30;

/// One line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MetricsLine {
    /// The step, from 1.
    pub step: u64,
    /// Nats per token over the step's samples.
    pub loss: f64,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// Learning rate of the update.
    pub lr: f64,
    /// Training tokens since the run began.
    pub tokens: u64,
    /// Tokens of the step over its wall time.
    pub tokens_per_s: f64,
    /// Wall time of the step in milliseconds.
    pub step_ms: f64,
    /// Nats per token on the validation windows, at the steps that evaluate.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub val_loss: Option<f64>,
}

/// A run directory, held exclusively until it is dropped.
#[derive(Debug)]
pub struct RunDirectory {
    path: PathBuf,
    /// Locked by the operating system, so that no crash leaves it locked; `None` for the ranks of
    /// other processes than rank 0's.
    _lock: Option<File>,
    metrics: Mutex<Option<File>>,
}

fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> TrainError {
    move |source| TrainError::Io { what, path: path.to_path_buf(), source }
}

impl RunDirectory {
    /// Opens the directory of a run to go on with, or makes that of a new one. Without
    /// `output.dir` a new run gets `runs/NAME`, or the first free `runs/NAME-2`, …
    ///
    /// # Errors
    /// A directory in use, one that already holds a run, one that cannot be written, or one without
    /// the space for a checkpoint.
    pub fn open(config: &Config, resume: bool) -> Result<Self, TrainError> {
        let given = &config.output.dir;
        let path =
            if given.as_os_str().is_empty() { free_name(&config.name) } else { given.clone() };
        if resume && !path.join("config.toml").is_file() {
            return Err(TrainError::NotARun(path));
        }
        if !resume && path.join("config.toml").exists() {
            return Err(TrainError::RunExists(path));
        }
        std::fs::create_dir_all(&path).map_err(io("create the run directory", &path))?;
        let lock_path = path.join(".lock");
        let lock = trine_files::open_lock(&lock_path).map_err(io("open", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(TrainError::InUse(path)),
            Err(TryLockError::Error(source)) => return Err(io("lock", &lock_path)(source)),
        }
        let directory = Self { path, _lock: Some(lock), metrics: Mutex::new(None) };
        directory.check_space(config)?;
        Ok(directory)
    }

    /// The directory that another process holds, to read from.
    pub(crate) fn follow(path: PathBuf) -> Self {
        Self { path, _lock: None, metrics: Mutex::new(None) }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where checkpoints go.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// The newest whole checkpoint, if one is wanted and there is one, and what is wrong with those
    /// that are newer.
    pub(crate) fn latest_checkpoint(
        &self,
        wanted: bool,
        model: &ModelSpec,
    ) -> Result<Latest, TrainError> {
        if !wanted {
            return Ok(Latest { checkpoint: None, damaged: Vec::new() });
        }
        let found = newest(&self.path)?;
        if let Some(checkpoint) = &found.checkpoint {
            checkpoint.check_model(model)?;
        }
        Ok(found)
    }

    /// Writes the configuration, and cuts the metrics back to the steps before `first_step`.
    pub(crate) fn begin(&self, config: &Config, first_step: u64) -> Result<(), TrainError> {
        self.write_config(config)?;
        let path = self.path.join("metrics.jsonl");
        let kept = metrics_until(&self.path, first_step)?;
        replace(&path, kept.as_bytes())?;
        let file = OpenOptions::new().append(true).open(&path).map_err(io("open", &path))?;
        *self.metrics.lock().expect("invariant: no panic while the lock is held") = Some(file);
        Ok(())
    }

    /// Refuses a run whose first checkpoint would not fit: better now than after hours. Each save
    /// measures again.
    fn check_space(&self, config: &Config) -> Result<(), TrainError> {
        let (dtype, moments) =
            (config.train.precision.dtype().accumulator(), config.optimizer_config().moments());
        let needed = estimate_bytes(&config.model, dtype, moments)?;
        let free = Disk.free_bytes(&self.path).map_err(io("measure the space of", &self.path))?;
        if free < needed {
            return Err(CheckpointError::Space { needed, free, path: self.path.clone() }.into());
        }
        Ok(())
    }

    /// Appends a step's line.
    pub(crate) fn append(&self, line: &MetricsLine) -> Result<(), TrainError> {
        let text = serde_json::to_string(line).map_err(|e| TrainError::Json(e.to_string()))? + "\n";
        let mut metrics = self.metrics.lock().expect("invariant: no panic while the lock is held");
        match metrics.as_mut() {
            Some(file) => {
                let path = self.path.join("metrics.jsonl");
                file.write_all(text.as_bytes()).map_err(io("write to", &path))
            }
            None => Ok(()),
        }
    }

    /// Writes the summary, and the configuration as it was run in the end.
    pub(crate) fn finish(&self, summary: &Summary, config: &Config) -> Result<(), TrainError> {
        let mut config = config.clone();
        if summary.steps_cut {
            // The total, which decides the learning rates, and not the steps that were reached.
            (config.train.steps, config.train.minutes_max) = (summary.steps_total as usize, 0.0);
            self.write_config(&config)?;
        }
        let text =
            serde_json::to_string_pretty(summary).map_err(|e| TrainError::Json(e.to_string()))?;
        replace(&self.path.join("summary.json"), (text + "\n").as_bytes())
    }

    /// The summary of the process that ran here before, if one came to its end.
    pub(crate) fn summary(&self) -> Option<Summary> {
        let text = trine_files::read_text(&self.path.join("summary.json"), TEXT_BYTES_MAX).ok()?;
        serde_json::from_str(&text).ok()
    }

    pub(crate) fn write_config(&self, config: &Config) -> Result<(), TrainError> {
        let mut config = config.clone();
        // Fed back, the file starts a new run and must not claim this directory.
        config.output.dir = PathBuf::new();
        replace(&self.path.join("config.toml"), config.to_toml()?.as_bytes())
    }
}

/// The lines of a run's metrics up to `step`, as they were written; a line cut off by a crash is
/// left out.
///
/// # Errors
/// A file that cannot be read.
fn metrics_until(run: &Path, step: u64) -> Result<String, TrainError> {
    let path = run.join("metrics.jsonl");
    let text = match trine_files::read(&path, METRICS_BYTES_MAX) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(io("read", &path)(error)),
    };
    let is_kept = |line: &&str| {
        serde_json::from_str::<MetricsLine>(line).is_ok_and(|metrics| metrics.step <= step)
    };
    Ok(text.lines().filter(is_kept).map(|line| line.to_owned() + "\n").collect())
}

/// The newest whole checkpoint of a run, and what is wrong with those that are newer.
///
/// # Errors
/// A folder that cannot be read, or damaged checkpoints only.
pub(crate) fn newest(run: &Path) -> Result<Latest, TrainError> {
    let mut found = latest(&run.join("checkpoints"), Check::Checksums)?;
    if found.checkpoint.is_none() && !found.damaged.is_empty() {
        return Err(found.damaged.swap_remove(0).into());
    }
    Ok(found)
}

fn free_name(name: &str) -> PathBuf {
    let runs = Path::new("runs");
    let first = runs.join(name);
    let numbered = (2..).map(|number| runs.join(format!("{name}-{number}")));
    let free = |path: &PathBuf| !path.join("config.toml").exists();
    std::iter::once(first).chain(numbered).find(free).expect("invariant: numbers do not end")
}

/// Writes a file so that a crash leaves the old one or the new one.
fn replace(path: &Path, contents: &[u8]) -> Result<(), TrainError> {
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary).map_err(io("create", &temporary))?;
    file.write_all(contents).and_then(|()| file.sync_all()).map_err(io("write to", &temporary))?;
    std::fs::rename(&temporary, path).map_err(io("rename to", path))
}
