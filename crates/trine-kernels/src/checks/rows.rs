//! Arguments of positions, tables and losses.

use super::op::{Matrix, Op, View, accumulator};
use crate::num::SUMMANDS_MAX;
use crate::softcap::check_cap;
use crate::{KernelError, LossShape, MatMut, MatRef, RopeShape};
use trine_buffer::{DType, Slice, SliceMut};

type Done = Result<(), KernelError>;

/// # Errors
/// Types or dimensions that do not fit, positions beyond the table.
pub fn rope(shape: &RopeShape, _: &bool, x: &MatMut<'_>, table: &Slice<'_>) -> Done {
    let (op, RopeShape { heads, head_dim, turned, seq, start }) = (Op("rope"), *shape);
    let t = op.computes("x", x.data.dtype())?;
    op.holds("table", table.dtype(), accumulator(t))?;
    let (rows, cols) = op.matrix("x", x)?;
    op.dims(cols == heads * head_dim, || {
        format!("rows of {cols} elements are not {heads} heads of {head_dim}")
    })?;
    op.dims(turned.is_multiple_of(2) && turned <= head_dim, || {
        let nearest = turned.min(head_dim) / 2 * 2;
        format!(
            "{turned} turned elements of {head_dim}: it must be even and no more, as {nearest} is"
        )
    })?;
    op.dims(seq > 0 || rows == 0, || "sequences of 0 rows".into())?;
    let last = start + seq.min(rows);
    op.dims(table.len() >= last * turned, || {
        let held = table.len() / turned.max(1);
        format!("positions up to {last} need a longer table than {held} positions")
    })
}

/// Refuses a table that has no rows of `cols`, and gives their number.
fn table_rows(op: Op, table: &impl View, cols: usize) -> Result<usize, KernelError> {
    let len = table.len();
    op.dims(cols > 0 && len.is_multiple_of(cols), || {
        format!("a table of {len} elements has no rows of {cols}")
    })?;
    Ok(len / cols)
}

/// # Errors
/// Types or dimensions that do not fit.
pub fn embedding(
    cols: &usize,
    y: &SliceMut<'_>,
    ids: &Slice<'_>,
    table: &Slice<'_>,
    _: &usize,
) -> Done {
    let (op, tokens) = (Op("embedding"), ids.len());
    let t = op.computes("table", table.dtype())?;
    op.holds("ids", ids.dtype(), DType::U32)?;
    table_rows(op, table, *cols)?;
    op.vector("y", y, t, tokens * cols, format_args!("[{tokens}, {cols}]"))
}

/// # Errors
/// Types or dimensions that do not fit.
pub fn embedding_backward(
    cols: &usize,
    dtable: &SliceMut<'_>,
    ids: &Slice<'_>,
    dy: &Slice<'_>,
    _: &usize,
) -> Done {
    let (op, tokens) = (Op("embedding_backward"), ids.len());
    op.holds("ids", ids.dtype(), DType::U32)?;
    let t = op.computes("dy", dy.dtype())?;
    op.holds("dtable", dtable.dtype(), accumulator(t))?;
    table_rows(op, dtable, *cols)?;
    op.length("dy", dy, tokens * cols, format_args!("[{tokens}, {cols}]"))
}

/// The compute type, rows and columns of logits.
fn logits(
    op: Op,
    shape: &LossShape,
    logits: &impl Matrix,
) -> Result<(DType, usize, usize), KernelError> {
    let t = op.computes("logits", logits.as_ref().data.dtype())?;
    let (rows, cols) = op.matrix("logits", logits)?;
    let valid = shape.valid_cols;
    op.dims(valid <= cols, || format!("{valid} valid columns of {cols}"))?;
    Ok((t, rows, cols))
}

/// # Errors
/// Types or dimensions that do not fit.
pub fn ce_max(shape: &LossShape, max: &SliceMut<'_>, of: &MatRef<'_>) -> Done {
    let op = Op("ce_max");
    let (t, rows, _) = logits(op, shape, of)?;
    op.vector("max", max, accumulator(t), rows, format_args!("{rows} rows"))
}

/// # Errors
/// Types or dimensions that do not fit.
pub fn ce_sum(
    shape: &LossShape,
    blocks: &usize,
    sum_exp: &SliceMut<'_>,
    target_logit: &SliceMut<'_>,
    of: &MatRef<'_>,
    max: &Slice<'_>,
    targets: &Slice<'_>,
) -> Done {
    let op = Op("ce_sum");
    let (t, rows, cols) = logits(op, shape, of)?;
    op.dims((1..=SUMMANDS_MAX).contains(blocks) && cols.is_multiple_of(*blocks), || {
        format!("{cols} columns do not split into {blocks} blocks (1 to {SUMMANDS_MAX})")
    })?;
    let dims = || format!("{rows} rows");
    op.vector("max", max, accumulator(t), rows, dims())?;
    op.vector("targets", targets, DType::U32, rows, dims())?;
    op.vector("sum_exp", sum_exp, accumulator(t), rows, dims())?;
    op.vector("target_logit", target_logit, accumulator(t), rows, dims())
}

/// # Errors
/// Types or dimensions that do not fit.
pub fn ce_loss(
    loss: &SliceMut<'_>,
    max: &Slice<'_>,
    sum_exp: &Slice<'_>,
    target_logit: &Slice<'_>,
    targets: &Slice<'_>,
) -> Done {
    let (op, acc, rows) = (Op("ce_loss"), loss.dtype(), loss.len());
    op.holds("loss", acc, accumulator(acc))?;
    op.vector("max", max, acc, rows, "loss")?;
    op.vector("sum_exp", sum_exp, acc, rows, "loss")?;
    op.vector("target_logit", target_logit, acc, rows, "loss")?;
    op.vector("targets", targets, DType::U32, rows, "loss")
}

/// # Errors
/// Types or dimensions that do not fit.
pub fn ce_grad(
    shape: &LossShape,
    of: &MatMut<'_>,
    max: &Slice<'_>,
    sum_exp: &Slice<'_>,
    targets: &Slice<'_>,
    _: &f64,
) -> Done {
    let op = Op("ce_grad");
    let (t, rows, _) = logits(op, shape, of)?;
    let dims = || format!("{rows} rows");
    op.vector("max", max, accumulator(t), rows, dims())?;
    op.vector("sum_exp", sum_exp, accumulator(t), rows, dims())?;
    op.vector("targets", targets, DType::U32, rows, dims())?;
    check_cap(op.0, "logits", shape.softcap)
}
