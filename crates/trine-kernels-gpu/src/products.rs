//! Products of matrices: by cuBLASLt, or in the order of the CPU's kernels.

use crate::elementwise::add_bias;
use crate::gpu::GpuOps;
use crate::reference;
use crate::views::{Shape, failed, named, read, write};
use trine_buffer::Slice;
use trine_gpu::{Factor, Form, Matrix, Start};
use trine_kernels::{KernelError, MatMut, MatRef, Product};

type Done = Result<(), KernelError>;

fn form(product: Product) -> Form {
    match product {
        Product::Nt => Form::Nt,
        Product::Nn => Form::Nn,
        Product::Tn => Form::Tn,
    }
}

fn matrix(of: &impl Shape) -> Matrix {
    let [rows, cols, stride] = of.dims();
    Matrix { dtype: of.dtype(), rows, cols, stride }
}

fn factor(of: MatRef<'_>) -> Result<Factor<'_>, KernelError> {
    Ok(Factor { span: read(of.data)?, matrix: matrix(&of) })
}

pub(crate) fn matmul(
    ops: &GpuOps,
    product: Product,
    accumulate: bool,
    a: MatRef<'_>,
    b: MatRef<'_>,
    c: MatMut<'_>,
) -> Done {
    named("matmul", "", &[a.dtype(), c.dtype()])?;
    let start = if accumulate { Start::Old } else { Start::Zero };
    multiply(ops, form(product), a, b, c, start)
}

pub(crate) fn linear(
    ops: &GpuOps,
    mut y: MatMut<'_>,
    x: MatRef<'_>,
    w: MatRef<'_>,
    bias: Slice<'_>,
) -> Done {
    named("linear", "", &[x.dtype(), y.dtype()])?;
    if ops.products().is_none() || (y.dtype() == bias.dtype() && x.cols > 0) {
        let start = Start::Bias(read(bias)?);
        return multiply(ops, Form::Nt, x, w, y, start);
    }
    // The library takes a bias of the result's type only.
    multiply(ops, Form::Nt, x, w, y.reborrow(), Start::Zero)?;
    add_bias(ops, y, bias)
}

/// `C = start + A · B`.
fn multiply(
    ops: &GpuOps,
    form: Form,
    a: MatRef<'_>,
    b: MatRef<'_>,
    c: MatMut<'_>,
    start: Start<'_>,
) -> Done {
    let of_c = matrix(&c);
    if of_c.rows == 0 || of_c.cols == 0 {
        return Ok(());
    }
    let Some(mut products) = ops.products() else {
        let to = (write(c.data)?, of_c);
        return reference::multiply(ops, form, factor(a)?, factor(b)?, to, start).map_err(failed);
    };
    // The library refuses empty matrices.
    if a.rows == 0 || a.cols == 0 {
        return if matches!(start, Start::Zero) { zero(ops, c) } else { Ok(()) };
    }
    let to = (write(c.data)?, of_c);
    products.multiply(form, factor(a)?, factor(b)?, to, start).map_err(failed)
}

/// The sum of nothing, row by row.
fn zero(ops: &GpuOps, mut c: MatMut<'_>) -> Done {
    for row in 0..c.rows {
        let row = c.reborrow().rows(row..row + 1)?;
        let cols = row.cols;
        let elements = write(row.data.range(0..cols)?)?;
        ops.stream().fill(elements, 0).map_err(failed)?;
    }
    Ok(())
}
