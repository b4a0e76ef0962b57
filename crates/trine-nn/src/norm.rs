//! LayerNorm and RMSNorm.

use crate::{
    Context, GradStore, Layer, NnError, ParamId, ParamStore, Saved, WeightWork, check_len,
};
use trine_buffer::{Act, Buf, Slice, SliceMut};
use trine_kernels::NormShape;
use trine_spec::Norm;

/// A normalisation of each row, with a learned gain and, for LayerNorm, a learned bias.
#[derive(Debug, Clone)]
pub struct NormLayer {
    /// Which norm.
    pub kind: Norm,
    /// Gain, for LayerNorm followed by the bias: one address for both.
    pub params: ParamId,
    /// Elements of a row.
    pub cols: usize,
    /// Added to the variance.
    pub eps: f64,
}

/// Where the gain's and bias's gradients of a backward call go.
#[derive(Debug)]
pub enum NormGrads<'a> {
    /// Into the gradient store: the rows are whole samples.
    Store(&'a mut GradStore),
    /// Into one accumulator: the rows are a part of the samples.
    Sum(SliceMut<'a>),
}

impl NormLayer {
    /// One more than the weight, in the accumulator type, if that is the gain.
    fn offset_gain(&self, weight: Slice<'_>, ctx: &Context<'_>) -> Result<Option<Buf>, NnError> {
        if self.kind != Norm::RmsOne {
            return Ok(None);
        }
        let mut gain = ctx.alloc_sums(self.cols)?;
        ctx.ops.offset(gain.slice_mut(), weight, 1.0)?;
        Ok(Some(gain))
    }

    fn shape(&self, rows: usize) -> NormShape {
        NormShape { rows, cols: self.cols, eps: self.eps }
    }

    /// The normalised rows, in the compute type, and their statistics. `x` may be any number of rows,
    /// in the compute type or that of its sums.
    ///
    /// # Errors
    /// A length that is no multiple of the row's, or weights that are away.
    pub fn normalise(
        &self,
        weights: &ParamStore,
        x: &Buf,
        ctx: &Context<'_>,
    ) -> Result<(Buf, Buf), NnError> {
        let rows = x.len() / self.cols;
        check_len("norm", "input", x.len(), rows * self.cols)?;
        let lease = weights.lease(&self.params)?;
        let mut y = ctx.alloc(rows, self.cols)?;
        let mut stats = ctx.alloc_sums(rows * self.kind.stats())?;
        let (out, sums, shape) = (y.slice_mut(), stats.slice_mut(), self.shape(rows));
        let weight = lease.slice().range(0..self.cols)?;
        let offset = self.offset_gain(weight, ctx)?;
        let gamma = offset.as_ref().map_or(weight, Buf::slice);
        match self.kind {
            Norm::Layer => {
                let beta = lease.slice().range(self.cols..2 * self.cols)?;
                ctx.ops.layer_norm(shape, out, sums, x.slice(), gamma, beta)?;
            }
            Norm::Rms | Norm::RmsOne => ctx.ops.rms_norm(shape, out, sums, x.slice(), gamma)?,
        }
        Ok((y, stats))
    }

    /// The input gradient of some rows, in the type of `x`, and the gain's and bias's gradients into
    /// `grads`. The input gradient is added to `beside`, if there is one: the gradient of what passes
    /// the norm by.
    ///
    /// # Errors
    /// Lengths that do not agree, or a bucket that is away.
    pub fn gradients(
        &self,
        weights: &ParamStore,
        (x, stats, dy): (&Buf, &Buf, &Buf),
        beside: Option<Act>,
        ctx: &Context<'_>,
        grads: NormGrads<'_>,
    ) -> Result<Buf, NnError> {
        check_len("norm", "output gradient", dy.len(), x.len())?;
        let add = beside.is_some();
        let mut dx = match beside {
            Some(beside) => beside.into_buf(ctx.pool)?,
            None => ctx.pool.alloc(x.dtype(), x.len())?,
        };
        check_len("norm", "gradient beside", dx.len(), x.len())?;
        let mut part = |rows: std::ops::Range<usize>, sum: SliceMut<'_>| {
            self.part(weights, (x, stats, dy), rows, (&mut dx, add), sum, ctx)
        };
        let rows = 0..x.len() / self.cols;
        match grads {
            NormGrads::Store(store) if store.trains(&self.params) => {
                store.add(&self.params, &ctx.rows, part)?;
            }
            // What is frozen has no gradient, but its input has.
            NormGrads::Store(_) => {
                let mut unused = ctx.pool.zeros(ctx.compute.accumulator(), self.params.len())?;
                part(rows, unused.slice_mut())?;
            }
            NormGrads::Sum(sum) => part(rows, sum)?,
        }
        Ok(dx)
    }

    fn part(
        &self,
        weights: &ParamStore,
        (x, stats, dy): (&Buf, &Buf, &Buf),
        rows: std::ops::Range<usize>,
        (dx, add): (&mut Buf, bool),
        sum: SliceMut<'_>,
        ctx: &Context<'_>,
    ) -> Result<(), NnError> {
        let lease = weights.lease(&self.params)?;
        let elements = rows.start * self.cols..rows.end * self.cols;
        let each = self.kind.stats();
        let stats = stats.slice().range(rows.start * each..rows.end * each)?;
        let (x, dy) = (x.slice().range(elements.clone())?, dy.slice().range(elements.clone())?);
        let (dx, weight) = (dx.slice_mut().range(elements)?, lease.slice().range(0..self.cols)?);
        let offset = self.offset_gain(weight, ctx)?;
        let gamma = offset.as_ref().map_or(weight, Buf::slice);
        let shape = self.shape(rows.len());
        match self.kind {
            Norm::Layer => {
                let mut sum = sum;
                // The bias's sum lies behind the gain's; both are needed at once, so the bias goes
                // through a small buffer.
                let mut beta = ctx.pool.zeros(ctx.compute.accumulator(), self.cols)?;
                let gain = sum.reborrow().range(0..self.cols)?;
                let out = beta.slice_mut();
                ctx.ops.layer_norm_backward(shape, dx, add, gain, out, x, stats, gamma, dy)?;
                ctx.ops.add_assign(sum.range(self.cols..2 * self.cols)?, beta.slice())?;
            }
            Norm::Rms | Norm::RmsOne => {
                ctx.ops.rms_norm_backward(shape, dx, add, sum, x, stats, gamma, dy)?;
            }
        }
        Ok(())
    }
}

impl Layer for NormLayer {
    fn forward(
        &self,
        weights: &ParamStore,
        x: Act,
        ctx: &Context<'_>,
    ) -> Result<(Act, Saved), NnError> {
        let (y, stats) = self.normalise(weights, &x, ctx)?;
        let kept = if ctx.training() { vec![x, Act::new(stats)] } else { vec![] };
        Ok((Act::new(y), Saved::new(kept, [])))
    }

    fn backward_input(
        &self,
        weights: &ParamStore,
        saved: Saved,
        dy: Act,
        ctx: &Context<'_>,
        grads: &mut GradStore,
    ) -> Result<(Act, WeightWork), NnError> {
        let ([x, stats], []) = saved.take()?;
        let dx = self.gradients(weights, (&x, &stats, &dy), None, ctx, NormGrads::Store(grads))?;
        Ok((Act::new(dx), WeightWork::nothing()))
    }
}
