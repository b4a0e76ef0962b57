//! One optimizer step, measured.

use super::report::CHECK_STEPS;
use super::{Progress, RankRun};
use crate::TrainError;
use crate::cores::thread_cpu_seconds;
use crate::engine::Engine;
use crate::run::clock::rfc3339;
use crate::run::loader::Loader;
use crate::run::measure::ActionClock;
use crate::run::{MetricsLine, Work};
use std::time::{Duration, Instant, SystemTime};
use trine_optim::Rates;
use trine_pipeline::Moment;

/// How often it is told how far a step is.
const TELL_EVERY: Duration = Duration::from_millis(200);

impl RankRun<'_> {
    pub(super) fn step(
        &self,
        engine: &mut Engine,
        progress: &mut Progress,
        clock: &mut ActionClock,
        loader: &mut Loader<'_>,
    ) -> Result<MetricsLine, TrainError> {
        let (wall, cpu) = (Instant::now(), thread_cpu_seconds());
        let step = progress.step;
        let (rank, steps) = (engine.world().rank(), progress.total);
        let batch = loader.next()?;
        clock.begin_step(step, step - progress.started_at)?;
        let mut told: Option<Instant> = None;
        let mut tell = |actions_done, clock: &ActionClock| {
            if told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
                told = Some(Instant::now());
                let (actions, elapsed) = (clock.actions(), clock.step_elapsed());
                let work = Work::Step { step: step + 1, steps, actions_done, actions, elapsed };
                self.tell(rank, work);
            }
        };
        tell(0, clock);
        let lr = self.rates(step + 1, progress.total);
        let (loss, updated) = engine.train(step, lr, &batch, &mut |position, action, moment| {
            clock.observe(position, action, moment);
            if moment == Moment::End {
                tell(position + 1, clock);
            }
        })?;
        clock.end_step()?;
        let every = self.request.config.train.replica_check_every as u64;
        if every > 0 && (step + 1).is_multiple_of(every) {
            engine.check_replicas()?;
        }
        progress.step += 1;
        progress.samples += self.engine.global_batch as u64;
        progress.final_loss = loss.mean();
        let took = wall.elapsed();
        progress.times.train += took;
        if progress.step_seconds.len() < CHECK_STEPS {
            progress.step_seconds.push(took.as_secs_f64());
        }
        progress.train_cpu_s += thread_cpu_seconds() - cpu;
        let tokens = self.data.tokens_per_step(self.engine);
        Ok(MetricsLine {
            step: progress.step,
            loss: loss.mean(),
            grad_norm: updated.norm.norm(),
            lr: lr.run,
            tokens: self.data.tokens(progress.samples),
            tokens_per_s: tokens as f64 / took.as_secs_f64(),
            step_ms: took.as_secs_f64() * 1e3,
            val_loss: None,
            time: rfc3339(SystemTime::now()),
        })
    }

    /// The rates of step `step`, counted from 1.
    fn rates(&self, step: u64, total: u64) -> Rates {
        let config = &self.request.config;
        config.lr_schedule().rates(config.optimizer.lr, step, total)
    }
}
