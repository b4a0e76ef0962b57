//! The linear layer's three products, with the order of sums that reference numerics need.

use crate::{
    Context, GradStore, Layer, NnError, ParamId, ParamStore, Saved, WeightTask, WeightWork,
    check_len,
};
use std::ops::Range;
use trine_buffer::{Act, Buf, DType};
use trine_kernels::{MatMut, MatRef, Product};

/// `y = x · wᵀ + b`, with `w` of `[outputs, inputs]`.
///
/// As a [`Layer`] it is the dense linear layer; its products are also the local part of column- and
/// row-parallel layers. Two sums can cross ranks: the forward sum over inputs (row-parallel) and
/// the input gradient's sum over outputs (column-parallel). Each is taken as a balanced tree over
/// the blocks given here; with one block it is a single product.
#[derive(Debug, Clone)]
pub struct Linear {
    /// The weight.
    pub weight: ParamId,
    /// The bias, `[outputs]`.
    pub bias: Option<ParamId>,
    /// Local input features.
    pub inputs: usize,
    /// Local output features.
    pub outputs: usize,
    /// Equal blocks of inputs that the forward sum is a tree of.
    pub input_blocks: usize,
    /// Leaves of the input gradient's tree: each a list of output ranges that are summed one behind
    /// the other.
    pub output_blocks: Vec<Vec<Range<usize>>>,
}

impl Linear {
    /// A linear layer whose sums are single products.
    pub fn new(weight: ParamId, bias: Option<ParamId>, inputs: usize, outputs: usize) -> Self {
        let all = 0..outputs;
        Self { weight, bias, inputs, outputs, input_blocks: 1, output_blocks: vec![vec![all]] }
    }

    /// `x · wᵀ + b`, `[rows, outputs]`, in the compute type or that of its sums. Where the sum over
    /// inputs is one product the bias is what it starts from; elsewhere it is added to the whole sum.
    ///
    /// # Errors
    /// As [`Linear::product`].
    pub fn apply(
        &self,
        weights: &ParamStore,
        x: &Buf,
        dtype: DType,
        ctx: &Context<'_>,
    ) -> Result<Buf, NnError> {
        let Some(bias) = self.bias.as_ref().filter(|_| self.input_blocks == 1) else {
            let mut y = self.product(weights, x, dtype, ctx)?;
            self.add_bias(weights, &mut y, ctx)?;
            return Ok(y);
        };
        let rows = ctx.rows.tokens();
        check_len("linear", "input", x.len(), rows * self.inputs)?;
        let (w, bias) = (weights.lease(&self.weight)?, weights.lease(bias)?);
        let mut y = ctx.pool.alloc(dtype, rows * self.outputs)?;
        ctx.ops.linear(
            MatMut::new(y.slice_mut(), rows, self.outputs),
            MatRef::new(x.slice(), rows, self.inputs),
            MatRef::new(w.slice(), self.outputs, self.inputs),
            bias.slice(),
        )?;
        Ok(y)
    }

    /// `x · wᵀ`, `[rows, outputs]`, without the bias, in the compute type or that of its sums.
    ///
    /// # Errors
    /// A wrong length, or weights that are away.
    pub fn product(
        &self,
        weights: &ParamStore,
        x: &Buf,
        dtype: DType,
        ctx: &Context<'_>,
    ) -> Result<Buf, NnError> {
        let rows = ctx.rows.tokens();
        check_len("linear", "input", x.len(), rows * self.inputs)?;
        let lease = weights.lease(&self.weight)?;
        let x = MatRef::new(x.slice(), rows, self.inputs);
        let w = MatRef::new(lease.slice(), self.outputs, self.inputs);
        let width = self.inputs / self.input_blocks;
        let mut y = ctx.pool.alloc(dtype, rows * self.outputs)?;
        sum_tree(ctx, 0..self.input_blocks, &mut y, &mut |block, out| {
            let columns = block * width..(block + 1) * width;
            let (x, w) = (x.columns(columns.clone())?, w.columns(columns)?);
            let out = MatMut::new(out.slice_mut(), rows, self.outputs);
            Ok(ctx.ops.matmul(Product::Nt, false, x, w, out)?)
        })?;
        Ok(y)
    }

    /// Adds the bias, if there is one, to `y` of `[rows, outputs]`.
    ///
    /// # Errors
    /// Weights that are away.
    pub fn add_bias(
        &self,
        weights: &ParamStore,
        y: &mut Buf,
        ctx: &Context<'_>,
    ) -> Result<(), NnError> {
        if let Some(bias) = &self.bias {
            let rows = y.len() / self.outputs;
            let y = MatMut::new(y.slice_mut(), rows, self.outputs);
            ctx.ops.add_bias(y, weights.lease(bias)?.slice())?;
        }
        Ok(())
    }

    /// `dy · w`, `[rows, inputs]`.
    ///
    /// # Errors
    /// A wrong length, or weights that are away.
    pub fn input_grad(
        &self,
        weights: &ParamStore,
        dy: &Buf,
        ctx: &Context<'_>,
    ) -> Result<Buf, NnError> {
        let rows = ctx.rows.tokens();
        check_len("linear", "output gradient", dy.len(), rows * self.outputs)?;
        let lease = weights.lease(&self.weight)?;
        let dy = MatRef::new(dy.slice(), rows, self.outputs);
        let mut dx = ctx.alloc(rows, self.inputs)?;
        sum_tree(ctx, 0..self.output_blocks.len(), &mut dx, &mut |block, out| {
            for (term, outputs) in self.output_blocks[block].iter().enumerate() {
                let w =
                    lease.slice().range(outputs.start * self.inputs..outputs.end * self.inputs)?;
                let w = MatRef::new(w, outputs.len(), self.inputs);
                let dx = MatMut::new(out.slice_mut(), rows, self.inputs);
                ctx.ops.matmul(Product::Nn, term > 0, dy.columns(outputs.clone())?, w, dx)?;
            }
            Ok(())
        })?;
        Ok(dx)
    }

    /// Adds the bias gradient and returns the weight gradient as work for later, if it is trained.
    ///
    /// # Errors
    /// Gradients that are away.
    pub fn weight_grad(
        &self,
        x: Act,
        dy: Act,
        ctx: &Context<'_>,
        grads: &mut GradStore,
    ) -> Result<WeightWork, NnError> {
        if let Some(bias) = &self.bias {
            grads.add(bias, &ctx.rows, |rows, sum| {
                let elements = rows.start * self.outputs..rows.end * self.outputs;
                let dy = MatRef::new(dy.slice().range(elements)?, rows.len(), self.outputs);
                Ok(ctx.ops.sum_rows(sum, dy)?)
            })?;
        }
        let mut work = WeightWork::nothing();
        if grads.trains(&self.weight) {
            let (inputs, outputs) = (self.inputs, self.outputs);
            work.push(WeightTask { weight: self.weight, x, dy, inputs, outputs });
        }
        Ok(work)
    }
}

/// A balanced tree sum: leaf `i` writes its part into the buffer that it is given.
fn sum_tree(
    ctx: &Context<'_>,
    leaves: Range<usize>,
    out: &mut Buf,
    leaf: &mut dyn FnMut(usize, &mut Buf) -> Result<(), NnError>,
) -> Result<(), NnError> {
    if leaves.len() == 1 {
        return leaf(leaves.start, out);
    }
    // At the largest power of two below the number of leaves, as collectives split their ranks.
    let middle = leaves.start + leaves.len().div_ceil(2).next_power_of_two();
    sum_tree(ctx, leaves.start..middle, out, leaf)?;
    let mut right = ctx.pool.alloc(out.dtype(), out.len())?;
    sum_tree(ctx, middle..leaves.end, &mut right, leaf)?;
    Ok(ctx.ops.add_assign(out.slice_mut(), right.slice())?)
}

impl Layer for Linear {
    fn forward(
        &self,
        weights: &ParamStore,
        x: Act,
        ctx: &Context<'_>,
    ) -> Result<(Act, Saved), NnError> {
        let y = self.apply(weights, &x, ctx.compute, ctx)?;
        let saved = if ctx.training() { Saved::new([x], []) } else { Saved::nothing() };
        Ok((Act::new(y), saved))
    }

    fn backward_input(
        &self,
        weights: &ParamStore,
        saved: Saved,
        dy: Act,
        ctx: &Context<'_>,
        grads: &mut GradStore,
    ) -> Result<(Act, WeightWork), NnError> {
        let ([x], []) = saved.take()?;
        let dx = self.input_grad(weights, &dy, ctx)?;
        let work = self.weight_grad(x, dy, ctx, grads)?;
        Ok((Act::new(dx), work))
    }
}
