//! Arguments of optimizer steps and of the numbers that watch over them.

use super::op::{Op, accumulator};
use crate::{AdamW, KernelError, MatRef, Sgd};
use trine_buffer::{DType, Slice, SliceMut};

type Done = Result<(), KernelError>;

/// The parts of an update: each has the type and length of the weights, apart from their second copy.
fn update(
    op: Op,
    weights: &SliceMut<'_>,
    parts: &[(&'static str, Slice<'_>)],
    compute: &Option<SliceMut<'_>>,
) -> Done {
    let (acc, len) = (weights.dtype(), weights.len());
    op.holds("weights", acc, accumulator(acc))?;
    for (argument, part) in parts {
        op.vector(argument, part, acc, len, "weights")?;
    }
    let Some(compute) = compute else { return Ok(()) };
    op.computes("compute", compute.dtype())?;
    op.length("compute", compute, len, "weights")
}

/// # Errors
/// Types or lengths that do not fit.
pub fn adamw(
    _: &AdamW,
    weights: &SliceMut<'_>,
    m: &SliceMut<'_>,
    v: &SliceMut<'_>,
    grad: &Slice<'_>,
    compute: &Option<SliceMut<'_>>,
) -> Done {
    let parts = [("m", m.as_slice()), ("v", v.as_slice()), ("grad", *grad)];
    update(Op("adamw"), weights, &parts, compute)
}

/// # Errors
/// Types or lengths that do not fit, momentum without `velocity`.
pub fn sgd(
    sgd: &Sgd,
    weights: &SliceMut<'_>,
    velocity: &Option<SliceMut<'_>>,
    grad: &Slice<'_>,
    compute: &Option<SliceMut<'_>>,
) -> Done {
    let op = Op("sgd");
    op.dims(sgd.momentum == 0.0 || velocity.is_some(), || {
        format!("momentum {} needs a velocity", sgd.momentum)
    })?;
    let velocity = velocity.as_ref().map(|v| ("velocity", v.as_slice()));
    let parts: Vec<_> = velocity.into_iter().chain([("grad", *grad)]).collect();
    update(op, weights, &parts, compute)
}

/// # Errors
/// Types or lengths that do not fit.
pub fn sum_squares(acc: &SliceMut<'_>, x: &Slice<'_>) -> Done {
    let op = Op("sum_squares");
    op.vector("acc", acc, DType::F64, 1, "a sum")?;
    op.computes("x", x.dtype()).map(drop)
}

/// # Errors
/// Types or dimensions that do not fit.
pub fn row_sums(sums: &SliceMut<'_>, x: &MatRef<'_>) -> Done {
    let op = Op("row_sums");
    op.vector("sums", sums, DType::F64, x.rows, "a sum for each row")?;
    op.holds("x", x.data.dtype(), accumulator(x.data.dtype()))?;
    op.matrix("x", x).map(drop)
}

/// # Errors
/// A type that kernels do not compute in.
pub fn first_non_finite(x: &Slice<'_>) -> Done {
    Op("first_non_finite").computes("x", x.dtype()).map(drop)
}
