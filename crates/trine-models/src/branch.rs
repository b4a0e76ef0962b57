//! The branches of a pre-norm transformer block, beside the residual stream.

use trine_buffer::Act;
use trine_nn::{Activation, Context, GradStore, Layer, NnError, ParamStore, Saved, WeightWork};
use trine_shard::{
    ColumnLinear, RowLinear, ShardedAttention, Split, Stream, StreamDropout, StreamNorm,
};

/// `x += dropout(row(inner(columns(norm(x)))))`: the layers of a [`trine_spec::Branch`]. It enters and leaves one
/// tensor-parallel region. The stream has the accumulator's type; a norm's output has the type of products. A block is
/// a [`trine_nn::Stack`] of them.
#[derive(Debug)]
pub struct BranchLayer {
    /// Norm of the stream.
    pub norm: StreamNorm,
    /// All columns in one product.
    pub columns: ColumnLinear,
    /// What is done by features.
    pub inner: InnerLayer,
    /// Back to the stream.
    pub row: RowLinear,
    /// Dropout of the branch.
    pub dropout: StreamDropout,
}

/// What a branch does between its two products.
#[derive(Debug)]
pub enum InnerLayer {
    /// Attention by heads.
    Attention(ShardedAttention),
    /// GELU or SwiGLU.
    Activation(Activation),
}

impl Layer for BranchLayer {
    fn forward(&self, w: &ParamStore, x: Act, ctx: &Context<'_>) -> Result<(Act, Saved), NnError> {
        let x = Stream::assume(x);
        let (normed, norm) = self.norm.forward(w, &x, ctx)?;
        let (h, columns) = self.columns.forward(w, &normed, ctx)?;
        drop(normed);
        let (h, inner) = self.inner.forward(w, h, ctx)?;
        let (branch, row) = self.row.forward(w, h, ctx)?;
        let y = add(x, &self.dropout.apply(branch, ctx)?, ctx)?;
        Ok((y.into_inner(), Saved::new([], [norm, columns, inner, row])))
    }

    fn backward_input(
        &self,
        w: &ParamStore,
        saved: Saved,
        dy: Act,
        ctx: &Context<'_>,
        grads: &mut GradStore,
    ) -> Result<(Act, WeightWork), NnError> {
        let ([], [norm, columns, inner, row]) = saved.take()?;
        let dy = Stream::assume(dy);
        let branch = self.dropout.apply(dy.clone().to(ctx.compute, ctx)?, ctx)?;
        let (d, mut work) = self.row.backward_input(w, row, &branch, ctx, grads)?;
        drop(branch);
        let d = self.inner.backward_input(w, inner, d, ctx, grads)?;
        let (d, left) = self.columns.backward_input(w, columns, d, ctx, grads)?;
        work.append(left);
        let dx = self.norm.backward_input(w, norm, d, Some(dy), ctx, grads)?;
        Ok((dx.into_inner(), work))
    }
}

impl InnerLayer {
    fn forward(
        &self,
        w: &ParamStore,
        x: Split,
        ctx: &Context<'_>,
    ) -> Result<(Split, Saved), NnError> {
        match self {
            Self::Attention(attention) => attention.forward(w, x, ctx),
            Self::Activation(activation) => {
                let (y, saved) = activation.forward(w, x.into_inner(), ctx)?;
                Ok((Split::assume(y), saved))
            }
        }
    }

    fn backward_input(
        &self,
        w: &ParamStore,
        saved: Saved,
        dy: Split,
        ctx: &Context<'_>,
        grads: &mut GradStore,
    ) -> Result<Split, NnError> {
        match self {
            Self::Attention(attention) => attention.backward_input(w, saved, dy, ctx, grads),
            Self::Activation(activation) => {
                let (d, _) = activation.backward_input(w, saved, dy.into_inner(), ctx, grads)?;
                Ok(Split::assume(d))
            }
        }
    }
}

/// `x + branch`, in the memory of `x` where nobody else holds it.
fn add(x: Stream, branch: &Stream, ctx: &Context<'_>) -> Result<Stream, NnError> {
    let sum = match x.into_inner().try_into_buf() {
        Ok(mut x) => {
            ctx.ops.add_assign(x.slice_mut(), branch.slice())?;
            x
        }
        Err(x) => {
            let mut sum = ctx.pool.alloc(x.dtype(), x.len())?;
            ctx.ops.add(sum.slice_mut(), x.slice(), branch.slice())?;
            sum
        }
    };
    Ok(Stream::assume(Act::new(sum)))
}
