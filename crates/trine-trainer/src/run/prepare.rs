//! All that comes before the ranks: the directory, the checkpoint to go on from, the data.

use crate::TrainError;
use crate::engine::EngineConfig;
use crate::memory::{self, MemoryPlan};
use crate::run::data::RunData;
use crate::run::events::report;
use crate::run::{Event, Ranks, Reporter, RunDirectory, TrainRequest};
use std::sync::Mutex;
use trine_checkpoint::Checkpoint;

/// What is made before the ranks start.
pub(super) struct Prepared {
    pub(super) engine: EngineConfig,
    pub(super) memory: MemoryPlan,
    pub(super) directory: RunDirectory,
    pub(super) restored: Option<Checkpoint>,
    pub(super) data: RunData,
}

/// Rank 0 has the directory, the first rank of each machine prepares the data there, and all others
/// read what they find. No process goes on alone. Ranks that are threads are one process, the first.
/// What is quick to refuse comes before the data, which may take minutes.
pub(super) fn prepare(
    request: &TrainRequest<'_>,
    ranks: Ranks<'_>,
    reporter: &Mutex<dyn Reporter + '_>,
) -> Result<Prepared, TrainError> {
    let config = &request.config;
    ranks.begin_phase("preparing", config.long_deadline());
    let engine = ranks.agree(config.engine(ranks.cores(request.cores)).map_err(Into::into))?;
    let memory = ranks.agree(memory::check(request, &engine, ranks))?;
    let own = ranks.is_first().then(|| RunDirectory::open(config, request.resume)).transpose();
    let own = ranks.agree(own)?;
    let path = own.as_ref().map_or_else(String::new, |own| own.path().display().to_string());
    let path = ranks.rank_0_says(path)?;
    let directory = own.unwrap_or_else(|| RunDirectory::follow(path.into()));
    let restored = restored(request, ranks, &directory, &engine, reporter)?;
    let open = || RunData::open(config, request.cores, reporter);
    let leader = ranks.agree(ranks.is_first_here().then(open).transpose())?;
    let data = ranks.agree(leader.map_or_else(open, Ok))?;
    ranks.check_same("corpus", &data.report().corpus_hash)?;
    let run = restored.as_ref().map(|checkpoint| &checkpoint.manifest().run);
    ranks.agree(run.map_or(Ok(()), |run| data.check_same(run)))?;
    Ok(Prepared { engine, memory, directory, restored, data })
}

/// The checkpoint to go on from: the first rank reads all checksums, the others open what it has
/// found whole.
fn restored(
    request: &TrainRequest<'_>,
    ranks: Ranks<'_>,
    directory: &RunDirectory,
    engine: &EngineConfig,
    reporter: &Mutex<dyn Reporter + '_>,
) -> Result<Option<Checkpoint>, TrainError> {
    let find = || {
        let found = directory.latest_checkpoint(request.resume, &engine.model)?;
        for damage in &found.damaged {
            report(reporter, &Event::Note(damage.to_string()));
        }
        Ok(found.checkpoint)
    };
    let found = ranks.agree(ranks.is_first().then(find).transpose())?.flatten();
    let dir = found.as_ref().map_or_else(String::new, |found| found.dir().display().to_string());
    let dir = ranks.rank_0_says(dir)?;
    ranks.agree(match found {
        Some(checkpoint) => Ok(Some(checkpoint)),
        None if dir.is_empty() => Ok(None),
        None => Checkpoint::open(dir.as_ref()).map(Some).map_err(TrainError::from),
    })
}
