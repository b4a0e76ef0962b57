//! A layer that tensor parallelism does not split.

use crate::TensorGroup;
use trine_buffer::Act;
use trine_comm::Name;
use trine_nn::{Context, GradStore, Layer, NnError, ParamStore, Saved, WeightWork};

/// A layer from the residual stream to the residual stream that every tensor-parallel rank computes whole, with whole
/// weights: one that nobody has split, such as a closure over candle tensors.
///
/// With sequence parallelism rows are gathered before it, and each rank keeps its own of what comes out; it may
/// therefore mix the tokens of a sample. Its weight gradients are complete on every rank, and none is added to
/// another's.
#[derive(Debug)]
pub struct Replicated<L> {
    group: TensorGroup,
    layer: L,
    name: Name,
}

impl<L: Layer> Replicated<L> {
    /// `layer` on the stream of `group`. Its parameters are not split.
    pub fn new(group: TensorGroup, layer: L, name: Name) -> Self {
        Self { group, layer, name }
    }

    /// All rows of a stream, in the stream's own type.
    fn whole(&self, x: Act, ctx: &Context<'_>) -> Result<Act, NnError> {
        if !self.group.sequence_parallel() {
            return Ok(x);
        }
        self.group.gather_rows(x, self.name, ctx)
    }

    /// This rank's rows.
    fn own(&self, x: Act, ctx: &Context<'_>) -> Result<Act, NnError> {
        if !self.group.sequence_parallel() {
            return Ok(x);
        }
        let tokens = ctx.rows.tokens();
        let (rows, cols) = (self.group.stream_rows(tokens), x.len() / tokens);
        let mut own = ctx.pool.alloc(x.dtype(), rows.len() * cols)?;
        own.slice_mut().copy_from(x.slice().range(rows.start * cols..rows.end * cols)?)?;
        Ok(Act::new(own))
    }
}

impl<L: Layer> Layer for Replicated<L> {
    fn forward(
        &self,
        weights: &ParamStore,
        x: Act,
        ctx: &Context<'_>,
    ) -> Result<(Act, Saved), NnError> {
        let (y, saved) = self.layer.forward(weights, self.whole(x, ctx)?, ctx)?;
        Ok((self.own(y, ctx)?, saved))
    }

    fn backward_input(
        &self,
        weights: &ParamStore,
        saved: Saved,
        dy: Act,
        ctx: &Context<'_>,
        grads: &mut GradStore,
    ) -> Result<(Act, WeightWork), NnError> {
        let dy = self.whole(dy, ctx)?;
        let (dx, work) = self.layer.backward_input(weights, saved, dy, ctx, grads)?;
        Ok((self.own(dx, ctx)?, work))
    }
}
