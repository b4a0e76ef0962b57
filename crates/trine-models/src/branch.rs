//! The branches of a transformer block, beside the residual stream.

use trine_buffer::Act;
use trine_nn::{Activation, Context, GradStore, Layer, NnError, ParamStore, Saved, WeightWork};
use trine_shard::{
    ColumnLinear, RowLinear, ShardedAttention, Split, Stream, StreamDropout, StreamNorm,
};

/// `x += dropout(norm(row(inner(columns(norm(x))))))`: the layers of a [`trine_spec::Branch`]. It enters and leaves one
/// tensor-parallel region. The stream has the accumulator's type; a norm's output has the type of products. A block is
/// a [`trine_nn::Stack`] of them, or has them [`SideBySide`].
#[derive(Debug)]
pub struct BranchLayer {
    /// Norm of the stream.
    pub before: Option<StreamNorm>,
    /// All columns in one product.
    pub columns: ColumnLinear,
    /// What is done by features.
    pub inner: InnerLayer,
    /// Back to the stream.
    pub row: RowLinear,
    /// Norm of what the row gives.
    pub after: Option<StreamNorm>,
    /// Dropout of the branch.
    pub dropout: StreamDropout,
}

/// What a branch does between its two products.
#[derive(Debug)]
pub enum InnerLayer {
    /// Attention by heads.
    Attention(ShardedAttention),
    /// A function of the MLP, alone or of a gate.
    Activation(Activation),
}

/// Branches that all read what enters, and are all added to it.
#[derive(Debug)]
pub struct SideBySide(pub Vec<BranchLayer>);

impl BranchLayer {
    /// What the branch adds to the stream `x`.
    fn give(
        &self,
        w: &ParamStore,
        x: &Stream,
        ctx: &Context<'_>,
    ) -> Result<(Stream, Saved), NnError> {
        let (read, before) = match &self.before {
            Some(norm) => norm.forward(w, x, ctx)?,
            None => (x.clone().to(ctx.compute, ctx)?, Saved::nothing()),
        };
        let (h, columns) = self.columns.forward(w, &read, ctx)?;
        drop(read);
        let (h, inner) = self.inner.forward(w, h, ctx)?;
        let (y, row) = self.row.forward(w, h, ctx)?;
        let (y, after) = match &self.after {
            Some(norm) => norm.forward(w, &y, ctx)?,
            None => (y, Saved::nothing()),
        };
        let saved = Saved::new([], [before, columns, inner, row, after]);
        Ok((self.dropout.apply(y, ctx)?, saved))
    }

    /// The gradient of what the columns read, and what the norm before them has saved, from the stream's gradient `dy`.
    fn take(
        &self,
        w: &ParamStore,
        saved: Saved,
        dy: &Stream,
        ctx: &Context<'_>,
        grads: &mut GradStore,
    ) -> Result<(Stream, Saved, WeightWork), NnError> {
        let ([], [before, columns, inner, row, after]) = saved.take()?;
        let mut d = self.dropout.apply(dy.clone().to(ctx.compute, ctx)?, ctx)?;
        if let Some(norm) = &self.after {
            d = norm.backward_input(w, after, d, None, ctx, grads)?.to(ctx.compute, ctx)?;
        }
        let (split, mut work) = self.row.backward_input(w, row, &d, ctx, grads)?;
        drop(d);
        let split = self.inner.backward_input(w, inner, split, ctx, grads)?;
        let (d, left) = self.columns.backward_input(w, columns, split, ctx, grads)?;
        work.append(left);
        Ok((d, before, work))
    }

    /// Adds the gradient `d` of what the columns read to the stream's, through the norm before them.
    fn add_to(
        &self,
        w: &ParamStore,
        (d, before): (Stream, Saved),
        dy: Stream,
        ctx: &Context<'_>,
        grads: &mut GradStore,
    ) -> Result<Stream, NnError> {
        match &self.before {
            Some(norm) => norm.backward_input(w, before, d, Some(dy), ctx, grads),
            None => add(dy, &d, ctx),
        }
    }
}

impl Layer for BranchLayer {
    fn forward(&self, w: &ParamStore, x: Act, ctx: &Context<'_>) -> Result<(Act, Saved), NnError> {
        let x = Stream::assume(x);
        let (y, saved) = self.give(w, &x, ctx)?;
        Ok((add(x, &y, ctx)?.into_inner(), saved))
    }

    fn backward_input(
        &self,
        w: &ParamStore,
        saved: Saved,
        dy: Act,
        ctx: &Context<'_>,
        grads: &mut GradStore,
    ) -> Result<(Act, WeightWork), NnError> {
        let dy = Stream::assume(dy);
        let (d, before, work) = self.take(w, saved, &dy, ctx, grads)?;
        let dx = self.add_to(w, (d, before), dy, ctx, grads)?;
        Ok((dx.into_inner(), work))
    }
}

impl Layer for SideBySide {
    fn forward(&self, w: &ParamStore, x: Act, ctx: &Context<'_>) -> Result<(Act, Saved), NnError> {
        let x = Stream::assume(x);
        let (mut sum, mut all) = (x.clone(), Vec::new());
        for branch in &self.0 {
            let (y, saved) = branch.give(w, &x, ctx)?;
            sum = add(sum, &y, ctx)?;
            all.push(saved);
        }
        Ok((sum.into_inner(), Saved::new([], all)))
    }

    fn backward_input(
        &self,
        w: &ParamStore,
        saved: Saved,
        dy: Act,
        ctx: &Context<'_>,
        grads: &mut GradStore,
    ) -> Result<(Act, WeightWork), NnError> {
        let all = saved.into_children_of(self.0.len())?;
        let dy = Stream::assume(dy);
        let (mut dx, mut work) = (dy.clone(), WeightWork::nothing());
        for (branch, saved) in self.0.iter().zip(all).rev() {
            let (d, before, left) = branch.take(w, saved, &dy, ctx, grads)?;
            dx = branch.add_to(w, (d, before), dx, ctx, grads)?;
            work.append(left);
        }
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
