//! Arguments of norms.

use super::op::{Op, accumulator};
use crate::num::SUMMANDS_MAX;
use crate::{KernelError, MatMut, MatRef, NormShape, RmsShape};
use std::fmt;
use trine_buffer::{Slice, SliceMut};

type Done = Result<(), KernelError>;

impl fmt::Display for NormShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {}]", self.rows, self.cols)
    }
}

/// # Errors
/// Types or dimensions that do not fit.
pub fn layer_norm(
    shape: &NormShape,
    y: &SliceMut<'_>,
    stats: &SliceMut<'_>,
    x: &Slice<'_>,
    gamma: &Slice<'_>,
    beta: &Slice<'_>,
) -> Done {
    let (op, all) = (Op("layer_norm"), shape.rows * shape.cols);
    let t = op.computes("gamma", gamma.dtype())?;
    op.holds_either("x", x.dtype(), t)?;
    op.length("x", x, all, shape)?;
    op.vector("y", y, t, all, shape)?;
    op.length("gamma", gamma, shape.cols, shape)?;
    op.vector("beta", beta, t, shape.cols, shape)?;
    op.vector("stats", stats, accumulator(t), 2 * shape.rows, shape)
}

/// # Errors
/// Types or dimensions that do not fit.
pub fn rms_norm(
    shape: &NormShape,
    y: &SliceMut<'_>,
    rstd: &SliceMut<'_>,
    x: &Slice<'_>,
    gamma: &Slice<'_>,
) -> Done {
    let (op, all) = (Op("rms_norm"), shape.rows * shape.cols);
    let t = op.computes("y", y.dtype())?;
    op.holds_either("x", x.dtype(), t)?;
    op.holds_either("gamma", gamma.dtype(), t)?;
    op.length("x", x, all, shape)?;
    op.length("y", y, all, shape)?;
    op.length("gamma", gamma, shape.cols, shape)?;
    op.vector("rstd", rstd, accumulator(t), shape.rows, shape)
}

/// # Errors
/// Types or dimensions that do not fit.
pub fn layer_norm_backward(
    shape: &NormShape,
    dx: &SliceMut<'_>,
    _: &bool,
    dgamma: &SliceMut<'_>,
    dbeta: &SliceMut<'_>,
    x: &Slice<'_>,
    stats: &Slice<'_>,
    gamma: &Slice<'_>,
    dy: &Slice<'_>,
) -> Done {
    let (op, all) = (Op("layer_norm_backward"), shape.rows * shape.cols);
    let t = op.computes("gamma", gamma.dtype())?;
    op.holds_either("x", x.dtype(), t)?;
    op.length("x", x, all, shape)?;
    op.vector("dy", dy, t, all, shape)?;
    op.vector("dx", dx, x.dtype(), all, shape)?;
    op.length("gamma", gamma, shape.cols, shape)?;
    op.vector("dgamma", dgamma, accumulator(t), shape.cols, shape)?;
    op.vector("stats", stats, accumulator(t), 2 * shape.rows, shape)?;
    op.vector("dbeta", dbeta, accumulator(t), shape.cols, shape)
}

/// # Errors
/// Types or dimensions that do not fit.
pub fn rms_norm_backward(
    shape: &NormShape,
    dx: &SliceMut<'_>,
    _: &bool,
    dgamma: &SliceMut<'_>,
    x: &Slice<'_>,
    rstd: &Slice<'_>,
    gamma: &Slice<'_>,
    dy: &Slice<'_>,
) -> Done {
    let (op, all) = (Op("rms_norm_backward"), shape.rows * shape.cols);
    let t = op.computes("dy", dy.dtype())?;
    op.holds_either("x", x.dtype(), t)?;
    op.holds_either("gamma", gamma.dtype(), t)?;
    op.length("x", x, all, shape)?;
    op.length("dy", dy, all, shape)?;
    op.vector("dx", dx, x.dtype(), all, shape)?;
    op.length("gamma", gamma, shape.cols, shape)?;
    op.vector("dgamma", dgamma, accumulator(t), shape.cols, shape)?;
    op.vector("rstd", rstd, accumulator(t), shape.rows, shape)
}

/// Refuses columns that a shape does not divide, and gives those of a group.
pub(crate) fn group_cols(
    op: &'static str,
    shape: &RmsShape,
    cols: usize,
) -> Result<usize, KernelError> {
    let RmsShape { groups, blocks, .. } = *shape;
    let parts = groups.saturating_mul(blocks);
    let divides = parts > 0 && cols > 0 && cols.is_multiple_of(parts);
    Op(op).dims(divides && blocks <= SUMMANDS_MAX, || {
        format!(
            "{cols} columns do not split into {groups} groups of {blocks} blocks (1 to {SUMMANDS_MAX})"
        )
    })?;
    Ok(cols / groups)
}

/// The arguments of an RMS norm in parts that are given: sums and matrices for the rows of x, and a gain.
struct Parts<'a> {
    shape: &'a RmsShape,
    x: &'a MatRef<'a>,
}

impl Parts<'_> {
    fn check(
        &self,
        op: Op,
        sums: &[(&'static str, Slice<'_>)],
        mat: Option<(&'static str, MatRef<'_>)>,
        gain: Option<(&'static str, Slice<'_>, bool)>,
    ) -> Done {
        let t = op.computes("x", self.x.data.dtype())?;
        let (rows, cols) = op.matrix("x", self.x)?;
        let (group, groups) = (group_cols(op.0, self.shape, cols)?, self.shape.groups);
        if let Some((argument, mat)) = mat {
            op.shaped(argument, &mat, t, (rows, cols))?;
        }
        for (argument, sums) in sums {
            let dims = format_args!("[{rows}, {groups}]");
            op.vector(argument, sums, accumulator(t), rows * groups, dims)?;
        }
        let Some((argument, gain, is_sum)) = gain else { return Ok(()) };
        let held = if is_sum { accumulator(t) } else { t };
        op.vector(argument, &gain, held, group, format_args!("groups of {group}"))
    }
}

/// # Errors
/// Types or dimensions that do not fit.
pub fn rms_squares(shape: &RmsShape, sums: &SliceMut<'_>, x: &MatRef<'_>) -> Done {
    Parts { shape, x }.check(Op("rms_squares"), &[("sums", sums.as_slice())], None, None)
}

/// # Errors
/// Types or dimensions that do not fit.
pub fn rms_scale(
    shape: &RmsShape,
    y: &MatMut<'_>,
    stats: &SliceMut<'_>,
    x: &MatRef<'_>,
    gamma: &Slice<'_>,
) -> Done {
    let sums = [("stats", stats.as_slice())];
    let gain = Some(("gamma", *gamma, false));
    Parts { shape, x }.check(Op("rms_scale"), &sums, Some(("y", y.as_ref())), gain)
}

/// # Errors
/// Types or dimensions that do not fit.
pub fn rms_products(
    shape: &RmsShape,
    sums: &SliceMut<'_>,
    x: &MatRef<'_>,
    gamma: &Slice<'_>,
    dy: &MatRef<'_>,
) -> Done {
    let sums = [("sums", sums.as_slice())];
    let gain = Some(("gamma", *gamma, false));
    Parts { shape, x }.check(Op("rms_products"), &sums, Some(("dy", *dy)), gain)
}

/// # Errors
/// Types or dimensions that do not fit.
pub fn rms_backward(
    shape: &RmsShape,
    d: &MatMut<'_>,
    x: &MatRef<'_>,
    rstd: &Slice<'_>,
    products: &Slice<'_>,
    gamma: &Slice<'_>,
) -> Done {
    let sums = [("rstd", *rstd), ("products", *products)];
    let gain = Some(("gamma", *gamma, false));
    Parts { shape, x }.check(Op("rms_backward"), &sums, Some(("d", d.as_ref())), gain)
}

/// # Errors
/// Types or dimensions that do not fit.
pub fn rms_gain(
    shape: &RmsShape,
    dgamma: &SliceMut<'_>,
    x: &MatRef<'_>,
    rstd: &Slice<'_>,
    dy: &MatRef<'_>,
) -> Done {
    let gain = Some(("dgamma", dgamma.as_slice(), true));
    Parts { shape, x }.check(Op("rms_gain"), &[("rstd", *rstd)], Some(("dy", *dy)), gain)
}
