//! Stores with irregular weights, and one forward and backward pass of a layer.

use std::sync::Arc;
use trine_buffer::{Buf, DType, Pool, Slice};
use trine_kernels::{CpuOps, Team};
use trine_nn::oracle::{self, Case, Pass, STEP, Sizes};
use trine_nn::{Context, GradStore, Layer, Numerics, ParamStore, Rows};
use trine_spec::RankLayout;

pub(crate) use trine_nn::oracle::{document_starts, error, layout, values};

/// Tokens of a sample.
pub(crate) const SEQ: usize = 5;

/// The sizes of all cases.
pub(crate) const SIZES: Sizes = Sizes { seq: SEQ, wide: 1 };
/// Number of cases.
pub(crate) const COUNT: usize = 27;

/// Every layer for a compute type.
pub(crate) fn cases(compute: DType) -> Vec<Case> {
    let cases = oracle::cases(compute, SIZES).unwrap();
    assert_eq!(cases.len(), COUNT);
    cases
}

pub(crate) fn buf(dtype: DType, values: &[f64]) -> Buf {
    oracle::buf(dtype, values, &CpuOps::new(Team::new(1))).unwrap()
}

/// What a call needs beside weights and input.
pub(crate) struct Bench {
    pub(crate) ops: CpuOps,
    pub(crate) pool: Pool,
    pub(crate) compute: DType,
    pub(crate) numerics: Numerics,
}

impl Bench {
    pub(crate) fn new(compute: DType, numerics: Numerics) -> Self {
        Self { ops: CpuOps::new(Team::new(1)), pool: Pool::new(), compute, numerics }
    }

    pub(crate) fn weights(&self, layout: &Arc<RankLayout>) -> ParamStore {
        oracle::weights(layout, self.compute, &self.ops).unwrap()
    }

    /// A training context for these samples; `starts` come from [`document_starts`].
    pub(crate) fn context<'a>(&'a self, rows: Rows, starts: Option<&'a [u32]>) -> Context<'a> {
        Context {
            numerics: self.numerics,
            step: STEP,
            document_start: starts.map(Slice::new),
            ..Context::train(&self.ops, &self.pool, self.compute, rows)
        }
    }
}

/// One pass, with the weight gradients computed at once.
pub(crate) fn pass(
    layer: &dyn Layer,
    weights: &ParamStore,
    x: &[f64],
    dy: &[f64],
    ctx: &Context<'_>,
) -> Pass {
    oracle::pass(layer, weights, x, dy, ctx).unwrap()
}

/// One pass whose gradients are added to `grads`. Returns the output and the input gradient.
pub(crate) fn accumulate(
    layer: &dyn Layer,
    weights: &ParamStore,
    x: &[f64],
    dy: &[f64],
    ctx: &Context<'_>,
    grads: &mut GradStore,
) -> (Vec<f64>, Vec<f64>) {
    oracle::accumulate(layer, weights, x, dy, ctx, grads).unwrap()
}

/// The sum of a store of at most one bucket.
pub(crate) fn total(grads: &mut GradStore, ctx: &Context<'_>) -> Vec<f64> {
    oracle::total(grads, ctx).unwrap()
}
