//! A step of the engine: forward, backward, the reduction of gradients, and the update.

use super::stage::{Figures, MicroBatches, StageRun};
use super::update::{AtOnce, Updating};
use super::{Batch, Engine, Loss, Observe, Updated};
use crate::TrainError;
use trine_buffer::Buf;
use trine_comm::{Name, ReduceOp};
use trine_dp::{DpError, GlobalNorm, check_replicas, clip_scale};
use trine_nn::Mode;
use trine_optim::{Rates, Update};
use trine_pipeline::{Execution, execute};
use trine_schedule::Schedule;

impl Engine {
    /// One training step: forward, backward, the reduction of gradients, and the update. `step` counts
    /// from 0; `lr` is one rate, or those of a schedule where groups have others. A collective call.
    ///
    /// With clipping, and on a device, the update begins when the norm of all gradients is known. Else each bucket is
    /// updated as soon as it is reduced, with the same bits; a gradient that is not finite is noticed
    /// before its bucket is touched, but buckets before it are updated by then.
    ///
    /// # Errors
    /// As [`Engine::backward`] and [`Engine::update`]. After an error the weights may be those of a step
    /// half done, and the engine must not be used any more: a run stops, its checkpoints as they were.
    pub fn train(
        &mut self,
        step: u64,
        lr: impl Into<Rates>,
        batch: &Batch,
        observe: Observe<'_>,
    ) -> Result<(Loss, Updated), TrainError> {
        let lr = lr.into();
        // On a device it would stop the host for each bucket, to look for what is not finite.
        if self.plan.config.clip_norm > 0.0 || !self.ops.place().is_host() {
            let loss = self.backward(step, batch, observe)?;
            return Ok((loss, self.update(step + 1, lr)?));
        }
        let update = Update { lr, grad_scale: 1.0, step: step + 1 };
        let (loss, refused) = self.gradients(step, batch, Some(update), observe)?;
        // Ranks that found no fault of their own learn here of others'. Weights are gathered after it:
        // a rank that has refused a bucket has posted no gather of it.
        let norm = self.total_norm(step + 1)?;
        refused.map_or(Ok(()), Err).map_err(TrainError::in_step(step + 1))?;
        self.weight_sync.wait(&mut self.weights)?;
        Ok((loss, Updated { norm }))
    }

    /// Forward and backward over a step's samples, and the reduction of all gradients. Weights stay
    /// as they are. `step`, from 0, is a coordinate of dropout masks. A collective call.
    ///
    /// # Errors
    /// The first failure of any rank.
    pub fn backward(
        &mut self,
        step: u64,
        batch: &Batch,
        observe: Observe<'_>,
    ) -> Result<Loss, TrainError> {
        Ok(self.gradients(step, batch, None, observe)?.0)
    }

    /// [`Engine::backward`], with an update of each bucket if there is one to be made at once. Gives
    /// also the gradient that this rank has refused to update with.
    fn gradients(
        &mut self,
        step: u64,
        batch: &Batch,
        at_once: Option<Update>,
        observe: Observe<'_>,
    ) -> Result<(Loss, Option<DpError>), TrainError> {
        self.grads.clear()?;
        let plan = self.plan.clone();
        let run = self.run(&plan.training, Mode::Train, step, batch, at_once, observe);
        let (loss, cells, refused) = run?;
        self.measured = Some(cells);
        if !loss.sum.is_finite() {
            // All ranks know the same loss. The gradients tell which rank and parameter is concerned.
            let measured = self.norm.measure(&self.grads, &*self.ops);
            measured.map_err(TrainError::in_step(step + 1))?;
            return Err(TrainError::Loss { step: step + 1, loss: loss.mean() });
        }
        Ok((loss, refused))
    }

    /// The loss of `global_batch` sequences, of which `batch` is this data-parallel rank's part. A
    /// collective call.
    ///
    /// # Errors
    /// The first failure of any rank.
    pub fn evaluate(&mut self, batch: &Batch) -> Result<Loss, TrainError> {
        let plan = self.plan.clone();
        Ok(self.run(&plan.evaluation, Mode::Eval, 0, batch, None, &mut |_, _, _| {})?.0)
    }

    /// Runs a schedule, and gives the loss, the partial sums of the norm over all ranks, and the gradient that this
    /// rank has refused to update with.
    fn run(
        &mut self,
        schedule: &Schedule,
        mode: Mode,
        step: u64,
        batch: &Batch,
        at_once: Option<Update>,
        observe: Observe<'_>,
    ) -> Result<(Loss, Buf, Option<DpError>), TrainError> {
        let tokens = self.valid_tokens(batch)?;
        let config = &self.plan.config;
        let counted = (mode == Mode::Train).then(|| self.norm.uncounted());
        let cells = counted.as_ref().map_or(0, |_| self.norm.cells());
        let (optimizer, weight_sync) = (&mut self.optimizer, &mut self.weight_sync);
        let rank = self.world.rank();
        let at_once = at_once.map(|update| AtOnce {
            updating: Updating { optimizer, weight_sync, update },
            rank,
            refused: None,
        });
        let samples = MicroBatches::new(config, self.coordinate.dp, batch, &self.exchanged)?;
        let mut run = StageRun {
            config,
            stages: &self.stages,
            weights: &mut self.weights,
            grads: &mut self.grads,
            sync: &mut self.sync,
            norm: &self.norm,
            counted,
            figures: Figures::new(&self.exchanged, config.global_batch, cells)?,
            at_once,
            ops: &*self.ops,
            pool: &self.pool,
            micro_batches: &samples,
            mode,
            step,
            loss_scale: 1.0 / tokens.max(1) as f64,
            weights_at_once: !self.splits_backward && schedule.has_weights_at_once(),
            in_flight: Default::default(),
            tells_losses: self.coordinate.tp == 0,
        };
        let execution = Execution { schedule, comm: &*self.pp, pool: &self.pool };
        execute(&execution, &mut run, observe)?;
        let refused = run.at_once.take().and_then(|at_once| at_once.refused);
        let StageRun { counted, mut figures, .. } = run;
        if let Some(mut counted) = counted {
            self.norm.count_rest(&mut counted, figures.cells()?, &self.grads, &*self.ops)?;
        }
        let (sum, cells) = figures.total(&*self.world)?;
        Ok((Loss { sum, tokens }, cells, refused))
    }

    /// Valid tokens of the step over all data-parallel ranks: counted before the first forward pass,
    /// because the loss's gradient is scaled by it (contract C2).
    fn valid_tokens(&self, batch: &Batch) -> Result<u64, TrainError> {
        let own = Buf::from_vec(vec![batch.valid_tokens()]);
        let all = self.dp.all_reduce(own, ReduceOp::Sum, Name::new("valid tokens"))?;
        Ok(all.typed::<u64>()?[0])
    }

    /// Measures the gradients' norm, clips, updates the owned weights and gathers the others'. `step`
    /// counts from 1. A collective call.
    ///
    /// # Errors
    /// A gradient that is not finite (step, rank and parameter named), or a failed collective.
    pub fn update(&mut self, step: u64, lr: impl Into<Rates>) -> Result<Updated, TrainError> {
        let norm = self.total_norm(step)?;
        let clip = self.plan.config.clip_norm;
        let grad_scale = if clip > 0.0 { clip_scale(norm.norm(), clip) } else { 1.0 };
        let update = Update { lr: lr.into(), grad_scale, step };
        let (optimizer, weight_sync) = (&mut self.optimizer, &mut self.weight_sync);
        let mut updating = Updating { optimizer, weight_sync, update };
        for bucket in 0..self.layout.buckets.len() {
            updating.bucket(bucket, &mut self.weights, &self.grads, &*self.ops)?;
        }
        self.weight_sync.wait(&mut self.weights)?;
        Ok(Updated { norm })
    }

    /// The norm that the backward pass of a step (from 1) has counted.
    fn total_norm(&mut self, step: u64) -> Result<GlobalNorm, TrainError> {
        let norm = match self.measured.take() {
            Some(cells) => self.norm.total(cells.typed()?, &self.grads, &*self.ops),
            None => self.norm.measure(&self.grads, &*self.ops),
        };
        norm.map_err(TrainError::in_step(step))
    }

    /// The gradients' norm without an update. A collective call.
    ///
    /// # Errors
    /// As [`Engine::update`].
    pub fn measure_norm(&self) -> Result<GlobalNorm, TrainError> {
        Ok(self.norm.measure(&self.grads, &*self.ops)?)
    }

    /// Compares the weights of all replicas. A collective call.
    ///
    /// # Errors
    /// The parameter and the ranks that differ.
    pub fn check_replicas(&self) -> Result<(), TrainError> {
        Ok(check_replicas(&self.weights, &self.groups, self.tied.as_ref())?)
    }
}
