//! Softmax cross-entropy over a part of the vocabulary.

use crate::gpu::{GpuOps, elements, rows};
use crate::views::{Shape, bytes_of, named, read, write};
use trine_buffer::{Slice, SliceMut};
use trine_gpu::Arg;
use trine_kernels::{KernelError, LossShape, MatMut, MatRef};

type Done = Result<(), KernelError>;

/// What kernels call `Part`.
fn part(shape: LossShape) -> [u64; 2] {
    [shape.valid_cols as u64, shape.first_col as u64]
}

pub(crate) fn ce_max(
    ops: &GpuOps,
    shape: LossShape,
    max: SliceMut<'_>,
    logits: MatRef<'_>,
) -> Done {
    let (name, [count, cols, stride]) =
        (named("ce_max", "ce_max", &[logits.dtype()])?, logits.dims());
    let of = part(shape);
    let args = [
        Arg::Write(write(max)?),
        Arg::Read(read(logits.data)?),
        Arg::U64(count as u64),
        Arg::U64(stride as u64),
        Arg::Bytes(bytes_of(&of)),
    ];
    // SAFETY: the matrix lies in its memory, and each row has a maximum.
    unsafe { ops.run(&name, rows(count, cols), &args) }
}

pub(crate) fn ce_sum(
    ops: &GpuOps,
    shape: LossShape,
    blocks: usize,
    sum_exp: SliceMut<'_>,
    target_logit: SliceMut<'_>,
    logits: MatRef<'_>,
    max: Slice<'_>,
    targets: Slice<'_>,
) -> Done {
    let (name, [count, cols, stride]) =
        (named("ce_sum", "ce_sum", &[logits.dtype()])?, logits.dims());
    let width = cols / blocks;
    let of = part(shape);
    let args = [
        Arg::Write(write(sum_exp)?),
        Arg::Write(write(target_logit)?),
        Arg::Read(read(logits.data)?),
        Arg::Read(read(max)?),
        Arg::Read(read(targets)?),
        Arg::U64(count as u64),
        Arg::U64(stride as u64),
        Arg::U64(blocks as u64),
        Arg::U64(width as u64),
        Arg::Bytes(bytes_of(&of)),
    ];
    // SAFETY: the matrix lies in its memory, and each row has one number of everything else.
    unsafe { ops.run(&name, rows(count, width), &args) }
}

pub(crate) fn ce_loss(
    ops: &GpuOps,
    loss: SliceMut<'_>,
    max: Slice<'_>,
    sum_exp: Slice<'_>,
    target_logit: Slice<'_>,
    targets: Slice<'_>,
) -> Done {
    named("ce_loss", "", &[loss.dtype()])?;
    let count = loss.len();
    let args = [
        Arg::Write(write(loss)?),
        Arg::Read(read(max)?),
        Arg::Read(read(sum_exp)?),
        Arg::Read(read(target_logit)?),
        Arg::Read(read(targets)?),
        Arg::U64(count as u64),
    ];
    // SAFETY: all have `count` elements.
    unsafe { ops.run("ce_loss", elements(count), &args) }
}

pub(crate) fn ce_grad(
    ops: &GpuOps,
    shape: LossShape,
    logits: MatMut<'_>,
    max: Slice<'_>,
    sum_exp: Slice<'_>,
    targets: Slice<'_>,
    scale: f64,
) -> Done {
    let (name, [count, cols, stride]) =
        (named("ce_grad", "ce_grad", &[logits.dtype()])?, logits.dims());
    let of = part(shape);
    let args = [
        Arg::Write(write(logits.data)?),
        Arg::Read(read(max)?),
        Arg::Read(read(sum_exp)?),
        Arg::Read(read(targets)?),
        Arg::U64(count as u64),
        Arg::U64(cols as u64),
        Arg::U64(stride as u64),
        Arg::Bytes(bytes_of(&of)),
        Arg::F32(scale as f32),
        Arg::F32(shape.softcap.map_or(0.0, |cap| (1.0 / cap) as f32)),
    ];
    // SAFETY: the matrix lies in its memory, and each row has one number of everything else.
    unsafe { ops.run(&name, rows(count, cols), &args) }
}
