//! Going on from a checkpoint.

use super::decide::StopReason;
use super::{Progress, RankRun};
use crate::TrainError;
use crate::engine::{Engine, WEIGHTS};
use std::time::Duration;
use trine_buffer::Buf;

impl RankRun<'_> {
    /// Weights, moments and place of the checkpoint, if there is one.
    pub(super) fn restore(&self, engine: &mut Engine) -> Result<Progress, TrainError> {
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
}
