//! A run: data, ranks, the loop, and what it leaves behind.

mod data;
mod directory;
mod events;
mod flight;
pub(crate) mod measure;
mod process;
mod rank;
mod sample;
mod summary;
mod trace;

pub use directory::{MetricsLine, RunDirectory};
pub use events::{Event, Reporter};
pub use flight::write_post_mortem;
pub use process::{Process, Ranks};
pub use sample::{Completion, complete};
pub use summary::{RankSummary, Summary};

use crate::TrainError;
use crate::bench::Wrap;
use crate::config::Config;
use crate::engine::EngineConfig;
use crate::planned::Machine;
use crate::run::data::RunData;
use crate::run::rank::{RankRun, RunResult};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::time::Instant;
use trine_checkpoint::{Checkpoint, Disk, Storage};
use trine_comm::threads::{self, Explained, WorldOptions};
use trine_comm::{Name, Phase};

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
#[derive(Debug)]
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
    /// The machine that the plan is for, or why none is known. Asked once, by rank 0, when everything that may be
    /// refused has passed and no rank computes yet.
    pub machine: MachineSource<'a>,
    /// What it stands on.
    pub seams: Seams<'a>,
}

/// Finds out what the machine is.
#[derive(Clone, Copy)]
pub struct MachineSource<'a>(pub &'a (dyn Fn() -> Result<Machine, String> + Sync));

impl std::fmt::Debug for MachineSource<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MachineSource")
    }
}

/// What is made before the ranks start.
struct Prepared {
    engine: EngineConfig,
    directory: RunDirectory,
    restored: Option<Checkpoint>,
    data: RunData,
}

/// Trains: configuration → data → ranks (mesh, communicators, stage, optimizer) → the loop of
/// steps → checkpoint, summary and samples. The summary of a run of several processes is rank 0's.
///
/// # Errors
/// Anything that stops the run, with its first cause. What was written stays valid.
pub fn train(
    request: &TrainRequest<'_>,
    ranks: Ranks<'_>,
    reporter: &Mutex<dyn Reporter + '_>,
) -> Result<Option<Summary>, TrainError> {
    let prepared = match ranks {
        Ranks::Threads => prepare(request, reporter)?,
        Ranks::Process(process) => prepare_together(request, process, reporter)?,
    };
    let (host, ranks_here) = match ranks {
        Ranks::Threads => ("", prepared.engine.degrees.world()),
        Ranks::Process(process) => (process.host(), process.ranks_here()),
    };
    let machine = known_machine(request, ranks, prepared.restored.as_ref());
    let shared = RankRun {
        request,
        machine: &machine,
        engine: &prepared.engine,
        data: &prepared.data,
        directory: &prepared.directory,
        restored: prepared.restored.as_ref(),
        reporter,
        host,
        cores: request.cores as f64 / ranks_here as f64,
    };
    let result = match ranks {
        Ranks::Threads => {
            shared.begin()?;
            shared.tell_start();
            // Ranks that wait in a circle, or for one that is gone, are told at once; the deadline is for
            // those that compute without end.
            let options =
                WorldOptions { deadline: request.config.deadline(), ..Default::default() };
            let world = prepared.engine.degrees.world();
            threads::run_explained(world, &options, |comm| shared.run(comm))
                .map_err(|failed| explain(&shared, failed))?
                .swap_remove(0)
        }
        Ranks::Process(process) => {
            let is_first = process.world().rank() == 0;
            agree(process, if is_first { shared.begin() } else { Ok(()) })?;
            shared.tell_start();
            let result = shared.run(process.world().clone());
            let result = result.map_err(|error| TrainError::Begun(Box::new(error)))?;
            if !is_first {
                return Ok(None);
            }
            let deadline = Some(request.config.long_deadline());
            process
                .world()
                .recorder()
                .begin_phase(Phase { name: Name::new("summing up"), deadline });
            result
        }
    };
    conclude(&shared, &result).map(Some)
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

/// All that comes before the ranks, in the one process that there is. What is quick to refuse comes
/// before the data, which may take minutes.
fn prepare(
    request: &TrainRequest<'_>,
    reporter: &Mutex<dyn Reporter + '_>,
) -> Result<Prepared, TrainError> {
    let config = &request.config;
    let directory = RunDirectory::open(config, request.resume)?;
    let engine = config.engine(request.cores)?;
    let restored = restored(request, &directory, &engine, reporter)?;
    let data = RunData::open(config, request.cores, reporter)?;
    check_data(&data, restored.as_ref())?;
    Ok(Prepared { engine, directory, restored, data })
}

/// The same by processes: rank 0 has the directory, the first rank of each machine prepares the data
/// there, and all others read what they find. No process goes on alone.
fn prepare_together(
    request: &TrainRequest<'_>,
    process: &Process,
    reporter: &Mutex<dyn Reporter + '_>,
) -> Result<Prepared, TrainError> {
    let config = &request.config;
    let phase = |name| Phase { name: Name::new(name), deadline: Some(config.long_deadline()) };
    process.world().recorder().begin_phase(phase("preparing"));
    let (world, is_first) = (process.world(), process.world().rank() == 0);
    // Cores are shared among the ranks of a machine.
    let cores = request.cores * world.size() / process.ranks_here();
    let engine = agree(process, config.engine(cores).map_err(Into::into))?;
    let own = is_first.then(|| RunDirectory::open(config, request.resume)).transpose();
    let own = agree(process, own)?;
    let path = own.as_ref().map_or_else(String::new, |own| own.path().display().to_string());
    let path = process.rank_0_says(&path)?;
    let directory = own.unwrap_or_else(|| RunDirectory::follow(path.into()));
    // The first rank reads all checksums, the others the checkpoint that it has found whole.
    let found = is_first.then(|| restored(request, &directory, &engine, reporter)).transpose();
    let found = agree(process, found)?.flatten();
    let dir = found.as_ref().map_or_else(String::new, |found| found.dir().display().to_string());
    let dir = process.rank_0_says(&dir)?;
    let followed = match found {
        Some(checkpoint) => Ok(Some(checkpoint)),
        None if dir.is_empty() => Ok(None),
        None => Checkpoint::open(dir.as_ref()).map(Some).map_err(TrainError::from),
    };
    let restored = agree(process, followed)?;
    let open = || RunData::open(config, request.cores, reporter);
    let leader = agree(process, process.is_first_here().then(open).transpose())?;
    let data = agree(process, leader.map_or_else(open, Ok))?;
    process.check_same("corpus", &data.report().corpus_hash)?;
    agree(process, check_data(&data, restored.as_ref()))?;
    Ok(Prepared { engine, directory, restored, data })
}

fn agree<T>(process: &Process, own: Result<T, TrainError>) -> Result<T, TrainError> {
    process.agree(own, TrainError::is_usage)
}

/// The checkpoint to go on from.
fn restored(
    request: &TrainRequest<'_>,
    directory: &RunDirectory,
    engine: &EngineConfig,
    reporter: &Mutex<dyn Reporter + '_>,
) -> Result<Option<Checkpoint>, TrainError> {
    let found = directory.latest_checkpoint(request.resume, &engine.model)?;
    for damage in &found.damaged {
        rank::report(reporter, &Event::Note(damage.to_string()));
    }
    Ok(found.checkpoint)
}

fn check_data(data: &RunData, restored: Option<&Checkpoint>) -> Result<(), TrainError> {
    restored.map_or(Ok(()), |checkpoint| data.check_same(&checkpoint.manifest().run))
}

/// The ranks' failure as the run's, with the flight recorders kept in its directory.
fn explain(shared: &RankRun<'_>, failed: Explained<TrainError>) -> TrainError {
    let post_mortem = *failed.post_mortem;
    let flight = match write_post_mortem(shared.directory.path(), &post_mortem) {
        Ok(folder) => Some(folder),
        Err(error) => {
            rank::report(shared.reporter, &Event::Note(format!("no flight recorders: {error}")));
            None
        }
    };
    TrainError::Ranks { diagnosis: Box::new(post_mortem.diagnosis), flight }
}

/// After the ranks are gone: the summary, the trace, and completions by the final checkpoint.
fn conclude(shared: &RankRun<'_>, run: &RunResult) -> Result<Summary, TrainError> {
    let (request, directory) = (shared.request, shared.directory);
    if let Some(path) = &request.trace {
        trace::write(path, &run.ranks)?;
    }
    let summary = Summary::new(shared, run)?;
    directory.finish(&summary, &request.config)?;
    rank::report(
        shared.reporter,
        &Event::Finished { summary: &summary, directory: directory.path() },
    );
    if summary.stopped_early.is_none() {
        let found = directory.latest_checkpoint(true, &shared.engine.model)?;
        if let Some(checkpoint) = found.checkpoint {
            let (config, cores) = (&request.config, request.cores);
            let tokenizer = shared.data.tokenizer();
            for prompt in &config.sample.prompts {
                let completion =
                    complete(&checkpoint, tokenizer, prompt, config, cores, &mut |_| {})?;
                rank::report(shared.reporter, &Event::Sample(&completion));
            }
        }
    }
    Ok(summary)
}

/// Opens a run's newest checkpoint, for sampling and inspection.
///
/// # Errors
/// No checkpoint, or damaged ones only.
pub fn open_latest(directory: &std::path::Path) -> Result<Checkpoint, TrainError> {
    directory::newest(directory)?
        .checkpoint
        .ok_or_else(|| TrainError::NoCheckpoint(directory.to_path_buf()))
}
