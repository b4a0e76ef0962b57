//! Writing a checkpoint.

use super::{Progress, RankRun, is_first};
use crate::TrainError;
use crate::engine::Engine;
use crate::run::events::report;
use crate::run::{Event, Work, resume};
use std::time::Instant;
use trine_checkpoint::{Keep, RunState, SaveRequest, save};
use trine_comm::Name;

impl RankRun<'_> {
    /// Writes a checkpoint. A collective call.
    pub(super) fn save(&self, engine: &Engine, progress: &mut Progress) -> Result<(), TrainError> {
        let began = Instant::now();
        let name = Name::new("saving").with("step", progress.step);
        engine.world().recorder().begin_phase(self.long(name));
        self.tell(engine.world().rank(), Work::Saving { step: progress.step });
        if is_first(engine) {
            self.mend()?;
        }
        let run = self.run_state(progress)?;
        let dir = self.directory.checkpoints();
        let request = SaveRequest {
            dir: &dir,
            model: &self.plan.parts,
            mesh: &self.plan.mesh,
            ranks: &self.plan.ranks,
            dtype: self.engine.compute.accumulator(),
            moments: engine.moments(),
            run: &run,
            tokenizer: Some(self.data.tokenizer_file()),
            storage: self.request.seams.storage,
        };
        let path = save(&request, &**engine.world(), &mut |quantity, bucket| {
            engine.full_bucket(quantity, bucket).map_err(Into::into)
        })?;
        progress.saved_at = Some(progress.step);
        progress.prune_due = true;
        if is_first(engine) {
            self.directory.saved()?;
            report(self.reporter, &Event::Saved { path: &path });
        }
        if progress.evaluated_at == Some(progress.step) {
            self.prune(engine, progress)?;
        }
        progress.times.save += began.elapsed();
        progress.saved_when = Instant::now();
        Ok(())
    }

    /// Whether the step just done is to be saved, whatever the time is.
    pub(super) fn is_save_due(&self, progress: &Progress) -> bool {
        let every = self.request.config.checkpoint.every as u64;
        let is_best = progress.best.is_some_and(|best| best.step == progress.step);
        is_best || (every > 0 && progress.step.is_multiple_of(every))
    }

    /// Removes old checkpoints, once the newest has been shown to be good: by an evaluation, or by the
    /// loss of the step after it.
    pub(super) fn prune(&self, engine: &Engine, progress: &mut Progress) -> Result<(), TrainError> {
        let Some(step) = progress.saved_at.filter(|_| progress.prune_due) else { return Ok(()) };
        progress.prune_due = false;
        if !is_first(engine) {
            return Ok(());
        }
        let last = self.request.config.checkpoint.keep_last;
        let keep = Keep { last, step, best: progress.best.map(|best| best.step) };
        let storage = self.request.seams.storage;
        Ok(trine_checkpoint::prune(storage, &self.directory.checkpoints(), keep)?)
    }

    /// How far the run is.
    fn run_state(&self, progress: &Progress) -> Result<RunState, TrainError> {
        let config = &self.request.config;
        let tokens_hash = self.data.tokens_hash();
        Ok(RunState {
            step: progress.step,
            consumed_samples: progress.samples,
            seed: config.seed,
            data_hash: self.data.report().corpus_hash.clone(),
            tokenizer_hash: Some(self.data.tokenizer().hash()?),
            trainer: serde_json::json!({
                resume::CONFIGURATION: config.stored()?.to_toml()?,
                resume::STEPS_CONFIGURED: config.train.steps,
                resume::STEPS_TOTAL: progress.total,
                resume::FITTED: progress.fitted,
                resume::LOSS: progress.final_loss,
                resume::TOKENS_HASH: tokens_hash,
                resume::BEST_STEP: progress.best.map(|best| best.step),
                resume::BEST_LOSS: progress.best.map(|best| best.val_loss),
            }),
        })
    }
}
