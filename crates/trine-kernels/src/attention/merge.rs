//! Two results of attention over disjoint keys become one (arXiv 2310.01889).

use crate::check::{Mat, MatSplit, typed, typed_mut, with_num};
use crate::isa::vectorised;
use crate::num::{Num, Real};
use crate::scratch::Split;
use crate::{AttentionShape, CpuOps, KernelError, MatMut, MatRef};
use trine_buffer::{Element, Slice, SliceMut};

type Done = Result<(), KernelError>;

/// The weights of two results, and the logarithm of the sum of both.
fn weights<A: Real>(lse: A, part_lse: A) -> (A, A, A) {
    let max = lse.larger(part_lse);
    // Neither side has seen a key: −∞ − −∞ would be no number.
    if lse == A::NEG_INFINITY && part_lse == A::NEG_INFINITY {
        return (A::ONE, A::ONE, A::NEG_INFINITY);
    }
    let (left, right) = ((lse - max).exp(), (part_lse - max).exp());
    let sum = left + right;
    (left / sum, right / sum, max + sum.ln())
}

vectorised! {
    fn mix<T: Num, S: Num<Acc = T::Acc>>(o: &mut [S], part: &[T], left: T::Acc, right: T::Acc) {
        for (o, part) in o.iter_mut().zip(part) {
            *o = S::narrow(o.widen() * left + part.widen() * right);
        }
    }
}

fn merge<T: Num, S: Num<Acc = T::Acc>>(
    cpu: &CpuOps,
    shape: AttentionShape,
    o: MatMut<'_>,
    lse: SliceMut<'_>,
    part_o: MatRef<'_>,
    part_lse: Slice<'_>,
) -> Done {
    const OP: &str = "attention_merge";
    let AttentionShape { samples, queries, heads, head_dim, .. } = shape;
    let (rows, cols) = (samples * queries, heads * head_dim);
    let (o, part_o) = (MatSplit::<S>::new(OP, "o", o)?, Mat::<T>::new(OP, "part_o", part_o)?);
    let lse = typed_mut::<T::Acc>(OP, "lse", lse)?;
    let part_lse = typed::<T::Acc>(OP, "part_lse", part_lse)?;
    let lse = Split::new(lse);
    cpu.parallel(rows, cols, |rows| {
        for row in rows {
            for head in 0..heads {
                let stat = (row / queries * heads + head) * queries + row % queries;
                let cols = head * head_dim..(head + 1) * head_dim;
                // SAFETY: each (row, head) is read and written by one thread.
                let (o, lse) = unsafe { (o.part(row, cols.clone()), lse.range(stat..stat + 1)) };
                let (left, right, sum) = weights(lse[0], part_lse[stat]);
                mix(cpu.isa, o, &part_o.row(row)[cols], left, right);
                lse[0] = sum;
            }
        }
    });
    Ok(())
}

pub(crate) fn attention_merge(
    cpu: &CpuOps,
    shape: AttentionShape,
    o: MatMut<'_>,
    lse: SliceMut<'_>,
    part_o: MatRef<'_>,
    part_lse: Slice<'_>,
) -> Done {
    with_num!("attention_merge", "part_o", part_o.data.dtype(), T => {
        if o.data.dtype() == <T as Element>::DTYPE {
            merge::<T, T>(cpu, shape, o, lse, part_o, part_lse)
        } else {
            merge::<T, <T as Num>::Acc>(cpu, shape, o, lse, part_o, part_lse)
        }
    })
}
