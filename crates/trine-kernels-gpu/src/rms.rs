//! RMS norms of groups of columns, in steps between which ranks can add sums.

use crate::elementwise::{PART_ROWS, column_sums};
use crate::gpu::{GpuOps, elements, matrix, rows};
use crate::views::{Shape, bytes_of, failed, named, read, write};
use trine_buffer::{Slice, SliceMut};
use trine_gpu::Arg;
use trine_kernels::{KernelError, MatMut, MatRef, RmsShape};

type Done = Result<(), KernelError>;

/// What kernels call `Groups`: rows, groups of a row, columns of a group, blocks of a group.
#[derive(Debug, Clone, Copy)]
struct Groups([u64; 4]);

impl Groups {
    fn new(shape: RmsShape, x: &MatRef<'_>) -> Self {
        let [rows, cols, _] = x.dims();
        Self([rows, shape.groups, cols / shape.groups, shape.blocks].map(|size| size as u64))
    }

    fn count(&self) -> usize {
        (self.0[0] * self.0[1]) as usize
    }

    /// The columns of a block.
    fn width(&self) -> usize {
        (self.0[2] / self.0[3]) as usize
    }

    fn arg(&self) -> Arg<'_> {
        Arg::Bytes(bytes_of(&self.0))
    }
}

fn stride(x: &impl Shape) -> Arg<'static> {
    Arg::U64(x.dims()[2] as u64)
}

pub(crate) fn rms_squares(
    ops: &GpuOps,
    shape: RmsShape,
    sums: SliceMut<'_>,
    x: MatRef<'_>,
) -> Done {
    let (name, of) = (named("rms_squares", "rms_squares", &[x.dtype()])?, Groups::new(shape, &x));
    let args = [Arg::Write(write(sums)?), Arg::Read(read(x.data)?), stride(&x), of.arg()];
    // SAFETY: the matrix lies in its memory, and each group of a row has a sum.
    unsafe { ops.run(&name, rows(of.count(), of.width()), &args) }
}

pub(crate) fn rms_scale(
    ops: &GpuOps,
    shape: RmsShape,
    y: MatMut<'_>,
    stats: SliceMut<'_>,
    x: MatRef<'_>,
    gamma: Slice<'_>,
) -> Done {
    let (name, of) = (named("rms_scale", "rms_scale", &[x.dtype()])?, Groups::new(shape, &x));
    let (to, from) = (stride(&y), stride(&x));
    let args = [
        Arg::Write(write(y.data)?),
        Arg::Write(write(stats)?),
        Arg::Read(read(x.data)?),
        Arg::Read(read(gamma)?),
        to,
        from,
        of.arg(),
        Arg::F32(shape.elements as f32),
        Arg::F32(shape.eps as f32),
    ];
    // SAFETY: both matrices lie in their memory, each group of a row has a sum, the gain has a group's columns.
    unsafe { ops.run(&name, rows(of.count(), of.width()), &args) }
}

pub(crate) fn rms_products(
    ops: &GpuOps,
    shape: RmsShape,
    sums: SliceMut<'_>,
    x: MatRef<'_>,
    gamma: Slice<'_>,
    dy: MatRef<'_>,
) -> Done {
    let name = named("rms_products", "rms_products", &[x.dtype()])?;
    let of = Groups::new(shape, &x);
    let args = [
        Arg::Write(write(sums)?),
        Arg::Read(read(x.data)?),
        Arg::Read(read(gamma)?),
        Arg::Read(read(dy.data)?),
        stride(&x),
        stride(&dy),
        of.arg(),
    ];
    // SAFETY: as in `rms_scale`.
    unsafe { ops.run(&name, rows(of.count(), of.width()), &args) }
}

pub(crate) fn rms_backward(
    ops: &GpuOps,
    shape: RmsShape,
    d: MatMut<'_>,
    x: MatRef<'_>,
    rstd: Slice<'_>,
    products: Slice<'_>,
    gamma: Slice<'_>,
) -> Done {
    let name = named("rms_backward", "rms_backward", &[x.dtype()])?;
    let of = Groups::new(shape, &x);
    let (to, from) = (stride(&d), stride(&x));
    let args = [
        Arg::Write(write(d.data)?),
        Arg::Read(read(x.data)?),
        Arg::Read(read(rstd)?),
        Arg::Read(read(products)?),
        Arg::Read(read(gamma)?),
        to,
        from,
        of.arg(),
        Arg::F32(shape.elements as f32),
    ];
    // SAFETY: as in `rms_scale`.
    unsafe { ops.run(&name, rows(of.count(), of.width()), &args) }
}

/// Parts of the rows, then the parts in their order, then a tree over the groups.
pub(crate) fn rms_gain(
    ops: &GpuOps,
    shape: RmsShape,
    dgamma: SliceMut<'_>,
    x: MatRef<'_>,
    rstd: Slice<'_>,
    dy: MatRef<'_>,
) -> Done {
    let (name, of) = (named("rms_gain", "rms_gain", &[x.dtype()])?, Groups::new(shape, &x));
    let [of_rows, cols, _] = x.dims();
    if of_rows == 0 {
        return Ok(());
    }
    let count = of_rows.div_ceil(PART_ROWS);
    let mut parts = ops.scratch("gradients of a gain", 4 * count * cols)?;
    let mut sums = ops.scratch("gradients of a gain by groups", 4 * cols)?;
    ops.stream().fill(sums.span_mut(), 0).map_err(failed)?;
    let args = [
        Arg::Write(parts.span_mut()),
        Arg::Read(read(x.data)?),
        Arg::Read(read(rstd)?),
        Arg::Read(read(dy.data)?),
        stride(&x),
        stride(&dy),
        of.arg(),
        Arg::U64(PART_ROWS as u64),
    ];
    // SAFETY: as in `rms_scale`, and each part has a row of sums.
    unsafe { ops.run(&name, matrix(count, cols), &args)? };
    column_sums(ops, sums.span_mut(), parts.span(), count, cols)?;
    let [_, groups, group, _] = of.0;
    let args = [
        Arg::Write(write(dgamma)?),
        Arg::Write(sums.span_mut()),
        Arg::U64(groups),
        Arg::U64(group),
    ];
    // SAFETY: a sum for each column of each group, and a gradient for each column of one.
    unsafe { ops.run("rms_gain_tree", elements(group as usize), &args) }
}
