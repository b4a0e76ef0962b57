//! Packing: a factor's elements in the order in which the micro-kernel reads them.

use super::micro::Feed;
use super::{Operand, prefetch_rows};
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
    let len = ks.div_ceil(M::GROUP) * width;
    let whole = outers / width;
    let (full, rest) = out.split_at_mut(whole * len);
    let from = |panel: usize| {
        let start = panel * width * x.outer_stride + k_start * x.k_stride;
        Operand { data: &x.data[start..], ..x }
    };
    let together = if x.k_stride == 1 { 1 } else { PANELS };
    for (group, out) in full.chunks_mut(together * len).enumerate() {
        side_by_side::<M, T>(from(group * together), width, width, ks, out);
    }
    let lanes = outers - whole * width;
    if lanes > 0 {
        rest.fill(bytemuck::Zeroable::zeroed());
        side_by_side::<M, T>(from(whole), width, lanes, ks, rest);
    }
}

/// Panels that are filled side by side where rows run across `k`: so much of a row is read at once, from memory that
/// lies together.
const PANELS: usize = 8;

/// Packs panels of `width`, each with `lanes` rows or columns: along `k` one panel, across it any number.
#[inline(always)]
fn side_by_side<M: Feed<T>, T: Num>(
    x: Operand<'_, T>,
    width: usize,
    lanes: usize,
    ks: usize,
    out: &mut [M::Packed],
) {
    if x.k_stride == 1 {
        along_k::<M, T>(x, width, lanes, ks, out);
    } else {
        across_k::<M, T>(x, width, lanes, ks, out);
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

/// Steps whose rows are prefetched ahead where they lie far apart.
const AHEAD: usize = 16;

/// Rows run across `k`: lanes are neighbours already, and so are panels, each of `lanes` of its `width`.
#[inline(always)]
fn across_k<M: Feed<T>, T: Num>(
    x: Operand<'_, T>,
    width: usize,
    lanes: usize,
    ks: usize,
    out: &mut [M::Packed],
) {
    let len = ks.div_ceil(M::GROUP) * width;
    let panels = out.len() / len;
    for step in 0..ks.div_ceil(M::GROUP) {
        let k = step * M::GROUP;
        let ahead = x.data.as_ptr().wrapping_add((k + AHEAD * M::GROUP) * x.k_stride);
        prefetch_rows(ahead, M::GROUP, panels * width, x.k_stride);
        let row = |k: usize| &x.data[k * x.k_stride..][..(panels - 1) * width + lanes];
        let first = row(k);
        let second = (k + M::GROUP <= ks).then(|| row(k + M::GROUP - 1));
        for panel in 0..panels {
            let out = &mut out[panel * len + step * width..][..lanes];
            let lanes = panel * width..panel * width + lanes;
            neighbours::<M, T>(out, &first[lanes.clone()], second.map(|second| &second[lanes]));
        }
    }
}

/// Packs one step of some rows; without `second` its elements are zero.
#[inline(always)]
fn neighbours<M: Feed<T>, T: Num>(out: &mut [M::Packed], first: &[T], second: Option<&[T]>) {
    // Pieces of a constant length, read before they are written, become vectors.
    let done = pieces::<M, T, 16>(out, 0, first, second);
    let done = pieces::<M, T, 4>(out, done, first, second);
    let done = pieces::<M, T, 2>(out, done, first, second);
    pieces::<M, T, 1>(out, done, first, second);
}

/// Packs all pieces of `N` lanes from `lane` on; the lane behind them.
#[inline(always)]
fn pieces<M: Feed<T>, T: Num, const N: usize>(
    out: &mut [M::Packed],
    lane: usize,
    first: &[T],
    second: Option<&[T]>,
) -> usize {
    let pieces = out[lane..].as_chunks_mut::<N>().0;
    for (piece, out) in pieces.iter_mut().enumerate() {
        *out = piece_at::<M, T, N>(lane + piece * N, first, second);
    }
    lane + pieces.len() * N
}

#[inline(always)]
fn piece_at<M: Feed<T>, T: Num, const N: usize>(
    lane: usize,
    first: &[T],
    second: Option<&[T]>,
) -> [M::Packed; N] {
    let zero = T::narrow(T::Acc::ZERO);
    let read = |x: &[T]| -> [T; N] {
        let x = &x[lane..][..N];
        std::array::from_fn(|i| x[i])
    };
    let (first, second) = (read(first), second.map_or([zero; N], read));
    std::array::from_fn(|i| M::pack(first[i], second[i]))
}
