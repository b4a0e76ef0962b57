//! Arguments of sums, conversions, activations and masks.

use super::op::{Op, accumulator};
use crate::mask::Mask;
use crate::softcap::check_cap;
use crate::view::check_sections;
use crate::{Dropout, DropoutPlace, Function, GateUpMut, KernelError, MatMut, MatRef};
use trine_buffer::{Slice, SliceMut};

type Done = Result<(), KernelError>;

/// # Errors
/// Types or dimensions that do not fit.
pub fn add_bias(y: &MatMut<'_>, bias: &Slice<'_>) -> Done {
    let op = Op("add_bias");
    let t = op.computes("y", y.data.dtype())?;
    let (rows, cols) = op.matrix("y", y)?;
    op.vector("bias", bias, t, cols, format_args!("[{rows}, {cols}]"))
}

/// # Errors
/// Types or dimensions that do not fit.
pub fn sum_rows(acc: &SliceMut<'_>, x: &MatRef<'_>) -> Done {
    let op = Op("sum_rows");
    let t = op.computes("x", x.data.dtype())?;
    let (rows, cols) = op.matrix("x", x)?;
    op.vector("acc", acc, accumulator(t), cols, format_args!("[{rows}, {cols}]"))
}

/// # Errors
/// Types or lengths that do not fit.
pub fn add(y: &SliceMut<'_>, a: &Slice<'_>, b: &Slice<'_>) -> Done {
    let op = Op("add");
    let t = op.computes("b", b.dtype())?;
    op.holds_either("y", y.dtype(), t)?;
    op.vector("a", a, y.dtype(), y.len(), "y")?;
    op.length("b", b, y.len(), "y")
}

/// # Errors
/// Types or lengths that do not fit.
pub fn add_assign(y: &SliceMut<'_>, a: &Slice<'_>) -> Done {
    let op = Op("add_assign");
    let t = op.computes("a", a.dtype())?;
    op.holds_either("y", y.dtype(), t)?;
    op.length("a", a, y.len(), "y")
}

/// # Errors
/// A type that kernels do not compute in.
pub fn scale(y: &SliceMut<'_>, _: &f64) -> Done {
    Op("scale").computes("y", y.dtype()).map(drop)
}

/// # Errors
/// A type that kernels do not compute in, a bound that is not above 0.
pub fn softcap(y: &SliceMut<'_>, cap: &f64) -> Done {
    let op = Op("softcap");
    op.computes("y", y.dtype())?;
    check_cap(op.0, "values", Some(*cap))
}

/// # Errors
/// Lengths that differ, types that kernels do not compute in.
pub fn cast(y: &SliceMut<'_>, x: &Slice<'_>) -> Done {
    let op = Op("cast");
    op.computes("x", x.dtype())?;
    op.computes("y", y.dtype())?;
    op.length("x", x, y.len(), "y")
}

/// # Errors
/// Types or lengths that do not fit.
pub fn offset(y: &SliceMut<'_>, x: &Slice<'_>, _: &f64) -> Done {
    let op = Op("offset");
    let t = op.computes("x", x.dtype())?;
    op.holds("y", y.dtype(), accumulator(t))?;
    op.length("x", x, y.len(), "y")
}

/// # Errors
/// Types or dimensions that differ.
pub fn copy(y: &MatMut<'_>, x: &MatRef<'_>) -> Done {
    let op = Op("copy");
    let shape = op.matrix("y", y)?;
    op.shaped("x", x, y.data.dtype(), shape)
}

/// # Errors
/// Types or lengths that differ.
pub fn activation(_: &Function, y: &SliceMut<'_>, x: &Slice<'_>) -> Done {
    let op = Op("activation");
    let t = op.computes("x", x.dtype())?;
    op.vector("y", y, t, x.len(), "x")
}

/// # Errors
/// Types or lengths that differ.
pub fn activation_backward(_: &Function, dx: &SliceMut<'_>, x: &Slice<'_>, dy: &Slice<'_>) -> Done {
    let op = Op("activation_backward");
    let t = op.computes("x", x.dtype())?;
    op.vector("dy", dy, t, x.len(), "x")?;
    op.vector("dx", dx, t, x.len(), "x")
}

/// # Errors
/// Types or dimensions that differ.
pub fn gated(_: &Function, y: &MatMut<'_>, gate: &MatRef<'_>, up: &MatRef<'_>) -> Done {
    let op = Op("gated");
    let t = op.computes("gate", gate.data.dtype())?;
    let shape = op.matrix("gate", gate)?;
    op.shaped("up", up, t, shape)?;
    op.shaped("y", y, t, shape)
}

/// # Errors
/// Types or dimensions that differ.
pub fn gated_backward(
    _: &Function,
    d: &GateUpMut<'_>,
    gate: &MatRef<'_>,
    up: &MatRef<'_>,
    dy: &MatRef<'_>,
) -> Done {
    let op = Op("gated_backward");
    let t = op.computes("gate", gate.data.dtype())?;
    let shape = op.matrix("gate", gate)?;
    op.shaped("up", up, t, shape)?;
    op.shaped("dy", dy, t, shape)?;
    match d {
        GateUpMut::Fused(all) => {
            check_sections(op.0, all.cols, &[shape.1, shape.1])?;
            op.shaped("d", all, t, (shape.0, 2 * shape.1))
        }
        GateUpMut::Separate { gate, up } => {
            op.shaped("d.gate", gate, t, shape)?;
            op.shaped("d.up", up, t, shape)
        }
    }
}

/// # Errors
/// Types or dimensions that do not fit, a probability outside `0..1`.
pub fn dropout(dropout: &Dropout, place: &DropoutPlace, y: &MatMut<'_>, x: &MatRef<'_>) -> Done {
    let op = Op("dropout");
    let t = op.computes("x", x.data.dtype())?;
    Mask::new(op.0, *dropout)?;
    let shape = op.matrix("x", x)?;
    op.shaped("y", y, t, shape)?;
    op.dims(place.tokens > 0 && shape.0.is_multiple_of(place.tokens), || {
        format!("{} rows are not whole samples of {} tokens", shape.0, place.tokens)
    })
}
