//! One rank's part of a run: the loop of steps.

mod decide;
mod evaluate;
mod report;
mod restore;
mod save;
mod step;

pub(crate) use decide::StopReason;
pub(crate) use report::{CHECK_STEPS_MIN, RankReport, RunResult};

use crate::TrainError;
use crate::engine::{Engine, EngineConfig, Loss};
use crate::outlook::Outlook;
use crate::plan::RunPlan;
use crate::planned::{Machine, PlanCheck};
use crate::run::build::build;
use crate::run::data::RunData;
use crate::run::events::report;
use crate::run::loader::Loader;
use crate::run::measure::{ActionClock, rss_bytes};
use crate::run::resume::steps_total;
use crate::run::trace::Trace;
use crate::run::{Event, MetricsLine, Reporter, RunDirectory, TrainRequest, Work};
use report::CHECK_STEPS;
use std::sync::{Arc, Mutex};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};
use trine_checkpoint::Checkpoint;
use trine_comm::{Communicator, Name, Phase};
use trine_mesh::plural;
use trine_spec::ModelSpec;
use trine_spec::hf;

/// What all ranks of a run share.
#[derive(Clone, Copy)]
pub(crate) struct RankRun<'a> {
    pub(crate) request: &'a TrainRequest<'a>,
    pub(crate) plan: &'a Arc<RunPlan>,
    /// What the plan was made from.
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
    /// Seconds that making the data ready took.
    pub(crate) data_s: f64,
}

/// The loop's own numbers.
struct Progress {
    step: u64,
    total: u64,
    started_at: u64,
    /// Samples of the whole run so far: where it is in the data, whatever its batch was before.
    samples: u64,
    times: Times,
    train_cpu_s: f64,
    /// Wall seconds of each step of this process until the plan is checked.
    step_seconds: Vec<f64>,
    final_loss: f64,
    stopped: StopReason,
    saved_at: Option<u64>,
    /// When the last checkpoint was saved, or the loop began.
    saved_when: Instant,
    /// The step whose weights have been evaluated last, and gave a finite loss.
    evaluated_at: Option<u64>,
    /// Whether old checkpoints wait until the newest has been shown to be good.
    prune_due: bool,
    /// The lowest validation loss so far, where its checkpoint is kept.
    best: Option<Best>,
    /// The metrics of the last step of this process.
    line: Option<MetricsLine>,
    /// The validation loss at the end.
    validation: Option<Loss>,
    /// Whether the number of steps has been fitted to the time limit: that happens once.
    fitted: bool,
}

/// Where the wall time of the loop goes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Times {
    /// From the start of the process to the loop.
    pub(crate) before: Duration,
    /// Training steps.
    pub(crate) train: Duration,
    /// Evaluations.
    pub(crate) evaluate: Duration,
    /// Checkpoints.
    pub(crate) save: Duration,
}

/// A step and its validation loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Best {
    pub(crate) step: u64,
    pub(crate) val_loss: f64,
}

impl<'a> RankRun<'a> {
    fn first_step(&self) -> u64 {
        self.restored.map_or(0, |checkpoint| checkpoint.manifest().run.step)
    }

    /// Makes the directory of a new run ready; one that goes on is left as it is until it has done a step.
    /// Called once a run.
    pub(crate) fn begin(&self) -> Result<(), TrainError> {
        if self.request.resume {
            return Ok(());
        }
        self.directory.begin(&self.request.config, 0)
    }

    /// Tells that the ranks start. Called once a process.
    pub(crate) fn tell_start(&self) {
        let started = Event::Started {
            config: &self.request.config,
            engine: self.engine,
            data: self.data.report(),
            directory: self.directory.path(),
            first_step: self.first_step(),
            ends_by: self.request.ends_by(),
        };
        report(self.reporter, &started);
        if let Some(said) = self.request.devices_said {
            report(self.reporter, &Event::Devices(said));
        }
        report(self.reporter, &Event::Outlook(self.outlook));
        let notes = self.request.config.tokens_not_split().into_iter();
        let notes = notes.chain(other_architecture(&self.engine.model));
        for note in notes.chain(self.unknown_device()) {
            report(self.reporter, &Event::Note(note));
        }
        let (steps, warmup) = (self.steps_total(), self.request.config.lr.warmup_steps as u64);
        if warmup > steps {
            let reached = 100.0 * steps as f64 / warmup as f64;
            let text = format!(
                "lr.warmup_steps = {warmup} is longer than the run of {steps} {}: the rate ends at \
                 {reached:.0} % of its peak",
                plural(steps, "step")
            );
            report(self.reporter, &Event::Note(text));
        }
    }

    /// Steps of the whole run, as far as they are known before it.
    fn steps_total(&self) -> u64 {
        let config = &self.request.config;
        self.restored.map_or(config.train.steps as u64, |checkpoint| {
            steps_total(config, &checkpoint.manifest().run).0
        })
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
        let (_pinned, mut engine) = build(self.request, self.plan, world, self.is_process())?;
        recorder.begin_phase(self.long(Name::new("restoring")));
        let mut progress = self.restore(&mut engine)?;
        let mut clock = self.clock(&engine)?;
        let mut loader = self.loader(scope, &engine, &progress)?;
        let plan = self.steps(&mut engine, &mut progress, &mut clock, &mut loader)?;
        if progress.validation.is_none() && progress.stopped != StopReason::Asked {
            self.evaluate_at_last(&mut engine, &mut progress)?;
        }
        if progress.saved_at != Some(progress.step) {
            self.save(&engine, &mut progress)?;
        }
        self.result(&engine, progress, clock, plan)
    }

    /// Step by step, to the last one or to a reason to stop. Gives rank 0's check of the plan.
    fn steps(
        &self,
        engine: &mut Engine,
        progress: &mut Progress,
        clock: &mut ActionClock,
        loader: &mut Loader<'_>,
    ) -> Result<Option<PlanCheck>, TrainError> {
        let recorder = engine.world().recorder().clone();
        let mut plan = None;
        while progress.step < progress.total {
            recorder.begin_phase(Name::new("training").with("step", progress.step + 1));
            let decision = self.decide(engine, progress)?;
            self.refit(engine, progress, decision.total);
            if decision.stop != StopReason::None {
                progress.stopped = decision.stop;
                break;
            }
            let is_new = progress.step > progress.started_at;
            if decision.save && is_new && progress.saved_at != Some(progress.step) {
                self.save(engine, progress)?;
            }
            let mut line = self.step(engine, progress, clock, loader)?;
            // The step's loss is that of the weights before it, and it is finite.
            self.prune(engine, progress)?;
            line.val_loss = self.evaluate_on_the_way(engine, progress)?;
            if is_first(engine) {
                self.directory.append(&self.request.config, &line)?;
                self.report_step(&line, progress);
            }
            progress.line = Some(line);
            if progress.step - progress.started_at == CHECK_STEPS as u64 {
                plan = self.check_plan(engine, progress, clock)?;
            }
            if self.is_save_due(progress) {
                self.save(engine, progress)?;
            }
        }
        let steps = progress.step - progress.started_at;
        if (CHECK_STEPS_MIN..CHECK_STEPS as u64).contains(&steps) {
            plan = self.check_plan(engine, progress, clock)?;
        }
        Ok(plan)
    }

    fn report_step(&self, line: &MetricsLine, progress: &Progress) {
        let (steps, rss_bytes) = (progress.total, rss_bytes());
        report(self.reporter, &Event::Step { line, steps, rss_bytes });
    }

    /// Takes over the number of steps that fit into the time.
    fn refit(&self, engine: &Engine, progress: &mut Progress, total: u64) {
        if total != progress.total {
            let (before, minutes) = (progress.total, self.request.config.train.minutes_max);
            let text = format!("time limit of {minutes} min: {total} of {before} steps fit");
            self.note(engine, text);
            progress.total = total;
        }
        progress.fitted |= self.is_fitting_due(progress);
    }

    /// Measures the actions of the rank's list, for the trace too.
    fn clock(&self, engine: &Engine) -> Result<ActionClock, TrainError> {
        let at = engine.coordinate();
        let track = self.trace.map(|trace| trace.track(engine.world().rank(), at));
        let actions = self.plan.training.actions[at.pp].len();
        ActionClock::new(actions, engine.place(), track)
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
        let (data, config, dp) = (self.data, self.engine, engine.coordinate().dp);
        let (steps, samples) = (progress.step..progress.total, progress.samples);
        let (first, each) = (progress.step, config.global_batch as u64);
        let batch = move |step| data.batch(samples + (step - first) * each, config, dp);
        Loader::start(scope, steps, batch)
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

    /// A phase in which a rank may be busy with one thing for minutes.
    fn long(&self, name: Name) -> Phase {
        Phase { name, deadline: Some(self.request.config.long_deadline()) }
    }

    /// Writes again what somebody has removed of the run, and says so. For the first rank.
    pub(crate) fn mend(&self) -> Result<(), TrainError> {
        if let Some(text) = self.directory.mend(&self.request.config)? {
            report(self.reporter, &Event::Note(text));
        }
        Ok(())
    }

    fn note(&self, engine: &Engine, text: String) {
        if is_first(engine) {
            report(self.reporter, &Event::Note(text));
        }
    }
}

/// What others cannot do with the checkpoints, if there is something.
fn other_architecture(model: &ModelSpec) -> Option<String> {
    let lacks = hf::obstacles(model).join(", ");
    (!lacks.is_empty()).then(|| {
        format!(
            "checkpoints are saved as \"trine\", which transformers does not open: its {} has no way to say {lacks}",
            model.family
        )
    })
}

fn is_first(engine: &Engine) -> bool {
    engine.world().rank() == 0
}
