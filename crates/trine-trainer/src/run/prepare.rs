//! All that comes before the ranks: the directory, the checkpoint to go on from, the data.

use crate::TrainError;
use crate::memory::{MemoryLimit, MemoryPlan};
use crate::nearest_fit::nearest_fit;
use crate::plan::RunPlan;
use crate::run::data::RunData;
use crate::run::directory::{kept, newest};
use crate::run::events::report;
use crate::run::{Devices, Event, Ranks, Reporter, RunDirectory, TrainRequest, resume};
use crate::splits::divisors;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use trine_checkpoint::Checkpoint;

/// What is made before the ranks start.
pub(super) struct Prepared {
    pub(super) plan: Arc<RunPlan>,
    pub(super) memory: MemoryPlan,
    pub(super) directory: RunDirectory,
    pub(super) restored: Option<Checkpoint>,
    pub(super) data: RunData,
    /// Seconds that making the data ready took.
    pub(super) data_s: f64,
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
    let (plan, memory) = planned(request, ranks, reporter)?;
    let own = ranks.is_first().then(|| RunDirectory::open(config, request.resume)).transpose();
    let own = ranks.agree(own)?;
    let path = own.as_ref().map_or_else(String::new, |own| own.path().display().to_string());
    let path = ranks.rank_0_says(path)?;
    let directory = own.unwrap_or_else(|| RunDirectory::follow(path.into()));
    let restored = restored(request, ranks, &directory, reporter)?;
    let before = restored.as_ref().map(|checkpoint| {
        let manifest = checkpoint.manifest();
        let before = resume::configuration(manifest, directory.path())?;
        Ok::<_, TrainError>((checkpoint, before))
    });
    let before = ranks.agree(before.transpose())?;
    let lines = before.as_ref().map(|(found, before)| {
        let mut lines = resume::check(config, before, found)?;
        if ranks.is_first() {
            lines.extend(directory.metrics_notes(found.manifest().run.step)?);
        }
        Ok(lines)
    });
    let lines = ranks.agree(lines.transpose())?.unwrap_or_default();
    let began = Instant::now();
    let open = || RunData::open(config, request.cores, reporter);
    let leader = ranks.agree(ranks.is_first_here().then(open).transpose())?;
    let data = ranks.agree(leader.map_or_else(open, Ok))?;
    ranks.check_same("corpus", &data.report().corpus_hash)?;
    ranks.agree(before.as_ref().map_or(Ok(()), |(found, before)| {
        resume::check_data(config, before, &data, &found.manifest().run)
    }))?;
    // Told when nothing refuses any more.
    for line in lines.into_iter().filter(|_| ranks.is_first()) {
        report(reporter, &Event::Note(line));
    }
    let data_s = began.elapsed().as_secs_f64();
    Ok(Prepared { plan, memory, directory, restored, data, data_s })
}

/// The plan of all ranks, and the memory of those of this process, which must fit.
pub(super) fn planned(
    request: &TrainRequest<'_>,
    ranks: Ranks<'_>,
    reporter: &Mutex<dyn Reporter + '_>,
) -> Result<(Arc<RunPlan>, MemoryPlan), TrainError> {
    let engine = request.config.engine(ranks.cores(request.cores)).map_err(TrainError::from);
    let plan = Arc::new(ranks.agree(engine.and_then(|engine| RunPlan::new(&engine)))?);
    let memory = match (ranks, request.devices) {
        (_, Some(devices)) => ranks.agree(on_devices(&plan, ranks, devices))?,
        (Ranks::Threads, None) => MemoryPlan::of_threads(&plan, request.memory),
        (Ranks::Process(process), None) => {
            let (own, here) = ([process.world().rank()], process.ranks_of_this_machine());
            MemoryPlan::of_processes(&plan, &own, &here, request.memory)
        }
    };
    let memory = memory.checked(&request.config, || nearest(request, ranks));
    let memory = ranks.agree(memory)?;
    report(reporter, &Event::Planned(&memory));
    Ok((plan, memory))
}

/// The cheapest change with which a run fits, among those that its cores or devices allow.
fn nearest(request: &TrainRequest<'_>, ranks: Ranks<'_>) -> Option<String> {
    let (config, cores) = (&request.config, request.cores);
    let world = config.world();
    let limits = request.memory;
    let fixed = || std::iter::once(world);
    match (ranks, request.devices) {
        (_, Some(devices)) => {
            let bytes = devices.free_bytes(devices.of_rank(0)).ok()?;
            let beside = devices.beside_bytes();
            let limit = || MemoryLimit { bytes, by: String::new(), own: true };
            if devices.shared().is_some() {
                let fits = |plan: &RunPlan| {
                    let all: Vec<usize> = (0..plan.config.degrees.world()).collect();
                    MemoryPlan::of_device(plan, &all, beside, limit()).fits()
                };
                return nearest_fit(config, cores, 1..=world, fits);
            }
            let fits = |plan: &RunPlan| MemoryPlan::of_fullest_device(plan, beside, limit()).fits();
            match ranks {
                Ranks::Threads => {
                    nearest_fit(config, cores, 1..=devices.ranks_max().max(world), fits)
                }
                Ranks::Process(_) => nearest_fit(config, cores, fixed(), fits),
            }
        }
        (Ranks::Threads, None) => {
            let fits = |plan: &RunPlan| MemoryPlan::of_threads(plan, limits).fits();
            let others = divisors(cores).filter(move |ranks| *ranks != world);
            nearest_fit(config, cores, fixed().chain(others), fits)
        }
        (Ranks::Process(process), None) => {
            let here = process.ranks_of_this_machine().len() as u64;
            let fits = |plan: &RunPlan| MemoryPlan::of_fullest(plan, here, limits).fits();
            nearest_fit(config, cores, fixed(), fits)
        }
    }
}

/// The memory of the device that has least left beside the plan of its ranks, which must be of this process.
fn on_devices(
    plan: &RunPlan,
    ranks: Ranks<'_>,
    devices: &dyn Devices,
) -> Result<MemoryPlan, TrainError> {
    let own = match ranks {
        Ranks::Threads => 0..plan.config.degrees.world(),
        Ranks::Process(process) => process.world().rank()..process.world().rank() + 1,
    };
    let mut by_device: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    own.for_each(|rank| by_device.entry(devices.of_rank(rank)).or_default().push(rank));
    let held = |(device, ranks): (usize, Vec<usize>)| {
        let (bytes, name) = (devices.free_bytes(device)?, devices.name(device));
        let by = match &ranks[..] {
            [rank] => format!("{name}, of rank {rank}"),
            _ => format!("{name}, which they share"),
        };
        let limit = MemoryLimit { bytes, by, own: true };
        Ok(MemoryPlan::of_device(plan, &ranks, devices.beside_bytes(), limit))
    };
    let all = by_device.into_iter().map(held).collect::<Result<Vec<_>, TrainError>>()?;
    let tightest = all.into_iter().min_by_key(MemoryPlan::left);
    Ok(tightest.expect("invariant: a process has a rank"))
}

/// The checkpoint to go on from: the first rank reads all checksums, the others open what it has
/// found whole. None is fine where none was saved yet.
fn restored(
    request: &TrainRequest<'_>,
    ranks: Ranks<'_>,
    directory: &RunDirectory,
    reporter: &Mutex<dyn Reporter + '_>,
) -> Result<Option<Checkpoint>, TrainError> {
    let find = || {
        if !request.resume {
            return Ok(None);
        }
        let found = newest(directory.path())?;
        for damage in &found.damaged {
            report(reporter, &Event::Note(damage.to_string()));
        }
        if found.checkpoint.is_none() {
            match directory.lost_checkpoints()? {
                Some(why) => {
                    let run = directory.path().to_path_buf();
                    return Err(TrainError::NothingToResume { run, why });
                }
                None => {
                    let text = "no checkpoint was saved yet: the run begins again at step 1";
                    report(reporter, &Event::Note(text.into()));
                }
            }
        } else if !found.damaged.is_empty() {
            report(reporter, &Event::Note(kept(directory.path())?));
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
