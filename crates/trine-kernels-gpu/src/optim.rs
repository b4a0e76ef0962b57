//! Optimizer steps and the numbers that watch over them, on flat ranges.

use crate::gpu::{GpuOps, elements, rows};
use crate::views::{Shape, bytes_of, named, read, write};
use trine_buffer::{DType, Slice, SliceMut};
use trine_gpu::{Arg, Grid};
use trine_kernels::{AdamW, AdamWConstants, KernelError, MatRef, Sgd};

type Done = Result<(), KernelError>;

/// Elements of a block of a sum of squares, and lanes that share it: those of the CPU.
const BLOCK: usize = 4096;
const LANES: usize = 16;
/// What a block of the kernel `pair_sums` adds, and its threads.
const PAIRED: usize = 512;
/// Threads of a block of the kernel `row_sums`, and of `first_non_finite`.
const THREADS: u32 = 256;

/// A kernel for what receives the weights a second time.
fn published(
    op: &'static str,
    kernel: &str,
    compute: &Option<SliceMut<'_>>,
) -> Result<String, KernelError> {
    match compute {
        None => Ok(format!("{kernel}_alone")),
        Some(compute) => named(op, kernel, &[compute.dtype()]),
    }
}

pub(crate) fn adamw(
    ops: &GpuOps,
    adamw: AdamW,
    weights: SliceMut<'_>,
    m: SliceMut<'_>,
    v: SliceMut<'_>,
    grad: Slice<'_>,
    compute: Option<SliceMut<'_>>,
) -> Done {
    named("adamw", "", &[weights.dtype()])?;
    let (name, len) = (published("adamw", "adamw", &compute)?, weights.len());
    let c = AdamWConstants::<f32>::new(&adamw);
    // What kernels call `AdamW`.
    let by = [
        c.keep,
        c.beta1,
        c.one_minus_beta1,
        c.beta2,
        c.one_minus_beta2,
        c.step,
        c.root_correction2,
        c.eps,
        c.grad_scale,
    ];
    let mut args = Vec::new();
    for output in [weights, m, v].into_iter().chain(compute) {
        args.push(Arg::Write(write(output)?));
    }
    args.extend([Arg::Read(read(grad)?), Arg::U64(len as u64), Arg::Bytes(bytes_of(&by))]);
    // SAFETY: all have `len` elements.
    unsafe { ops.run(&name, elements(len), &args) }
}

pub(crate) fn sgd(
    ops: &GpuOps,
    sgd: Sgd,
    weights: SliceMut<'_>,
    velocity: Option<SliceMut<'_>>,
    grad: Slice<'_>,
    compute: Option<SliceMut<'_>>,
) -> Done {
    named("sgd", "", &[weights.dtype()])?;
    let kernel = if velocity.is_some() { "sgd" } else { "plain_sgd" };
    let (name, len) = (published("sgd", kernel, &compute)?, weights.len());
    // What kernels call `Sgd`.
    let by = [sgd.lr, sgd.momentum, sgd.weight_decay, sgd.grad_scale].map(|x| x as f32);
    let mut args = Vec::new();
    for output in [weights].into_iter().chain(velocity).chain(compute) {
        args.push(Arg::Write(write(output)?));
    }
    args.extend([Arg::Read(read(grad)?), Arg::U64(len as u64), Arg::Bytes(bytes_of(&by))]);
    // SAFETY: all have `len` elements.
    unsafe { ops.run(&name, elements(len), &args) }
}

/// The blocks' sums, then pairs of them, pairs of pairs and so on: the bits of the CPU.
pub(crate) fn sum_squares(ops: &GpuOps, acc: SliceMut<'_>, x: Slice<'_>) -> Done {
    let (name, len) = (named("sum_squares", "block_squares", &[x.dtype()])?, x.len());
    if len == 0 {
        return Ok(());
    }
    let mut count = len.div_ceil(BLOCK);
    let mut sums = ops.scratch("sums of squares", 8 * count)?;
    let args = [Arg::Write(sums.span_mut()), Arg::Read(read(x)?), Arg::U64(len as u64)];
    // SAFETY: x has `len` elements, and each block of it a sum.
    unsafe { ops.run(&name, elements(count * LANES), &args)? };
    while count > PAIRED {
        let mut fewer = ops.scratch("sums of squares", 8 * count.div_ceil(PAIRED))?;
        pair_sums(ops, Arg::Write(fewer.span_mut()), Arg::Read(sums.span()), count, false)?;
        (sums, count) = (fewer, count.div_ceil(PAIRED));
    }
    pair_sums(ops, Arg::Write(write(acc)?), Arg::Read(sums.span()), count, true)
}

/// A sum for each `PAIRED` of `count` values.
fn pair_sums(ops: &GpuOps, sums: Arg<'_>, values: Arg<'_>, count: usize, add: bool) -> Done {
    let grid = Grid { threads: [PAIRED as u32, 1, 1], ..rows(count.div_ceil(PAIRED), 1) };
    let args = [sums, values, Arg::U64(count as u64), Arg::U32(u32::from(add))];
    // SAFETY: `count` values, and a sum for each group of them.
    unsafe { ops.run("pair_sums", grid, &args) }
}

pub(crate) fn row_sums(ops: &GpuOps, sums: SliceMut<'_>, x: MatRef<'_>) -> Done {
    named("row_sums", "", &[x.dtype()])?;
    let [count, cols, stride] = x.dims();
    let grid = Grid { threads: [THREADS, 1, 1], ..rows(count, cols) };
    let args = [
        Arg::Write(write(sums)?),
        Arg::Read(read(x.data)?),
        Arg::U64(count as u64),
        Arg::U64(cols as u64),
        Arg::U64(stride as u64),
    ];
    // SAFETY: the matrix lies in its memory, and each row has a sum.
    unsafe { ops.run("row_sums", grid, &args) }
}

/// The host waits for the answer.
pub(crate) fn first_non_finite(ops: &GpuOps, x: Slice<'_>) -> Result<Option<usize>, KernelError> {
    let (name, len) = (named("first_non_finite", "first_non_finite", &[x.dtype()])?, x.len());
    let grid = Grid { threads: [THREADS, 1, 1], ..elements(len) };
    let mut places = ops.place.zeros(DType::U64, grid.blocks[0] as usize)?;
    let args = [Arg::Write(write(places.slice_mut())?), Arg::Read(read(x)?), Arg::U64(len as u64)];
    // SAFETY: x has `len` elements, and each block a place.
    unsafe { ops.run(&name, grid, &args)? };
    let found = places.slice().to_host()?.into_vec::<u64>()?;
    Ok(found.into_iter().min().map(|first| first as usize).filter(|&first| first < len))
}
