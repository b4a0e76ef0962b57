//! The loss on validation windows.

use super::{Progress, RankRun};
use crate::TrainError;
use crate::engine::{Engine, Loss};
use crate::run::Work;
use trine_comm::Name;

impl RankRun<'_> {
    pub(super) fn evaluate_on_the_way(
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
    pub(super) fn evaluate(&self, engine: &mut Engine, last: bool) -> Result<Loss, TrainError> {
        engine.world().recorder().begin_phase(Name::new("evaluating"));
        let mut total = Loss { sum: 0.0, tokens: 0 };
        let rounds = self.data.windows(last).len().div_ceil(self.engine.global_batch as u64);
        for round in 0..rounds {
            let work = Work::Evaluating { batches_done: round, batches: rounds };
            self.tell(engine.world().rank(), work);
            let dp = engine.plan().coordinate.dp;
            let batch = self.data.validation(last, round, self.engine, dp);
            let loss = engine.evaluate(&batch)?;
            total = Loss { sum: total.sum + loss.sum, tokens: total.tokens + loss.tokens };
        }
        Ok(total)
    }
}
