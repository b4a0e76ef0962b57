//! Writing a checkpoint.

use super::{Progress, RankRun, is_first};
use crate::TrainError;
use crate::engine::Engine;
use crate::run::events::report;
use crate::run::{Event, Work};
use trine_checkpoint::{RunState, SaveRequest, save};
use trine_comm::Name;
use trine_mesh::Mesh;
use trine_spec::StageLayout;

impl RankRun<'_> {
    /// Writes a checkpoint. A collective call.
    pub(super) fn save(&self, engine: &Engine, progress: &mut Progress) -> Result<(), TrainError> {
        let name = Name::new("saving").with("step", progress.step);
        engine.world().recorder().begin_phase(self.long(name));
        self.tell(engine.world().rank(), Work::Saving { step: progress.step });
        let (config, degrees) = (&self.request.config, self.engine.degrees);
        let mesh = Mesh::new(degrees, degrees.world())?;
        let stage = |pp| (0..degrees.tp).map(|tp| self.engine.layout_of(pp, tp)).collect();
        let stages: Vec<Vec<StageLayout>> =
            (0..degrees.pp).map(stage).collect::<Result<_, TrainError>>()?;
        let run = RunState {
            step: progress.step,
            consumed_samples: progress.step * self.engine.global_batch as u64,
            seed: config.seed,
            data_hash: self.data.report().corpus_hash.clone(),
            tokenizer_hash: Some(self.data.tokenizer().hash()?),
            trainer: serde_json::json!({
                "configured_steps": config.train.steps,
                "total_steps": progress.total,
                "fitted": progress.fitted,
                "loss": progress.final_loss,
            }),
        };
        let dir = self.directory.checkpoints();
        let request = SaveRequest {
            dir: &dir,
            model: &self.engine.model,
            mesh: &mesh,
            stages: &stages,
            dtype: self.engine.compute.accumulator(),
            moments: engine.moments(),
            run: &run,
            tokenizer: Some(self.data.tokenizer_file()),
            keep_last: config.checkpoint.keep_last,
            storage: self.request.seams.storage,
        };
        let path = save(&request, &**engine.world(), &mut |quantity, bucket| {
            engine.full_bucket(quantity, bucket).map_err(Into::into)
        })?;
        progress.saved_at = Some(progress.step);
        if is_first(engine) {
            report(self.reporter, &Event::Saved { path: &path });
        }
        Ok(())
    }
}
