//! `trine launch`: the supervisor of a run whose ranks are processes. It stands outside of MPI: it
//! starts mpirun, hears the ranks' heartbeats, says why a run has failed, leaves no process behind,
//! and starts it again if it may.

use crate::args::{Cli, Command, LaunchArgs, TrainArgs};
use crate::failure::Failure;
use crate::layout::{self, Decided};
use crate::output;
use anyhow::Context;
use clap::Parser;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, kill_process_group, wait};
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{self, Child, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use trine_comm::{Diagnosis, PostMortem};
use trine_rendezvous::{Store, StoreOptions, Token};
use trine_trainer::config::Config;
use trine_trainer::run::write_post_mortem;

/// Where `trine launch` listens.
pub(crate) const STORE: &str = "TRINE_STORE";
/// What it asks for.
pub(crate) const TOKEN: &str = "TRINE_TOKEN";
/// Under which key rank 0 says where the run is.
pub(crate) const DIRECTORY: &str = "directory";

/// How often the supervisor looks.
const TICK: Duration = Duration::from_millis(50);

/// After the first cause is known: how long ranks have to end by themselves, and mpirun after it was
/// told to.
const RANKS_END_WITHIN: Duration = Duration::from_millis(1500);
const MPIRUN_ENDS_WITHIN: Duration = Duration::from_millis(1000);

/// Pauses before restarts: doubled each time.
const BACK_OFF_MIN: Duration = Duration::from_secs(1);
const BACK_OFF_MAX: Duration = Duration::from_secs(60);

/// The code of a run that somebody has ended before it could save.
const INTERRUPTED: u8 = 130;

/// How one attempt ended.
enum End {
    Well,
    /// The arguments were refused: another attempt would be too.
    Usage(u8),
    /// Somebody wanted it to end.
    Interrupted,
    /// With the first cause, where it is known, and the run directory, where there is one.
    Failed(Option<Diagnosis>, Option<String>),
}

/// Runs the command.
pub(crate) fn run(args: &LaunchArgs) -> Result<(), Failure> {
    let (typed, decided) = checked(args)?;
    let (mut config, chosen) = (decided.config, decided.chosen);
    // What outlives mpirun becomes a child of this process, which can then end it.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .context("cannot become the parent of what mpirun leaves behind")?;
    let signals = Signals::watch()?;
    let mut train = args.train.clone();
    if let Some(chosen) = chosen {
        output::complain(&chosen);
        train.extend(layout_options(&config));
    }
    // Once an attempt has told it, the later ones go on there, also after one that ended too early to.
    let mut known = typed.resume.as_ref().map(|path| path.display().to_string());
    for attempt in 0.. {
        match once(args, &config, &train, &signals)? {
            End::Well => return Ok(()),
            End::Usage(code) => return Err(Failure::Silent(code)),
            End::Interrupted => return Err(Failure::Silent(INTERRUPTED)),
            End::Failed(diagnosis, told) => {
                known = told.or(known);
                let directory = known.as_deref().filter(|_| !typed.dry_run);
                let may = attempt < args.restarts && signals.count() == 0;
                let Some(directory) = directory.filter(|_| may) else {
                    let said = diagnosis.is_some();
                    return Err(if said { Failure::Silent(1) } else { unexplained(args, &train) });
                };
                let pause = (BACK_OFF_MIN * 2u32.saturating_pow(attempt)).min(BACK_OFF_MAX);
                output::complain(&format!(
                    "restart {} of {} in {} s, from the last whole checkpoint",
                    attempt + 1,
                    args.restarts,
                    pause.as_secs()
                ));
                if signals.come_within(pause) {
                    return Err(Failure::Silent(INTERRUPTED));
                }
                train = resumed(&typed, directory);
                // Without the rank that is gone, where the configuration allows it.
                let lost = diagnosis.and_then(|_| config.with_ranks_left(config.world() - 1));
                if let Some(smaller) = lost {
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

/// The arguments of `trine train`, refused here rather than by every rank.
fn checked(args: &LaunchArgs) -> Result<(Box<TrainArgs>, Decided), Failure> {
    let words = ["trine".into(), "train".into()].into_iter().chain(args.train.iter().cloned());
    let typed = match Cli::try_parse_from(words).map(|cli| cli.command) {
        Ok(Command::Train(typed)) => typed,
        Ok(_) => return Err(Failure::usage("after `--` come arguments of `trine train`")),
        Err(error) => error.exit(),
    };
    let decided = layout::decide(&typed, args.ranks)?;
    let config = &decided.config;
    config.check()?;
    let ranks = args.ranks.unwrap_or(config.world());
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

/// The arguments that go on with a run: its directory has the rest.
fn resumed(typed: &TrainArgs, directory: &str) -> Vec<OsString> {
    let mut train: Vec<OsString> = vec!["--resume".into(), directory.into()];
    if let Some(trace) = &typed.trace {
        train.extend(["--trace".into(), trace.clone().into_os_string()]);
    }
    train
}

fn unexplained(args: &LaunchArgs, train: &[OsString]) -> Failure {
    let words: Vec<_> = train.iter().map(|word| word.to_string_lossy()).collect();
    Failure::Run(anyhow::anyhow!(
        "{} has ended before any rank could say why; see what it says by itself: {} -n … trine train --backend mpi {}",
        args.mpirun.display(),
        args.mpirun.display(),
        words.join(" ")
    ))
}

/// One attempt.
fn once(
    args: &LaunchArgs,
    config: &Config,
    train: &[OsString],
    signals: &Signals,
) -> Result<End, Failure> {
    let ranks = config.world();
    let token = Token::generate().context("no token for the run")?;
    let options = StoreOptions {
        deadline: config.deadline(),
        ..StoreOptions::new((args.interface, 0).into(), ranks, token.clone())
    };
    let store = Store::bind(options).map_err(|error| Failure::Usage(error.into()))?;
    let mut mpirun = command(args, ranks, train)?;
    mpirun.env(STORE, store.address().to_string()).env(TOKEN, token.reveal());
    let mut child = mpirun.spawn().map_err(|error| {
        Failure::usage(format!(
            "cannot run {}: {error}; install an MPI library (Debian: openmpi-bin), or say where it \
             is with --mpirun",
            args.mpirun.display()
        ))
    })?;
    let watched = watch(&mut child, &store, signals, config.deadline());
    let records = store.records_within(Duration::from_millis(200));
    let all_ended = end_all(&mut child);
    let (status, cause) = watched?;
    let directory = store.value(DIRECTORY).map(|path| String::from_utf8_lossy(&path).into_owned());
    let code = status.and_then(|status| status.code());
    let cause = cause.or_else(|| store.cause_within(Duration::ZERO));
    let end = match (cause, code) {
        (None, Some(0)) => End::Well,
        (None, Some(code @ 2)) => End::Usage(code as u8),
        // Also by the first one, if it came before the ranks could heed it.
        (None, _) if signals.count() > 0 => End::Interrupted,
        (Some(diagnosis), _) => {
            output::complain(&format!("error: {diagnosis}"));
            let post_mortem = PostMortem { diagnosis: diagnosis.clone(), records };
            if let Some(directory) = &directory {
                keep(directory, &post_mortem);
                output::complain(&format!("resume: trine launch -- --resume {directory}"));
            }
            End::Failed(Some(diagnosis), directory)
        }
        (None, _) => End::Failed(None, directory),
    };
    all_ended.map(|()| end)
}

/// Writes the flight recorders, and says where they are.
pub(crate) fn keep(directory: &str, post_mortem: &PostMortem) {
    match write_post_mortem(directory.as_ref(), post_mortem) {
        Ok(folder) => output::complain(&format!("flight recorders: {}", folder.display())),
        Err(error) => output::complain(&format!("no flight recorders: {error}")),
    }
}

/// mpirun and its arguments.
fn command(
    args: &LaunchArgs,
    ranks: usize,
    train: &[OsString],
) -> Result<process::Command, Failure> {
    let trine = std::env::current_exe().context("where is this program?")?;
    let mut mpirun = process::Command::new(&args.mpirun);
    mpirun.args(["-n", &ranks.to_string()]);
    let version = process::Command::new(&args.mpirun).arg("--version").output();
    let says = version.map(|output| output.stdout).unwrap_or_default();
    if String::from_utf8_lossy(&says).contains("Open MPI") {
        // Threads of a rank must not share one core; ranks may outnumber cores; the environment does
        // not reach other hosts by itself.
        mpirun.args(["--quiet", "--bind-to", "none", "--oversubscribe", "-x", STORE, "-x", TOKEN]);
        if rustix::process::geteuid().is_root() {
            mpirun.arg("--allow-run-as-root");
        }
    }
    mpirun.args(&args.mpirun_arg).arg(trine).args(["train", "--backend", "mpi"]).args(train);
    // An interrupt from the terminal is for the supervisor, which asks the ranks to save.
    mpirun.process_group(0);
    mpirun.stdin(process::Stdio::null());
    Ok(mpirun)
}

/// Watches until mpirun has ended, or the first cause of a failure is known and ranks have had time
/// to end.
fn watch(
    child: &mut Child,
    store: &Store,
    signals: &Signals,
    deadline: Duration,
) -> Result<(Option<ExitStatus>, Option<Diagnosis>), Failure> {
    let mut passed_on = 0;
    let mut known: Option<(Diagnosis, Instant)> = None;
    let mut over: Option<Instant> = None;
    loop {
        if let Some(status) = child.try_wait().context("cannot wait for mpirun")? {
            return Ok((Some(status), known.map(|(cause, _)| cause)));
        }
        match signals.count() {
            // mpirun hands this one on to the ranks: they finish the step, save and end well.
            1 if passed_on == 0 => {
                passed_on = 1;
                kill(child, Signal::USR1);
            }
            0 | 1 => {}
            _ => return Ok((None, None)),
        }
        if known.is_none() {
            known = store.cause_within(TICK).map(|cause| (cause, Instant::now()));
        } else {
            std::thread::sleep(TICK);
        }
        if let Some((cause, since)) = &known
            && since.elapsed() >= RANKS_END_WITHIN
        {
            return Ok((None, Some(cause.clone())));
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

fn pid(child: &Child) -> Option<Pid> {
    Pid::from_raw(i32::try_from(child.id()).ok()?)
}

fn kill(child: &Child, signal: Signal) {
    if let Some(pid) = pid(child) {
        // It may have ended in the meantime.
        let _ = kill_process(pid, signal);
    }
}

/// Ends mpirun and everything that it has left on this host. Other hosts' ranks end with their
/// daemons, and by themselves when the side channel is gone.
fn end_all(child: &mut Child) -> Result<(), Failure> {
    let ended = |child: &mut Child| child.try_wait().context("cannot wait for mpirun");
    if ended(child)?.is_none() {
        kill(child, Signal::TERM);
        let told = Instant::now();
        while ended(child)?.is_none() && told.elapsed() < MPIRUN_ENDS_WITHIN {
            std::thread::sleep(TICK);
        }
        if ended(child)?.is_none() {
            if let Some(pid) = pid(child) {
                let _ = kill_process_group(pid, Signal::KILL);
            }
            child.wait().context("cannot wait for mpirun")?;
        }
    }
    // Orphans become children of this process one generation after the other.
    let began = Instant::now();
    while let Some(orphans) = Some(children()).filter(|all| !all.is_empty()) {
        for orphan in orphans {
            let _ = kill_process(orphan, Signal::KILL);
        }
        while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
        if began.elapsed() > Duration::from_secs(5) {
            return Err(Failure::Run(anyhow::anyhow!("some ranks could not be ended")));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// This process's children, as Linux lists them.
fn children() -> Vec<Pid> {
    let mut all = Vec::new();
    for task in std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let text = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        let pids = text.split_whitespace().filter_map(|pid| pid.parse().ok());
        all.extend(pids.filter_map(Pid::from_raw));
    }
    all
}

/// How often somebody has asked the run to end.
struct Signals(Arc<AtomicUsize>);

impl Signals {
    fn watch() -> Result<Self, Failure> {
        let count = Arc::new(AtomicUsize::new(0));
        let watch = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGUSR1]);
        let mut watch = watch.context("cannot watch signals")?;
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
