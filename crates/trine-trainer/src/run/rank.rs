//! One rank's part of a run: the loop of steps.

use crate::TrainError;
use crate::config::Pin;
use crate::cores::rank_team;
use crate::engine::{Engine, EngineConfig, Loss, RankPlan, WEIGHTS};
use crate::planned::{Machine, Measured, PlanCheck, RankCheck, RankMemory};
use crate::run::data::RunData;
use crate::run::measure::{
    ActionClock, TraceEvent, WARM_UP_STEPS, peak_rss_bytes, replayed_bubble, rss_bytes,
    thread_cpu_seconds,
};
use crate::run::process::texts;
use crate::run::{Event, MetricsLine, Reporter, RunDirectory, TrainRequest};
use serde::{Deserialize, Serialize};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use trine_buffer::Buf;
use trine_checkpoint::{Checkpoint, RunState, SaveRequest, save};
use trine_comm::wrap::Sealed;
use trine_comm::{Communicator, Name, Phase};
use trine_kernels::CpuOps;
use trine_mesh::{Coordinate, Mesh};
use trine_spec::StageLayout;

/// Tells the reporter. A reporter that panicked is not told any more.
pub(crate) fn report(reporter: &Mutex<dyn Reporter + '_>, event: &Event<'_>) {
    reporter.lock().unwrap_or_else(PoisonError::into_inner).event(event);
}

/// What all ranks of a run share.
#[derive(Clone, Copy)]
pub(crate) struct RankRun<'a> {
    pub(crate) request: &'a TrainRequest<'a>,
    pub(crate) engine: &'a EngineConfig,
    /// The machine of the plan, or why none is known.
    pub(crate) machine: &'a Result<Machine, String>,
    pub(crate) data: &'a RunData,
    pub(crate) directory: &'a RunDirectory,
    pub(crate) restored: Option<&'a Checkpoint>,
    pub(crate) reporter: &'a Mutex<dyn Reporter + 'a>,
    /// The machine; empty where all ranks are threads of this process.
    pub(crate) host: &'a str,
    /// A rank's share of this machine's cores.
    pub(crate) cores: f64,
}

/// What a rank brings home from training: measurements, which rank 0 puts into the summary.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RankReport {
    pub(crate) coordinate: Coordinate,
    /// Its machine; empty where all ranks are threads of one process.
    pub(crate) host: String,
    /// The process that it is, or is a thread of.
    pub(crate) process: u32,
    /// Its share of its machine's cores.
    pub(crate) cores: f64,
    pub(crate) planned: RankMemory,
    pub(crate) measured: RankMemory,
    /// Most memory that its process held, where the system tells.
    pub(crate) peak_rss_bytes: Option<u64>,
    pub(crate) train_cpu_s: f64,
    /// Mean time of each action of its list.
    pub(crate) action_seconds: Vec<f64>,
    /// Its actions over time, if a trace was asked for.
    pub(crate) events: Vec<TraceEvent>,
}

/// What came of a run: alike on all ranks, but for the times, which are rank 0's in the end.
#[derive(Debug)]
pub(crate) struct RunResult {
    /// Of every rank.
    pub(crate) ranks: Vec<RankReport>,
    pub(crate) train_wall_s: f64,
    pub(crate) trained_tokens: u64,
    pub(crate) steps_done: u64,
    pub(crate) steps_total: u64,
    pub(crate) steps_cut: bool,
    pub(crate) stopped_early: Option<String>,
    pub(crate) final_loss: f64,
    pub(crate) validation: Option<Loss>,
    /// Of rank 0, if there were enough steps.
    pub(crate) plan: Option<PlanCheck>,
}

/// What rank 0 decides before each step, for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Decision {
    go_on: bool,
    /// Steps of the whole run: the configured ones, or fewer when time is short.
    total: u64,
    reason: StopReason,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StopReason {
    None,
    Asked,
    Time,
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

impl RankRun<'_> {
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
    }

    /// A rank's life, to its end or to its failure. An error that all ranks have been told, of one of
    /// them, is for that one to report: it stops the world while the others wait here.
    pub(crate) fn run(&self, world: Arc<dyn Communicator>) -> Result<RunResult, TrainError> {
        self.live(world.clone()).map_err(|error| match error.concerned() {
            Some(rank) if rank != world.rank() => {
                world.barrier("failure of another rank").err().map_or(error, TrainError::from)
            }
            Some(_) | None => error,
        })
    }

    /// Build, restore, step by step, evaluate, save.
    fn live(&self, world: Arc<dyn Communicator>) -> Result<RunResult, TrainError> {
        let recorder = world.recorder().clone();
        recorder.begin_phase(self.long(Name::new("building the model")));
        let (team, _pinned) =
            rank_team(self.pin(), world.size(), world.rank(), self.engine.threads);
        let ops = Arc::new(CpuOps::with_isa(team, self.engine.numerics.isa())?);
        let plan = RankPlan::new(self.engine, world.rank())?;
        let mut engine = Engine::with_ops(self.engine, plan, self.front(world), ops)?;
        recorder.begin_phase(self.long(Name::new("restoring")));
        let mut progress = self.restore(&mut engine)?;
        let actions = engine.plan().training.actions[engine.plan().coordinate.pp].len();
        let mut clock = ActionClock::new(actions, self.request.trace.is_some());
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
            if !decision.go_on {
                progress.stopped = decision.reason;
                break;
            }
            let mut line = self.step(&mut engine, &mut progress, &mut clock)?;
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

    /// Holds the plan against the steps so far: rank 0's result, told to the reporter. A collective call.
    fn check_plan(
        &self,
        engine: &Engine,
        progress: &Progress,
        clock: &ActionClock,
    ) -> Result<Option<PlanCheck>, TrainError> {
        let ranks = self.exchange(engine, self.report(engine, progress, clock.means(), vec![]))?;
        if !is_first(engine) {
            return Ok(None);
        }
        let measured = Measured {
            steps: progress.step - progress.started_at,
            timed: &progress.step_seconds[WARM_UP_STEPS as usize..],
            bubble: replayed_bubble(&engine.plan().training, &one_pipeline(&ranks))?,
        };
        let ranks = ranks.into_iter().enumerate().map(|(rank, report)| RankCheck {
            rank,
            place: report.coordinate.to_string(),
            planned: report.planned,
            measured: report.measured,
        });
        let check = PlanCheck::new(self.engine, self.machine, measured, ranks.collect());
        report(self.reporter, &Event::PlanChecked(&check));
        Ok(Some(check))
    }

    /// Whether the rank's threads are kept on cores. What launchers start, they bind; several processes
    /// could not agree here on who has which core.
    fn pin(&self) -> Pin {
        let is_process = !self.host.is_empty();
        if is_process { Pin::Off } else { self.request.config.threads.pin }
    }

    /// What the rank talks through: the communicator, and what the run puts in front of it.
    fn front(&self, world: Arc<dyn Communicator>) -> Arc<dyn Communicator> {
        let wrapped = (self.request.seams.wrap)(world);
        if self.request.config.comm.checksum { Sealed::around(wrapped) } else { wrapped }
    }

    /// A phase in which a rank may be busy with one thing for minutes.
    fn long(&self, name: Name) -> Phase {
        Phase { name, deadline: Some(self.request.config.long_deadline()) }
    }

    /// Weights, moments and place of the checkpoint, if there is one.
    fn restore(&self, engine: &mut Engine) -> Result<Progress, TrainError> {
        let mut progress = Progress {
            step: 0,
            total: self.request.config.train.steps as u64,
            started_at: 0,
            train_wall: Duration::ZERO,
            train_cpu_s: 0.0,
            step_seconds: Vec::new(),
            final_loss: f64::NAN,
            stopped: StopReason::None,
            saved_at: None,
            fitted: self.request.config.train.minutes_max <= 0.0,
        };
        let Some(checkpoint) = self.restored else { return Ok(progress) };
        let layout = engine.plan().layout.clone();
        for quantity in std::iter::once(WEIGHTS).chain(engine.moments().iter().copied()) {
            for (bucket, shape) in layout.buckets.iter().enumerate() {
                let mut all = Buf::zeros(self.engine.compute.accumulator(), shape.len);
                checkpoint.load_bucket(quantity, &layout, bucket, all.slice_mut())?;
                engine.load_bucket(quantity, bucket, &all)?;
            }
        }
        let run = &checkpoint.manifest().run;
        (progress.step, progress.started_at, progress.saved_at) =
            (run.step, run.step, Some(run.step));
        // A run whose steps were cut to fit its time goes on with as many, unless it is asked for
        // another number.
        let number = |key| run.trainer.get(key).and_then(serde_json::Value::as_u64);
        if number("configured_steps") == Some(progress.total) {
            progress.total = number("total_steps").unwrap_or(progress.total);
            progress.fitted |= run.trainer.get("fitted") == Some(&serde_json::Value::Bool(true));
        }
        progress.final_loss =
            run.trainer.get("loss").and_then(serde_json::Value::as_f64).unwrap_or(f64::NAN);
        Ok(progress)
    }

    /// Rank 0 decides, everybody follows: whether to go on, and how many steps there will be.
    fn decide(&self, engine: &Engine, progress: &Progress) -> Result<Decision, TrainError> {
        let mut words = vec![0u64; 3];
        if is_first(engine) {
            let decision = self.decision(progress);
            words = vec![u64::from(decision.go_on), decision.total, decision.reason as u64];
        }
        let words = engine.world().broadcast(Buf::from_vec(words), 0, Name::new("go on"))?;
        let words = words.typed::<u64>()?;
        let reasons = [StopReason::None, StopReason::Asked, StopReason::Time];
        let reason = reasons[(words[2] as usize).min(reasons.len() - 1)];
        Ok(Decision { go_on: words[0] == 1, total: words[1], reason })
    }

    fn decision(&self, progress: &Progress) -> Decision {
        let total = progress.total;
        if self.request.stop.load(Ordering::Relaxed) {
            return Decision { go_on: false, total, reason: StopReason::Asked };
        }
        let minutes = self.request.config.train.minutes_max;
        if minutes <= 0.0 {
            return Decision { go_on: true, total, reason: StopReason::None };
        }
        let left = minutes * 60.0 - self.request.started.elapsed().as_secs_f64();
        // A run has at least one step: without any there is nothing to save or to measure.
        if left <= 0.0 && progress.step > 0 {
            return Decision { go_on: false, total, reason: StopReason::Time };
        }
        Decision {
            go_on: true,
            total: self.fitting_steps(progress, left),
            reason: StopReason::None,
        }
    }

    /// How many steps there will be. Decided once, while the learning rate still warms up: until
    /// then it does not depend on the number of steps, so the run can be repeated exactly with the
    /// number that came out.
    fn fitting_steps(&self, progress: &Progress, left_s: f64) -> u64 {
        let done = progress.step - progress.started_at;
        if progress.fitted || !self.is_fitting_due(progress) {
            return progress.total;
        }
        let each_s = progress.train_wall.as_secs_f64() / done as f64;
        // Evaluations on the way and the speed's own fluctuation are in the margin.
        let fit = progress.step + (left_s * TIME_MARGIN / each_s) as u64;
        progress.total.min(fit.max(progress.step + 1))
    }

    /// At the end of the warm-up, and when enough steps have been timed.
    fn is_fitting_due(&self, progress: &Progress) -> bool {
        let warmup = self.request.config.lr.warmup_steps as u64;
        progress.step >= warmup.max(progress.started_at + DECISION_STEPS_MIN)
    }

    fn step(
        &self,
        engine: &mut Engine,
        progress: &mut Progress,
        clock: &mut ActionClock,
    ) -> Result<MetricsLine, TrainError> {
        let (wall, cpu) = (Instant::now(), thread_cpu_seconds());
        let step = progress.step;
        let batch = self.data.batch(step, self.engine, engine.plan().coordinate.dp)?;
        clock.begin_step(step, step - progress.started_at);
        let lr = self.learning_rate(step + 1, progress.total);
        let (loss, updated) = engine.train(step, lr, &batch, &mut |position, action, moment| {
            clock.observe(position, action, moment);
        })?;
        let every = self.request.config.train.replica_check_every as u64;
        if every > 0 && (step + 1).is_multiple_of(every) {
            engine.check_replicas()?;
        }
        progress.step += 1;
        progress.final_loss = loss.mean();
        let took = wall.elapsed();
        progress.train_wall += took;
        if progress.step_seconds.len() < CHECK_STEPS {
            progress.step_seconds.push(took.as_secs_f64());
        }
        progress.train_cpu_s += thread_cpu_seconds() - cpu;
        let tokens = self.data.tokens_per_step(self.engine);
        Ok(MetricsLine {
            step: progress.step,
            loss: loss.mean(),
            grad_norm: updated.norm.norm(),
            lr,
            tokens: progress.step * tokens,
            tokens_per_s: tokens as f64 / took.as_secs_f64(),
            step_ms: took.as_secs_f64() * 1e3,
            val_loss: None,
        })
    }

    /// The rate of step `step`, counted from 1.
    fn learning_rate(&self, step: u64, total: u64) -> f64 {
        let config = &self.request.config;
        config.lr_schedule().rate(config.optimizer.lr, step, total)
    }

    fn evaluate_on_the_way(
        &self,
        engine: &mut Engine,
        progress: &Progress,
    ) -> Result<Option<f64>, TrainError> {
        let every = self.request.config.eval.every as u64;
        // The last step's evaluation is the final one.
        if every == 0 || !progress.step.is_multiple_of(every) || progress.step == progress.total {
            return Ok(None);
        }
        Ok(Some(self.evaluate(engine, false)?.mean()))
    }

    /// The loss over validation windows, a global batch at a time.
    fn evaluate(&self, engine: &mut Engine, last: bool) -> Result<Loss, TrainError> {
        engine.world().recorder().begin_phase(Name::new("evaluating"));
        let mut total = Loss { sum: 0.0, tokens: 0 };
        let rounds = self.data.windows(last).len().div_ceil(self.engine.global_batch as u64);
        for round in 0..rounds {
            let dp = engine.plan().coordinate.dp;
            let batch = self.data.validation(last, round, self.engine, dp);
            let loss = engine.evaluate(&batch)?;
            total = Loss { sum: total.sum + loss.sum, tokens: total.tokens + loss.tokens };
        }
        Ok(total)
    }

    /// Writes a checkpoint. A collective call.
    fn save(&self, engine: &Engine, progress: &mut Progress) -> Result<(), TrainError> {
        let name = Name::new("saving").with("step", progress.step);
        engine.world().recorder().begin_phase(self.long(name));
        let (config, degrees) = (&self.request.config, self.engine.degrees);
        let mesh = Mesh::new(degrees, degrees.world())?;
        let stage = |pp| (0..degrees.tp).map(|tp| self.engine.layout_of(pp, tp)).collect();
        let stages: Vec<Vec<StageLayout>> =
            (0..degrees.pp).map(stage).collect::<Result<_, TrainError>>()?;
        let run = RunState {
            step: progress.step,
            consumed_samples: progress.step * self.engine.global_batch as u64,
            seed: config.seed,
            data_hash: self.data.report().corpus_hash.clone(),
            tokenizer_hash: Some(self.data.tokenizer().hash()?),
            trainer: serde_json::json!({
                "configured_steps": config.train.steps,
                "total_steps": progress.total,
                "fitted": progress.fitted,
                "loss": progress.final_loss,
            }),
        };
        let dir = self.directory.checkpoints();
        let request = SaveRequest {
            dir: &dir,
            model: &self.engine.model,
            mesh: &mesh,
            stages: &stages,
            dtype: self.engine.compute.accumulator(),
            moments: engine.moments(),
            run: &run,
            tokenizer: Some(self.data.tokenizer_path()),
            keep_last: config.checkpoint.keep_last,
            storage: self.request.seams.storage,
        };
        let path = save(&request, &**engine.world(), &mut |quantity, bucket| {
            engine.full_bucket(quantity, bucket).map_err(Into::into)
        })?;
        progress.saved_at = Some(progress.step);
        if is_first(engine) {
            report(self.reporter, &Event::Saved { path: &path });
        }
        Ok(())
    }

    fn note(&self, engine: &Engine, text: String) {
        if is_first(engine) {
            report(self.reporter, &Event::Note(text));
        }
    }

    /// What came of it, with what all ranks have measured.
    fn result(
        &self,
        engine: &Engine,
        progress: Progress,
        clock: ActionClock,
        outcome: Outcome,
    ) -> Result<RunResult, TrainError> {
        let steps = progress.step - progress.started_at;
        let (action_seconds, events) = clock.finish();
        let own = self.report(engine, &progress, action_seconds, events);
        Ok(RunResult {
            ranks: self.exchange(engine, own)?,
            train_wall_s: progress.train_wall.as_secs_f64(),
            trained_tokens: steps * self.data.tokens_per_step(self.engine),
            steps_done: progress.step,
            steps_total: progress.total,
            steps_cut: progress.step < self.request.config.train.steps as u64
                && progress.stopped != StopReason::Asked,
            stopped_early: match progress.stopped {
                StopReason::None => None,
                StopReason::Asked => Some("asked to stop".into()),
                StopReason::Time => Some("the time limit was reached".into()),
            },
            final_loss: progress.final_loss,
            validation: outcome.validation,
            plan: outcome.plan,
        })
    }

    /// Every rank's report. A collective call.
    fn exchange(&self, engine: &Engine, own: RankReport) -> Result<Vec<RankReport>, TrainError> {
        let json = |error: serde_json::Error| TrainError::Json(error.to_string());
        let own = serde_json::to_string(&own).map_err(json)?;
        let all = texts(&**engine.world(), &own)?;
        all.iter().map(|text| serde_json::from_str(text).map_err(json)).collect()
    }

    fn report(
        &self,
        engine: &Engine,
        progress: &Progress,
        action_seconds: Vec<f64>,
        events: Vec<TraceEvent>,
    ) -> RankReport {
        let RankPlan { coordinate, layout, training, .. } = engine.plan();
        RankReport {
            coordinate: *coordinate,
            host: self.host.to_owned(),
            process: std::process::id(),
            cores: self.cores,
            planned: RankMemory::planned(self.engine, coordinate.pp, layout, training),
            measured: RankMemory::measured(engine),
            peak_rss_bytes: peak_rss_bytes(),
            train_cpu_s: progress.train_cpu_s,
            action_seconds,
            events,
        }
    }
}

/// What is known at the end beside the loop's own numbers.
struct Outcome {
    validation: Option<Loss>,
    plan: Option<PlanCheck>,
}

/// The action times of one pipeline, which stands for all: that of the first replica and shard.
pub(crate) fn one_pipeline(ranks: &[RankReport]) -> Vec<Vec<f64>> {
    let one = |rank: &&RankReport| rank.coordinate.dp == 0 && rank.coordinate.tp == 0;
    ranks.iter().filter(one).map(|rank| rank.action_seconds.clone()).collect()
}

/// The plan is held against the run after so many steps, or at its end after fewer.
const CHECK_STEPS: usize = 10;

/// One step more than those that are not timed.
pub(crate) const CHECK_STEPS_MIN: u64 = WARM_UP_STEPS + 1;

/// Steps that must be timed before the number of steps is decided.
const DECISION_STEPS_MIN: u64 = 8;

/// The part of the time left that steps are planned into.
const TIME_MARGIN: f64 = 0.9;

fn is_first(engine: &Engine) -> bool {
    engine.world().rank() == 0
}
