//! Sums, copies, conversions, bias: element by element; and the sums of columns.

use crate::gpu::{GpuOps, elements, matrix, vector, vectors};
use crate::views::{Shape, failed, named, read, write};
use trine_buffer::{Slice, SliceMut};
use trine_gpu::{Arg, Span, SpanMut};
use trine_kernels::{KernelError, MatMut, MatRef};

type Done = Result<(), KernelError>;

/// Rows whose sum is one partial sum: part of the numbers, not of a device.
pub(crate) const PART_ROWS: usize = 64;

pub(crate) fn add_bias(ops: &GpuOps, y: MatMut<'_>, bias: Slice<'_>) -> Done {
    let name = named("add_bias", "add_bias", &[y.dtype(), bias.dtype()])?;
    let [rows, cols, stride] = y.dims();
    let args = [
        Arg::Write(write(y.data)?),
        Arg::Read(read(bias)?),
        Arg::U64(rows as u64),
        Arg::U64(cols as u64),
        Arg::U64(stride as u64),
    ];
    // SAFETY: the matrix lies in its memory, the bias has its columns.
    unsafe { ops.run(&name, vectors(rows, cols), &args) }
}

pub(crate) fn sum_rows(ops: &GpuOps, acc: SliceMut<'_>, x: MatRef<'_>) -> Done {
    let name = named("sum_rows", "column_parts", &[x.dtype()])?;
    let [rows, cols, stride] = x.dims();
    if rows == 0 || cols == 0 {
        return Ok(());
    }
    let count = rows.div_ceil(PART_ROWS);
    let mut parts = ops.scratch("sums of columns", 4 * count * cols)?;
    let args = [
        Arg::Write(parts.span_mut()),
        Arg::Read(read(x.data)?),
        Arg::U64(rows as u64),
        Arg::U64(cols as u64),
        Arg::U64(stride as u64),
        Arg::U64(PART_ROWS as u64),
    ];
    // SAFETY: the matrix lies in its memory, and each part has a row of sums.
    unsafe { ops.run(&name, matrix(count, cols), &args)? };
    column_sums(ops, write(acc)?, parts.span(), count, cols)
}

/// `sums[c] += Σ parts[p, c]`, one after the other from the old sum on: calls over ranges of whole parts give the bits
/// of one call.
pub(crate) fn column_sums(
    ops: &GpuOps,
    sums: SpanMut<'_>,
    parts: Span<'_>,
    count: usize,
    cols: usize,
) -> Done {
    let args = [Arg::Write(sums), Arg::Read(parts), Arg::U64(count as u64), Arg::U64(cols as u64)];
    // SAFETY: `count` rows of `cols` sums, and `cols` of the result.
    unsafe { ops.run("column_sums", elements(cols), &args) }
}

pub(crate) fn add(ops: &GpuOps, y: SliceMut<'_>, a: Slice<'_>, b: Slice<'_>) -> Done {
    let (name, len) = (named("add", "add", &[y.dtype(), b.dtype()])?, y.len());
    let args =
        [Arg::Write(write(y)?), Arg::Read(read(a)?), Arg::Read(read(b)?), Arg::U64(len as u64)];
    // SAFETY: all have `len` elements.
    unsafe { ops.run(&name, vector(len), &args) }
}

pub(crate) fn add_assign(ops: &GpuOps, y: SliceMut<'_>, a: Slice<'_>) -> Done {
    let (name, len) = (named("add_assign", "add_assign", &[y.dtype(), a.dtype()])?, y.len());
    let args = [Arg::Write(write(y)?), Arg::Read(read(a)?), Arg::U64(len as u64)];
    // SAFETY: both have `len` elements.
    unsafe { ops.run(&name, vector(len), &args) }
}

pub(crate) fn scale(ops: &GpuOps, y: SliceMut<'_>, factor: f64) -> Done {
    let (name, len) = (named("scale", "scale", &[y.dtype()])?, y.len());
    let args = [Arg::Write(write(y)?), Arg::U64(len as u64), Arg::F32(factor as f32)];
    // SAFETY: it has `len` elements.
    unsafe { ops.run(&name, vector(len), &args) }
}

pub(crate) fn cast(ops: &GpuOps, y: SliceMut<'_>, x: Slice<'_>) -> Done {
    let (name, len) = (named("cast", "cast", &[y.dtype(), x.dtype()])?, y.len());
    if y.dtype() == x.dtype() {
        return Ok(y.copy_from(x)?);
    }
    let args = [Arg::Write(write(y)?), Arg::Read(read(x)?), Arg::U64(len as u64)];
    // SAFETY: both have `len` elements.
    unsafe { ops.run(&name, vector(len), &args) }
}

pub(crate) fn offset(ops: &GpuOps, y: SliceMut<'_>, x: Slice<'_>, by: f64) -> Done {
    let (name, len) = (named("offset", "offset", &[x.dtype()])?, y.len());
    let args =
        [Arg::Write(write(y)?), Arg::Read(read(x)?), Arg::U64(len as u64), Arg::F32(by as f32)];
    // SAFETY: both have `len` elements.
    unsafe { ops.run(&name, vector(len), &args) }
}

pub(crate) fn copy(ops: &GpuOps, y: MatMut<'_>, x: MatRef<'_>) -> Done {
    let ([rows, cols, to], [_, _, from], each) = (y.dims(), x.dims(), y.dtype().bytes());
    let (y, x) = (write(y.data)?, read(x.data)?);
    if to == cols && from == cols {
        let bytes = 0..rows * cols * each;
        let (y, x) = (y.range(bytes.clone()).map_err(failed)?, x.range(bytes).map_err(failed)?);
        return ops.stream().copy(y, x).map_err(failed);
    }
    let sizes = [rows, cols, to, from].map(|size| Arg::U64(size as u64));
    let args: Vec<_> = [Arg::Write(y), Arg::Read(x)].into_iter().chain(sizes).collect();
    // SAFETY: both matrices lie in their memory, and have elements of so many bytes.
    unsafe { ops.run(&format!("copy_{each}"), matrix(rows, cols), &args) }
}
