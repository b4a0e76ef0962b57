//! Whole training runs in which one thing goes wrong, chosen by a seed: what it was, how the run
//! ended, and whether it can be gone on with to the numbers of an undisturbed one.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use trine_checkpoint::{Disk, FailingDisk, Storage};
use trine_comm::wrap::{Fault, Faults, Injection};
use trine_comm::{Call, Communicator, Diagnosis};
use trine_data::toy;
use trine_nn::Numerics;
use trine_rng::Stream;
use trine_trainer::config::{Config, File, ScheduleKind, Setting, Times, Typed};
use trine_trainer::run::{Event, MachineSource, Reporter, Seams};
use trine_trainer::{Ranks, TrainError, TrainRequest, train};

/// A run that takes longer than this hangs: undisturbed, it takes a fraction of a second.
const HANGS_AFTER: Duration = Duration::from_secs(120);

/// Steps of a run; it saves every second one.
const STEPS: usize = 5;

/// A model so small that the time goes into what is between ranks.
const TINY: &[&str] = &[
    "train.precision=f32",
    "data.vocab=270",
    "data.seq=8",
    "model.vocab=270",
    "model.hidden=8",
    "model.heads=2",
    "model.kv_heads=2",
    "model.head_dim=4",
    "model.ffn=16",
    "model.layers=2",
    "batch.global=4",
    "batch.micro=1",
    "lr.warmup_steps=2",
    "train.minutes_max=0",
    "train.replica_check_every=2",
    "checkpoint.every=2",
    "eval.every=0",
    "eval.final_windows_max=4",
    "sample.prompts=[]",
    "layout.threads_per_rank=1",
    "comm.checksum=true",
    "comm.deadline_s=30",
];

/// Layouts in which a fault meets every kind of group.
const LAYOUTS: [[usize; 3]; 3] = [[2, 1, 2], [1, 2, 2], [2, 2, 1]];

/// What goes wrong in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// An operation between ranks.
    Operation(Injection),
    /// The disk fails for good after so many operations of saving.
    Disk {
        /// Operations that it still does.
        operations: usize,
    },
}

impl What {
    /// Its name in tables.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Operation(injection) => injection.fault.label(),
            Self::Disk { .. } => "disk write",
        }
    }
}

/// Text, and an undisturbed run in each layout.
#[derive(Debug)]
pub struct Bench {
    folder: tempfile::TempDir,
    undisturbed: Vec<Undisturbed>,
}

/// What an undisturbed run did.
#[derive(Debug)]
struct Undisturbed {
    results: Results,
    /// Operations of each rank.
    operations: Vec<u64>,
    /// Operations of the disk.
    disk_operations: usize,
}

/// Everything that must be the same: the last checkpoint's files, and the numbers of every step.
pub type Results = BTreeMap<String, Vec<u8>>;

/// How a disturbed run went.
#[derive(Debug)]
pub struct Ended {
    /// What went wrong.
    pub what: What,
    /// The operation that it struck, if it was one between ranks.
    pub struck: Option<Call>,
    /// The first cause, unless the run ended as if nothing had happened.
    pub diagnosis: Option<Diagnosis>,
}

impl Bench {
    /// Prepares the text and runs every layout undisturbed.
    ///
    /// # Errors
    /// A run that fails although nothing goes wrong.
    pub fn new() -> Result<Self, String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let text = toy::text(6000);
        fs::write(folder.path().join("text.txt"), text).map_err(|error| error.to_string())?;
        let mut bench = Self { folder, undisturbed: Vec::new() };
        for layout in 0..LAYOUTS.len() {
            let (faults, disk) = (Faults::new(None), FailingDisk::after(usize::MAX));
            let dir = bench.path(&format!("undisturbed-{layout}"));
            bench.run(layout, &dir, false, Some(&faults), &disk)?.map_err(|d| d.to_string())?;
            bench.undisturbed.push(Undisturbed {
                results: results(&dir)?,
                operations: faults.operations(),
                disk_operations: usize::MAX - disk.left(),
            });
        }
        Ok(bench)
    }

    /// A run of two replicas in reference numerics that loses a rank and goes on with one; whether it
    /// comes to the numbers of one that lost none.
    ///
    /// # Errors
    /// Other numbers, a hang, or another failure.
    pub fn shrink(&self) -> Result<Diagnosis, String> {
        let config = |name: &str| -> Result<Config, String> {
            let mut config = self.config(0, &self.path(name))?;
            config.train.numerics = Numerics::Reference;
            config.layout.elastic = true;
            config.check().map_err(|error| error.to_string())?;
            Ok(config)
        };
        let whole = config("whole")?;
        watched(whole.clone(), false, None, Disk)?.map_err(|failed| failed.to_string())?;
        let lost = config("lost")?;
        let injection = Injection { fault: Fault::KillBefore, rank: 3, operation: 200 };
        let faults = Faults::new(Some(injection));
        let Err(diagnosis) = watched(lost.clone(), false, Some(&faults), Disk)? else {
            return Err("the rank has too few operations to be lost at this one".into());
        };
        let left = lost.with_ranks_left(lost.world() - 1).ok_or("no replica is left")?;
        if left.layout.dp != 1 {
            return Err(format!("{} replicas are left", left.layout.dp));
        }
        watched(left, true, None, Disk)?.map_err(|failed| failed.to_string())?;
        let (whole, lost) = (results(&whole.output.dir)?, results(&lost.output.dir)?);
        if whole == lost { Ok(diagnosis) } else { Err("the numbers differ".into()) }
    }

    /// A run that loses a rank while its ranks measure the times for their schedule. It can be begun again where it
    /// was, and keeps the times then.
    ///
    /// # Errors
    /// A directory that is taken, a hang, or another failure.
    pub fn lose_while_measuring(&self) -> Result<Diagnosis, String> {
        let mut config = self.config(1, &self.path("measuring"))?;
        config.layout.schedule = ScheduleKind::ZbH1.into();
        config.layout.times = Times::Measured;
        config.check().map_err(|error| error.to_string())?;
        let injection = Injection { fault: Fault::KillBefore, rank: 2, operation: 20 };
        let faults = Faults::new(Some(injection));
        let Err(diagnosis) = watched(config.clone(), false, Some(&faults), Disk)? else {
            return Err("the rank has too few operations to be lost at this one".into());
        };
        watched(config.clone(), false, None, Disk)?.map_err(|failed| failed.to_string())?;
        results(&config.output.dir)?;
        let file = File::read(&config.output.dir.join("config.toml"));
        let typed = Typed { file: Some(file.map_err(|e| e.to_string())?), ..Typed::default() };
        match Config::load(&typed).map_err(|error| error.to_string())?.layout.times {
            Times::Given(times) if times.len() == 4 => Ok(diagnosis),
            other => Err(format!("the run has kept {other:?}")),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The layout and the fault that a seed stands for. Seeds in a row go through all kinds.
    pub fn of_seed(&self, seed: u64) -> (usize, What) {
        let stream = Stream::new(seed, "faults");
        let word = |index: u32| {
            let [low, high, ..] = stream.block([index, 0, 0, 0]);
            u64::from(high) << 32 | u64::from(low)
        };
        let draw = |index: u32, below: u64| word(index) % below;
        let layout = draw(0, LAYOUTS.len() as u64) as usize;
        let undisturbed = &self.undisturbed[layout];
        let kinds = Fault::KINDS.len() as u64 + 1;
        let fault = match Fault::KINDS.get((seed % kinds) as usize) {
            None => {
                let operations = draw(1, undisturbed.disk_operations as u64) as usize;
                return (layout, What::Disk { operations });
            }
            Some(Fault::Delay(_)) => Fault::Delay(Duration::from_millis(1 + draw(2, 20))),
            Some(Fault::Corrupt { .. }) => Fault::Corrupt { bit: word(3) },
            Some(kind) => *kind,
        };
        let rank = draw(4, undisturbed.operations.len() as u64) as usize;
        let operation = draw(5, undisturbed.operations[rank]);
        (layout, What::Operation(Injection { fault, rank, operation }))
    }

    /// Runs with the fault of `seed`; if that stops the run, goes on with it, undisturbed, from its
    /// last checkpoint. Either way the results must be those of the undisturbed run.
    ///
    /// # Errors
    /// Other results, a hang, or a second failure.
    pub fn disturb(&self, seed: u64) -> Result<Ended, String> {
        let (layout, what) = self.of_seed(seed);
        let dir = self.path(&format!("seed-{seed}"));
        let (injection, disk) = match what {
            What::Operation(injection) => (Some(injection), FailingDisk::after(usize::MAX)),
            What::Disk { operations } => (None, FailingDisk::after(operations)),
        };
        let faults = Faults::new(injection);
        let tell = |text: String| format!("seed {seed}, {what:?}: {text}");
        let first = self.run(layout, &dir, false, Some(&faults), &disk).map_err(tell)?;
        let diagnosis = match first {
            Ok(()) => None,
            Err(diagnosis) => {
                self.run(layout, &dir, true, None, &Disk).map_err(tell)?.map_err(|second| {
                    tell(format!("the run cannot be gone on with: {second}; it had: {diagnosis}"))
                })?;
                Some(diagnosis)
            }
        };
        let results = results(&dir).map_err(tell)?;
        let expected = &self.undisturbed[layout].results;
        for (name, bytes) in expected {
            if results.get(name) != Some(bytes) {
                return Err(tell(format!("{name} differs from the undisturbed run's")));
            }
        }
        if results.len() != expected.len() {
            return Err(tell(format!("{:?} instead of {:?}", results.keys(), expected.keys())));
        }
        fs::remove_dir_all(&dir).map_err(|error| tell(error.to_string()))?;
        Ok(Ended { what, struck: faults.struck(), diagnosis })
    }

    fn run(
        &self,
        layout: usize,
        dir: &Path,
        resume: bool,
        faults: Option<&Faults>,
        storage: &(impl Storage + Clone + 'static),
    ) -> Result<Result<(), Diagnosis>, String> {
        watched(self.config(layout, dir)?, resume, faults, storage.clone())
    }

    fn config(&self, layout: usize, dir: &Path) -> Result<Config, String> {
        let [tp, pp, dp] = LAYOUTS[layout];
        let mut settings: Vec<Setting> = TINY.iter().map(|text| Setting::set(text)).collect();
        let paths = [
            ("data.source", self.path("text.txt")),
            ("data.cache", self.path("cache")),
            ("output.dir", dir.to_path_buf()),
        ];
        settings
            .extend(paths.map(|(key, path)| Setting::set(&format!("{key}={}", path.display()))));
        let numbers =
            [("layout.tp", tp), ("layout.pp", pp), ("layout.dp", dp), ("train.steps", STEPS)];
        settings.extend(numbers.map(|(key, number)| Setting::set(&format!("{key}={number}"))));
        let typed = Typed { settings, ..Typed::default() };
        Config::load(&typed).map_err(|error| error.to_string())
    }
}

/// A run to its end or to its failure, on a thread of its own so that a hang is noticed.
fn watched(
    config: Config,
    resume: bool,
    faults: Option<&Faults>,
    storage: impl Storage + 'static,
) -> Result<Result<(), Diagnosis>, String> {
    let faults = faults.cloned();
    let (tell, told) = channel();
    std::thread::spawn(move || tell.send(train_once(config, resume, faults, &storage)));
    match told.recv_timeout(HANGS_AFTER) {
        Ok(ended) => ended,
        Err(RecvTimeoutError::Timeout) => Err("it hangs".into()),
        Err(RecvTimeoutError::Disconnected) => Err("the trainer panicked".into()),
    }
}

/// Shows nothing.
struct Silent;

impl Reporter for Silent {
    fn event(&mut self, _: &Event<'_>) {}
}

fn train_once(
    config: Config,
    resume: bool,
    faults: Option<Faults>,
    storage: &dyn Storage,
) -> Result<Result<(), Diagnosis>, String> {
    let stop = AtomicBool::new(false);
    let wrap = |comm: Arc<dyn Communicator>| match &faults {
        Some(faults) => faults.around(comm),
        None => comm,
    };
    let request = TrainRequest {
        config,
        resume,
        trace: None,
        stop: &stop,
        started: Instant::now(),
        cores: 1,
        commit: None,
        machine: MachineSource(&|| Err("not asked for".into())),
        memory: &[],
        devices: None,
        devices_said: None,
        seams: Seams { wrap: &wrap, storage },
    };
    match train(&request, Ranks::Threads, &Mutex::new(Silent)) {
        Ok(_) => Ok(Ok(())),
        Err(TrainError::Ranks { diagnosis, flight: Some(flight) }) => {
            let recorders = (0..request.config.world()).map(|rank| format!("rank-{rank}.jsonl"));
            match recorders.map(|name| flight.join(name)).find(|path| !path.is_file()) {
                Some(missing) => Err(format!("no flight recorder {}", missing.display())),
                None => Ok(Err(*diagnosis)),
            }
        }
        Err(other) => Err(format!("no rank's failure: {other}")),
    }
}

/// What a run has left that must not depend on what happened on the way.
fn results(dir: &Path) -> Result<Results, String> {
    let last = dir.join(format!("checkpoints/step-{STEPS}"));
    let mut found = Results::new();
    for name in ["model.safetensors", "optimizer.safetensors"] {
        let bytes = fs::read(last.join(name)).map_err(|error| format!("{name}: {error}"))?;
        found.insert(name.into(), bytes);
    }
    let metrics = fs::read_to_string(dir.join("metrics.jsonl")).map_err(|e| e.to_string())?;
    for line in metrics.lines() {
        // Up to the first number that depends on the clock.
        let numbers = line.split(",\"tokens_per_s\"").next().unwrap_or(line);
        found.insert(format!("metrics {}", found.len()), numbers.into());
    }
    Ok(found)
}
