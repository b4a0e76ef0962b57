//! The output layer and its loss, split by rows of the vocabulary.

use crate::{Partial, Stream, TensorGroup};
use std::ops::Range;
use trine_buffer::{Act, Buf};
use trine_comm::{Name, ReduceOp};
use trine_kernels::{LossShape, MatMut, MatRef};
use trine_nn::{
    Context, GradStore, Linear, NnError, Numerics, ParamId, ParamStore, Saved, WeightWork,
};

/// The part of the vocabulary that one rank holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VocabShard {
    /// Stored rows of the vocabulary on this rank.
    pub rows: Range<usize>,
    /// Entries of the whole vocabulary that are real; those behind are padding.
    pub vocab: usize,
}

impl VocabShard {
    fn loss_shape(&self, softcap: Option<f64>) -> LossShape {
        let valid_cols = self.vocab.clamp(self.rows.start, self.rows.end) - self.rows.start;
        LossShape { valid_cols, first_col: self.rows.start, softcap }
    }
}

/// Output layer and softmax cross-entropy. Logits are never gathered: ranks exchange each row's
/// maximum, its sum of exponentials and the logit of its target. The gradient is written over the
/// logits in the forward pass, already scaled by [`Context::loss_scale`] (contract C2).
#[derive(Debug, Clone)]
pub struct VocabHead {
    group: TensorGroup,
    linear: Linear,
    shard: VocabShard,
    blocks: usize,
    softcap: Option<f64>,
}

const ENTER: Name = Name::new("head");
const MAX: Name = Name::new("head.max");
const SUM: Name = Name::new("head.sum");

impl VocabHead {
    /// An output layer of `hidden` features to the local rows of the vocabulary.
    pub fn new(
        group: TensorGroup,
        weight: ParamId,
        hidden: usize,
        shard: VocabShard,
        numerics: Numerics,
    ) -> Self {
        let blocks = numerics.blocks(group.size());
        let outputs = shard.rows.len();
        let width = outputs / blocks;
        let block = |index: usize| index * width..(index + 1) * width;
        let output_blocks = (0..blocks).map(|index| vec![block(index)]).collect();
        let linear = Linear { output_blocks, ..Linear::new(weight, None, hidden, outputs) };
        Self { group, linear, shard, blocks, softcap: None }
    }

    /// The same layer with bounded logits, `softcap · tanh(logit / softcap)` (Gemma 2).
    pub fn with_softcap(self, softcap: Option<f64>) -> Self {
        Self { softcap, ..self }
    }

    /// This rank's logits, `[tokens, local rows]`, bounded where the layer has a bound; padding
    /// entries are arbitrary.
    ///
    /// # Errors
    /// A wrong shape, or a failed collective.
    pub fn logits(
        &self,
        weights: &ParamStore,
        x: &Stream,
        ctx: &Context<'_>,
    ) -> Result<Buf, NnError> {
        let x = self.group.enter(x, ENTER, ctx)?;
        let mut logits = self.linear.product(weights, &x, ctx.compute, ctx)?;
        if let Some(cap) = self.softcap {
            ctx.ops.softcap(logits.slice_mut(), cap)?;
        }
        Ok(logits)
    }

    /// The loss of each token, `[tokens]` in the accumulator type, equal on all ranks; 0 where there
    /// is no target.
    ///
    /// # Errors
    /// No targets in the context, a wrong shape, or a failed collective.
    pub fn forward(
        &self,
        weights: &ParamStore,
        x: &Stream,
        ctx: &Context<'_>,
    ) -> Result<(Buf, Saved), NnError> {
        let targets = ctx
            .targets
            .ok_or(NnError::Missing { layer: "head", what: "targets in its context" })?;
        let (rows, cols, shape) =
            (ctx.rows.tokens(), self.shard.rows.len(), self.shard.loss_shape(self.softcap));
        let mut logits = self.logits(weights, x, ctx)?;
        let view = MatRef::new(logits.slice(), rows, cols);
        let mut max = ctx.alloc_sums(rows)?;
        ctx.ops.ce_max(shape, max.slice_mut(), view)?;
        let max = self.group.all_reduce(max, ReduceOp::Max, MAX)?;
        // Sum of exponentials and target logit travel together: [sums | targets].
        let mut sums = ctx.alloc_sums(rows)?;
        let mut target = ctx.alloc_sums(rows)?;
        let (into, at) = (sums.slice_mut(), target.slice_mut());
        ctx.ops.ce_sum(shape, self.blocks, into, at, view, max.slice(), targets)?;
        let both = self.sum_both(&sums, &target, ctx)?;
        let (sums, target) = (both.slice().range(0..rows)?, both.slice().range(rows..2 * rows)?);
        let mut loss = ctx.alloc_sums(rows)?;
        ctx.ops.ce_loss(loss.slice_mut(), max.slice(), sums, target, targets)?;
        if !ctx.training() {
            return Ok((loss, Saved::nothing()));
        }
        let into = MatMut::new(logits.slice_mut(), rows, cols);
        ctx.ops.ce_grad(shape, into, max.slice(), sums, targets, ctx.loss_scale)?;
        Ok((loss, Saved::new([(**x).clone(), Act::new(logits)], [])))
    }

    fn sum_both(&self, sums: &Buf, target: &Buf, ctx: &Context<'_>) -> Result<Buf, NnError> {
        let rows = sums.len();
        let mut both = ctx.alloc_sums(2 * rows)?;
        both.slice_mut().range(0..rows)?.copy_from(sums.slice())?;
        both.slice_mut().range(rows..2 * rows)?.copy_from(target.slice())?;
        self.group.all_reduce(both, ReduceOp::Sum, SUM)
    }

    /// The stream's gradient, and the weight gradient as work for later. The loss is the end of the
    /// model, so there is no gradient to hand in.
    ///
    /// # Errors
    /// As [`VocabHead::forward`].
    pub fn backward_input(
        &self,
        weights: &ParamStore,
        saved: Saved,
        ctx: &Context<'_>,
        grads: &mut GradStore,
    ) -> Result<(Stream, WeightWork), NnError> {
        let ([x, d_logits], []) = saved.take()?;
        let dx = Partial::assume(self.linear.input_grad(weights, &d_logits, ctx)?);
        let dx = self.group.enter_backward(dx, ENTER, ctx)?;
        let x = self.group.enter(&Stream::assume(x), ENTER, ctx)?;
        let work = self.linear.weight_grad(x.into_inner(), d_logits, ctx, grads)?;
        Ok((dx, work))
    }
}
