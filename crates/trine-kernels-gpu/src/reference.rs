//! Products in the order of the CPU's kernels: the same bits in every layout and on every device.

use crate::gpu::GpuOps;
use trine_gpu::{Arg, Factor, Form, GpuError, Grid, Matrix, SpanMut, Start};

/// Rows and columns of C that a block makes, and its threads.
const TILE: usize = 64;
const THREADS: u32 = 256;

/// What `products.cu` calls `Product`: strides of a row of A and of k in it, the same of a column of B, the stride
/// of C, m, n, k, and what sums start at.
type Sizes = [u64; 9];

/// `C = start + A · B` for matrices that are checked. A bias holds what the factors hold.
pub(crate) fn multiply(
    ops: &GpuOps,
    form: Form,
    a: Factor<'_>,
    b: Factor<'_>,
    (c, of_c): (SpanMut<'_>, Matrix),
    start: Start<'_>,
) -> Result<(), GpuError> {
    let (m, n) = (of_c.rows, of_c.cols);
    let k = if form == Form::Tn { a.matrix.rows } else { a.matrix.cols };
    let (along_a, along_b) = (a.matrix.stride, b.matrix.stride);
    let [of_a, of_b] = match form {
        Form::Nt => [[along_a, 1], [along_b, 1]],
        Form::Nn => [[along_a, 1], [1, along_b]],
        Form::Tn => [[1, along_a], [1, along_b]],
    };
    let (bias, start) = match start {
        // The kernel does not read a bias then.
        Start::Zero => (a.span, 0),
        Start::Old => (a.span, 1),
        Start::Bias(bias) => (bias, 2),
    };
    let sizes: Sizes =
        [of_a[0], of_a[1], of_b[0], of_b[1], of_c.stride, m, n, k, start].map(|size| size as u64);
    let blocks = m.div_ceil(TILE) * n.div_ceil(TILE);
    // More than a grid has is refused by the launch.
    let grid = Grid::line(u32::try_from(blocks).unwrap_or(u32::MAX), THREADS);
    let args = [
        Arg::Write(c),
        Arg::Read(a.span),
        Arg::Read(b.span),
        Arg::Read(bias),
        Arg::Bytes(bytemuck::cast_slice(&sizes)),
    ];
    let kernel = format!("product_{}_{}", a.matrix.dtype, of_c.dtype);
    // SAFETY: the matrices have these rows, columns and strides.
    unsafe { ops.launch(&kernel, grid, &args) }
}
