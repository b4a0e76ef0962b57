//! Layer norm and RMS norm over rows.

use crate::elementwise::{PART_ROWS, column_sums};
use crate::gpu::{GpuOps, matrix, rows};
use crate::views::{named, read, write};
use trine_buffer::{Slice, SliceMut};
use trine_gpu::Arg;
use trine_kernels::{KernelError, NormShape};

type Done = Result<(), KernelError>;

pub(crate) fn layer_norm(
    ops: &GpuOps,
    shape: NormShape,
    y: SliceMut<'_>,
    stats: SliceMut<'_>,
    x: Slice<'_>,
    gamma: Slice<'_>,
    beta: Slice<'_>,
) -> Done {
    let name = named("layer_norm", "layer_norm", &[gamma.dtype(), x.dtype()])?;
    let args = [
        Arg::Write(write(y)?),
        Arg::Write(write(stats)?),
        Arg::Read(read(x)?),
        Arg::Read(read(gamma)?),
        Arg::Read(read(beta)?),
        Arg::U64(shape.rows as u64),
        Arg::U64(shape.cols as u64),
        Arg::F32(shape.eps as f32),
    ];
    // SAFETY: everything has the rows and columns of the shape.
    unsafe { ops.run(&name, rows(shape.rows, shape.cols), &args) }
}

pub(crate) fn rms_norm(
    ops: &GpuOps,
    shape: NormShape,
    y: SliceMut<'_>,
    rstd: SliceMut<'_>,
    x: Slice<'_>,
    gamma: Slice<'_>,
) -> Done {
    let name = named("rms_norm", "rms_norm", &[y.dtype(), gamma.dtype(), x.dtype()])?;
    let args = [
        Arg::Write(write(y)?),
        Arg::Write(write(rstd)?),
        Arg::Read(read(x)?),
        Arg::Read(read(gamma)?),
        Arg::U64(shape.rows as u64),
        Arg::U64(shape.cols as u64),
        Arg::F32(shape.eps as f32),
    ];
    // SAFETY: everything has the rows and columns of the shape.
    unsafe { ops.run(&name, rows(shape.rows, shape.cols), &args) }
}

/// What both backward passes read.
struct Backward<'a> {
    shape: NormShape,
    x: Slice<'a>,
    /// Mean, if the norm has one, and reciprocal deviation of each row.
    stats: Slice<'a>,
    gamma: Slice<'a>,
    dy: Slice<'a>,
}

impl Backward<'_> {
    fn input(&self, ops: &GpuOps, name: &str, dx: SliceMut<'_>, add_to_dx: bool) -> Done {
        let args = [
            Arg::Write(write(dx)?),
            Arg::U32(u32::from(add_to_dx)),
            Arg::Read(read(self.x)?),
            Arg::Read(read(self.stats)?),
            Arg::Read(read(self.gamma)?),
            Arg::Read(read(self.dy)?),
            Arg::U64(self.shape.rows as u64),
            Arg::U64(self.shape.cols as u64),
        ];
        // SAFETY: everything has the rows and columns of the shape.
        unsafe { ops.run(name, rows(self.shape.rows, self.shape.cols), &args) }
    }

    /// The gradients of gain and, if there is one, bias: parts of the rows, then the parts in their order.
    fn weights(&self, ops: &GpuOps, name: &str, sums: Vec<SliceMut<'_>>) -> Done {
        let NormShape { rows, cols, .. } = self.shape;
        if rows == 0 || cols == 0 {
            return Ok(());
        }
        let count = rows.div_ceil(PART_ROWS);
        let mut parts = Vec::new();
        for _ in &sums {
            parts.push(ops.scratch("gradients of a norm", 4 * count * cols)?);
        }
        let mut args: Vec<_> = parts.iter_mut().map(|part| Arg::Write(part.span_mut())).collect();
        for input in [self.x, self.stats, self.dy] {
            args.push(Arg::Read(read(input)?));
        }
        args.extend([rows, cols, PART_ROWS].map(|size| Arg::U64(size as u64)));
        // SAFETY: everything has the rows and columns of the shape, and each part a row of sums.
        unsafe { ops.run(name, matrix(count, cols), &args)? };
        for (sums, parts) in sums.into_iter().zip(&parts) {
            column_sums(ops, write(sums)?, parts.span(), count, cols)?;
        }
        Ok(())
    }
}

pub(crate) fn layer_norm_backward(
    ops: &GpuOps,
    shape: NormShape,
    dx: SliceMut<'_>,
    add_to_dx: bool,
    dgamma: SliceMut<'_>,
    dbeta: SliceMut<'_>,
    x: Slice<'_>,
    stats: Slice<'_>,
    gamma: Slice<'_>,
    dy: Slice<'_>,
) -> Done {
    const OP: &str = "layer_norm_backward";
    let types = [dy.dtype(), x.dtype()];
    let (input, weights) = (named(OP, OP, &types)?, named(OP, "layer_norm_gain", &types)?);
    let backward = Backward { shape, x, stats, gamma, dy };
    backward.input(ops, &input, dx, add_to_dx)?;
    backward.weights(ops, &weights, vec![dgamma, dbeta])
}

pub(crate) fn rms_norm_backward(
    ops: &GpuOps,
    shape: NormShape,
    dx: SliceMut<'_>,
    add_to_dx: bool,
    dgamma: SliceMut<'_>,
    x: Slice<'_>,
    rstd: Slice<'_>,
    gamma: Slice<'_>,
    dy: Slice<'_>,
) -> Done {
    const OP: &str = "rms_norm_backward";
    let input = named(OP, OP, &[dy.dtype(), gamma.dtype(), x.dtype()])?;
    let weights = named(OP, "rms_norm_gain", &[dy.dtype(), x.dtype()])?;
    let backward = Backward { shape, x, stats: rstd, gamma, dy };
    backward.input(ops, &input, dx, add_to_dx)?;
    backward.weights(ops, &weights, vec![dgamma])
}
