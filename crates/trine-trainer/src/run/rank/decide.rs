//! What all ranks agree on before each step: whether to go on, and how many steps there will be.

use super::{Progress, RankRun, is_first};
use crate::TrainError;
use crate::engine::Engine;
use std::sync::atomic::Ordering;
use trine_buffer::Buf;
use trine_comm::{Name, ReduceOp};

/// What is decided before each step, for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Decision {
    /// Why the run stops here, if it does.
    pub(super) stop: StopReason,
    /// Whether so much time has passed since the last checkpoint that there is to be another.
    pub(super) save: bool,
    /// Steps of the whole run: the configured ones, or fewer when time is short.
    pub(super) total: u64,
}

/// Of what several ranks say, the last one here holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StopReason {
    None,
    Time,
    Asked,
}

impl StopReason {
    /// In words, if the run stopped before its last step.
    pub(crate) fn why(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Asked => Some("asked to stop"),
            Self::Time => Some("the time limit was reached"),
        }
    }
}

impl RankRun<'_> {
    /// Rank 0 decides about time and length, and whoever is asked to stop stops all.
    pub(super) fn decide(
        &self,
        engine: &Engine,
        progress: &Progress,
    ) -> Result<Decision, TrainError> {
        let mut own = Decision { stop: StopReason::None, save: false, total: 0 };
        if is_first(engine) {
            own = self.decision(progress);
        }
        if self.request.stop.load(Ordering::Relaxed) {
            own.stop = StopReason::Asked;
        }
        let words = Buf::from_vec(vec![own.stop as u64, own.total, u64::from(own.save)]);
        let words = engine.world().all_reduce(words, ReduceOp::Max, Name::new("go on"))?;
        let words = words.typed::<u64>()?;
        let reasons = [StopReason::None, StopReason::Time, StopReason::Asked];
        let stop = reasons[(words[0] as usize).min(reasons.len() - 1)];
        Ok(Decision { stop, save: words[2] == 1, total: words[1] })
    }

    fn decision(&self, progress: &Progress) -> Decision {
        let (total, save) = (progress.total, self.is_time_to_save(progress));
        let minutes = self.request.config.train.minutes_max;
        if minutes <= 0.0 {
            return Decision { stop: StopReason::None, save, total };
        }
        let left = minutes * 60.0 - self.request.started.elapsed().as_secs_f64();
        // A run has at least one step: without any there is nothing to save or to measure.
        if left <= 0.0 && progress.step > 0 {
            return Decision { stop: StopReason::Time, save, total };
        }
        let total = self.fitting_steps(progress, left);
        Decision { stop: StopReason::None, save, total }
    }

    /// Whether a checkpoint is due by the clock.
    fn is_time_to_save(&self, progress: &Progress) -> bool {
        let seconds = 60.0 * self.request.config.checkpoint.minutes;
        seconds > 0.0 && progress.saved_when.elapsed().as_secs_f64() >= seconds
    }

    /// How many steps there will be. Decided once, while the learning rate still warms up: until
    /// then it does not depend on the number of steps, so the run can be repeated exactly with the
    /// number that came out.
    fn fitting_steps(&self, progress: &Progress, left_s: f64) -> u64 {
        let done = progress.step - progress.started_at;
        if progress.fitted || !self.is_fitting_due(progress) {
            return progress.total;
        }
        let each_s = progress.times.train.as_secs_f64() / done as f64;
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
