//! A run: data, ranks, the loop, and what it leaves behind.

mod data;
mod directory;
mod events;
mod flight;
mod measure;
mod rank;
mod sample;
mod summary;
mod trace;

pub use directory::{MetricsLine, RunDirectory};
pub use events::{Event, Reporter};
pub use flight::write_post_mortem;
pub use sample::{Completion, complete};
pub use summary::{RankSummary, Summary};

use crate::TrainError;
use crate::bench::Wrap;
use crate::config::Config;
use crate::run::data::RunData;
use crate::run::rank::{RankResult, RankRun};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::time::Instant;
use trine_checkpoint::{Checkpoint, Disk, Storage};
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
    /// What it stands on.
    pub seams: Seams<'a>,
}

/// Trains: configuration → data → ranks (mesh, communicators, stage, optimizer) → the loop of
/// steps → checkpoint, summary and samples.
///
/// # Errors
/// Anything that stops the run, with its first cause. What was written stays valid.
pub fn train(
    request: &TrainRequest<'_>,
    reporter: &Mutex<dyn Reporter + '_>,
) -> Result<Summary, TrainError> {
    let config = &request.config;
    // What is quick to refuse comes before the data, which may take minutes.
    let directory = RunDirectory::open(config, request.resume)?;
    let engine = config.engine(request.cores)?;
    let found = directory.latest_checkpoint(request.resume, &engine.model)?;
    for damage in &found.damaged {
        rank::report(reporter, &Event::Note(damage.to_string()));
    }
    let restored = found.checkpoint;
    let data = RunData::open(config, request.cores, reporter)?;
    if let Some(checkpoint) = &restored {
        data.check_same(&checkpoint.manifest().run)?;
    }
    let first_step = restored.as_ref().map_or(0, |checkpoint| checkpoint.manifest().run.step);
    directory.begin(config, first_step)?;
    let started = Event::Started {
        config,
        engine: &engine,
        data: data.report(),
        directory: directory.path(),
        first_step,
    };
    rank::report(reporter, &started);

    let shared = RankRun {
        request,
        engine: &engine,
        data: &data,
        directory: &directory,
        restored: restored.as_ref(),
        reporter,
    };
    // Ranks that wait in a circle, or for one that is gone, are told at once; the deadline is for those
    // that compute without end.
    let options = WorldOptions { deadline: config.deadline(), ..Default::default() };
    let ranks = threads::run_explained(engine.degrees.world(), &options, |comm| shared.run(comm))
        .map_err(|failed| explain(&shared, failed))?;
    conclude(&shared, ranks)
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
fn conclude(shared: &RankRun<'_>, ranks: Vec<RankResult>) -> Result<Summary, TrainError> {
    let (request, directory) = (shared.request, shared.directory);
    if let Some(path) = &request.trace {
        trace::write(path, ranks.iter().map(|rank| &rank.trace))?;
    }
    let summary = Summary::new(shared, &ranks)?;
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
