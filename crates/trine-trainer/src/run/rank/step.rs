//! One optimizer step, measured.

use super::report::CHECK_STEPS;
use super::{Progress, RankRun};
use crate::TrainError;
use crate::engine::Engine;
use crate::run::MetricsLine;
use crate::run::measure::{ActionClock, thread_cpu_seconds};
use std::time::Instant;

impl RankRun<'_> {
    pub(super) fn step(
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
}
