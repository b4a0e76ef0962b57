//! `trine train`.

#[cfg(feature = "mpi")]
use super::mpi;
use crate::args::TrainArgs;
use crate::failure::Failure;
use crate::gpus::{self, Chosen};
use crate::launcher::{self, Backend};
use crate::layout::{self, Decided};
use crate::machine::{self, cores};
use crate::out_of_memory::OutOfMemory;
use crate::progress::Screen;
use crate::signals::{Heeding, Wishes};
use crate::terminal::Terminal;
use crate::written::{Claimed, Kind, Output, given};
use crate::{dry_run, output, select};
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use trine_comm::Communicator;
use trine_trainer::config::{self, Config, Key, Source};
use trine_trainer::run::{Devices, Event, MachineSource, Reporter, Seams, trace_part};
use trine_trainer::{Machine, Ranks, TrainError, TrainRequest};
use trine_trainer_gpu::GpuRanks;

/// Runs the command.
pub(crate) fn run(
    args: &TrainArgs,
    terminal: &Terminal,
    memory: &OutOfMemory,
) -> Result<(), Failure> {
    let started = Instant::now();
    if let Some(word) = &args.help_config {
        return output::print(&key_list(word)?);
    }
    let env = |name: &str| std::env::var(name).ok();
    let launched = launcher::find(&env)?;
    match launcher::choose(&args.backend, launched.as_ref(), &env, cfg!(feature = "mpi"))? {
        Backend::Threads => alone(args, terminal, started, memory),
        #[cfg(feature = "mpi")]
        Backend::Mpi => mpi::run(args, terminal, launched.as_ref(), started, memory),
        #[cfg(not(feature = "mpi"))]
        Backend::Mpi => unreachable!("refused by `choose`"),
    }
}

/// Trains with ranks that are threads.
fn alone(
    args: &TrainArgs,
    terminal: &Terminal,
    started: Instant,
    memory: &OutOfMemory,
) -> Result<(), Failure> {
    let loaded = select::of_train(args)?;
    let search = gpus::search(&args.gpu_libraries, &|name| std::env::var_os(name))?;
    let Chosen { loaded, gpus, said, chosen, machine } = gpus::choose(args, loaded, &search)?;
    let Decided { config, chosen, machine } = match &gpus {
        Some(_) => Decided { config: loaded.config, chosen, machine },
        None => layout::decide(args, loaded, None)?,
    };
    if args.dry_run {
        let machine = args.machine.as_deref().map(|path| (path, gpus.is_some()));
        let report = dry_run::report(&config, None, chosen.as_deref(), machine)?;
        return output::print(&report);
    }
    if let Some(chosen) = chosen {
        output::complain(&chosen);
    }
    let resume_by = format!("{} train --resume", terminal.program());
    let screen = Mutex::new(Screen::new(terminal, config.log.every_seconds, resume_by));
    let (ranks, heeding) = (Ranks::Threads, Heeding::default());
    let devices = (gpus, Some(said));
    let run = Run { config, args, started, ranks, machine, devices, memory, heeding };
    let trained = train(run, &screen);
    let shown = screen.into_inner().unwrap_or_else(PoisonError::into_inner).end();
    trained.and(shown)
}

/// What to train, and with which ranks.
pub(crate) struct Run<'a> {
    pub(crate) config: Config,
    pub(crate) args: &'a TrainArgs,
    pub(crate) started: Instant,
    pub(crate) ranks: Ranks<'a>,
    /// The machine, if it is known already.
    pub(crate) machine: Option<Machine>,
    /// What its ranks compute on, if that is not the processor, and why, if that was looked into.
    pub(crate) devices: (Option<GpuRanks>, Option<String>),
    /// Learns of the ranks and their plan.
    pub(crate) memory: &'a OutOfMemory,
    /// What signals mean to it.
    pub(crate) heeding: Heeding,
}

/// Trains: a new run, or on from the last checkpoint of the run in `resume`.
pub(crate) fn train(run: Run<'_>, reporter: &Mutex<dyn Reporter + '_>) -> Result<(), Failure> {
    let Run { config, args, started, ranks, machine, devices, memory, heeding } = run;
    let (gpus, devices_said) = devices;
    // Found out now, and not after the last step.
    let _claimed = match ranks {
        Ranks::Threads => check_files(args, &config, 0, gpus.is_some())?,
        Ranks::Process(process) => {
            let own = check_files(args, &config, process.world().rank(), gpus.is_some());
            process.agree(own, TrainError::is_usage)?
        }
    };
    let wishes = Wishes::watch(heeding)?;
    let base = config.clone();
    let find = || match (&gpus, &machine) {
        (_, Some(machine)) => Ok(machine.clone()),
        (gpus, None) => {
            let gpus = gpus.as_ref().map(|gpus| (gpus as &dyn Devices, base.world()));
            layout::machine_of(args, &base, gpus)
        }
    };
    let limits = crate::memory::limits();
    let wrap = |comm: Arc<dyn Communicator>| {
        memory.add_rank(comm.recorder());
        comm
    };
    wishes.heed(reporter, |stop, reporter| {
        let request = TrainRequest {
            config,
            resume: args.resume.is_some(),
            trace: args.trace.clone(),
            stop,
            started,
            cores: cores(),
            commit: option_env!("TRINE_COMMIT"),
            machine: MachineSource(&find),
            memory: &limits,
            devices: gpus.as_ref().map(|gpus| gpus as &dyn Devices),
            devices_said: devices_said.as_deref(),
            seams: Seams { wrap: &wrap, ..Seams::REAL },
        };
        trine_trainer::train(&request, ranks, &Mutex::new(Learning { memory, reporter }))
    })?;
    Ok(())
}

/// Learns from events what the ranks are planned to take, and hands them on.
struct Learning<'a> {
    memory: &'a OutOfMemory,
    reporter: &'a Mutex<dyn Reporter + 'a>,
}

impl Reporter for Learning<'_> {
    fn event(&mut self, event: &Event<'_>) {
        if let Event::Planned(plan) = event {
            self.memory.planned(plan.to_string());
        }
        self.reporter.lock().unwrap_or_else(PoisonError::into_inner).event(event);
    }
}

/// Whether the trace of a rank can be written, which claims it, and the machine be read, which the first rank does for
/// all.
fn check_files(
    args: &TrainArgs,
    config: &Config,
    rank: usize,
    on_gpus: bool,
) -> Result<Option<Claimed>, TrainError> {
    let machine = args.machine.as_deref().filter(|_| rank == 0);
    if let Some(Err(failure)) = machine.map(|path| machine::read(path, on_gpus)) {
        return Err(TrainError::Refused(failure.to_string()));
    }
    args.trace.as_deref().map(|path| claim_trace(path, args, config, rank)).transpose()
}

/// Claims the trace of a rank.
fn claim_trace(
    path: &Path,
    args: &TrainArgs,
    config: &Config,
    rank: usize,
) -> Result<Claimed, TrainError> {
    let (path, kind) = match rank {
        0 => (path.to_owned(), Kind::Trace),
        rank => (trace_part(path, rank), Kind::TracePart),
    };
    let source = match &config.data.source {
        Source::Path(path) => Some(path),
        Source::Crates => None,
    };
    let data = [source, Some(&config.data.tokenizer), Some(&config.data.manifest)];
    let inputs = [given(data), given([args.config.config.as_ref(), args.machine.as_ref()])];
    let trace = Output { option: "--trace", path: &path, kind };
    // A new run takes an empty directory only.
    if args.resume.is_none() && is_below(&path, &config.output.dir) {
        let why =
            "it lies in the directory of the new run, which must be empty; name a file elsewhere";
        return Err(trace.refused(why));
    }
    trace.claim(&inputs.concat())
}

/// Whether a path lies in a folder that is there.
fn is_below(path: &Path, folder: &Path) -> bool {
    let whole = |path: &Path| std::path::absolute(path).and_then(fs::canonicalize).ok();
    let above = path
        .parent()
        .map(|above| if above.as_os_str().is_empty() { Path::new(".") } else { above });
    match (above.and_then(whole), whole(folder)) {
        (Some(above), Some(folder)) => above.starts_with(folder),
        _ => false,
    }
}

/// The keys that contain `word` in their path or in what is said of them, with type, default and
/// rule; all of them if it is empty.
fn key_list(word: &str) -> Result<String, Failure> {
    let word = word.to_lowercase();
    let found: Vec<&Key> = config::keys().filter(|key| speaks_of(key, &word)).collect();
    if found.is_empty() {
        let all = "without a word, all keys are listed";
        return Err(Failure::usage(format!("--help-config {word}: no key mentions it; {all}")));
    }
    let which = if word.is_empty() { "Every key" } else { "Keys" };
    let mut text = format!(
        "# {which} of a configuration, as TOML with the defaults of preset rust-default.\n\
         # Relative paths in a file start at the folder of the file.\n"
    );
    let mut section = "";
    for key in found {
        let (own, name) = key.path.split_once('.').unwrap_or(("", key.path));
        if own != section {
            text.push_str(&format!("\n[{own}]\n"));
            section = own;
        }
        let rule = if key.has_rule() { format!("; {}", key.rule) } else { String::new() };
        text.push_str(&format!("# {}\n#   {}{rule}\n", key.about.trim(), key.kind.describe()));
        // Shorthands stand for other keys, so they have no default of their own.
        match config::default_value(key.path) {
            Some(value) => text.push_str(&format!("{name} = {value}\n")),
            None => text.push_str(&format!("# {name} = …\n")),
        }
    }
    Ok(text)
}

fn speaks_of(key: &Key, word: &str) -> bool {
    key.path.contains(word)
        || [key.about, key.rule].iter().any(|text| text.to_lowercase().contains(word))
}
