//! The pre-norm transformer block that both families share.

use trine_buffer::Act;
use trine_nn::{Activation, Context, GradStore, Layer, NnError, ParamStore, Saved, WeightWork};
use trine_shard::{
    ColumnLinear, RowLinear, ShardedAttention, Split, Stream, StreamDropout, StreamNorm,
};

/// `x += attention(norm1(x)); x += mlp(norm2(x))`. Each branch enters and leaves one tensor-parallel
/// region. The stream `x` has the accumulator's type; a norm's output has the type of products.
/// [`crate::families`] says what the parts are.
#[derive(Debug)]
pub struct Block {
    /// Norm before attention.
    pub norm1: StreamNorm,
    /// Queries, keys and values in one product.
    pub qkv: ColumnLinear,
    /// Attention by heads.
    pub attention: ShardedAttention,
    /// Output projection of attention.
    pub output: RowLinear,
    /// Dropout of the attention branch.
    pub dropout1: StreamDropout,
    /// Norm before the MLP.
    pub norm2: StreamNorm,
    /// Up projection, with the gate if there is one.
    pub up: ColumnLinear,
    /// GELU or SwiGLU.
    pub activation: Activation,
    /// Down projection.
    pub down: RowLinear,
    /// Dropout of the MLP branch.
    pub dropout2: StreamDropout,
}

impl Layer for Block {
    fn forward(&self, w: &ParamStore, x: Act, ctx: &Context<'_>) -> Result<(Act, Saved), NnError> {
        let x = Stream::assume(x);
        let (h, norm1) = self.norm1.forward(w, &x, ctx)?;
        let (qkv, qkv_saved) = self.qkv.forward(w, &h, ctx)?;
        drop(h);
        let (heads, attention) = self.attention.forward(w, qkv, ctx)?;
        let (branch, output) = self.output.forward(w, heads, ctx)?;
        let x = add(x, &self.dropout1.apply(branch, ctx)?, ctx)?;

        let (h, norm2) = self.norm2.forward(w, &x, ctx)?;
        let (inner, up) = self.up.forward(w, &h, ctx)?;
        drop(h);
        let (active, activation) = self.activation.forward(w, inner.into_inner(), ctx)?;
        let (branch, down) = self.down.forward(w, Split::assume(active), ctx)?;
        let y = add(x, &self.dropout2.apply(branch, ctx)?, ctx)?;

        let saved = [norm1, qkv_saved, attention, output, norm2, up, activation, down];
        Ok((y.into_inner(), Saved::new([], saved)))
    }

    fn backward_input(
        &self,
        w: &ParamStore,
        saved: Saved,
        dy: Act,
        ctx: &Context<'_>,
        grads: &mut GradStore,
    ) -> Result<(Act, WeightWork), NnError> {
        let ([], [norm1, qkv, attention, output, norm2, up, activation, down]) = saved.take()?;
        let dy = Stream::assume(dy);
        let branch = self.dropout2.apply(dy.clone().to(ctx.compute, ctx)?, ctx)?;
        let (d, mut work) = self.down.backward_input(w, down, &branch, ctx, grads)?;
        drop(branch);
        let d = self.activation.backward_input(w, activation, d.into_inner(), ctx, grads)?.0;
        let (d, left) = self.up.backward_input(w, up, Split::assume(d), ctx, grads)?;
        work.append(left);
        let dx = self.norm2.backward_input(w, norm2, d, Some(dy), ctx, grads)?;

        let branch = self.dropout1.apply(dx.clone().to(ctx.compute, ctx)?, ctx)?;
        let (d, left) = self.output.backward_input(w, output, &branch, ctx, grads)?;
        work.append(left);
        drop(branch);
        let d = self.attention.backward_input(attention, d, ctx)?;
        let (d, left) = self.qkv.backward_input(w, qkv, d, ctx, grads)?;
        work.append(left);
        let dx = self.norm1.backward_input(w, norm1, d, Some(dx), ctx, grads)?;
        Ok((dx.into_inner(), work))
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
