//! `trine launch`: the supervisor of a run whose ranks are processes. It stands outside of MPI: it
//! starts mpirun, hears the ranks' heartbeats, says why a run has failed, leaves no process behind,
//! and starts it again if it may.

use crate::args::{Command, LaunchArgs, RANKS_MAX, TrainArgs};
use crate::failure::Failure;
use crate::layout::{self, Decided};
use crate::mpirun::{Mpirun, TICK, orphans};
use crate::output::counted;
use crate::signals::{self, BEFORE_STEPS, INTERRUPTED};
use crate::supervised::{DIRECTORY, STEPPING, STORE, TOKEN, keep};
use crate::terminal::{PROGRAM, Terminal, Volume};
use crate::{gpus, select};
use crate::{launcher, output, parse};
use anyhow::Context;
use signal_hook::consts::SIGUSR1;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use trine_comm::{Diagnosis, PostMortem};
use trine_rendezvous::{Store, StoreOptions, Token};
use trine_trainer::config::Config;

/// After the first cause is known: how long ranks have to end by themselves.
const RANKS_END_WITHIN: Duration = Duration::from_millis(1500);

/// How often the wish to stop is passed on again: mpirun loses what comes before it is ready.
const ASK_EVERY: Duration = Duration::from_secs(5);

/// Pauses before restarts: doubled each time.
const BACK_OFF_MIN: Duration = Duration::from_secs(1);
const BACK_OFF_MAX: Duration = Duration::from_secs(60);

/// How one attempt ended.
enum End {
    Well {
        /// Ranks that have joined.
        joined: usize,
    },
    /// The arguments were refused: another attempt would be too.
    Usage(u8),
    /// Somebody wanted it to end.
    Interrupted,
    /// It has failed, and said why.
    Failed {
        /// Whether a rank is known that has failed or is gone.
        has_lost_a_rank: bool,
        /// The run directory, if it was told.
        directory: Option<String>,
    },
}

/// Runs the command.
pub(crate) fn run(args: &LaunchArgs, terminal: &Terminal) -> Result<(), Failure> {
    // Every rank would say so.
    launcher::choose("mpi", None, &|_| None, cfg!(feature = "mpi"))?;
    let (typed, decided) = checked(args)?;
    let (mut config, chosen) = (decided.config, decided.chosen);
    orphans::adopt()?;
    let signals = Signals::watch()?;
    let mut as_typed = args.train.clone();
    if let Some(chosen) = chosen {
        output::complain(&chosen);
        as_typed.extend(layout_options(&config));
    }
    let mut train = as_typed.clone();
    let mut place = Place::new(&config);
    for attempt in 0.. {
        match once(args, &config, &train, &place, &signals, terminal)? {
            End::Well { joined: 0 } if !typed.dry_run => return Err(none_joined(args, &config)),
            End::Well { .. } => return Ok(()),
            End::Usage(code) => return Err(Failure::Silent(code)),
            End::Interrupted => return Err(Failure::Silent(INTERRUPTED)),
            End::Failed { has_lost_a_rank, directory } => {
                place.learn(directory);
                if attempt == args.restarts || signals.count() > 0 || typed.dry_run {
                    return Err(Failure::Silent(1));
                }
                let pause = (BACK_OFF_MIN * 2u32.saturating_pow(attempt)).min(BACK_OFF_MAX);
                let (next, all, pause_s) = (attempt + 1, args.restarts, pause.as_secs());
                let from = match place.to_resume() {
                    Some(_) => "from the last whole checkpoint",
                    None => "as it was typed",
                };
                output::complain(&format!("restart {next} of {all} in {pause_s} s, {from}"));
                if signals.come_within(pause) {
                    return Err(Failure::Silent(INTERRUPTED));
                }
                // It has not come far enough to tell where it is: once more.
                let Some(directory) = place.to_resume() else {
                    train.clone_from(&as_typed);
                    continue;
                };
                train = resumed(&typed, directory, next);
                // Without the rank that is gone, where the configuration allows it.
                let left = || config.with_ranks_left(config.world() - 1);
                if let Some(smaller) = has_lost_a_rank.then(left).flatten() {
                    let dp = smaller.layout.dp;
                    output::complain(&format!("dp shrinks from {} to {dp}", config.layout.dp));
                    config = smaller;
                }
                train.extend(["--dp".into(), config.layout.dp.to_string().into()]);
            }
        }
    }
    Ok(())
}

/// Where the run is. Once an attempt has told it, the later ones go on there, also after one that ended
/// too early to.
struct Place {
    known: Option<String>,
    /// What was typed; empty: `runs/NAME`, or with a number behind it.
    typed: PathBuf,
    name: String,
    /// Whether a run was there before.
    is_taken: bool,
}

impl Place {
    fn new(config: &Config) -> Self {
        Self {
            known: None,
            typed: config.output.dir.clone(),
            name: config.name.clone(),
            is_taken: is_run(&config.output.dir),
        }
    }

    /// What an attempt has told, or left in the directory that was typed.
    fn learn(&mut self, told: Option<String>) {
        let left =
            (!self.is_taken && is_run(&self.typed)).then(|| self.typed.display().to_string());
        self.known = told.or(self.known.take()).or(left);
    }

    /// The run to go on with, if an attempt has come as far as that.
    fn to_resume(&self) -> Option<&str> {
        self.known.as_deref().filter(|known| is_run(Path::new(known)))
    }

    /// Whether a directory can be this run's: whoever knows the token can name any.
    fn is_own(&self, told: &str) -> bool {
        let told = Path::new(told);
        if !self.typed.as_os_str().is_empty() {
            return is_same(told, &self.typed);
        }
        let name = told.file_name().and_then(|name| name.to_str());
        let number = name.and_then(|name| name.strip_prefix(&*self.name));
        let is_number = |text: &str| {
            text.is_empty()
                || text.strip_prefix('-').is_some_and(|text| text.parse::<u64>().is_ok())
        };
        told.parent().is_some_and(|parent| is_same(parent, Path::new("runs")))
            && number.is_some_and(is_number)
    }
}

fn is_run(directory: &Path) -> bool {
    !directory.as_os_str().is_empty() && directory.join("config.toml").is_file()
}

fn is_same(one: &Path, other: &Path) -> bool {
    let whole = |path: &Path| std::fs::canonicalize(path).ok();
    one == other || whole(one).is_some_and(|one| Some(one) == whole(other))
}

/// The arguments of `trine train`, refused here rather than by every rank.
fn checked(args: &LaunchArgs) -> Result<(Box<TrainArgs>, Decided), Failure> {
    let words = ["trine".into(), "train".into()].into_iter().chain(args.train.iter().cloned());
    let words: Vec<OsString> = words.collect();
    let typed = match parse::parse(&words).map(|cli| cli.command) {
        Ok(Command::Train(typed)) => typed,
        Ok(_) => return Err(Failure::usage("after `--` come arguments of `trine train`")),
        Err(error) => error.exit(),
    };
    let loaded = select::of_train(&typed)?;
    gpus::refuse_processes(&loaded.config)?;
    let decided = layout::decide(&typed, loaded, args.ranks)?;
    let config = &decided.config;
    config.check()?;
    let ranks = args.ranks.unwrap_or(config.world());
    if ranks > RANKS_MAX {
        let (degrees, most) = (config.degrees(), RANKS_MAX);
        let message =
            format!("{degrees} are {ranks} ranks, and at most {most} processes are started");
        return Err(Failure::usage(message));
    }
    if ranks != config.world() {
        trine_mesh::Mesh::new(config.degrees(), ranks)
            .map_err(|error| Failure::usage(format!("-n {ranks}: {error}")))?;
    }
    Ok((typed, decided))
}

/// The options that give every rank the layout of a configuration.
fn layout_options(config: &Config) -> Vec<OsString> {
    let (layout, batch, train) = (&config.layout, &config.batch, &config.train);
    let mut options: Vec<OsString> = vec!["--layout".into(), "preset".into()];
    for (key, value) in [
        ("layout.dp", layout.dp.to_string()),
        ("layout.pp", layout.pp.to_string()),
        ("layout.tp", layout.tp.to_string()),
        ("batch.micro", batch.micro.to_string()),
        ("train.recompute", train.recompute.to_string()),
    ] {
        options.extend(["--set".into(), format!("{key}={value}").into()]);
    }
    options
}

/// The arguments that go on with a run: its directory has the rest. The traces of earlier attempts stay.
fn resumed(typed: &TrainArgs, directory: &str, attempt: u32) -> Vec<OsString> {
    let mut train: Vec<OsString> = vec!["--resume".into(), directory.into()];
    if let Some(trace) = &typed.trace {
        let mut name = trace.file_stem().unwrap_or_default().to_owned();
        name.push(format!(".restart-{attempt}"));
        let mut own = trace.with_file_name(name).into_os_string();
        if let Some(extension) = trace.extension() {
            own.push(".");
            own.push(extension);
        }
        train.extend(["--trace".into(), own]);
    }
    train
}

/// One attempt.
fn once(
    args: &LaunchArgs,
    config: &Config,
    train: &[OsString],
    place: &Place,
    signals: &Signals,
    terminal: &Terminal,
) -> Result<End, Failure> {
    let token = Token::generate().context("no token for the run")?;
    let options = StoreOptions {
        deadline: config.deadline(),
        join_within: StoreOptions::join_within(config.deadline()),
        ..StoreOptions::new((args.interface, 0).into(), config.world(), token.clone())
    };
    let store = Store::bind(options).map_err(|error| Failure::Usage(error.into()))?;
    let variables = [
        (STORE, store.address().to_string()),
        (TOKEN, token.reveal()),
        (PROGRAM, terminal.program().to_owned()),
    ];
    let volume = volume_option(terminal.volume).map(OsString::from);
    let train: Vec<OsString> = train.iter().cloned().chain(volume).collect();
    let mut mpirun = Mpirun::start(args, config.world(), &train, &variables)?;
    let watched = watch(&mut mpirun, &store, signals, config.deadline());
    let records = store.records_within(Duration::from_millis(200));
    let all_ended = mpirun.end_all();
    let end = match watched? {
        Watched::Interrupted => End::Interrupted,
        Watched::Failed(cause) => failed(place, terminal, &store, &cause, records),
        Watched::Ended(status, cause) => {
            let cause = cause.or_else(|| store.cause_within(Duration::ZERO));
            match (cause, status.code()) {
                (None, Some(0)) => End::Well { joined: store.joined() },
                (None, Some(code @ 2)) => End::Usage(code as u8),
                // Also by the first one, if it came before the ranks could heed it.
                (None, _) if signals.count() > 0 => End::Interrupted,
                (Some(cause), None) if !store.is_loss() => {
                    failed(place, terminal, &store, &cause, records)
                }
                // Its ranks end with it: none of them is to blame.
                (_, None) => {
                    let how = mpirun.how(status);
                    output::complain(&format!("error: {how}, and the ranks ended with it"));
                    let directory = directory(place, &store);
                    say_how_to_resume(terminal, directory.as_deref());
                    End::Failed { has_lost_a_rank: false, directory }
                }
                (Some(cause), Some(_)) => {
                    let cause = told(&store, cause, &mpirun.how(status));
                    failed(place, terminal, &store, &cause, records)
                }
                (None, Some(_)) => {
                    let how = mpirun.how(status);
                    output::complain(&format!("error: {}", unexplained(&how, args, &train)));
                    End::Failed { has_lost_a_rank: false, directory: directory(place, &store) }
                }
            }
        }
    };
    all_ended.map(|()| end)
}

/// What tells the ranks how much is to be said.
fn volume_option(volume: Volume) -> Option<&'static str> {
    match volume {
        Volume::Quiet => Some("--quiet"),
        Volume::Normal => None,
        Volume::Verbose => Some("--verbose"),
    }
}

/// A rank that is gone cannot say how it went; mpirun's end does.
fn told(store: &Store, cause: Diagnosis, how: &str) -> Diagnosis {
    if !store.is_loss() {
        return cause;
    }
    Diagnosis { failure: format!("{}; {how}", cause.failure), ..cause }
}

/// Says why an attempt has failed, and keeps what is known of it.
fn failed(
    place: &Place,
    terminal: &Terminal,
    store: &Store,
    diagnosis: &Diagnosis,
    records: Vec<trine_comm::FlightRecord>,
) -> End {
    output::complain(&format!("error: {diagnosis}"));
    let directory = directory(place, store);
    if let Some(directory) = &directory {
        keep(directory, &PostMortem { diagnosis: diagnosis.clone(), records });
    }
    say_how_to_resume(terminal, directory.as_deref());
    End::Failed { has_lost_a_rank: true, directory }
}

fn say_how_to_resume(terminal: &Terminal, directory: Option<&str>) {
    if let Some(directory) = directory {
        let resume = terminal.command("launch -- --resume", directory.as_ref());
        output::complain(&format!("resume: {resume}"));
    }
}

/// The run directory that rank 0 has told, if it can be this run's.
fn directory(place: &Place, store: &Store) -> Option<String> {
    let told = String::from_utf8(store.value(DIRECTORY)?).ok()?;
    if !place.is_own(&told) {
        let told = told.escape_debug();
        output::complain(&format!(
            "{told} was told as this run's directory, and is not: left alone"
        ));
        return None;
    }
    Some(told)
}

fn none_joined(args: &LaunchArgs, config: &Config) -> Failure {
    Failure::Run(anyhow::anyhow!(
        "{} ended with code 0, but none of {} has joined: nothing was trained; --mpirun must start a process of this \
         program for each",
        args.mpirun.display(),
        counted(config.world(), "rank")
    ))
}

fn unexplained(how: &str, args: &LaunchArgs, train: &[OsString]) -> String {
    let words: Vec<_> = train.iter().map(|word| word.to_string_lossy()).collect();
    format!(
        "{how} before any rank could say why; see what it says by itself: {} -n … trine train \
         --backend mpi {}",
        args.mpirun.display(),
        words.join(" ")
    )
}

/// What an attempt has come to.
enum Watched {
    /// mpirun has ended, maybe after a cause was known.
    Ended(ExitStatus, Option<Diagnosis>),
    /// The cause is known, and mpirun has not ended by itself.
    Failed(Diagnosis),
    /// Somebody wants the run to end, and nothing is awaited.
    Interrupted,
}

/// Watches until mpirun has ended, or the first cause of a failure is known and ranks have had time
/// to end.
fn watch(
    mpirun: &mut Mpirun,
    store: &Store,
    signals: &Signals,
    deadline: Duration,
) -> Result<Watched, Failure> {
    let mut asked: Option<Instant> = None;
    let mut known: Option<(Diagnosis, Instant)> = None;
    let mut over: Option<Instant> = None;
    loop {
        if let Some(status) = mpirun.ended()? {
            return Ok(Watched::Ended(status, known.map(|(cause, _)| cause)));
        }
        match signals.count() {
            0 => {}
            // The ranks finish the step, save and end well.
            1 if store.value(STEPPING).is_some() => {
                if asked.is_none_or(|asked| asked.elapsed() >= ASK_EVERY) {
                    asked = Some(Instant::now());
                    mpirun.ask_to_stop();
                }
            }
            1 => {
                output::complain(BEFORE_STEPS);
                return Ok(Watched::Interrupted);
            }
            _ => return Ok(Watched::Interrupted),
        }
        if known.is_none() {
            known = store.cause_within(TICK).map(|cause| (cause, Instant::now()));
        } else {
            std::thread::sleep(TICK);
        }
        if let Some((cause, since)) = &known
            && since.elapsed() >= RANKS_END_WITHIN
        {
            return Ok(Watched::Failed(cause.clone()));
        }
        // Nobody watches over ranks that have said farewell.
        if known.is_none() && store.over_within(Duration::ZERO) {
            let since = *over.get_or_insert_with(Instant::now);
            if since.elapsed() >= deadline {
                return Err(Failure::Run(anyhow::anyhow!(
                    "all ranks have done their work, but mpirun has not ended {deadline:.0?} after"
                )));
            }
        }
    }
}

/// How often somebody has asked the run to end.
struct Signals(Arc<AtomicUsize>);

impl Signals {
    fn watch() -> Result<Self, Failure> {
        let count = Arc::new(AtomicUsize::new(0));
        let all = signals::of_people().into_iter().chain([SIGUSR1]);
        let mut watch = signal_hook::iterator::Signals::new(all).context("cannot watch signals")?;
        let counter = count.clone();
        std::thread::spawn(move || {
            for _ in watch.forever() {
                counter.fetch_add(1, Ordering::Relaxed);
            }
        });
        Ok(Self(count))
    }

    fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Waits for `pause`, or until somebody has asked; whether somebody has.
    fn come_within(&self, pause: Duration) -> bool {
        let began = Instant::now();
        while self.count() == 0 && began.elapsed() < pause {
            std::thread::sleep(TICK);
        }
        self.count() > 0
    }
}
