//! A run: data, ranks, the loop, and what it leaves behind.

mod build;
mod clock;
mod data;
mod device_watch;
mod devices;
mod directory;
mod events;
mod flight;
mod loader;
pub(crate) mod measure;
mod metrics;
mod peaks;
mod prepare;
mod process;
mod rank;
mod resume;
mod sample;
mod summary;
mod times;
mod trace;

pub use data::unused_rows_planned;
pub use devices::{DeviceFacts, Devices};
pub use directory::{RunDirectory, has_nothing_to_lose, in_use_since};
pub use events::{Event, Reporter, Work};
pub use flight::write_post_mortem;
pub use metrics::MetricsLine;
pub use process::{Process, Ranks};
pub use sample::{Completion, complete};
pub use summary::{DataSummary, PhaseSeconds, RankSummary, Summary, Utilization};
pub use trace::{TRACE_FIRST, TRACE_PART_FIRST, trace_part};

use crate::TrainError;
use crate::config::Config;
use crate::engine::Wrap;
use crate::memory::MemoryLimit;
use crate::outlook::Outlook;
use crate::planned::Machine;
use crate::run::events::report;
use crate::run::prepare::{Prepared, prepare};
use crate::run::rank::{RankRun, RunResult, StopReason};
use crate::run::trace::Trace;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use trine_checkpoint::{Checkpoint, CheckpointError, Disk, Storage};
use trine_comm::Communicator;
use trine_comm::threads::{self, Explained, WorldOptions};

/// What a run stands on. Tests put failures here; a real one has nothing in between.
#[derive(Clone, Copy)]
pub struct Seams<'a> {
    /// Put in front of each rank's communicator.
    pub wrap: Wrap<'a>,
    /// Where checkpoints are written.
    pub storage: &'a dyn Storage,
}

impl Seams<'_> {
    /// The communicator as it is, and the file system.
    pub const REAL: Seams<'static> = Seams { wrap: &|comm| comm, storage: &Disk };
}

impl std::fmt::Debug for Seams<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Seams({:?})", self.storage)
    }
}

/// What a run is asked to do.
#[derive(Debug, Clone)]
pub struct TrainRequest<'a> {
    /// The complete configuration.
    pub config: Config,
    /// Go on with the run in `config.output.dir` instead of starting one.
    pub resume: bool,
    /// Where to write a Chrome/Perfetto trace.
    pub trace: Option<PathBuf>,
    /// Set from outside: finish the step, save, and end well.
    pub stop: &'a AtomicBool,
    /// When the process began: time limits count from here.
    pub started: Instant,
    /// Cores to share among the ranks.
    pub cores: usize,
    /// The commit that the program was built from, where that is known.
    pub commit: Option<&'a str>,
    /// The machine that the plan is for, or why none is known. Asked once, by rank 0, when everything that may be
    /// refused has passed and no rank computes yet.
    pub machine: MachineSource<'a>,
    /// How much memory may be used.
    pub memory: &'a [MemoryLimit],
    /// What the ranks compute on; `None` is the host.
    pub devices: Option<&'a dyn Devices>,
    /// Why, for people: told when the run starts.
    pub devices_said: Option<&'a str>,
    /// What it stands on.
    pub seams: Seams<'a>,
}

impl TrainRequest<'_> {
    /// When the time limit ends the run, if there is one.
    fn ends_by(&self) -> Option<Instant> {
        let minutes = self.config.train.minutes_max;
        let limit = Duration::try_from_secs_f64(60.0 * minutes).ok().filter(|_| minutes > 0.0)?;
        self.started.checked_add(limit)
    }
}

/// Finds out what the machine is.
#[derive(Clone, Copy)]
pub struct MachineSource<'a>(pub &'a (dyn Fn() -> Result<Machine, String> + Sync));

impl std::fmt::Debug for MachineSource<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MachineSource")
    }
}

/// Trains: configuration → data → measured times, where they are asked for → ranks (mesh, communicators, stage,
/// optimizer) → the loop of steps → checkpoint, summary and samples. The summary of a run of several processes is rank
/// 0's.
///
/// # Errors
/// Anything that stops the run, with its first cause. What was written stays valid.
pub fn train(
    request: &TrainRequest<'_>,
    ranks: Ranks<'_>,
    reporter: &Mutex<dyn Reporter + '_>,
) -> Result<Option<Summary>, TrainError> {
    let mut prepared = prepare(request, ranks, reporter)?;
    let request = &times::settled(request, ranks, &mut prepared, reporter)?;
    let machine = known_machine(request, ranks, prepared.restored.as_ref());
    let outlook = outlook(request, &prepared, &machine);
    let world = prepared.plan.config.degrees.world();
    let trace = request.trace.as_ref().map(|path| Trace::create(path, ranks)).transpose()?;
    let shared = RankRun {
        request,
        outlook: &outlook,
        machine: &machine,
        plan: &prepared.plan,
        engine: &prepared.plan.config,
        data: &prepared.data,
        directory: &prepared.directory,
        restored: prepared.restored.as_ref(),
        reporter,
        trace: trace.as_ref(),
        host: ranks.host(),
        cores: request.cores as f64 / ranks.ranks_here(world) as f64,
        data_s: prepared.data_s,
    };
    ranks.agree(if ranks.is_first() { shared.begin() } else { Ok(()) })?;
    shared.tell_start();
    let result = match ranks {
        Ranks::Threads => on_threads(request, shared.directory, reporter, |comm| shared.run(comm))
            .inspect_err(|_| tell_kept(&shared))?
            .swap_remove(0),
        Ranks::Process(process) => shared
            .run(process.world().clone())
            .map_err(|error| TrainError::Begun(Box::new(error)))
            .inspect_err(|_| tell_kept(&shared))?,
    };
    let traced = ranks.agree(trace.as_ref().map_or(Ok(()), Trace::finish));
    if !ranks.is_first() {
        return traced.map(|()| None);
    }
    ranks.begin_phase("summing up", request.config.long_deadline());
    let summary = conclude(&shared, &result)?;
    traced.and_then(|()| close_trace(&shared))?;
    Ok(Some(summary))
}

/// What the steps that are left will take.
fn outlook(
    request: &TrainRequest<'_>,
    prepared: &Prepared,
    machine: &Result<Machine, String>,
) -> Outlook {
    let train = &request.config.train;
    let done = prepared.restored.as_ref().map_or(0, |checkpoint| checkpoint.manifest().run.step);
    let left = (train.steps as u64).saturating_sub(done);
    let machine = machine.as_ref().map_err(String::clone);
    let memory = prepared.memory.clone();
    Outlook::new(&prepared.plan.config, machine, (left, train.minutes_max), memory)
}

/// The machine of the plan, where one is needed: rank 0 compares, if there are enough steps to time.
fn known_machine(
    request: &TrainRequest<'_>,
    ranks: Ranks<'_>,
    restored: Option<&Checkpoint>,
) -> Result<Machine, String> {
    let done = restored.map_or(0, |checkpoint| checkpoint.manifest().run.step);
    let left = (request.config.train.steps as u64).saturating_sub(done);
    match ranks {
        _ if left < rank::CHECK_STEPS_MIN => Err("too few steps are left to time".into()),
        Ranks::Process(process) if process.world().rank() > 0 => Err("rank 0 compares".into()),
        Ranks::Process(process) if process.ranks_here() < process.world().size() => {
            Err("the network between hosts has not been measured".into())
        }
        Ranks::Threads | Ranks::Process(_) => (request.machine.0)(),
    }
}

/// What all ranks give, as threads.
fn on_threads<T: Send>(
    request: &TrainRequest<'_>,
    directory: &RunDirectory,
    reporter: &Mutex<dyn Reporter + '_>,
    rank: impl Fn(Arc<dyn Communicator>) -> Result<T, TrainError> + Sync,
) -> Result<Vec<T>, TrainError> {
    // Ranks that wait in a circle, or for one that is gone, are told at once; the deadline is for those that compute
    // without end.
    let device = request.devices.and_then(Devices::shared);
    let options =
        WorldOptions { deadline: request.config.deadline(), device, ..Default::default() };
    threads::run_explained(request.config.world(), &options, rank)
        .map_err(|failed| explain(directory, reporter, failed))
}

/// The ranks' failure as the run's, with the flight recorders kept in its directory.
fn explain(
    directory: &RunDirectory,
    reporter: &Mutex<dyn Reporter + '_>,
    failed: Explained<TrainError>,
) -> TrainError {
    let post_mortem = *failed.post_mortem;
    let flight = match write_post_mortem(directory.path(), &post_mortem) {
        Ok(folder) => Some(folder),
        Err(error) => {
            report(reporter, &Event::Note(format!("no flight recorders: {error}")));
            None
        }
    };
    TrainError::Ranks { diagnosis: Box::new(post_mortem.diagnosis), flight }
}

/// What a run that failed can go on from.
fn tell_kept(shared: &RankRun<'_>) {
    if let Ok(text) = directory::kept(shared.directory.path()) {
        report(shared.reporter, &Event::Note(text));
    }
}

/// Ends the trace of a run whose ranks have all written theirs.
fn close_trace(shared: &RankRun<'_>) -> Result<(), TrainError> {
    let Some(path) = &shared.request.trace else { return Ok(()) };
    let processes = if shared.is_process() { shared.engine.degrees.world() } else { 1 };
    if let Some(part) = trace::close(path, processes)? {
        let (part, path) = (part.display(), path.display());
        let text = format!(
            "trace: {part} is on another host, as others may be; put them into {path}, before its last line"
        );
        report(shared.reporter, &Event::Note(text));
    }
    Ok(())
}

/// After the ranks are gone: the summary, and completions by the final checkpoint.
fn conclude(shared: &RankRun<'_>, run: &RunResult) -> Result<Summary, TrainError> {
    let (request, directory) = (shared.request, shared.directory);
    let summary = Summary::new(shared, run)?;
    shared.mend()?;
    directory.finish(&summary, &request.config)?;
    if trine_checkpoint::list(&directory.checkpoints())?.is_empty() {
        return Err(TrainError::Removed(directory.checkpoints()));
    }
    report(shared.reporter, &Event::Finished { summary: &summary, directory: directory.path() });
    // A time limit is a planned end; who asks to stop does not want to wait.
    if run.stopped != StopReason::Asked
        && let Some(checkpoint) = directory::newest(directory.path())?.checkpoint
    {
        let (config, cores) = (&request.config, request.cores);
        let tokenizer = shared.data.tokenizer();
        let beginnings = shared.data.beginnings(config.sample.documents);
        for prompt in config.sample.prompts.iter().chain(&beginnings) {
            let completion = complete(&checkpoint, tokenizer, prompt, config, cores, &mut |_| {})?;
            report(shared.reporter, &Event::Sample(&completion));
        }
    }
    Ok(summary)
}

/// Opens a run's newest whole checkpoint, for sampling; and says what is wrong with those that are newer.
///
/// # Errors
/// No checkpoint, or damaged ones only.
pub fn open_latest(directory: &Path) -> Result<(Checkpoint, Vec<CheckpointError>), TrainError> {
    let found = directory::newest(directory)?;
    let none = || TrainError::NoCheckpoint(directory.to_path_buf());
    Ok((found.checkpoint.ok_or_else(none)?, found.damaged))
}
