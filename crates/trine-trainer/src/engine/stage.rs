//! What the actions of a schedule mean on one rank: layers, stores and gradient synchronisation.

use super::update::AtOnce;
use super::{Batch, EngineConfig};
use crate::TrainError;
use std::collections::HashMap;
use std::ops::Range;
use trine_buffer::{Act, Buf, BufferError, DType, Pool, Slice, SliceMut};
use trine_comm::{Communicator, Name, ReduceOp};
use trine_dp::{Counted, GradNorm, GradSync};
use trine_kernels::{MatRef, Ops};
use trine_models::StageModel;
use trine_nn::{Context, GradStore, Mode, ParamStore, Rows, Saved, WeightWork};
use trine_pipeline::{StageError, StageOps};
use trine_schedule::{Payload, Reduction};

/// A step's samples on one data-parallel rank, where its device has them, cut into micro-batches.
#[derive(Debug)]
pub(crate) struct MicroBatches {
    inputs: Buf,
    targets: Buf,
    document_start: Option<Buf>,
    /// Place of this rank's first sample in the global batch.
    first_sample: usize,
    samples_each: usize,
    seq: usize,
}

impl MicroBatches {
    pub(crate) fn new(
        config: &EngineConfig,
        dp_index: usize,
        batch: &Batch,
        pool: &Pool,
    ) -> Result<Self, TrainError> {
        let samples = config.global_batch / config.degrees.dp;
        let expected = samples * config.seq;
        let starts = batch.document_start.as_ref().map_or(expected, Vec::len);
        for (what, held) in [
            ("inputs", batch.inputs.len()),
            ("targets", batch.targets.len()),
            ("document starts", starts),
        ] {
            if held != expected {
                return Err(TrainError::BatchLen { what, held, expected });
            }
        }
        let held = |values: &[u32]| pool.copy_of(Slice::new(values));
        Ok(Self {
            inputs: held(&batch.inputs)?,
            targets: held(&batch.targets)?,
            document_start: batch.document_start.as_deref().map(held).transpose()?,
            first_sample: dp_index * samples,
            samples_each: config.micro_batch,
            seq: config.seq,
        })
    }

    fn tokens(&self, micro_batch: usize) -> Range<usize> {
        let each = self.samples_each * self.seq;
        micro_batch * each..(micro_batch + 1) * each
    }

    fn rows(&self, micro_batch: usize) -> Rows {
        let first = self.first_sample + micro_batch * self.samples_each;
        Rows { samples: first..first + self.samples_each, seq: self.seq }
    }

    fn inputs(&self, micro_batch: usize) -> Result<Slice<'_>, BufferError> {
        self.inputs.slice().range(self.tokens(micro_batch))
    }

    fn targets(&self, micro_batch: usize) -> Result<Slice<'_>, BufferError> {
        self.targets.slice().range(self.tokens(micro_batch))
    }

    fn document_start(&self, micro_batch: usize) -> Result<Option<Slice<'_>>, BufferError> {
        let starts = self.document_start.as_ref().map(Buf::slice);
        starts.map(|starts| starts.range(self.tokens(micro_batch))).transpose()
    }
}

/// A micro-batch between its forward and the end of its backward pass.
#[derive(Debug, Default)]
pub(crate) struct InFlight {
    states: Vec<Saved>,
    /// The gradient between two segments.
    gradient: Option<Act>,
    /// Weight gradients still to do, by segment.
    work: Vec<(usize, WeightWork)>,
}

/// One rank's stages during one run of a schedule.
pub(crate) struct StageRun<'a> {
    pub(crate) config: &'a EngineConfig,
    pub(crate) stages: &'a [StageModel],
    pub(crate) weights: &'a mut ParamStore,
    pub(crate) grads: &'a mut GradStore,
    pub(crate) sync: &'a mut GradSync,
    pub(crate) norm: &'a GradNorm,
    /// Of a backward pass: what the norm has counted.
    pub(crate) counted: Option<Counted>,
    /// What the ranks tell each other of a step: see [`Figures`].
    pub(crate) figures: Figures,
    /// Of a backward pass that updates each bucket as soon as it is reduced.
    pub(crate) at_once: Option<AtOnce<'a>>,
    pub(crate) ops: &'a dyn Ops,
    pub(crate) pool: &'a Pool,
    pub(crate) micro_batches: &'a MicroBatches,
    pub(crate) mode: Mode,
    pub(crate) step: u64,
    pub(crate) loss_scale: f64,
    /// Whether B computes the weight gradients of each piece too, which leaves nothing of them for W.
    pub(crate) weights_at_once: bool,
    /// By stage and micro-batch.
    pub(crate) in_flight: HashMap<(usize, usize), InFlight>,
    /// Whether this rank says what samples lose: of tensor-parallel ranks, which all know it, one does.
    pub(crate) tells_losses: bool,
}

/// What the ranks tell each other of a step, in one vector of f64 that stays on the device until its end: the loss of
/// each sample of the global batch, then the partial sums of the gradients' norm. Each is zero where another rank
/// has it.
#[derive(Debug)]
pub(crate) struct Figures {
    values: Buf,
    samples: usize,
}

impl Figures {
    pub(crate) fn new(pool: &Pool, samples: usize, cells: usize) -> Result<Self, BufferError> {
        Ok(Self { values: pool.zeros(DType::F64, samples + cells)?, samples })
    }

    fn losses(&mut self, samples: Range<usize>) -> Result<SliceMut<'_>, BufferError> {
        self.values.slice_mut().range(samples)
    }

    pub(crate) fn cells(&mut self) -> Result<SliceMut<'_>, BufferError> {
        let len = self.values.len();
        self.values.slice_mut().range(self.samples..len)
    }

    /// The sum over all ranks, on the host: losses, then partial sums. A collective call.
    pub(crate) fn total(self, world: &dyn Communicator) -> Result<(f64, Buf), TrainError> {
        let all = world.all_reduce(self.values, ReduceOp::Sum, Name::new("figures of a step"))?;
        let mut losses = all.slice().to_host()?.into_vec::<f64>()?;
        let cells = losses.split_off(self.samples);
        // In the order of the samples, whatever rank has them.
        Ok((losses.iter().sum(), Buf::from_vec(cells)))
    }
}

impl<'a> StageRun<'a> {
    fn context(&self, micro_batch: usize) -> Result<Context<'a>, TrainError> {
        let samples = self.micro_batches;
        Ok(Context {
            ops: self.ops,
            pool: self.pool,
            compute: self.config.compute,
            numerics: self.config.numerics,
            mode: self.mode,
            step: self.step,
            rows: samples.rows(micro_batch),
            document_start: samples.document_start(micro_batch)?,
            targets: Some(samples.targets(micro_batch)?),
            loss_scale: self.loss_scale,
            decode: None,
        })
    }

    /// The first stage's input.
    fn token_ids(&self, micro_batch: usize) -> Result<Act, StageError> {
        Ok(Act::new(self.pool.copy_of(self.micro_batches.inputs(micro_batch)?)?))
    }

    /// Adds up the token losses of each sample, in the order of its tokens.
    fn record_losses(&mut self, rows: &Rows, losses: &Buf) -> Result<(), StageError> {
        let losses = MatRef::new(losses.slice(), rows.samples.len(), rows.seq);
        Ok(self.ops.row_sums(self.figures.losses(rows.samples.clone())?, losses)?)
    }

    fn stage(&self, number: usize) -> Result<&'a StageModel, TrainError> {
        let stages = self.stages;
        stages.iter().find(|s| s.number() == number).ok_or(TrainError::NotHere { stage: number })
    }

    /// The bucket that a segment fills.
    fn bucket(&self, stage: usize, segment: usize) -> Result<usize, TrainError> {
        let layout = self.grads.layout();
        layout.bucket(stage, segment).ok_or(TrainError::NotHere { stage })
    }

    fn state(&mut self, stage: usize, micro_batch: usize) -> Result<InFlight, TrainError> {
        let state = self.in_flight.remove(&(stage, micro_batch));
        state.ok_or(TrainError::NotInFlight { stage, micro_batch })
    }
}

/// The segments of a stage that an action means.
fn segments(stage: &StageModel, segment: Option<usize>) -> Range<usize> {
    segment.map_or(0..stage.segments(), |segment| segment..segment + 1)
}

impl StageOps for StageRun<'_> {
    fn forward(
        &mut self,
        stage: usize,
        micro_batch: usize,
        x: Option<Act>,
    ) -> Result<Act, StageError> {
        let (model, ctx) = (self.stage(stage)?, self.context(micro_batch)?);
        let x = x.map_or_else(|| self.token_ids(micro_batch), Ok)?;
        let (y, states) = model.forward(self.weights, x, &ctx)?;
        if self.mode == Mode::Train {
            let state = InFlight { states, ..InFlight::default() };
            self.in_flight.insert((stage, micro_batch), state);
        }
        if model.has_head() && self.tells_losses {
            self.record_losses(&ctx.rows, &y)?;
        }
        Ok(y)
    }

    fn backward_input(
        &mut self,
        stage: usize,
        micro_batch: usize,
        segment: Option<usize>,
        dy: Option<Act>,
    ) -> Result<Option<Act>, StageError> {
        let (model, ctx) = (self.stage(stage)?, self.context(micro_batch)?);
        let mut state = self.state(stage, micro_batch)?;
        // The last stage ends in the loss, which takes no gradient.
        let end = || Act::new(Buf::zeros(self.config.compute, 0));
        let mut gradient = dy.or(state.gradient.take()).unwrap_or_else(end);
        for segment in segments(model, segment).rev() {
            let (weights, states) = (&*self.weights, &mut state.states);
            gradient = if self.weights_at_once {
                model.backward(segment, weights, states, gradient, &ctx, self.grads)?
            } else {
                let (dx, work) =
                    model.backward_input(segment, weights, states, gradient, &ctx, self.grads)?;
                state.work.push((segment, work));
                dx
            };
        }
        let done = state.states.is_empty();
        let dx = if done { Some(gradient) } else { state.gradient.replace(gradient).and(None) };
        self.in_flight.insert((stage, micro_batch), state);
        Ok(dx)
    }

    fn backward_weight(
        &mut self,
        stage: usize,
        micro_batch: usize,
        segment: Option<usize>,
    ) -> Result<(), StageError> {
        let (model, ctx) = (self.stage(stage)?, self.context(micro_batch)?);
        let mut state = self.state(stage, micro_batch)?;
        for segment in segments(model, segment).rev() {
            if !self.weights_at_once {
                let found = state.work.iter().position(|(of, _)| *of == segment);
                let at = found.ok_or(TrainError::NotInFlight { stage, micro_batch })?;
                let (_, work) = state.work.remove(at);
                work.run(&ctx, self.grads)?;
            }
            let bucket = self.bucket(stage, segment)?;
            // A tied bucket collects from pieces of other segments; it is closed when it is taken.
            if !self.grads.layout().buckets[bucket].tied {
                self.grads.close(bucket, ctx.rows.samples.clone(), self.ops)?;
            }
        }
        if !(state.states.is_empty() && state.work.is_empty()) {
            self.in_flight.insert((stage, micro_batch), state);
        }
        Ok(())
    }

    fn transfer_len(&self, _: Payload) -> (DType, usize) {
        self.config.message()
    }

    fn sync(&mut self, reduction: Reduction) -> Result<(), StageError> {
        match reduction {
            Reduction::ReduceTied { .. } => self.sync.tied(self.grads, self.ops)?,
            Reduction::ReduceGrad { stage, segment } => {
                let bucket = self.bucket(stage, segment)?;
                self.stage(stage)?.check_gradients(self.grads, bucket)?;
                self.sync.post(self.grads, bucket, self.ops)?;
            }
            Reduction::AwaitGrad { stage, segment } => {
                let bucket = self.bucket(stage, segment)?;
                self.sync.wait(self.grads, bucket, self.ops)?;
                if let Some(counted) = &mut self.counted {
                    let cells = self.figures.cells()?;
                    self.norm.count(counted, cells, bucket, self.grads, self.ops)?;
                }
                if let Some(at_once) = &mut self.at_once {
                    at_once.bucket(bucket, self.weights, self.grads, self.ops)?;
                }
            }
        }
        Ok(())
    }
}
