//! The run directory: configuration, metrics, summary, checkpoints, and the lock on it.

use crate::TrainError;
use crate::config::Config;
use crate::run::metrics::{self, Metrics};
use crate::run::{MetricsLine, Summary};
use std::fs::{File, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::SystemTime;
use trine_checkpoint::{Check, CheckpointError, Disk, Latest, Storage, estimate_bytes, latest};
use trine_files::TEXT_BYTES_MAX;

/// A run directory, held exclusively until it is dropped.
#[derive(Debug)]
pub struct RunDirectory {
    path: PathBuf,
    /// Locked by the operating system, so that no crash leaves it locked; `None` for the ranks of
    /// other processes than rank 0's.
    lock: Mutex<Option<File>>,
    /// Once the run has begun.
    metrics: Mutex<Option<Metrics>>,
}

pub(super) fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> TrainError {
    move |source| TrainError::Io { what, path: path.to_path_buf(), source }
}

impl RunDirectory {
    /// Opens the directory of a run to go on with, or makes that of a new one. Without
    /// `output.dir` a new run gets `runs/NAME`, or the first free `runs/NAME-2`, …
    ///
    /// # Errors
    /// A directory in use, one that already holds a run or somebody's files, one that cannot be
    /// written, or one without the space for a checkpoint.
    pub fn open(config: &Config, resume: bool) -> Result<Self, TrainError> {
        let given = &config.output.dir;
        let directory = match (resume, given.as_os_str().is_empty()) {
            (true, _) if !given.join(CONFIG).is_file() => {
                return Err(TrainError::NotARun(given.clone()));
            }
            (true, _) => {
                metrics::check(given)?;
                Self::lock(given)?
            }
            (false, false) => Self::claim(given)?,
            (false, true) => Self::claim_first(&config.name)?,
        };
        directory.check_space(config)?;
        Ok(directory)
    }

    /// The first of `runs/NAME`, `runs/NAME-2`, … that nobody has. Of two runs that want the same at the
    /// same moment, the lock decides.
    fn claim_first(name: &str) -> Result<Self, TrainError> {
        let runs = Path::new("runs");
        let first = std::iter::once(runs.join(name));
        for path in first.chain((2u64..).map(|number| runs.join(format!("{name}-{number}")))) {
            match Self::claim(&path) {
                Err(
                    TrainError::RunExists(_) | TrainError::InUse(_) | TrainError::Occupied { .. },
                ) => {}
                claimed => return claimed,
            }
        }
        unreachable!("invariant: numbers do not end")
    }

    /// Makes the directory of a new run.
    fn claim(path: &Path) -> Result<Self, TrainError> {
        check_free(path).map_err(|error| match error {
            TrainError::RunExists(path) if in_use_since(&path).is_some() => TrainError::InUse(path),
            other => other,
        })?;
        std::fs::create_dir_all(path).map_err(io("create the run directory", path))?;
        let directory = Self::lock(path)?;
        // Another run may have been faster, and have ended since.
        check_free(path)?;
        Ok(directory)
    }

    fn lock(path: &Path) -> Result<Self, TrainError> {
        let lock = Mutex::new(Some(Self::take_lock(path)?));
        Ok(Self { path: path.to_path_buf(), lock, metrics: Mutex::new(None) })
    }

    fn take_lock(path: &Path) -> Result<File, TrainError> {
        let lock_path = path.join(LOCK);
        let lock = trine_files::open_lock(&lock_path).map_err(io("open", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(TrainError::InUse(path.to_path_buf())),
            Err(TryLockError::Error(source)) => return Err(io("lock", &lock_path)(source)),
        }
        // Says since when the process works; who only looks on is told no time then.
        let _ = lock.set_modified(SystemTime::now());
        Ok(lock)
    }

    /// The directory that another process holds, to read from.
    pub(crate) fn follow(path: PathBuf) -> Self {
        Self { path, lock: Mutex::new(None), metrics: Mutex::new(None) }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where checkpoints go.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join(CHECKPOINTS)
    }

    /// What is wrong with going on without a checkpoint, if anything is: steps that were done, or
    /// checkpoints that cannot be looked at.
    pub(crate) fn lost_checkpoints(&self) -> Result<Option<String>, TrainError> {
        let checkpoints = self.checkpoints();
        if let Ok(target) = std::fs::read_link(&checkpoints)
            && !checkpoints.exists()
        {
            let target = target.display();
            return Ok(Some(format!("its checkpoints are a link to {target}, which is not there")));
        }
        if has_nothing_to_lose(&self.path) {
            return Ok(None);
        }
        let (steps, summary) = (metrics::last_step(&self.path)?, self.summary());
        let step = steps.or(summary.map(|summary| summary.steps));
        Ok(step.map(|step| format!("it is at step {step}, and has no whole checkpoint")))
    }

    /// Makes the directory that of a run, from `first_step` on: writes the configuration, and cuts the
    /// metrics back. A run that goes on is begun by the first step that it does, and not before: until
    /// then nothing is lost.
    pub(crate) fn begin(&self, config: &Config, first_step: u64) -> Result<(), TrainError> {
        *self.metrics() = Some(self.begun(config, first_step)?);
        Ok(())
    }

    fn begun(&self, config: &Config, first_step: u64) -> Result<Metrics, TrainError> {
        self.write_config(config)?;
        if first_step == 0 {
            let checkpoints = self.checkpoints();
            std::fs::create_dir_all(&checkpoints).map_err(io("create", &checkpoints))?;
            let mark = checkpoints.join(NONE_YET);
            std::fs::write(&mark, "").map_err(io("write", &mark))?;
        }
        Metrics::open(&self.path, first_step)
    }

    fn metrics(&self) -> MutexGuard<'_, Option<Metrics>> {
        self.metrics.lock().expect("invariant: no panic while the lock is held")
    }

    /// Refuses a run whose first checkpoint would not fit: better now than after hours. Each save
    /// measures again.
    fn check_space(&self, config: &Config) -> Result<(), TrainError> {
        let (dtype, moments) =
            (config.train.precision.dtype().accumulator(), config.optimizer_config().moments());
        let needed = estimate_bytes(&config.model.parts(1)?, dtype, moments)?;
        let free = Disk.free_bytes(&self.path).map_err(io("measure the space of", &self.path))?;
        if free < needed {
            return Err(CheckpointError::Space { needed, free, path: self.path.clone() }.into());
        }
        Ok(())
    }

    /// Appends a step's line; the first one of a run that goes on begins it.
    pub(crate) fn append(&self, config: &Config, line: &MetricsLine) -> Result<(), TrainError> {
        let mut metrics = self.metrics();
        let metrics = match metrics.as_mut() {
            Some(metrics) => metrics,
            None => metrics.insert(self.begun(config, line.step - 1)?),
        };
        metrics.append(line)
    }

    /// Puts a line in the place of the last one, which is of the same step.
    pub(crate) fn amend(&self, line: &MetricsLine) -> Result<(), TrainError> {
        self.metrics().as_mut().map_or(Ok(()), |metrics| metrics.amend(line))
    }

    /// Writes again what somebody has removed since the run began, and says what that was. Checkpoints cannot be.
    pub(crate) fn mend(&self, config: &Config) -> Result<Option<String>, TrainError> {
        let mut metrics = self.metrics();
        let Some(metrics) = metrics.as_mut() else { return Ok(None) };
        std::fs::create_dir_all(&self.path).map_err(io("create the run directory", &self.path))?;
        let mut again = Vec::new();
        let mut lock = self.lock.lock().expect("invariant: no panic while the lock is held");
        if lock.as_ref().is_some_and(|lock| !trine_files::is_at(lock, &self.path.join(LOCK))) {
            *lock = Some(Self::take_lock(&self.path)?);
            again.push(LOCK);
        }
        if !self.path.join(CONFIG).exists() {
            self.write_config(config)?;
            again.push(CONFIG);
        }
        if metrics.mend()? {
            again.push(METRICS);
        }
        let (path, names) = (self.path.display(), again.join(", "));
        let text = || format!("{path}: removed while the run goes on, and written again: {names}");
        Ok((!again.is_empty()).then(text))
    }

    /// What the metrics lack for a run that goes on from `step`, and what goes with the lines behind it.
    pub(crate) fn metrics_notes(&self, step: u64) -> Result<Vec<String>, TrainError> {
        metrics::notes(&self.path, step)
    }

    /// A checkpoint has been saved.
    pub(crate) fn saved(&self) -> Result<(), TrainError> {
        let mark = self.checkpoints().join(NONE_YET);
        match std::fs::remove_file(&mark) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(io("remove", &mark)(error)),
            Ok(()) | Err(_) => Ok(()),
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

    fn write_config(&self, config: &Config) -> Result<(), TrainError> {
        replace(&self.path.join(CONFIG), config.stored()?.to_toml()?.as_bytes())
    }
}

/// Where checkpoints are.
const CHECKPOINTS: &str = trine_files::RUN_CHECKPOINTS;

/// One line a step.
pub(super) const METRICS: &str = "metrics.jsonl";

/// The configuration of a run: what makes a folder one.
pub(super) const CONFIG: &str = trine_files::RUN_CONFIG;

/// Held while a process works in the directory.
const LOCK: &str = ".lock";

/// Beside checkpoints before there is one. A run that has it can begin again and lose nothing; one
/// without it has lost its checkpoints.
const NONE_YET: &str = "none-yet";

/// What a start that was refused, or that failed, may have left.
const LEFT_BY_STARTS: &[&str] = &[LOCK, "flight", "config.tmp"];

/// Refuses the directory of a run, and one that has somebody's files.
fn check_free(path: &Path) -> Result<(), TrainError> {
    if path.join(CONFIG).exists() {
        return Err(TrainError::RunExists(path.to_path_buf()));
    }
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error)
            if matches!(error.kind(), ErrorKind::NotADirectory | ErrorKind::InvalidFilename) =>
        {
            let path = path.display();
            let text = format!("{path} cannot be the run directory: {error}; choose another --out");
            return Err(TrainError::Refused(text));
        }
        Err(error) => return Err(io("use as the run directory", path)(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry.map_err(io("list", path))?.file_name().to_string_lossy().into_owned();
        // Checkpoints may be a link to a larger disk, made beforehand.
        let is_room = name == CHECKPOINTS && trine_checkpoint::list(&path.join(&name))?.is_empty();
        if !LEFT_BY_STARTS.contains(&name.as_str()) && !is_room {
            found.push(name);
        }
    }
    found.sort_unstable();
    let path = path.to_path_buf();
    found.first().map_or(Ok(()), |first| {
        Err(TrainError::Occupied { path, entries: found.len(), first: first.clone() })
    })
}

/// Whether a run has saved nothing yet: it can begin again and lose nothing.
pub fn has_nothing_to_lose(run: &Path) -> bool {
    run.join(CHECKPOINTS).join(NONE_YET).is_file()
}

/// Since when a process holds the directory of a run, if one does right now.
pub fn in_use_since(run: &Path) -> Option<SystemTime> {
    let lock = trine_files::open(&run.join(LOCK)).ok()?;
    let is_held = matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock));
    lock.metadata().and_then(|file| file.modified()).ok().filter(|_| is_held)
}

/// The newest whole checkpoint of a run, and what is wrong with those that are newer.
///
/// # Errors
/// A folder that cannot be read, or damaged checkpoints only.
pub(crate) fn newest(run: &Path) -> Result<Latest, TrainError> {
    let mut found = latest(&run.join(CHECKPOINTS), Check::Checksums)?;
    if found.checkpoint.is_none() && !found.damaged.is_empty() {
        return Err(found.damaged.swap_remove(0).into());
    }
    Ok(found)
}

/// Which checkpoints a run has, newest first, and how another than the newest is taken.
pub(super) fn kept(run: &Path) -> Result<String, TrainError> {
    let all = trine_checkpoint::list(&run.join(CHECKPOINTS))?;
    let names: Vec<String> = all.iter().map(|(step, _)| format!("step-{step}")).collect();
    Ok(match names.as_slice() {
        [] => format!("{} has no checkpoints", run.display()),
        [one] => format!("checkpoints of {}: {one} alone", run.display()),
        [newest, ..] => format!(
            "checkpoints of {}: {}; --resume takes the newest whole one: move {newest} away for an \
             earlier one",
            run.display(),
            names.join(", ")
        ),
    })
}

/// Writes a file so that a crash leaves the old one or the new one.
pub(super) fn replace(path: &Path, contents: &[u8]) -> Result<(), TrainError> {
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary).map_err(io("create", &temporary))?;
    file.write_all(contents).and_then(|()| file.sync_all()).map_err(io("write to", &temporary))?;
    std::fs::rename(&temporary, path).map_err(io("rename to", path))
}
