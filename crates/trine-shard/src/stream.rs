//! Row-wise layers on the residual stream.

use crate::{Stream, TensorGroup};
use trine_buffer::{Act, Buf};
use trine_comm::{Name, ReduceOp};
use trine_nn::{
    Context, Dropout, GradStore, NnError, NormGrads, NormLayer, Numerics, ParamStore, Saved,
};

/// A norm on the stream. With sequence parallelism each rank normalises its own rows, and the
/// gradients of gain and bias are summed over the ranks here, so that they leave the layer complete
/// like every other gradient.
#[derive(Debug, Clone)]
pub struct StreamNorm {
    group: TensorGroup,
    norm: NormLayer,
    name: Name,
}

impl StreamNorm {
    /// `norm` on the stream of `group`.
    pub fn new(group: TensorGroup, norm: NormLayer, name: Name) -> Self {
        Self { group, norm, name }
    }

    /// Normalises each row. The stream is in its own type, what comes out in the compute type.
    ///
    /// # Errors
    /// A wrong shape.
    pub fn forward(
        &self,
        weights: &ParamStore,
        x: &Stream,
        ctx: &Context<'_>,
    ) -> Result<(Stream, Saved), NnError> {
        let (y, stats) = self.normalise(weights, x, ctx)?;
        let kept = if ctx.training() { vec![(**x).clone(), stats] } else { vec![] };
        Ok((y, Saved::new(kept, [])))
    }

    /// The normalised rows, and their statistics.
    ///
    /// # Errors
    /// A wrong shape.
    pub fn normalise(
        &self,
        weights: &ParamStore,
        x: &Stream,
        ctx: &Context<'_>,
    ) -> Result<(Stream, Act), NnError> {
        let (y, stats) = self.norm.normalise(weights, x, ctx)?;
        Ok((Stream::assume(Act::new(y)), Act::new(stats)))
    }

    /// The stream's gradient; gain and bias gradients go into `grads`. `beside` is the gradient of
    /// the stream that passes the branch by, to which the norm's is added.
    ///
    /// # Errors
    /// A wrong shape, or a failed collective.
    pub fn backward_input(
        &self,
        weights: &ParamStore,
        saved: Saved,
        dy: Stream,
        beside: Option<Stream>,
        ctx: &Context<'_>,
        grads: &mut GradStore,
    ) -> Result<Stream, NnError> {
        let ([x, stats], []) = saved.take()?;
        let (dy, beside) = (dy.into_inner(), beside.map(Stream::into_inner));
        let dx = match (self.group.sequence_parallel(), ctx.numerics) {
            (false, _) => {
                let into = NormGrads::Store(grads);
                self.norm.gradients(weights, (&x, &stats, &dy), beside, ctx, into)?
            }
            (true, Numerics::Fast) => {
                self.sum_of_ranks(weights, (&x, &stats, &dy), beside, ctx, grads)?
            }
            (true, Numerics::Reference) => {
                self.gathered(weights, (x, stats, dy), beside, ctx, grads)?
            }
        };
        Ok(Stream::assume(Act::new(dx)))
    }

    /// Each rank sums its own rows, then the ranks' sums are added.
    fn sum_of_ranks(
        &self,
        weights: &ParamStore,
        saved: (&Buf, &Buf, &Buf),
        beside: Option<Act>,
        ctx: &Context<'_>,
        grads: &mut GradStore,
    ) -> Result<Buf, NnError> {
        let mut sum = ctx.pool.zeros(ctx.compute.accumulator(), self.norm.params.len())?;
        let into = NormGrads::Sum(sum.slice_mut());
        let dx = self.norm.gradients(weights, saved, beside, ctx, into)?;
        let sum = self.group.all_reduce(sum, ReduceOp::Sum, self.name)?;
        grads.add(&self.norm.params, &ctx.rows, |_, total| {
            Ok(ctx.ops.add_assign(total, sum.slice())?)
        })?;
        Ok(dx)
    }

    /// In reference numerics a sample's rows are added in one order whatever rank holds them: all
    /// rows are gathered, every rank does the whole sum, and keeps its rows of the input gradient.
    fn gathered(
        &self,
        weights: &ParamStore,
        (x, stats, dy): (Act, Act, Act),
        beside: Option<Act>,
        ctx: &Context<'_>,
        grads: &mut GradStore,
    ) -> Result<Buf, NnError> {
        let own = self.group.stream_rows(ctx.rows.tokens());
        let x = self.group.gather_rows(x, self.name, ctx)?;
        let stats = self.group.gather_rows(stats, self.name, ctx)?;
        let dy = self.group.gather_rows(dy, self.name, ctx)?;
        let into = NormGrads::Store(grads);
        let all = self.norm.gradients(weights, (&x, &stats, &dy), None, ctx, into)?;
        let cols = self.norm.cols;
        let rows = all.slice().range(own.start * cols..own.end * cols)?;
        let Some(beside) = beside else {
            let mut dx = ctx.pool.alloc(all.dtype(), rows.len())?;
            dx.slice_mut().copy_from(rows)?;
            return Ok(dx);
        };
        let mut dx = beside.into_buf(ctx.pool)?;
        ctx.ops.add_assign(dx.slice_mut(), rows)?;
        Ok(dx)
    }
}

/// Dropout on the stream. The mask follows global rows, so a rank that holds some of them draws its
/// part of the same mask.
#[derive(Debug, Clone)]
pub struct StreamDropout {
    group: TensorGroup,
    dropout: Dropout,
}

impl StreamDropout {
    /// `dropout` on the stream of `group`.
    pub fn new(group: TensorGroup, dropout: Dropout) -> Self {
        Self { group, dropout }
    }

    /// Applies the mask: forward to the activation, backward to the gradient.
    ///
    /// # Errors
    /// A wrong shape.
    pub fn apply(&self, x: Stream, ctx: &Context<'_>) -> Result<Stream, NnError> {
        let first_row = self.group.stream_rows(ctx.rows.tokens()).start;
        Ok(Stream::assume(self.dropout.apply(x.into_inner(), first_row, ctx)?))
    }
}
