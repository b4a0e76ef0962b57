//! `trine train` as one process of several.

use crate::args::TrainArgs;
use crate::commands::train::{self, Run};
use crate::failure::Failure;
use crate::launcher::Launched;
use crate::out_of_memory::OutOfMemory;
use crate::output::counted;
use crate::progress::Screen;
use crate::side::{self, Side};
use crate::signals::Heeding;
use crate::terminal::Terminal;
use crate::{dry_run, gpus, layout, output, select};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use trine_comm_mpi::{MpiOptions, World};
use trine_mesh::{Mesh, Placement};
use trine_trainer::config::{Config, File, LayoutBy, Loaded, Typed};
use trine_trainer::run::{Event, Reporter, Work};
use trine_trainer::{Process, Ranks, TrainError};

/// How long a rank waits in one operation at last; before that, heartbeats tell who is stuck.
const DEADLINE: Duration = Duration::from_secs(3600);

/// The time for the news of a failure to get out.
const FAREWELL: Duration = Duration::from_secs(1);

/// Joins the other processes and trains with them. One of them speaks for all.
pub(crate) fn run(
    args: &TrainArgs,
    terminal: &Terminal,
    launched: Option<&Launched>,
    started: Instant,
    memory: &OutOfMemory,
) -> Result<(), Failure> {
    let options = MpiOptions { deadline: DEADLINE, ..MpiOptions::default() };
    let world = World::join(options).map_err(|error| Failure::Run(error.into()))?;
    let outcome = live(&world, args, terminal, launched, started, memory);
    let Err(failure) = outcome else {
        return world.leave().map_err(|error| Failure::Run(error.into()));
    };
    // Said before anybody leaves: mpirun ends all ranks as soon as one has ended, this one included.
    let (code, cause) = (failure.code(), failure.to_string());
    let has_failed = matches!(failure, Failure::Run(_));
    output::fail(&failure, terminal.errors);
    if has_failed {
        world.comm().abort(&cause);
        world.flush(FAREWELL);
    } else {
        // Everybody knows, and goes the same way.
        drop(world.leave());
    }
    Err(Failure::Silent(code))
}

fn live(
    world: &World,
    args: &TrainArgs,
    terminal: &Terminal,
    launched: Option<&Launched>,
    started: Instant,
    memory: &OutOfMemory,
) -> Result<(), Failure> {
    let comm = |error: trine_comm::CommError| Failure::Run(error.into());
    let all = Process::new(world.comm(), world.host()).map_err(comm)?;
    let is_usage = TrainError::is_usage;
    let (config, chosen) = decided(&all, args)?;
    let placement = spoken(&all, all.agree(place(world, launched, &config, &all), is_usage))?;
    let process = Process::new(world.arranged(placement.order()), world.host()).map_err(comm)?;
    if args.dry_run {
        return match process.world().rank() {
            0 => output::print(&dry_run::report(
                &config,
                Some(placement.hosts()),
                chosen.as_deref(),
                args.machine.as_deref().map(|path| (path, false)),
            )?),
            _ => Ok(()),
        };
    }
    let env = |name: &str| std::env::var(name).ok();
    let supervisor = spoken(&process, side::supervisor(&env))?;
    let side = Side::open(&process, &config, supervisor, args.interface, terminal.program());
    let side = spoken(&process, side)?;
    if process.world().rank() == 0 {
        let by = launched.map_or("no launcher", |launched| &launched.by);
        let (library, size) = (trine_comm_mpi::library(), process.world().size());
        output::complain(&format!("{} on {library}, by {by}", counted(size, "rank")));
        output::complain(&hosts_line(placement.hosts()));
        if let Some(chosen) = chosen {
            output::complain(&chosen);
        }
    }
    let reporter = Mutex::new(Told {
        screen: (process.world().rank() == 0).then(|| {
            Screen::new(terminal, config.log.every_seconds, side.resume_by(terminal.program()))
        }),
        side: &side,
        is_stepping: false,
    });
    let who = match process.world().rank() {
        0 => String::new(),
        _ => format!("{}: ", process.place()),
    };
    let heeding = Heeding { who, supervised: side.is_supervised() };
    let ranks = Ranks::Process(&process);
    let run =
        Run { config, args, started, ranks, machine: None, devices: (None, None), memory, heeding };
    let outcome = catch_unwind(AssertUnwindSafe(|| train::train(run, &reporter)));
    let outcome = outcome.unwrap_or_else(|panic| Err(Failure::Run(anyhow::anyhow!(said(&*panic)))));
    let told = reporter.into_inner().unwrap_or_else(PoisonError::into_inner);
    let shown = told.screen.map_or(Ok(()), Screen::end);
    match outcome {
        Ok(()) => {
            side.farewell();
            shown
        }
        Err(failure @ Failure::Usage(_)) => {
            side.farewell();
            let is_first = process.world().rank() == 0;
            Err(if is_first { failure } else { Failure::Silent(failure.code()) })
        }
        Err(failure) => {
            let cause = failure.to_string();
            let code = side.failed(&process, &failure);
            process.world().abort(&cause);
            world.flush(FAREWELL);
            // Nobody waits for the others any more.
            signal_hook::low_level::exit(i32::from(code))
        }
    }
}

/// The configuration that all have in common. Where the machine decides the layout, rank 0's does, for as many ranks as
/// there are processes; the line says why.
fn decided(all: &Process, args: &TrainArgs) -> Result<(Config, Option<String>), Failure> {
    let refused = |failure: Failure| TrainError::Refused(failure.to_string());
    let on_processors = |loaded: Loaded| gpus::refuse_processes(&loaded.config).map(|()| loaded);
    let loaded = select::of_train(args).and_then(on_processors).map_err(refused);
    let loaded = spoken(all, all.agree(loaded, TrainError::is_usage))?;
    if loaded.layout_by == LayoutBy::Configuration {
        return Ok((loaded.config, None));
    }
    let (rank, size) = (all.world().rank(), all.world().size());
    let own = match rank {
        0 => layout::decide(args, loaded, Some(size)).map(Some),
        _ => Ok(None),
    };
    let own = spoken(all, all.agree(own.map_err(refused), TrainError::is_usage))?;
    let text = own.as_ref().map_or(Ok(String::new()), |own| own.config.to_toml());
    let text = spoken(all, all.agree(text.map_err(TrainError::from), TrainError::is_usage))?;
    let text = all.rank_0_says(&text).map_err(|error| Failure::Run(error.into()))?;
    let file = Some(File { name: "rank 0's layout".into(), text });
    let config = Config::load(&Typed { file, is_stored: true, ..Typed::default() })?;
    Ok((config, own.and_then(|own| own.chosen)))
}

/// A panic's message.
fn said(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
    format!("panicked: {text}")
}

/// Rank 0's events on its screen, and where the run is and that it trains to whoever watches over it.
struct Told<'a> {
    screen: Option<Screen>,
    side: &'a Side,
    is_stepping: bool,
}

impl Reporter for Told<'_> {
    fn event(&mut self, event: &Event<'_>) {
        if let Event::Started { directory, .. } = event {
            self.side.put_directory(directory);
        }
        let Some(screen) = &mut self.screen else { return };
        if matches!(event, Event::Work(Work::Step { .. })) && !self.is_stepping {
            self.is_stepping = true;
            self.side.put_stepping();
        }
        screen.event(event);
    }
}

/// The world against the variables and the layout.
fn place(
    world: &World,
    launched: Option<&Launched>,
    config: &Config,
    all: &Process,
) -> Result<Placement, TrainError> {
    if let Some(Launched { rank, size, by }) = launched
        && (*rank != world.rank() || size.is_some_and(|size| size != world.size()))
    {
        return Err(TrainError::Refused(format!(
            "{by}, but MPI says rank {} of {}: was this binary built against another MPI than the \
             launcher's ({})?",
            world.rank(),
            world.size(),
            trine_comm_mpi::library()
        )));
    }
    let mesh = Mesh::new(config.degrees(), world.size()).map_err(|error| {
        let by = launched.map_or("no launcher: `trine launch` starts them", |one| &one.by);
        TrainError::Refused(format!("{error}; the processes are {}, by {by}", world.size()))
    })?;
    Ok(Placement::new(&mesh, all.hosts())?)
}

/// `4 ranks on nodea, 4 on nodeb`.
fn hosts_line(hosts: &[String]) -> String {
    let runs = hosts.chunk_by(|one, other| one == other);
    let parts: Vec<String> = runs.map(|run| format!("{} on {}", run.len(), run[0])).collect();
    format!("ranks: {}", parts.join(", "))
}

/// An outcome that all ranks have in common: rank 0 speaks for all.
fn spoken<T>(process: &Process, outcome: Result<T, TrainError>) -> Result<T, Failure> {
    outcome.map_err(|error| {
        let failure = Failure::from(error);
        if process.world().rank() == 0 { failure } else { Failure::Silent(failure.code()) }
    })
}
