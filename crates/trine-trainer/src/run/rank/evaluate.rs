//! The loss on validation windows.

use super::{Best, Progress, RankRun, is_first};
use crate::TrainError;
use crate::engine::{Engine, Loss};
use crate::run::Work;
use std::time::Instant;
use trine_comm::Name;

impl RankRun<'_> {
    /// The validation loss after a step that evaluates. The last step's is the final one.
    pub(super) fn evaluate_on_the_way(
        &self,
        engine: &mut Engine,
        progress: &mut Progress,
    ) -> Result<Option<f64>, TrainError> {
        let every = self.request.config.eval.every as u64;
        let is_last = progress.step == progress.total;
        if !is_last && (every == 0 || !progress.step.is_multiple_of(every)) {
            return Ok(None);
        }
        if is_last {
            return Ok(Some(self.evaluate_finally(engine, progress)?.mean()));
        }
        let loss = self.evaluate(engine, progress, false)?.mean();
        self.compare(progress, loss);
        Ok(Some(loss))
    }

    /// The final validation loss of a run that has ended after a step that was not to be its last one:
    /// that step's metrics tell it all the same.
    pub(super) fn evaluate_at_last(
        &self,
        engine: &mut Engine,
        progress: &mut Progress,
    ) -> Result<(), TrainError> {
        let loss = self.evaluate_finally(engine, progress)?;
        let Some(mut line) = progress.line.take().filter(|_| is_first(engine)) else {
            return Ok(());
        };
        line.val_loss = Some(loss.mean());
        self.directory.amend(&line)?;
        self.report_step(&line, progress);
        Ok(())
    }

    /// The loss over the windows of the end. Whether it is the best so far only the windows of all the
    /// others can tell.
    fn evaluate_finally(
        &self,
        engine: &mut Engine,
        progress: &mut Progress,
    ) -> Result<Loss, TrainError> {
        let loss = self.evaluate(engine, progress, true)?;
        progress.validation = Some(loss);
        if self.request.config.checkpoint.keep_best {
            let is_like_others = self.data.windows(true).len() == self.data.windows(false).len();
            let like_others =
                if is_like_others { loss } else { self.evaluate(engine, progress, false)? };
            self.compare(progress, like_others.mean());
        }
        Ok(loss)
    }

    /// Remembers the lowest loss, where its checkpoint is kept.
    fn compare(&self, progress: &mut Progress, val_loss: f64) {
        let is_lower = progress.best.is_none_or(|best| val_loss < best.val_loss);
        if self.request.config.checkpoint.keep_best && is_lower {
            progress.best = Some(Best { step: progress.step, val_loss });
        }
    }

    /// The loss over validation windows, a global batch at a time. All ranks know it.
    fn evaluate(
        &self,
        engine: &mut Engine,
        progress: &mut Progress,
        last: bool,
    ) -> Result<Loss, TrainError> {
        let began = Instant::now();
        engine.world().recorder().begin_phase(Name::new("evaluating"));
        let mut total = Loss { sum: 0.0, tokens: 0 };
        let rounds = self.data.windows(last).len().div_ceil(self.engine.global_batch as u64);
        for round in 0..rounds {
            let work = Work::Evaluating { batches_done: round, batches: rounds };
            self.tell(engine.world().rank(), work);
            let dp = engine.coordinate().dp;
            let batch = self.data.validation(last, round, self.engine, dp);
            let loss = engine.evaluate(&batch)?;
            total = Loss { sum: total.sum + loss.sum, tokens: total.tokens + loss.tokens };
        }
        self.tell(
            engine.world().rank(),
            Work::Evaluating { batches_done: rounds, batches: rounds },
        );
        progress.times.evaluate += began.elapsed();
        if !total.sum.is_finite() {
            return Err(TrainError::Validation { step: progress.step, loss: total.mean() });
        }
        progress.evaluated_at = Some(progress.step);
        Ok(total)
    }
}
