//! Rank 0 decides before each step, for all: whether to go on, and how many steps there will be.

use super::{Progress, RankRun, is_first};
use crate::TrainError;
use crate::engine::Engine;
use std::sync::atomic::Ordering;
use trine_buffer::Buf;
use trine_comm::Name;

/// What rank 0 decides before each step, for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Decision {
    pub(super) go_on: bool,
    /// Steps of the whole run: the configured ones, or fewer when time is short.
    pub(super) total: u64,
    pub(super) reason: StopReason,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StopReason {
    None,
    Asked,
    Time,
}

impl RankRun<'_> {
    /// Rank 0 decides, everybody follows: whether to go on, and how many steps there will be.
    pub(super) fn decide(
        &self,
        engine: &Engine,
        progress: &Progress,
    ) -> Result<Decision, TrainError> {
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
    pub(super) fn is_fitting_due(&self, progress: &Progress) -> bool {
        let warmup = self.request.config.lr.warmup_steps as u64;
        progress.step >= warmup.max(progress.started_at + DECISION_STEPS_MIN)
    }
}

/// Steps that must be timed before the number of steps is decided.
const DECISION_STEPS_MIN: u64 = 8;

/// The part of the time left that steps are planned into.
const TIME_MARGIN: f64 = 0.9;
