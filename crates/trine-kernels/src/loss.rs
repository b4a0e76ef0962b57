//! Softmax cross-entropy over a part of the vocabulary, in four steps with the collectives of
//! tensor parallelism between them: maximum, sum, loss, gradient.

use crate::check::{Mat, MatSplit, typed, typed_mut, with_num};
use crate::isa::vectorised;
use crate::num::{Num, Real, SUMMANDS_MAX, max_row, sum_row, sum_tree};
use crate::scratch::Split;
use crate::{CpuOps, IGNORE, KernelError, LossShape, MatMut, MatRef};
use trine_buffer::{DType, Float, Slice, SliceMut};

type Done = Result<(), KernelError>;

vectorised! {
    fn row_max<T: Num>(logits: &[T]) -> T::Acc {
        max_row(logits)
    }

    fn row_sum_exp<T: Num>(logits: &[T], max: T::Acc) -> T::Acc {
        sum_row(logits, |x| (x - max).exp())
    }

    fn row_softmax<T: Num>(logits: &mut [T], max: T::Acc, factor: T::Acc) {
        for x in logits {
            *x = T::narrow((x.widen() - max).exp() * factor);
        }
    }

    /// The gradient by logits before they were bounded: times the slope of the bound.
    fn row_softmax_capped<T: Num>(logits: &mut [T], max: T::Acc, factor: T::Acc, inverse: T::Acc) {
        for x in logits {
            let capped = x.widen();
            *x = T::narrow((capped - max).exp() * factor * slope(capped, inverse));
        }
    }
}

/// The derivative of `cap · tanh(x / cap)` from what it gives; `inverse` is `1 / cap`.
#[inline(always)]
fn slope<A: Real>(capped: A, inverse: A) -> A {
    let t = capped * inverse;
    A::ONE - t * t
}

/// The column of a target, if it lies among the valid ones.
fn local_col(target: u32, shape: LossShape) -> Option<usize> {
    if target == IGNORE {
        return None;
    }
    (target as usize).checked_sub(shape.first_col).filter(|&col| col < shape.valid_cols)
}

pub(crate) fn ce_max(
    cpu: &CpuOps,
    shape: LossShape,
    max: SliceMut<'_>,
    logits: MatRef<'_>,
) -> Done {
    const OP: &str = "ce_max";
    fn run<T: Num>(cpu: &CpuOps, shape: LossShape, max: SliceMut<'_>, logits: MatRef<'_>) -> Done {
        let logits = Mat::<T>::new(OP, "logits", logits)?;
        let max = typed_mut::<T::Acc>(OP, "max", max)?;
        let max = Split::new(max);
        cpu.parallel(logits.rows, logits.cols, |rows| {
            for row in rows {
                // SAFETY: each row is written by one thread.
                let max = unsafe { max.range(row..row + 1) };
                max[0] = row_max(cpu.isa, &logits.row(row)[..shape.valid_cols]);
            }
        });
        Ok(())
    }
    with_num!(OP, "logits", logits.data.dtype(), T => run::<T>(cpu, shape, max, logits))
}

pub(crate) fn ce_sum(
    cpu: &CpuOps,
    shape: LossShape,
    blocks: usize,
    sum_exp: SliceMut<'_>,
    target_logit: SliceMut<'_>,
    logits: MatRef<'_>,
    max: Slice<'_>,
    targets: Slice<'_>,
) -> Done {
    const OP: &str = "ce_sum";
    fn run<T: Num>(
        cpu: &CpuOps,
        shape: LossShape,
        blocks: usize,
        sum_exp: SliceMut<'_>,
        target_logit: SliceMut<'_>,
        logits: MatRef<'_>,
        max: Slice<'_>,
        targets: Slice<'_>,
    ) -> Done {
        let logits = Mat::<T>::new(OP, "logits", logits)?;
        let max = typed::<T::Acc>(OP, "max", max)?;
        let targets = typed::<u32>(OP, "targets", targets)?;
        let sum_exp = typed_mut::<T::Acc>(OP, "sum_exp", sum_exp)?;
        let target_logit = typed_mut::<T::Acc>(OP, "target_logit", target_logit)?;
        let (rows, cols) = logits.shape();
        let (sum_exp, target_logit) = (Split::new(sum_exp), Split::new(target_logit));
        cpu.parallel(rows, 4 * cols, |rows| {
            for row in rows {
                let logits = logits.row(row);
                let mut sums = [T::Acc::ZERO; SUMMANDS_MAX];
                for (block, sum) in sums[..blocks].iter_mut().enumerate() {
                    let width = cols / blocks;
                    let end = ((block + 1) * width).min(shape.valid_cols);
                    let start = (block * width).min(end);
                    *sum = row_sum_exp(cpu.isa, &logits[start..end], max[row]);
                }
                let target = local_col(targets[row], shape);
                // SAFETY: each row is written by one thread.
                let (sum, logit) =
                    unsafe { (sum_exp.range(row..row + 1), target_logit.range(row..row + 1)) };
                sum[0] = sum_tree(&sums[..blocks]);
                logit[0] = target.map_or(T::Acc::ZERO, |col| logits[col].widen());
            }
        });
        Ok(())
    }
    with_num!(OP, "logits", logits.data.dtype(), T => {
        run::<T>(cpu, shape, blocks, sum_exp, target_logit, logits, max, targets)
    })
}

pub(crate) fn ce_loss(
    _: &CpuOps,
    loss: SliceMut<'_>,
    max: Slice<'_>,
    sum_exp: Slice<'_>,
    target_logit: Slice<'_>,
    targets: Slice<'_>,
) -> Done {
    const OP: &str = "ce_loss";
    fn run<A: Real>(
        loss: SliceMut<'_>,
        max: Slice<'_>,
        sum_exp: Slice<'_>,
        target_logit: Slice<'_>,
        targets: Slice<'_>,
    ) -> Done {
        let (loss, max) = (typed_mut::<A>(OP, "loss", loss)?, typed::<A>(OP, "max", max)?);
        let sum_exp = typed::<A>(OP, "sum_exp", sum_exp)?;
        let target_logit = typed::<A>(OP, "target_logit", target_logit)?;
        let targets = typed::<u32>(OP, "targets", targets)?;
        for (row, loss) in loss.iter_mut().enumerate() {
            *loss = if targets[row] == IGNORE {
                A::ZERO
            } else {
                sum_exp[row].ln() + (max[row] - target_logit[row])
            };
        }
        Ok(())
    }
    match loss.dtype() {
        DType::F64 => run::<f64>(loss, max, sum_exp, target_logit, targets),
        DType::F32 => run::<f32>(loss, max, sum_exp, target_logit, targets),
        held @ (DType::Bf16 | DType::F16 | DType::U64 | DType::U32 | DType::U8) => {
            Err(KernelError::Type { op: OP, argument: "loss", held, expected: DType::F32 })
        }
    }
}

pub(crate) fn ce_grad(
    cpu: &CpuOps,
    shape: LossShape,
    logits: MatMut<'_>,
    max: Slice<'_>,
    sum_exp: Slice<'_>,
    targets: Slice<'_>,
    scale: f64,
) -> Done {
    const OP: &str = "ce_grad";
    fn run<T: Num>(
        cpu: &CpuOps,
        shape: LossShape,
        logits: MatMut<'_>,
        max: Slice<'_>,
        sum_exp: Slice<'_>,
        targets: Slice<'_>,
        scale: f64,
    ) -> Done {
        let logits = MatSplit::<T>::new(OP, "logits", logits)?;
        let max = typed::<T::Acc>(OP, "max", max)?;
        let sum_exp = typed::<T::Acc>(OP, "sum_exp", sum_exp)?;
        let targets = typed::<u32>(OP, "targets", targets)?;
        let (rows, cols) = logits.shape();
        let scale = T::Acc::from_f64(scale);
        let inverse = shape.softcap.map(|cap| T::Acc::from_f64(1.0 / cap));
        cpu.parallel(rows, 4 * cols, |rows| {
            for row in rows {
                // SAFETY: each row is written by one thread.
                let logits = unsafe { logits.part(row, 0..cols) };
                if targets[row] == IGNORE {
                    logits.fill(T::narrow(T::Acc::ZERO));
                    continue;
                }
                // The target's element is rounded once, so it starts from the logit.
                let factor = scale / sum_exp[row];
                let target = local_col(targets[row], shape).map(|col| {
                    let logit = logits[col].widen();
                    let grad = (logit - max[row]).exp() * factor - scale;
                    (col, inverse.map_or(grad, |inverse| grad * slope(logit, inverse)))
                });
                let (valid, padding) = logits.split_at_mut(shape.valid_cols);
                match inverse {
                    None => row_softmax(cpu.isa, valid, max[row], factor),
                    Some(inverse) => row_softmax_capped(cpu.isa, valid, max[row], factor, inverse),
                }
                padding.fill(T::narrow(T::Acc::ZERO));
                if let Some((col, grad)) = target {
                    logits[col] = T::narrow(grad);
                }
            }
        });
        Ok(())
    }
    with_num!(OP, "logits", logits.data.dtype(), T => {
        run::<T>(cpu, shape, logits, max, sum_exp, targets, scale)
    })
}
