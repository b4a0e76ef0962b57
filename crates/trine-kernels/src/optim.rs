//! Optimizer steps and the numbers that watch over them, on flat ranges.

use crate::check::{Mat, typed, typed_mut, with_num};
use crate::elementwise::Convert;
use crate::isa::vectorised;
use crate::num::{LANES, Num, Real, sum_lanes, sum_row};
use crate::scratch::Split;
use crate::{AdamW, CpuOps, KernelError, MatRef, Sgd};
use std::sync::atomic::{AtomicUsize, Ordering};
use trine_buffer::{DType, Float, Slice, SliceMut};

type Done = Result<(), KernelError>;

/// Elements of a block of [`sum_squares`]: part of the numbers, never change it.
const BLOCK: usize = 4096;

/// Blocks of [`sum_squares`] that are summed at the same time.
const TOGETHER: usize = 4;

/// The square in f64, where that of an f32 is exact.
#[inline(always)]
fn square<A: Real>(x: A) -> f64 {
    let x = x.to_f64();
    x * x
}

/// The constants of AdamW as an update uses them, in the type that it computes in.
#[derive(Debug, Clone, Copy)]
pub struct AdamWConstants<A> {
    /// What stays of a weight: 1 − lr · weight_decay.
    pub keep: A,
    /// Decay of the first moment.
    pub beta1: A,
    /// 1 − beta1.
    pub one_minus_beta1: A,
    /// Decay of the second moment.
    pub beta2: A,
    /// 1 − beta2.
    pub one_minus_beta2: A,
    /// The learning rate over the correction of the first moment.
    pub step: A,
    /// 1 over the root of the correction of the second moment.
    pub root_correction2: A,
    /// Added to the root of the second moment.
    pub eps: A,
    /// Factor on the gradient.
    pub grad_scale: A,
}

impl<A: Float> AdamWConstants<A> {
    /// Computed in f64, each rounded once.
    pub fn new(adamw: &AdamW) -> Self {
        let a = A::from_f64;
        Self {
            keep: a(1.0 - adamw.lr * adamw.weight_decay),
            beta1: a(adamw.beta1),
            one_minus_beta1: a(1.0 - adamw.beta1),
            beta2: a(adamw.beta2),
            one_minus_beta2: a(1.0 - adamw.beta2),
            step: a(adamw.lr / adamw.bias_correction1),
            root_correction2: a(1.0 / adamw.bias_correction2.sqrt()),
            eps: a(adamw.eps),
            grad_scale: a(adamw.grad_scale),
        }
    }
}

/// The constants of SGD in the accumulator type.
#[derive(Debug, Clone, Copy)]
struct SgdConstants<A> {
    lr: A,
    momentum: A,
    weight_decay: A,
    grad_scale: A,
}

vectorised! {
    fn adamw_range<A: Real>(
        constants: AdamWConstants<A>,
        weights: &mut [A],
        m: &mut [A],
        v: &mut [A],
        grad: &[A],
    ) {
        let c = constants;
        for (((w, m), v), &grad) in weights.iter_mut().zip(m).zip(v).zip(grad) {
            let g = grad * c.grad_scale;
            *m = c.beta1 * *m + c.one_minus_beta1 * g;
            *v = c.beta2 * *v + c.one_minus_beta2 * g * g;
            let root = v.sqrt() * c.root_correction2 + c.eps;
            *w = *w * c.keep - c.step * (*m / root);
        }
    }

    fn sgd_range<A: Real>(
        constants: SgdConstants<A>,
        weights: &mut [A],
        velocity: &mut [A],
        grad: &[A],
    ) {
        let c = constants;
        for ((w, v), &grad) in weights.iter_mut().zip(velocity).zip(grad) {
            *v = c.momentum * *v + (grad * c.grad_scale + c.weight_decay * *w);
            *w = *w - c.lr * *v;
        }
    }

    fn plain_sgd_range<A: Real>(constants: SgdConstants<A>, weights: &mut [A], grad: &[A]) {
        let c = constants;
        for (w, &grad) in weights.iter_mut().zip(grad) {
            *w = *w - c.lr * (grad * c.grad_scale + c.weight_decay * *w);
        }
    }

    fn publish<A: Convert<T>, T: Num>(compute: &mut [T], weights: &[A]) {
        for (compute, &w) in compute.iter_mut().zip(weights) {
            *compute = w.convert();
        }
    }

    fn block_squares<T: Num>(x: &[T]) -> f64 {
        sum_row(x, |x: T::Acc| square(x))
    }

    /// [`block_squares`] of whole blocks behind one another, `TOGETHER` at a time: as many chains of
    /// additions run beside each other, with the bits of each by itself.
    fn blocks_squares<T: Num>(x: &[T], sums: &mut [f64]) {
        let groups = x.chunks_exact(TOGETHER * BLOCK).zip(sums.chunks_exact_mut(TOGETHER));
        for (x, sums) in groups {
            let mut lanes = [[0.0f64; LANES]; TOGETHER];
            for at in (0..BLOCK).step_by(LANES) {
                for (block, lanes) in lanes.iter_mut().enumerate() {
                    let x = &x[block * BLOCK + at..][..LANES];
                    for (lane, x) in lanes.iter_mut().zip(x) {
                        *lane += square(x.widen());
                    }
                }
            }
            for (sum, lanes) in sums.iter_mut().zip(lanes) {
                *sum = sum_lanes(lanes);
            }
        }
    }

    fn all_finite<T: Num>(x: &[T]) -> bool {
        x.iter().fold(true, |all, x| all & x.widen().is_finite())
    }
}

/// Runs `$body` with `$a` standing for the accumulator type `$dtype`.
macro_rules! with_acc {
    ($op:expr, $argument:expr, $dtype:expr, $a:ident => $body:expr) => {
        match $dtype {
            DType::F64 => {
                type $a = f64;
                $body
            }
            DType::F32 => {
                type $a = f32;
                $body
            }
            held @ (DType::Bf16 | DType::F16 | DType::U64 | DType::U32 | DType::U8) => {
                let (op, argument) = ($op, $argument);
                Err(KernelError::Type { op, argument, held, expected: DType::F32 })
            }
        }
    };
}

/// Pieces that a thread updates before it goes on: small enough that the weights are still in the
/// nearest cache when their compute copy is written.
const PIECE: usize = 1024;

pub(crate) fn adamw(
    cpu: &CpuOps,
    adamw: AdamW,
    weights: SliceMut<'_>,
    m: SliceMut<'_>,
    v: SliceMut<'_>,
    grad: Slice<'_>,
    compute: Option<SliceMut<'_>>,
) -> Done {
    const OP: &str = "adamw";
    fn run<A: Convert<T> + Real, T: Num>(
        cpu: &CpuOps,
        constants: AdamWConstants<A>,
        weights: &mut [A],
        m: SliceMut<'_>,
        v: SliceMut<'_>,
        grad: Slice<'_>,
        compute: Option<SliceMut<'_>>,
    ) -> Done {
        let len = weights.len();
        let (m, v) = (typed_mut::<A>(OP, "m", m)?, typed_mut::<A>(OP, "v", v)?);
        let grad = typed::<A>(OP, "grad", grad)?;
        let compute = compute.map(|c| typed_mut::<T>(OP, "compute", c)).transpose()?;
        let (weights, m, v) = (Split::new(weights), Split::new(m), Split::new(v));
        let compute = compute.map(Split::new);
        cpu.parallel(len.div_ceil(PIECE), PIECE, |pieces| {
            for piece in pieces {
                let at = piece * PIECE..((piece + 1) * PIECE).min(len);
                // SAFETY: the pieces are disjoint.
                let (w, m, v) = unsafe {
                    (weights.range(at.clone()), m.range(at.clone()), v.range(at.clone()))
                };
                adamw_range(cpu.isa, constants, w, m, v, &grad[at.clone()]);
                if let Some(compute) = &compute {
                    // SAFETY: as above.
                    publish::<A, T>(cpu.isa, unsafe { compute.range(at) }, w);
                }
            }
        });
        Ok(())
    }
    let dtype = compute.as_ref().map_or(weights.dtype(), |c| c.dtype());
    with_acc!(OP, "weights", weights.dtype(), A => {
        let weights = typed_mut::<A>(OP, "weights", weights)?;
        let constants = AdamWConstants::new(&adamw);
        with_num!(OP, "compute", dtype, T => {
            run::<A, T>(cpu, constants, weights, m, v, grad, compute)
        })
    })
}

pub(crate) fn sgd(
    cpu: &CpuOps,
    sgd: Sgd,
    weights: SliceMut<'_>,
    velocity: Option<SliceMut<'_>>,
    grad: Slice<'_>,
    compute: Option<SliceMut<'_>>,
) -> Done {
    const OP: &str = "sgd";
    fn run<A: Convert<T> + Real, T: Num>(
        cpu: &CpuOps,
        constants: SgdConstants<A>,
        weights: &mut [A],
        velocity: Option<SliceMut<'_>>,
        grad: Slice<'_>,
        compute: Option<SliceMut<'_>>,
    ) -> Done {
        let len = weights.len();
        let velocity = velocity.map(|v| typed_mut::<A>(OP, "velocity", v)).transpose()?;
        let grad = typed::<A>(OP, "grad", grad)?;
        let compute = compute.map(|c| typed_mut::<T>(OP, "compute", c)).transpose()?;
        let weights = Split::new(weights);
        let (velocity, compute) = (velocity.map(Split::new), compute.map(Split::new));
        cpu.parallel(len.div_ceil(PIECE), PIECE, |pieces| {
            for piece in pieces {
                let at = piece * PIECE..((piece + 1) * PIECE).min(len);
                // SAFETY: the pieces are disjoint.
                let w = unsafe { weights.range(at.clone()) };
                let grad = &grad[at.clone()];
                match &velocity {
                    Some(v) => {
                        // SAFETY: as above.
                        let v = unsafe { v.range(at.clone()) };
                        sgd_range(cpu.isa, constants, w, v, grad);
                    }
                    None => plain_sgd_range(cpu.isa, constants, w, grad),
                }
                if let Some(compute) = &compute {
                    // SAFETY: as above.
                    publish::<A, T>(cpu.isa, unsafe { compute.range(at) }, w);
                }
            }
        });
        Ok(())
    }
    let dtype = compute.as_ref().map_or(weights.dtype(), |c| c.dtype());
    with_acc!(OP, "weights", weights.dtype(), A => {
        let weights = typed_mut::<A>(OP, "weights", weights)?;
        let constants = SgdConstants {
            lr: A::from_f64(sgd.lr),
            momentum: A::from_f64(sgd.momentum),
            weight_decay: A::from_f64(sgd.weight_decay),
            grad_scale: A::from_f64(sgd.grad_scale),
        };
        with_num!(OP, "compute", dtype, T => {
            run::<A, T>(cpu, constants, weights, velocity, grad, compute)
        })
    })
}

/// The sum over a tree whose left parts hold the largest power of two of blocks, so that ranges cut
/// at such places have subtrees of the whole.
fn tree(sums: &[f64]) -> f64 {
    match sums {
        [] => 0.0,
        [one] => *one,
        _ => {
            let left = sums.len().next_power_of_two() / 2;
            tree(&sums[..left]) + tree(&sums[left..])
        }
    }
}

/// `f` of some blocks of `x`, in order, into `out`.
fn map_blocks<T: Num>(cpu: &CpuOps, x: &[T], out: &mut [f64], f: impl Fn(&[T], &mut [f64]) + Sync) {
    let out = Split::new(out);
    cpu.parallel(x.len().div_ceil(BLOCK), BLOCK, |blocks| {
        // SAFETY: each block is written by one thread.
        let out = unsafe { out.range(blocks.clone()) };
        f(&x[blocks.start * BLOCK..(blocks.end * BLOCK).min(x.len())], out);
    });
}

pub(crate) fn sum_squares(cpu: &CpuOps, acc: SliceMut<'_>, x: Slice<'_>) -> Done {
    const OP: &str = "sum_squares";
    let acc = typed_mut::<f64>(OP, "acc", acc)?;
    with_num!(OP, "x", x.dtype(), T => {
        let x = typed::<T>(OP, "x", x)?;
        let mut scratch = cpu.scratch.take();
        let sums = scratch.slice::<f64>(x.len().div_ceil(BLOCK));
        map_blocks(cpu, x, sums, |x, sums| {
            let whole = x.len() / (TOGETHER * BLOCK) * TOGETHER;
            let (groups, rest) = sums.split_at_mut(whole);
            blocks_squares(cpu.isa, &x[..whole * BLOCK], groups);
            for (x, sum) in x[whole * BLOCK..].chunks(BLOCK).zip(rest) {
                *sum = block_squares(cpu.isa, x);
            }
        });
        acc[0] += tree(sums);
        Ok(())
    })
}

pub(crate) fn row_sums(_: &CpuOps, sums: SliceMut<'_>, x: MatRef<'_>) -> Done {
    const OP: &str = "row_sums";
    let sums = typed_mut::<f64>(OP, "sums", sums)?;
    with_acc!(OP, "x", x.data.dtype(), A => {
        let x = Mat::<A>::new(OP, "x", x)?;
        for (row, sum) in sums.iter_mut().enumerate() {
            *sum = x.row(row).iter().map(|value| value.to_f64()).sum();
        }
        Ok(())
    })
}

pub(crate) fn first_non_finite(cpu: &CpuOps, x: Slice<'_>) -> Result<Option<usize>, KernelError> {
    const OP: &str = "first_non_finite";
    with_num!(OP, "x", x.dtype(), T => {
        let x = typed::<T>(OP, "x", x)?;
        let first = AtomicUsize::new(usize::MAX);
        cpu.parallel(x.len().div_ceil(BLOCK), BLOCK, |blocks| {
            for block in blocks {
                let at = block * BLOCK..((block + 1) * BLOCK).min(x.len());
                if all_finite(cpu.isa, &x[at.clone()]) {
                    continue;
                }
                let found = x[at.clone()].iter().position(|x| !x.to_f64().is_finite());
                let found = found.map_or(usize::MAX, |i| at.start + i);
                first.fetch_min(found, Ordering::Relaxed);
                break;
            }
        });
        let first = first.into_inner();
        Ok((first != usize::MAX).then_some(first))
    })
}
