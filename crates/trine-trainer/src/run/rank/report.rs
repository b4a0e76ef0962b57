//! What ranks have measured, brought together: the plan's check on the way, the result at the end.

use super::decide::StopReason;
use super::{Best, Progress, RankRun, Times, is_first};
use crate::TrainError;
use crate::engine::{Engine, Loss};
use crate::planned::{Measured, PlanCheck, RankCheck, RankMemory};
use crate::run::Event;
use crate::run::events::report;
use crate::run::measure::{ActionClock, WARM_UP_STEPS, peak_rss_bytes, replayed_bubble};
use crate::run::process::texts;
use serde::{Deserialize, Serialize};
use trine_mesh::Coordinate;

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
}

/// What came of a run: alike on all ranks, but for the times, which are rank 0's in the end.
#[derive(Debug)]
pub(crate) struct RunResult {
    /// Of every rank.
    pub(crate) ranks: Vec<RankReport>,
    /// Where the time of the loop went.
    pub(crate) times: Times,
    pub(crate) trained_tokens: u64,
    /// Samples of the whole run.
    pub(crate) samples: u64,
    pub(crate) steps_done: u64,
    pub(crate) steps_before: u64,
    pub(crate) steps_total: u64,
    pub(crate) steps_cut: bool,
    /// Why it ended before its last step, if it did.
    pub(crate) stopped: StopReason,
    pub(crate) final_loss: f64,
    pub(crate) validation: Option<Loss>,
    /// The lowest validation loss, where its checkpoint is kept.
    pub(crate) best: Option<Best>,
    /// Of rank 0, if there were enough steps.
    pub(crate) plan: Option<PlanCheck>,
}

impl RankRun<'_> {
    /// Holds the plan against the steps so far: rank 0's result, told to the reporter. A collective call.
    pub(super) fn check_plan(
        &self,
        engine: &Engine,
        progress: &Progress,
        clock: &ActionClock,
    ) -> Result<Option<PlanCheck>, TrainError> {
        let ranks = self.exchange(engine, self.report(engine, progress, clock.means()))?;
        if !is_first(engine) {
            return Ok(None);
        }
        let measured = Measured {
            steps: progress.step - progress.started_at,
            timed: &progress.step_seconds[WARM_UP_STEPS as usize..],
            bubble: self.bubble(&ranks)?,
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

    /// The bubble by the measured times, if they are each rank's own.
    pub(crate) fn bubble(&self, ranks: &[RankReport]) -> Result<Option<f64>, TrainError> {
        if self.request.devices.is_some_and(|devices| devices.shared().is_some()) {
            return Ok(None);
        }
        replayed_bubble(&self.plan.training, &one_pipeline(ranks)).map(Some)
    }

    /// The share of the cores' time in which no rank computed, if it is cores that compute.
    pub(crate) fn wait_share(&self, ranks: &[RankReport], train_wall_s: f64) -> Option<f64> {
        if self.request.devices.is_some() {
            return None;
        }
        let threads = self.engine.threads as f64;
        let cores: f64 = ranks.iter().map(|rank| rank.cores.min(threads)).sum();
        // Helper threads of a rank compute too, and are not counted in its thread's time.
        let busy = threads * ranks.iter().map(|rank| rank.train_cpu_s).sum::<f64>();
        Some((1.0 - busy / (train_wall_s.max(1e-9) * cores)).clamp(0.0, 1.0))
    }

    /// What came of it, with what all ranks have measured.
    pub(super) fn result(
        &self,
        engine: &Engine,
        progress: Progress,
        clock: ActionClock,
        plan: Option<PlanCheck>,
    ) -> Result<RunResult, TrainError> {
        let steps = progress.step - progress.started_at;
        let own = self.report(engine, &progress, clock.means());
        Ok(RunResult {
            ranks: self.exchange(engine, own)?,
            times: progress.times,
            samples: progress.samples,
            trained_tokens: steps * self.data.tokens_per_step(self.engine),
            steps_done: progress.step,
            steps_before: progress.started_at,
            steps_total: progress.total,
            steps_cut: progress.step < self.request.config.train.steps as u64
                && progress.stopped != StopReason::Asked,
            stopped: progress.stopped,
            final_loss: progress.final_loss,
            validation: progress.validation,
            best: progress.best,
            plan,
        })
    }

    /// Every rank's report. A collective call.
    fn exchange(&self, engine: &Engine, own: RankReport) -> Result<Vec<RankReport>, TrainError> {
        let json = |error: serde_json::Error| TrainError::Json(error.to_string());
        let own = serde_json::to_string(&own).map_err(json)?;
        let all = texts(&**engine.world(), &own)?;
        all.iter().map(|text| serde_json::from_str(text).map_err(json)).collect()
    }

    fn report(&self, engine: &Engine, progress: &Progress, action_seconds: Vec<f64>) -> RankReport {
        let coordinate = engine.coordinate();
        RankReport {
            coordinate,
            host: self.host.to_owned(),
            process: std::process::id(),
            cores: self.cores,
            planned: self.plan.memory(coordinate.pp, coordinate.tp),
            measured: RankMemory::measured(engine),
            peak_rss_bytes: peak_rss_bytes(),
            train_cpu_s: progress.train_cpu_s,
            action_seconds,
        }
    }
}

/// The action times of one pipeline, which stands for all: that of the first replica and shard.
fn one_pipeline(ranks: &[RankReport]) -> Vec<Vec<f64>> {
    let one = |rank: &&RankReport| rank.coordinate.dp == 0 && rank.coordinate.tp == 0;
    ranks.iter().filter(one).map(|rank| rank.action_seconds.clone()).collect()
}

/// The plan is held against the run after so many steps, or at its end after fewer.
pub(super) const CHECK_STEPS: usize = 10;

/// One step more than those that are not timed.
pub(crate) const CHECK_STEPS_MIN: u64 = WARM_UP_STEPS + 1;
