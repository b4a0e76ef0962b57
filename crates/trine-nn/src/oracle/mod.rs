//! Every layer beside the same function written in candle, differentiated by candle's autograd: the tests of this crate
//! and `trine doctor` hold the kernels of a machine against it.
//!
//! ```
//! use trine_buffer::DType;
//! use trine_kernels::{CpuOps, Team};
//! use trine_nn::oracle::{self, Sizes};
//!
//! let ops = CpuOps::new(Team::new(1));
//! for found in oracle::agreement(&ops, DType::F32, Sizes { seq: 5, wide: 1 })? {
//!     assert!(found.error_max() < 2e-5, "{found:?}");
//! }
//! # Ok::<(), trine_nn::NnError>(())
//! ```

mod candle;
mod cases;

pub use cases::{Case, cases, layout};

use crate::{
    Context, GradStore, Layer, NnError, ParamStore, Rows, SampleTree, TakenGrads, initial_weights,
};
use std::sync::Arc;
use trine_buffer::{Act, Buf, DType, Pool, Slice};
use trine_kernels::Ops;
use trine_rng::Stream;
use trine_spec::RankLayout;

/// The step of all passes: a coordinate of dropout masks.
pub const STEP: u64 = 7;

/// How large the layers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Tokens of a sample.
    pub seq: usize,
    /// Factor on the numbers of features, which are 4 to 12 at 1.
    pub wide: usize,
}

impl Sizes {
    /// Features of a head.
    pub(crate) fn head_dim(self) -> usize {
        4 * self.wide
    }
}

/// Output, input gradient and parameter gradients, in the order of the parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct Pass {
    /// The output.
    pub y: Vec<f64>,
    /// The gradient of the input.
    pub dx: Vec<f64>,
    /// The gradients of the parameters.
    pub grads: Vec<f64>,
}

/// How far a layer is from the oracle: the largest difference of each, relative to the largest exact value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Agreement {
    /// The layer.
    pub name: &'static str,
    /// Of the output.
    pub output: f64,
    /// Of the input's gradient.
    pub input_gradient: f64,
    /// Of the parameters' gradients.
    pub parameter_gradients: f64,
}

impl Agreement {
    /// Of `got` with `exact`.
    pub fn new(name: &'static str, got: &Pass, exact: &Pass) -> Self {
        Self {
            name,
            output: error(&got.y, &exact.y),
            input_gradient: error(&got.dx, &exact.dx),
            parameter_gradients: error(&got.grads, &exact.grads),
        }
    }

    /// The largest of the three; not a number if one of them is.
    pub fn error_max(&self) -> f64 {
        let all = [self.output, self.input_gradient, self.parameter_gradients];
        all.into_iter().max_by(f64::total_cmp).unwrap_or_default()
    }
}

/// Runs every layer forward and backward in `compute`, and compares with candle in f64 on the same (rounded) numbers.
///
/// # Errors
/// What a layer or candle returns.
pub fn agreement(ops: &dyn Ops, compute: DType, sizes: Sizes) -> Result<Vec<Agreement>, NnError> {
    let rows = Rows { samples: 3..6, seq: sizes.seq };
    let (pool, starts) = (Pool::new(), document_starts(&rows));
    let mut found = Vec::new();
    for case in cases(compute, sizes)? {
        let context = Context::train(ops, &pool, compute, rows.clone());
        let document_start = case.documents.then(|| Slice::new(&starts));
        let ctx = Context { step: STEP, document_start, ..context };
        let weights = weights(&case.layout, compute, ops)?;
        let x = rounded("x", rows.tokens() * case.inputs, compute, ops)?;
        let dy = rounded("dy", rows.tokens() * case.outputs, compute, ops)?;
        let exact = case.by_autograd(&rows, &held(&weights)?, &x, &dy)?;
        let got = pass(&*case.layer, &weights, &x, &dy, &ctx)?;
        found.push(Agreement::new(case.name, &got, &exact));
    }
    Ok(found)
}

/// Numbers that are exact in `dtype`.
fn rounded(name: &str, len: usize, dtype: DType, ops: &dyn Ops) -> Result<Vec<f64>, NnError> {
    Ok(buf(dtype, &values(name, len), ops)?.to_f64_vec()?)
}

/// Initial weights of a layout in `compute`.
///
/// # Errors
/// A type that weights cannot have.
pub fn weights(
    layout: &Arc<RankLayout>,
    compute: DType,
    ops: &dyn Ops,
) -> Result<ParamStore, NnError> {
    let mut weights = ParamStore::zeros(layout.clone(), compute);
    for bucket in 0..layout.buckets.len() {
        let initial = initial_weights(layout, bucket, 5, DType::F64)?;
        weights.load(bucket, initial.slice(), ops)?;
    }
    Ok(weights)
}

/// All weights of a layout of at most one bucket.
///
/// # Errors
/// A bucket that is away.
pub fn held(weights: &ParamStore) -> Result<Vec<f64>, NnError> {
    match weights.layout().buckets.first() {
        Some(_) => Ok(weights.bucket(0)?.to_f64_vec()?),
        None => Ok(vec![]),
    }
}

/// Normal numbers that are exact in f32, so that both types start from the same.
pub fn values(name: &str, len: usize) -> Vec<f64> {
    let mut values = vec![0.0f32; len];
    Stream::new(3, name).fill_normal(0, 1.0, &mut values);
    values.into_iter().map(f64::from).collect()
}

/// The numbers in `dtype`.
///
/// # Errors
/// A type that kernels do not compute in.
pub fn buf(dtype: DType, values: &[f64], ops: &dyn Ops) -> Result<Buf, NnError> {
    let mut buf = Buf::zeros(dtype, values.len());
    ops.cast(buf.slice_mut(), Slice::new(values))?;
    Ok(buf)
}

/// Samples cut into documents of unequal length, differently in each sample.
pub fn document_starts(rows: &Rows) -> Vec<u32> {
    let of = |sample: usize| (0..rows.seq).map(move |t| (t - t % (2 + sample % 3)) as u32);
    rows.samples.clone().flat_map(of).collect()
}

/// One pass, with the weight gradients computed at once.
///
/// # Errors
/// What the layer returns.
pub fn pass(
    layer: &dyn Layer,
    weights: &ParamStore,
    x: &[f64],
    dy: &[f64],
    ctx: &Context<'_>,
) -> Result<Pass, NnError> {
    let mut grads = GradStore::new(weights.layout().clone(), ctx.compute, ctx.numerics);
    let (y, dx) = accumulate(layer, weights, x, dy, ctx, &mut grads)?;
    Ok(Pass { y, dx, grads: total(&mut grads, ctx)? })
}

/// One pass whose gradients are added to `grads`. Returns the output and the input gradient.
///
/// # Errors
/// What the layer returns.
pub fn accumulate(
    layer: &dyn Layer,
    weights: &ParamStore,
    x: &[f64],
    dy: &[f64],
    ctx: &Context<'_>,
    grads: &mut GradStore,
) -> Result<(Vec<f64>, Vec<f64>), NnError> {
    let x = Act::new(buf(ctx.compute, x, ctx.ops)?);
    let (y, saved) = layer.forward(weights, x, ctx)?;
    let dy = Act::new(buf(ctx.compute, dy, ctx.ops)?);
    let (dx, work) = layer.backward_input(weights, saved, dy, ctx, grads)?;
    work.run(ctx, grads)?;
    Ok((y.to_f64_vec()?, dx.to_f64_vec()?))
}

/// The sum of a store of at most one bucket.
///
/// # Errors
/// A bucket that is away, or samples that are missing in reference numerics.
pub fn total(grads: &mut GradStore, ctx: &Context<'_>) -> Result<Vec<f64>, NnError> {
    if grads.layout().buckets.is_empty() {
        return Ok(vec![]);
    }
    match grads.take(0, ctx.ops)? {
        TakenGrads::Sum(sum) => Ok(sum.to_f64_vec()?),
        TakenGrads::Nodes(nodes) => {
            let mut tree = SampleTree::default();
            for (node, sum) in nodes {
                tree.insert(node, sum, ctx.ops)?;
            }
            let sum = tree.finish(ctx.ops)?;
            Ok(sum.map(|sum| sum.to_f64_vec()).transpose()?.unwrap_or_default())
        }
    }
}

/// The largest difference, relative to the largest exact value; infinite if the lengths differ, not a number if a value
/// is none.
pub fn error(values: &[f64], exact: &[f64]) -> f64 {
    if values.len() != exact.len() {
        return f64::INFINITY;
    }
    let scale = exact.iter().fold(f64::MIN_POSITIVE, |max, v| max.max(v.abs()));
    let worst = values.iter().zip(exact).map(|(v, e)| (v - e).abs());
    // Of `max_by`, because `f64::max` passes over what is not a number.
    worst.max_by(f64::total_cmp).unwrap_or_default() / scale
}
