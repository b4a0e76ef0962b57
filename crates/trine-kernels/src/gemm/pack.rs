//! Packing: a factor's elements in the order in which the micro-kernel reads them.

use super::Operand;
use super::micro::Feed;
use crate::num::{Num, Real};

/// Packs `outers` × `ks` elements of `x`, beginning at its first outer and at `k_start`, into
/// panels of `width`: value `[panel][step][lane]`, lanes and elements that do not exist being zero.
#[inline(always)]
pub(super) fn panels<M: Feed<T>, T: Num>(
    x: Operand<'_, T>,
    width: usize,
    outers: usize,
    k_start: usize,
    ks: usize,
    out: &mut [M::Packed],
) {
    if ks == 0 {
        return;
    }
    let steps = ks.div_ceil(M::GROUP);
    for (panel, out) in out.chunks_exact_mut(steps * width).enumerate() {
        let lanes = width.min(outers - panel * width);
        let start = panel * width * x.outer_stride + k_start * x.k_stride;
        if lanes < width {
            out.fill(bytemuck::Zeroable::zeroed());
        }
        let x = Operand { data: &x.data[start..], ..x };
        // A constant number of lanes makes loops of constant length.
        match (x.k_stride == 1, lanes == width) {
            (true, _) => along_k::<M, T>(x, width, lanes, ks, out),
            (false, true) => across_k::<M, T>(x, width, width, ks, out),
            (false, false) => across_k::<M, T>(x, width, lanes, ks, out),
        }
    }
}

/// Rows run along `k`: a transposition.
#[inline(always)]
fn along_k<M: Feed<T>, T: Num>(
    x: Operand<'_, T>,
    width: usize,
    lanes: usize,
    ks: usize,
    out: &mut [M::Packed],
) {
    let zero = T::narrow(T::Acc::ZERO);
    assert!(x.data.len() >= (lanes - 1) * x.outer_stride + ks, "invariant: rows in bounds");
    assert!(out.len() >= ks.div_ceil(M::GROUP) * width, "invariant: a whole panel");
    // SAFETY: in bounds by the assertions; `M` suits the processor, or `block` was called wrongly.
    let done = unsafe {
        M::transpose(x.data.as_ptr(), x.outer_stride, lanes, ks, out.as_mut_ptr(), width)
    };
    let out = &mut out[done * width..];
    for lane in 0..lanes {
        let row = &x.data[lane * x.outer_stride..][done * M::GROUP..ks];
        let groups = row.chunks_exact(M::GROUP);
        let rest = groups.remainder();
        let mut column = out.iter_mut().skip(lane).step_by(width);
        for (group, out) in groups.zip(&mut column) {
            *out = M::pack(group[0], group[M::GROUP - 1]);
        }
        if let (Some(&last), Some(out)) = (rest.first(), column.next()) {
            *out = M::pack(last, zero);
        }
    }
}

/// Rows run across `k`: lanes are neighbours already.
#[inline(always)]
fn across_k<M: Feed<T>, T: Num>(
    x: Operand<'_, T>,
    width: usize,
    lanes: usize,
    ks: usize,
    out: &mut [M::Packed],
) {
    let zero = T::narrow(T::Acc::ZERO);
    for (step, out) in out.chunks_exact_mut(width).enumerate() {
        let k = step * M::GROUP;
        let first = &x.data[k * x.k_stride..][..lanes];
        if k + M::GROUP <= ks {
            let second = &x.data[(k + M::GROUP - 1) * x.k_stride..][..lanes];
            for ((out, &first), &second) in out.iter_mut().zip(first).zip(second) {
                *out = M::pack(first, second);
            }
        } else {
            for (out, &first) in out.iter_mut().zip(first) {
                *out = M::pack(first, zero);
            }
        }
    }
}
