//! Arguments of products of matrices.

use super::op::Op;
use crate::{KernelError, MatMut, MatRef, Product};
use trine_buffer::Slice;

type Done = Result<(), KernelError>;

/// # Errors
/// Types or dimensions that do not fit.
pub fn matmul(product: Product, a: &MatRef<'_>, b: &MatRef<'_>, c: &MatMut<'_>) -> Done {
    let op = Op("matmul");
    let t = op.computes("a", a.data.dtype())?;
    op.holds("b", b.data.dtype(), t)?;
    op.holds_either("c", c.data.dtype(), t)?;
    product_dims(op.0, product, op.matrix("a", a)?, op.matrix("b", b)?, op.matrix("c", c)?)?;
    Ok(())
}

/// # Errors
/// Types or dimensions that do not fit.
pub fn linear(y: &MatMut<'_>, x: &MatRef<'_>, w: &MatRef<'_>, bias: &Slice<'_>) -> Done {
    let op = Op("linear");
    let t = op.computes("x", x.data.dtype())?;
    op.holds("w", w.data.dtype(), t)?;
    op.holds_either("y", y.data.dtype(), t)?;
    let (a, b, c) = (op.matrix("x", x)?, op.matrix("w", w)?, op.matrix("y", y)?);
    let [m, n, _] = product_dims(op.0, Product::Nt, a, b, c)?;
    op.vector("bias", bias, t, n, format_args!("[{m}, {n}]"))
}

/// m, n and k of a product, if the three shapes fit each other.
pub(crate) fn product_dims(
    op: &'static str,
    product: Product,
    a: (usize, usize),
    b: (usize, usize),
    c: (usize, usize),
) -> Result<[usize; 3], KernelError> {
    let (m, k) = if product == Product::Tn { (a.1, a.0) } else { a };
    let (n, k_b) = if product == Product::Nt { b } else { (b.1, b.0) };
    Op(op).dims(k == k_b && c == (m, n), || {
        format!(
            "{product:?} of a [{}, {}] and b [{}, {}] does not give c [{}, {}]",
            a.0, a.1, b.0, b.1, c.0, c.1
        )
    })?;
    Ok([m, n, k])
}
