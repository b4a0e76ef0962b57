//! A closure over candle tensors as a layer: write a new layer in plain candle, train it in every
//! layout.
//!
//! Forward runs on untracked tensors, so no graph is built. Backward runs the closure again on
//! leaves and lets candle differentiate this one layer, seeded with the gradient that came from
//! above; nothing outlives the call. That costs a second forward pass, as recompute does. Several of
//! candle-nn's fused operations drop gradients in silence: [`crate::gradcheck`] finds them.

use crate::{
    Context, GradStore, Layer, NnError, Numerics, ParamId, ParamStore, Rows, Saved, WeightWork,
    check_len,
};
use candle_core::backprop::GradStore as CandleGrads;
use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor, Var};
use std::fmt;
use std::ops::Range;
use trine_buffer::{Act, Buf, DType, Slice};

/// What the closure computes: the output `[samples, seq, outputs]` from the input
/// `[samples, seq, inputs]` and the weights, in the order in which they were declared.
pub type Forward = dyn Fn(&Tensor, &[Tensor]) -> candle_core::Result<Tensor> + Send + Sync;

/// A layer written in candle. The closure must treat samples independently (tokens of one sample may
/// see each other), as every layer of a transformer does.
pub struct CandleLayer {
    forward: Box<Forward>,
    params: Vec<(ParamId, Vec<usize>)>,
    inputs: usize,
    outputs: usize,
}

impl fmt::Debug for CandleLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CandleLayer").field("params", &self.params).finish_non_exhaustive()
    }
}

pub(crate) fn candle(error: candle_core::Error) -> NnError {
    NnError::Buffer(trine_buffer::BufferError::Candle(error.to_string()))
}

impl CandleLayer {
    /// A layer from `inputs` to `outputs` features with these parameters (address and shape).
    pub fn new(
        inputs: usize,
        outputs: usize,
        params: Vec<(ParamId, Vec<usize>)>,
        forward: impl Fn(&Tensor, &[Tensor]) -> candle_core::Result<Tensor> + Send + Sync + 'static,
    ) -> Self {
        Self { forward: Box::new(forward), params, inputs, outputs }
    }

    /// The weights in the input's type: beside a residual stream in f32, weights in bf16 become f32.
    fn weights(
        &self,
        weights: &ParamStore,
        dtype: DType,
        ctx: &Context<'_>,
    ) -> Result<Vec<Tensor>, NnError> {
        let tensor = |(id, shape): &(ParamId, Vec<usize>)| {
            let lease = weights.lease(id)?;
            let elements = shape.iter().product();
            check_len("candle layer", "a weight", lease.slice().len(), elements)?;
            let mut copy = ctx.pool.alloc(dtype, lease.slice().len())?;
            ctx.ops.cast(copy.slice_mut(), lease.slice())?;
            Ok(copy.into_tensor(shape.as_slice())?)
        };
        self.params.iter().map(tensor).collect()
    }

    /// The gradients of some rows: of the input, and into `grads`.
    fn part(
        &self,
        weights: &[Tensor],
        (x, dy): (Slice<'_>, Slice<'_>),
        rows: &Rows,
        ctx: &Context<'_>,
        grads: &mut GradStore,
    ) -> Result<Buf, NnError> {
        let shape = |cols| (rows.samples.len(), rows.seq, cols);
        let leaf = |tensor: &Tensor| Var::from_tensor(tensor).map_err(candle);
        let x = leaf(&tensor(x, shape(self.inputs), ctx)?)?;
        let leaves = weights.iter().map(leaf).collect::<Result<Vec<_>, _>>()?;
        let tensors: Vec<Tensor> = leaves.iter().map(|leaf| leaf.as_tensor().clone()).collect();
        let y = (self.forward)(x.as_tensor(), &tensors).map_err(candle)?;
        let seed = Seed(tensor(dy, shape(self.outputs), ctx)?);
        let found = y.apply_op1(seed).and_then(|end| end.backward()).map_err(candle)?;
        for ((id, _), leaf) in self.params.iter().zip(&leaves) {
            let gradient = gradient(&found, leaf)?;
            let mut sum = ctx.alloc_sums(gradient.len())?;
            ctx.ops.cast(sum.slice_mut(), gradient.slice())?;
            grads.add(id, rows, |_, total| Ok(ctx.ops.add_assign(total, sum.slice())?))?;
        }
        gradient(&found, &x)
    }
}

fn tensor(
    values: Slice<'_>,
    shape: impl Into<Shape>,
    ctx: &Context<'_>,
) -> Result<Tensor, NnError> {
    let mut copy = ctx.pool.alloc(values.dtype(), values.len())?;
    copy.slice_mut().copy_from(values)?;
    Ok(copy.into_tensor(shape)?)
}

fn gradient(grads: &CandleGrads, leaf: &Var) -> Result<Buf, NnError> {
    match grads.get(leaf.as_tensor()) {
        Some(gradient) => Ok(Buf::from_tensor(&gradient.detach())?),
        // A fused operation that cuts the graph would otherwise pass for a zero gradient.
        None => Err(NnError::Missing {
            layer: "candle layer",
            what: "operations with a backward pass: the closure loses the gradient of its input or of a weight",
        }),
    }
}

impl Layer for CandleLayer {
    fn forward(
        &self,
        weights: &ParamStore,
        x: Act,
        ctx: &Context<'_>,
    ) -> Result<(Act, Saved), NnError> {
        check_len("candle layer", "input", x.len(), ctx.rows.tokens() * self.inputs)?;
        if ctx.decode.is_some() {
            // The closure sees the new tokens only: one that mixes tokens would be wrong in silence.
            let what = "whole sequences: a closure cannot continue from a cache";
            return Err(NnError::Missing { layer: "candle layer", what });
        }
        let weights = self.weights(weights, x.dtype(), ctx)?;
        let mut y = ctx.pool.alloc(x.dtype(), ctx.rows.tokens() * self.outputs)?;
        for part in parts(ctx) {
            let [of_x, of_y] = [self.inputs, self.outputs].map(|cols| elements(&part, cols, ctx));
            let shape = (part.samples.len(), part.seq, self.inputs);
            let input = tensor(x.slice().range(of_x)?, shape, ctx)?;
            // A copy, because taking the memory would empty a tensor that the closure keeps.
            let output = (self.forward)(&input, &weights).and_then(|y| y.copy());
            let output = output.map_err(candle)?;
            check_len("candle layer", "output", output.elem_count(), of_y.len())?;
            y.slice_mut().range(of_y)?.copy_from(Buf::from_tensor(&output)?.slice())?;
        }
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
        check_len("candle layer", "output gradient", dy.len(), ctx.rows.tokens() * self.outputs)?;
        let tensors = self.weights(weights, x.dtype(), ctx)?;
        let mut dx = ctx.pool.alloc(x.dtype(), ctx.rows.tokens() * self.inputs)?;
        for part in parts(ctx) {
            let [of_x, of_y] = [self.inputs, self.outputs].map(|cols| elements(&part, cols, ctx));
            let (x, dy) = (x.slice().range(of_x.clone())?, dy.slice().range(of_y)?);
            let gradient = self.part(&tensors, (x, dy), &part, ctx, grads)?;
            dx.slice_mut().range(of_x)?.copy_from(gradient.slice())?;
        }
        Ok((Act::new(dx), WeightWork::nothing()))
    }
}

/// The runs of samples that the closure is called on. In reference numerics one sample at a time:
/// weight gradients are summed so, and candle's products have another order of sums for other
/// numbers of rows.
fn parts(ctx: &Context<'_>) -> Vec<Rows> {
    let Rows { samples, seq } = ctx.rows.clone();
    match ctx.numerics {
        Numerics::Fast => vec![Rows { samples, seq }],
        Numerics::Reference => {
            samples.map(|sample| Rows { samples: sample..sample + 1, seq }).collect()
        }
    }
}

/// Where the rows of `part` lie in an activation of `cols` columns.
fn elements(part: &Rows, cols: usize, ctx: &Context<'_>) -> Range<usize> {
    let first = (part.samples.start - ctx.rows.samples.start) * part.seq;
    first * cols..(first + part.tokens()) * cols
}

/// The end of a layer's graph: a scalar whose gradient by its input is the one that came from above.
struct Seed(Tensor);

impl CustomOp1 for Seed {
    fn name(&self) -> &'static str {
        "seed"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F64(vec![0.0]), Shape::from(())))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(Some(self.0.clone()))
    }
}
