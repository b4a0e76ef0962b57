//! The branches of a transformer block, beside the residual stream.

use crate::held::Held;
use trine_buffer::Act;
use trine_nn::{Activation, Context, GradStore, Layer, NnError, ParamStore, Saved, WeightWork};
use trine_shard::{
    ColumnLinear, RowLinear, ShardedAttention, Split, Stream, StreamDropout, StreamNorm,
};
use trine_spec::{BranchTensor, Step};

/// `dropout(norm(row(inner(columns(norm(x))))))`: the layers of a [`trine_spec::Branch`]. It enters and leaves one
/// tensor-parallel region. The stream has the accumulator's type; a norm's output has the type of products.
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

impl BranchLayer {
    /// Runs some steps one behind the other, and lets go of what is not in `kept` as soon as no step needs it.
    pub(crate) fn run(
        &self,
        steps: &[Step],
        held: &mut Held,
        kept: &[BranchTensor],
        w: &ParamStore,
        ctx: &Context<'_>,
    ) -> Result<(), NnError> {
        for step in steps {
            self.step(*step, held, w, ctx)?;
            let read = step.gives(self.after.is_some()).last();
            held.keep(|kind| kept.contains(&kind) || read == Some(&kind));
        }
        Ok(())
    }

    fn step(
        &self,
        step: Step,
        held: &mut Held,
        w: &ParamStore,
        ctx: &Context<'_>,
    ) -> Result<(), NnError> {
        match step {
            Step::Read => {
                let x = Stream::assume(held.get(BranchTensor::Entering)?.clone());
                let read = match &self.before {
                    Some(norm) => {
                        let (read, stats) = norm.normalise(w, &x, ctx)?;
                        held.put(BranchTensor::ReadStats, stats);
                        read
                    }
                    None => x.to(ctx.compute, ctx)?,
                };
                held.put(BranchTensor::Read, read.into_inner());
            }
            Step::Columns => {
                let read = Stream::assume(held.get(BranchTensor::Read)?.clone());
                let h = self.columns.apply(w, &read, ctx)?;
                drop(read);
                self.inner.prepare(h, held, w, ctx)?;
            }
            Step::Inner => {
                let h = Split::assume(held.get(BranchTensor::Columns)?.clone());
                self.inner.apply(&h, held, ctx)?;
            }
            Step::Row => {
                let given = Split::assume(held.get(BranchTensor::Given)?.clone());
                let y = self.row.apply(w, &given, ctx)?;
                let is_read = self.after.is_some();
                let kind = if is_read { BranchTensor::Row } else { BranchTensor::Leaving };
                held.put(kind, y.into_inner());
            }
            Step::After => {
                if let Some(norm) = &self.after {
                    let y = Stream::assume(held.get(BranchTensor::Row)?.clone());
                    let (y, stats) = norm.normalise(w, &y, ctx)?;
                    held.put(BranchTensor::RowStats, stats);
                    held.put(BranchTensor::Leaving, y.into_inner());
                }
            }
        }
        Ok(())
    }

    /// Adds what it gives to the stream.
    pub(crate) fn add_to_stream(
        &self,
        x: Stream,
        held: &mut Held,
        ctx: &Context<'_>,
    ) -> Result<Stream, NnError> {
        let y = Stream::assume(held.take(BranchTensor::Leaving)?);
        add(x, &self.dropout.apply(y, ctx)?, ctx)
    }

    /// The gradient of what the columns read, from the stream's gradient `dy`.
    pub(crate) fn take(
        &self,
        w: &ParamStore,
        held: &mut Held,
        dy: &Stream,
        ctx: &Context<'_>,
        grads: &mut GradStore,
    ) -> Result<(Stream, WeightWork), NnError> {
        let mut d = self.dropout.apply(dy.clone().to(ctx.compute, ctx)?, ctx)?;
        if let Some(norm) = &self.after {
            let saved = held.saved(&[BranchTensor::Row, BranchTensor::RowStats])?;
            d = norm.backward_input(w, saved, d, None, ctx, grads)?.to(ctx.compute, ctx)?;
        }
        let given = Saved::new([held.get(BranchTensor::Given)?.clone()], []);
        let (split, mut work) = self.row.backward_input(w, given, &d, ctx, grads)?;
        drop(d);
        let split = self.inner.backward_input(w, held, split, ctx, grads)?;
        let read = held.saved(&[BranchTensor::Read])?;
        let (d, left) = self.columns.backward_input(w, read, split, ctx, grads)?;
        work.append(left);
        Ok((d, work))
    }

    /// Adds the gradient `d` of what the columns read to the stream's, through the norm before them.
    pub(crate) fn add_gradient(
        &self,
        w: &ParamStore,
        held: &mut Held,
        d: Stream,
        dy: Stream,
        ctx: &Context<'_>,
        grads: &mut GradStore,
    ) -> Result<Stream, NnError> {
        let Some(norm) = &self.before else { return add(dy, &d, ctx) };
        let saved = held.saved(&[BranchTensor::Entering, BranchTensor::ReadStats])?;
        norm.backward_input(w, saved, d, Some(dy), ctx, grads)
    }
}

impl InnerLayer {
    /// What it reads, from what the columns give.
    fn prepare(
        &self,
        h: Split,
        held: &mut Held,
        w: &ParamStore,
        ctx: &Context<'_>,
    ) -> Result<(), NnError> {
        let h = match self {
            Self::Attention(attention) => {
                let (qkv, normed) = attention.prepare(w, h, ctx)?;
                if let Some([input, stats]) = normed {
                    held.put(BranchTensor::QkInput, input);
                    held.put(BranchTensor::QkStats, stats);
                }
                qkv
            }
            Self::Activation(_) => h,
        };
        held.put(BranchTensor::Columns, h.into_inner());
        Ok(())
    }

    fn apply(&self, h: &Split, held: &mut Held, ctx: &Context<'_>) -> Result<(), NnError> {
        let given = match self {
            Self::Attention(attention) => {
                let (given, log_sum) = attention.attend(h, ctx)?;
                held.put(BranchTensor::LogSum, log_sum);
                given.into_inner()
            }
            Self::Activation(activation) => Act::new(activation.apply(h, ctx)?),
        };
        held.put(BranchTensor::Given, given);
        Ok(())
    }

    fn backward_input(
        &self,
        w: &ParamStore,
        held: &mut Held,
        dy: Split,
        ctx: &Context<'_>,
        grads: &mut GradStore,
    ) -> Result<Split, NnError> {
        let columns = held.take(BranchTensor::Columns)?;
        match self {
            Self::Attention(attention) => {
                let normed = match held.has(BranchTensor::QkInput) {
                    true => {
                        Some([held.take(BranchTensor::QkInput)?, held.take(BranchTensor::QkStats)?])
                    }
                    false => None,
                };
                let core =
                    [columns, held.take(BranchTensor::Given)?, held.take(BranchTensor::LogSum)?];
                let saved = ShardedAttention::saved(normed, core);
                attention.backward_input(w, saved, dy, ctx, grads)
            }
            Self::Activation(activation) => {
                drop(held.take(BranchTensor::Given)?);
                let saved = Saved::new([columns], []);
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
