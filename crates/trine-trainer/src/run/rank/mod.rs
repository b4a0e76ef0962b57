//! One rank's part of a run: the loop of steps.

mod decide;
mod evaluate;
mod report;
mod restore;
mod save;
mod step;

pub(crate) use report::{CHECK_STEPS_MIN, RankReport, RunResult, one_pipeline};

use crate::TrainError;
use crate::config::Pin;
use crate::cores::rank_team;
use crate::engine::{Engine, EngineConfig, RankPlan};
use crate::outlook::Outlook;
use crate::planned::Machine;
use crate::run::data::RunData;
use crate::run::events::report;
use crate::run::loader::Loader;
use crate::run::measure::{ActionClock, rss_bytes};
use crate::run::trace::Trace;
use crate::run::{Event, Reporter, RunDirectory, TrainRequest, Work};
use decide::StopReason;
use report::{CHECK_STEPS, Outcome};
use std::sync::{Arc, Mutex};
use std::thread::{self, Scope};
use std::time::Duration;
use trine_checkpoint::Checkpoint;
use trine_comm::wrap::Sealed;
use trine_comm::{Communicator, Name, Phase};
use trine_kernels::CpuOps;

/// What all ranks of a run share.
#[derive(Clone, Copy)]
pub(crate) struct RankRun<'a> {
    pub(crate) request: &'a TrainRequest<'a>,
    pub(crate) engine: &'a EngineConfig,
    /// What the steps will take.
    pub(crate) outlook: &'a Outlook,
    /// The machine of the plan, or why none is known.
    pub(crate) machine: &'a Result<Machine, String>,
    pub(crate) data: &'a RunData,
    pub(crate) directory: &'a RunDirectory,
    pub(crate) restored: Option<&'a Checkpoint>,
    pub(crate) reporter: &'a Mutex<dyn Reporter + 'a>,
    /// If one was asked for.
    pub(crate) trace: Option<&'a Trace>,
    /// The machine; empty where all ranks are threads of this process.
    pub(crate) host: &'a str,
    /// A rank's share of this machine's cores.
    pub(crate) cores: f64,
}

/// The loop's own numbers.
struct Progress {
    step: u64,
    total: u64,
    started_at: u64,
    train_wall: Duration,
    train_cpu_s: f64,
    /// Wall seconds of each step of this process until the plan is checked.
    step_seconds: Vec<f64>,
    final_loss: f64,
    stopped: StopReason,
    saved_at: Option<u64>,
    /// Whether the number of steps has been fitted to the time limit: that happens once.
    fitted: bool,
}

impl<'a> RankRun<'a> {
    fn first_step(&self) -> u64 {
        self.restored.map_or(0, |checkpoint| checkpoint.manifest().run.step)
    }

    /// Makes the directory ready. Called once a run.
    pub(crate) fn begin(&self) -> Result<(), TrainError> {
        self.directory.begin(&self.request.config, self.first_step())
    }

    /// Tells that the ranks start. Called once a process.
    pub(crate) fn tell_start(&self) {
        let started = Event::Started {
            config: &self.request.config,
            engine: self.engine,
            data: self.data.report(),
            directory: self.directory.path(),
            first_step: self.first_step(),
        };
        report(self.reporter, &started);
        report(self.reporter, &Event::Outlook(self.outlook));
    }

    /// A rank's life, to its end or to its failure. An error that all ranks have been told, of one of
    /// them, is for that one to report: it stops the world while the others wait here.
    pub(crate) fn run(&self, world: Arc<dyn Communicator>) -> Result<RunResult, TrainError> {
        let trained = thread::scope(|scope| self.train(scope, world.clone()));
        trained.map_err(|error| match error.concerned() {
            Some(rank) if rank != world.rank() => {
                world.barrier("failure of another rank").err().map_or(error, TrainError::from)
            }
            Some(_) | None => error,
        })
    }

    /// Build, restore, step by step, evaluate, save.
    fn train<'scope, 'env>(
        &self,
        scope: &'scope Scope<'scope, 'env>,
        world: Arc<dyn Communicator>,
    ) -> Result<RunResult, TrainError>
    where
        'a: 'env,
    {
        let recorder = world.recorder().clone();
        self.tell(world.rank(), Work::Building);
        recorder.begin_phase(self.long(Name::new("building the model")));
        let (team, _pinned) =
            rank_team(self.pin(), world.size(), world.rank(), self.engine.threads);
        let ops = Arc::new(CpuOps::with_isa(team, self.engine.numerics.isa())?);
        let plan = RankPlan::new(self.engine, world.rank())?;
        let mut engine = Engine::with_ops(self.engine, plan, self.communicator(world), ops)?;
        recorder.begin_phase(self.long(Name::new("restoring")));
        let mut progress = self.restore(&mut engine)?;
        let mut clock = self.clock(&engine);
        let mut loader = self.loader(scope, &engine, &progress)?;
        let mut plan = None;
        while progress.step < progress.total {
            recorder.begin_phase(Name::new("training").with("step", progress.step + 1));
            let decision = self.decide(&engine, &progress)?;
            if decision.total != progress.total {
                self.note(
                    &engine,
                    format!(
                        "time limit: {} of {} steps fit into {} minutes",
                        decision.total, progress.total, self.request.config.train.minutes_max
                    ),
                );
                progress.total = decision.total;
            }
            progress.fitted |= self.is_fitting_due(&progress);
            if decision.stop != StopReason::None {
                progress.stopped = decision.stop;
                break;
            }
            let mut line = self.step(&mut engine, &mut progress, &mut clock, &mut loader)?;
            line.val_loss = self.evaluate_on_the_way(&mut engine, &progress)?;
            if is_first(&engine) {
                self.directory.append(&line)?;
                let (steps, rss_bytes) = (progress.total, rss_bytes());
                report(self.reporter, &Event::Step { line: &line, steps, rss_bytes });
            }
            if progress.step - progress.started_at == CHECK_STEPS as u64 {
                plan = self.check_plan(&engine, &progress, &clock)?;
            }
            let every = self.request.config.checkpoint.every as u64;
            if every > 0 && progress.step.is_multiple_of(every) {
                self.save(&engine, &mut progress)?;
            }
        }
        let steps = progress.step - progress.started_at;
        if (CHECK_STEPS_MIN..CHECK_STEPS as u64).contains(&steps) {
            plan = self.check_plan(&engine, &progress, &clock)?;
        }
        if progress.saved_at != Some(progress.step) {
            self.save(&engine, &mut progress)?;
        }
        let asked = progress.stopped == StopReason::Asked;
        let validation = if asked { None } else { Some(self.evaluate(&mut engine, true)?) };
        self.result(&engine, progress, clock, Outcome { validation, plan })
    }

    /// Measures the actions of the rank's list, for the trace too.
    fn clock(&self, engine: &Engine) -> ActionClock {
        let RankPlan { coordinate, training, .. } = engine.plan();
        let track = self.trace.map(|trace| trace.track(engine.world().rank(), *coordinate));
        ActionClock::new(training.actions[coordinate.pp].len(), track)
    }

    /// The batches of the steps that are left.
    fn loader<'scope, 'env>(
        &self,
        scope: &'scope Scope<'scope, 'env>,
        engine: &Engine,
        progress: &Progress,
    ) -> Result<Loader<'scope>, TrainError>
    where
        'a: 'env,
    {
        let (data, config, dp) = (self.data, self.engine, engine.plan().coordinate.dp);
        let steps = progress.step..progress.total;
        Loader::start(scope, steps, move |step| data.batch(step, config, dp))
    }

    /// Tells what the ranks of this process are at: one of them does.
    fn tell(&self, rank: usize, work: Work) {
        if rank == 0 || self.is_process() {
            report(self.reporter, &Event::Work(work));
        }
    }

    /// Whether the rank is a process of its own.
    pub(crate) fn is_process(&self) -> bool {
        !self.host.is_empty()
    }

    /// Whether the rank's threads are kept on cores. What launchers start, they bind; several processes
    /// could not agree here on who has which core.
    fn pin(&self) -> Pin {
        if self.is_process() { Pin::Off } else { self.request.config.threads.pin }
    }

    /// What the rank talks through: the communicator, and what the run puts in front of it.
    fn communicator(&self, world: Arc<dyn Communicator>) -> Arc<dyn Communicator> {
        let wrapped = (self.request.seams.wrap)(world);
        if self.request.config.comm.checksum { Sealed::around(wrapped) } else { wrapped }
    }

    /// A phase in which a rank may be busy with one thing for minutes.
    fn long(&self, name: Name) -> Phase {
        Phase { name, deadline: Some(self.request.config.long_deadline()) }
    }

    fn note(&self, engine: &Engine, text: String) {
        if is_first(engine) {
            report(self.reporter, &Event::Note(text));
        }
    }
}

fn is_first(engine: &Engine) -> bool {
    engine.world().rank() == 0
}
