//! The state of the owned ranges, and the step.

use crate::groups::Rule;
use crate::segments::{Segment, segments};
use crate::{Group, OptimError, OptimizerConfig, Rates};
use std::ops::Range;
use trine_buffer::{Buf, BufferError, DType, Place};
use trine_kernels::{AdamW, Ops, Sgd};
use trine_nn::{GradStore, NnError, ParamStore};
use trine_spec::{ParamSpec, RankLayout};

/// The name of the master weights among the quantities of [`Optimizer::state`].
pub const MASTER: &str = "master";

/// What one step is told.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Update {
    /// Learning rates: one for all parameters, or [`crate::LrSchedule::rates`] for groups with other schedules.
    pub lr: Rates,
    /// Factor on the gradient: clipping.
    pub grad_scale: f64,
    /// Which step, counted from 1: the bias correction depends on it.
    pub step: u64,
}

/// The state of one bucket's owned range.
#[derive(Debug)]
struct BucketState {
    own: Range<usize>,
    segments: Vec<Segment>,
    values: Values,
}

/// The values kept for each owned element.
#[derive(Debug)]
struct Values {
    /// Master weights, where the weights themselves are not in the accumulator type.
    master: Option<Buf>,
    /// In the order of [`OptimizerConfig::moments`].
    moments: Vec<Buf>,
}

/// An optimizer over the ranges that one rank owns. Only these have state, and only these are
/// updated; what the rest of a bucket holds is neither read nor written.
#[derive(Debug)]
pub struct Optimizer {
    config: OptimizerConfig,
    buckets: Vec<BucketState>,
}

impl Optimizer {
    /// Moments of zeros for the `own` range of each bucket, and master weights where `compute` is
    /// not its own accumulator type (bf16: f32 masters).
    ///
    /// `initial` gives a whole bucket of initial weights in the accumulator type. It is called once
    /// for every bucket in order, so that it may load the parameter store on the way.
    ///
    /// # Errors
    /// Constants out of range, ranges that do not fit the layout, or what `initial` returns.
    pub fn new(
        layout: &RankLayout,
        own: Vec<Range<usize>>,
        compute: DType,
        config: OptimizerConfig,
        initial: impl FnMut(usize) -> Result<Buf, NnError>,
    ) -> Result<Self, OptimError> {
        Self::with_groups(layout, own, compute, (config, &[]), &Place::Host, initial)
    }

    /// [`Optimizer::new`] with groups of parameters that are updated in another way, and state at `place`.
    ///
    /// # Errors
    /// As [`Optimizer::new`].
    pub fn with_groups(
        layout: &RankLayout,
        own: Vec<Range<usize>>,
        compute: DType,
        (config, groups): (OptimizerConfig, &[Group]),
        place: &Place,
        mut initial: impl FnMut(usize) -> Result<Buf, NnError>,
    ) -> Result<Self, OptimError> {
        config.check()?;
        let rule = |spec: &ParamSpec| Rule::of(spec, &config, groups);
        if own.len() != layout.buckets.len() {
            let (ranges, buckets) = (own.len(), layout.buckets.len());
            return Err(OptimError::Ranges { ranges, buckets });
        }
        let mut buckets = Vec::new();
        for (bucket, own) in own.into_iter().enumerate() {
            let weights = initial(bucket)?;
            let segments = segments(layout, bucket, &own, rule);
            let values = Values::new(layout, bucket, &own, (compute, place), &config, &weights)?;
            buckets.push(BucketState { own, segments, values });
        }
        Ok(Self { config, buckets })
    }

    /// The algorithm and its constants.
    pub fn config(&self) -> &OptimizerConfig {
        &self.config
    }

    /// The elements of a bucket that this rank owns.
    pub fn own(&self, bucket: usize) -> Range<usize> {
        self.buckets[bucket].own.clone()
    }

    /// Bytes of the master weights held.
    pub fn master_bytes(&self) -> usize {
        self.buckets
            .iter()
            .filter_map(|state| state.values.master.as_ref())
            .map(Buf::size_bytes)
            .sum()
    }

    /// Bytes of the moments held.
    pub fn moment_bytes(&self) -> usize {
        self.buckets.iter().flat_map(|state| &state.values.moments).map(Buf::size_bytes).sum()
    }

    /// Updates the owned range of every bucket.
    ///
    /// # Errors
    /// As [`Optimizer::step_bucket`].
    pub fn step(
        &mut self,
        params: &mut ParamStore,
        grads: &GradStore,
        update: Update,
        ops: &dyn Ops,
    ) -> Result<(), OptimError> {
        (0..self.buckets.len())
            .try_for_each(|bucket| self.step_bucket(bucket, params, grads, update, ops))
    }

    /// Updates the owned range of one bucket in one fused pass: moments, master weights and the
    /// weights of the compute type.
    ///
    /// # Errors
    /// Step 0, a bucket that is away, or gradients that are still a tree.
    pub fn step_bucket(
        &mut self,
        bucket: usize,
        params: &mut ParamStore,
        grads: &GradStore,
        update: Update,
        ops: &dyn Ops,
    ) -> Result<(), OptimError> {
        if update.step == 0 {
            return Err(OptimError::StepZero);
        }
        if self.buckets[bucket].segments.is_empty() {
            // Nothing of it is trained here; a bucket that is frozen has no gradient.
            return Ok(());
        }
        let weights = params.bucket_mut(bucket)?;
        let gradient = grads.bucket(bucket)?;
        let BucketState { own, segments, values } = &mut self.buckets[bucket];
        segments.iter().try_for_each(|segment| {
            values.update(own.start, segment, weights, gradient, &self.config, update, ops)
        })
    }

    /// Everything that is kept for a bucket's owned range, by name: `master` (f32 beside bf16
    /// weights; where the weights are their own masters there is none), `exp_avg` and `exp_avg_sq`,
    /// or `momentum_buffer`. Element `i` belongs to element `own.start + i` of the bucket.
    pub fn state(&self, bucket: usize) -> Vec<(&'static str, &Buf)> {
        let values = &self.buckets[bucket].values;
        let master = values.master.as_ref().map(|master| (MASTER, master));
        let moments = self.config.moments().iter().copied().zip(&values.moments);
        master.into_iter().chain(moments).collect()
    }

    /// One quantity of [`Optimizer::state`], writable: for loading a checkpoint.
    ///
    /// # Errors
    /// If no such quantity is kept, with the names of those that are.
    pub fn state_mut(&mut self, bucket: usize, name: &str) -> Result<&mut Buf, OptimError> {
        let values = &mut self.buckets[bucket].values;
        let mut kept = Vec::new();
        let master = values.master.iter_mut().map(|master| (MASTER, master));
        let moments = self.config.moments().iter().copied().zip(&mut values.moments);
        for (quantity, kept_values) in master.chain(moments) {
            if quantity == name {
                return Ok(kept_values);
            }
            kept.push(quantity);
        }
        Err(OptimError::Quantity { name: name.into(), kept })
    }
}

impl Values {
    fn new(
        layout: &RankLayout,
        bucket: usize,
        own: &Range<usize>,
        (compute, place): (DType, &Place),
        config: &OptimizerConfig,
        initial: &Buf,
    ) -> Result<Self, OptimError> {
        let (len, sums) = (layout.buckets[bucket].len, compute.accumulator());
        if own.start > own.end || own.end > len {
            return Err(OptimError::Own { bucket, len, own: own.clone() });
        }
        if initial.len() != len {
            return Err(OptimError::Initial { bucket, len, held: initial.len() });
        }
        let mut master = None;
        if compute != sums {
            let mut part = place.zeros(sums, own.len())?;
            part.slice_mut().copy_from(initial.slice().range(own.clone())?)?;
            master = Some(part);
        }
        let moments = config.moments().iter().map(|_| place.zeros(sums, own.len()));
        Ok(Self { master, moments: moments.collect::<Result<_, _>>()? })
    }

    /// One kernel call over elements that are updated alike; `first` is the bucket's first owned one.
    fn update(
        &mut self,
        first: usize,
        segment: &Segment,
        weights: &mut Buf,
        gradient: &Buf,
        config: &OptimizerConfig,
        update: Update,
        ops: &dyn Ops,
    ) -> Result<(), OptimError> {
        let span = segment.span.clone();
        let local = span.start - first..span.end - first;
        let grad = gradient.slice().range(span.clone())?;
        let weights = weights.slice_mut().range(span)?;
        let (master, compute) = match &mut self.master {
            Some(master) => (master.slice_mut().range(local.clone())?, Some(weights)),
            None => (weights, None),
        };
        let mut moments = self
            .moments
            .iter_mut()
            .map(|moment| moment.slice_mut().range(local.clone()))
            .collect::<Result<Vec<_>, BufferError>>()?
            .into_iter();
        let mut moment = || moments.next().expect("invariant: one buffer for each moment's name");
        let Rule { lr, decay: weight_decay, schedule } = segment.rule;
        let lr = update.lr.of(schedule) * lr;
        let Update { lr: _, grad_scale, step } = update;
        match *config {
            OptimizerConfig::AdamW { beta1, beta2, eps, weight_decay: _ } => {
                let bias_correction1 = 1.0 - beta1.powf(step as f64);
                let bias_correction2 = 1.0 - beta2.powf(step as f64);
                let constants = AdamW {
                    lr,
                    beta1,
                    beta2,
                    eps,
                    weight_decay,
                    bias_correction1,
                    bias_correction2,
                    grad_scale,
                };
                ops.adamw(constants, master, moment(), moment(), grad, compute)?;
            }
            OptimizerConfig::Sgd { momentum, weight_decay: _ } => {
                let constants = Sgd { lr, momentum, weight_decay, grad_scale };
                ops.sgd(constants, master, moments.next(), grad, compute)?;
            }
        }
        Ok(())
    }
}
