//! Going on from a checkpoint.

use super::decide::StopReason;
use super::{Best, Progress, RankRun, Times};
use crate::TrainError;
use crate::engine::{Engine, WEIGHTS};
use crate::run::resume;
use std::time::Instant;
use trine_buffer::Buf;
use trine_checkpoint::Checkpoint;

impl RankRun<'_> {
    /// Weights, moments and place of the checkpoint, if there is one.
    pub(super) fn restore(&self, engine: &mut Engine) -> Result<Progress, TrainError> {
        let config = &self.request.config;
        let mut progress = Progress {
            step: 0,
            total: config.train.steps as u64,
            started_at: 0,
            samples: 0,
            times: Times::default(),
            train_cpu_s: 0.0,
            step_seconds: Vec::new(),
            final_loss: f64::NAN,
            stopped: StopReason::None,
            saved_at: None,
            saved_when: Instant::now(),
            evaluated_at: None,
            prune_due: false,
            best: None,
            line: None,
            validation: None,
            fitted: config.train.minutes_max <= 0.0,
        };
        if let Some(checkpoint) = self.restored {
            self.load(engine, checkpoint, &mut progress)?;
        }
        progress.times.before = self.request.started.elapsed();
        progress.saved_when = Instant::now();
        Ok(progress)
    }

    fn load(
        &self,
        engine: &mut Engine,
        checkpoint: &Checkpoint,
        progress: &mut Progress,
    ) -> Result<(), TrainError> {
        let layout = engine.layout().clone();
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
        progress.samples = run.consumed_samples;
        let (total, fitted) = resume::steps_total(&self.request.config, run);
        (progress.total, progress.fitted) = (total.max(run.step), fitted);
        let real = |name| run.trainer.get(name).and_then(serde_json::Value::as_f64);
        progress.final_loss = real(resume::LOSS).unwrap_or(f64::NAN);
        let best = resume::number(run, resume::BEST_STEP).zip(real(resume::BEST_LOSS));
        progress.best = best.map(|(step, val_loss)| Best { step, val_loss });
        Ok(())
    }
}
