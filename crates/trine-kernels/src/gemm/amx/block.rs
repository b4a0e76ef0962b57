//! The loops around the tiles of one product.

use super::super::{Dims, Operand, Target};
use super::{Rows, SIDE, STEP, TILE, TileElement, Tiles, panel_step};
use crate::num::Num;
use crate::scratch::Scratch;
use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;
use trine_buffer::DType;

/// Steps of k that are packed at a time.
const STEPS: usize = 128;
/// As many are packed at a time where sums could go on in C itself.
const STEPS_WHOLE: usize = 32;
/// As many are not cut for A's sake: it does not pay for sums that leave the tiles.
const STEPS_UNCUT: usize = 12;
/// Nor does it for so few panels of B.
const PANELS_CUT_MIN: usize = 7;
/// Rows of A, in panels, that are packed together: a run of whole cache lines in each row of a factor
/// that runs across k.
const PANELS_TOGETHER: usize = 8;
/// Bytes of B that are packed at a time: half of the second-level cache of the processors that have
/// these tiles.
const STRIP_BYTES: usize = 1 << 20;
/// Bytes of A, for each part of a number, that are packed once and used for all strips: they come from the third-level
/// cache.
const KEPT_BYTES: usize = 4 << 20;

/// The product on one thread.
///
/// # Safety
/// As `GemmElement::gemm`; the processor has AMX with bf16 and AVX-512, and the system has allowed
/// the use of tiles.
pub(in super::super) unsafe fn block<T: TileElement, C: Num<Acc = f32>>(
    scratch: &mut Scratch<'_>,
    dims: Dims,
    a: Operand<'_, T>,
    b: Operand<'_, T>,
    c: Target<'_, C>,
) {
    let sizes = Sizes::of::<T, C>(dims, a);
    let bytes = scratch.slice::<u8>(sizes.a_bytes + sizes.b_bytes + sizes.sums_bytes());
    let (packed_a, rest) = bytes.split_at_mut(sizes.a_bytes);
    let (packed_b, sums) = rest.split_at_mut(sizes.b_bytes);
    let sums = bytemuck::cast_slice_mut(sums);
    let mut run = Run { dims, a, b, c, sizes, packed_a, packed_b, sums };
    // SAFETY: the caller's promise.
    let tiles = unsafe { Tiles::on() };
    for row in (0..dims.m).step_by(sizes.rows_each) {
        let rows = row..dims.m.min(row + sizes.rows_each);
        for col in (0..dims.n).step_by(sizes.cols_each) {
            let cols = sizes.cols_each.min(dims.n - col);
            for part in 0..dims.k.div_ceil(sizes.ks_each).max(1) {
                let k = part * sizes.ks_each;
                let ks = sizes.ks_each.min(dims.k - k);
                let packed = !sizes.long && col > 0;
                // SAFETY: the caller's promise; tiles are on.
                unsafe { run.strip(Strip { col, cols, k, ks, packed }, rows.clone()) };
            }
        }
    }
    drop(tiles);
}

/// How a product is cut.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    /// Rows that stay packed while all columns pass.
    rows_each: usize,
    /// Columns of a strip of B.
    cols_each: usize,
    /// Elements of k of one part.
    ks_each: usize,
    /// Steps of a part that all columns of a strip take before the next.
    steps_close: usize,
    /// k has several parts.
    long: bool,
    /// Whole panels of A are read where they are.
    in_place: bool,
    a_bytes: usize,
    b_bytes: usize,
    /// Tiles of the sums that C cannot hold, down and across: all of a strip, carried from one part of k to
    /// the next; a row of them, or one.
    sums_tiles: [usize; 2],
}

impl Sizes {
    fn of<T: TileElement, C: Num>(dims: Dims, a: Operand<'_, T>) -> Self {
        let panels = dims.n.div_ceil(SIDE);
        let steps = steps_at_a_time::<T, C>(dims.k, panels).max(1);
        let panel_bytes = steps * panel_step::<T>();
        let panels_max = (STRIP_BYTES / panel_bytes).clamp(1, panels.max(1));
        // Strips of equal width: a narrow last one would be paid for like a wide one.
        let panels = panels.div_ceil(panels.div_ceil(panels_max).max(1));
        let long = dims.k > steps * STEP;
        let in_place = T::lies_in_tiles(a, dims.k);
        let kept = (T::PARTS * KEPT_BYTES / panel_bytes).clamp(1, dims.m.div_ceil(SIDE).max(1));
        let is_cut = steps > STEPS_UNCUT && panels >= PANELS_CUT_MIN;
        let sums_tiles = match (long, is_cut) {
            (true, _) => [dims.m.div_ceil(SIDE), panels],
            (false, true) => [1, panels],
            (false, false) => [1, 1],
        };
        Self {
            // A long sum visits its rows again for each part of k, so its packed rows are not kept.
            rows_each: if in_place || long { dims.m.max(1) } else { kept * SIDE },
            cols_each: panels.max(1) * SIDE,
            ks_each: steps * STEP,
            steps_close: steps.div_ceil(if is_cut { steps.div_ceil(T::STEPS_CLOSE) } else { 1 }),
            long,
            in_place,
            a_bytes: panel_bytes * if in_place { 1 } else { kept },
            b_bytes: panels * panel_bytes,
            sums_tiles,
        }
    }

    fn sums_bytes(&self) -> usize {
        self.sums_tiles[0] * self.sums_tiles[1] * SIDE * SIDE * size_of::<f32>()
    }
}

/// Steps of one part of k. A k that is too long for one is cut so that all columns of B are one strip
/// where they can be: A is then read once. Sums go on in C itself where they can, at so little cost that
/// a shorter k is cut for that alone.
fn steps_at_a_time<T: TileElement, C: Num>(k: usize, panels: usize) -> usize {
    let steps = k.div_ceil(STEP);
    let uncut = if C::DTYPE == DType::F32 { STEPS_WHOLE } else { STEPS };
    if steps <= uncut {
        return steps;
    }
    (STRIP_BYTES / (panels.max(1) * panel_step::<T>())).clamp(T::STEPS_LONG_MIN, STEPS)
}

/// The state of one product.
struct Run<'a, T, C> {
    dims: Dims,
    a: Operand<'a, T>,
    b: Operand<'a, T>,
    c: Target<'a, C>,
    sizes: Sizes,
    packed_a: &'a mut [u8],
    packed_b: &'a mut [u8],
    /// Sums where C is not f32 or a tile is not whole, tile by tile.
    sums: &'a mut [f32],
}

/// A tile of C.
#[derive(Debug, Clone, Copy)]
struct Tile {
    /// Its first element in C, and the column that it is in.
    at: usize,
    col: usize,
    /// The first of its sums.
    sums: usize,
    rows: usize,
    cols: usize,
}

/// Columns of C and the part of k at work.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Strip {
    pub(super) col: usize,
    pub(super) cols: usize,
    pub(super) k: usize,
    pub(super) ks: usize,
    /// A has been packed for an earlier strip.
    pub(super) packed: bool,
}

impl<T: TileElement, C: Num<Acc = f32>> Run<'_, T, C> {
    /// # Safety
    /// As `block`; tiles are on.
    unsafe fn strip(&mut self, strip: Strip, rows: Range<usize>) {
        // SAFETY: the processor has AVX-512.
        unsafe { T::pack_b(self.b.skip(strip.col), strip, self.packed_b) };
        for row in rows.clone().step_by(SIDE) {
            // SAFETY: the caller's promise.
            unsafe { self.panel(strip, rows.start, row) };
        }
    }

    /// 32 rows of a strip.
    unsafe fn panel(&mut self, strip: Strip, first_row: usize, row: usize) {
        let rows = SIDE.min(self.dims.m - row);
        let steps = strip.ks.div_ceil(STEP);
        // SAFETY: the processor has AVX-512.
        let a = unsafe { self.panel_of_a(strip, (row - first_row) / SIDE, row, rows) };
        // Once at least: where k is empty, C is still to be written.
        for first in (0..steps.max(1)).step_by(self.sizes.steps_close) {
            let (a, k) = (a.skip(first), first * STEP);
            let ks = (strip.ks - k).min(self.sizes.steps_close * STEP);
            let part = Strip { k: strip.k + k, ks, ..strip };
            // C is needed first where it holds the sums, last where it takes them.
            let meets_c = if C::DTYPE == DType::F32 { k == 0 } else { k + ks == strip.ks };
            for col in (0..strip.cols).step_by(SIDE) {
                let cols = SIDE.min(strip.cols - col);
                let at = row * self.c.stride + strip.col + col;
                let sums = self.place_of_sums(row, col);
                let tile = Tile { at, col: strip.col + col, sums, rows, cols };
                if meets_c && col + SIDE < strip.cols {
                    fetch_tile(self.c.start.wrapping_add(at + SIDE), self.c.stride, rows);
                }
                let b = (col / SIDE * steps + first) * panel_step::<T>();
                let (b, steps) = (self.packed_b[b..].as_ptr(), ks.div_ceil(STEP));
                // SAFETY: from here on A's panel holds `steps` steps, B's too; the caller's promise.
                unsafe {
                    self.tile(part, tile, |c, stride, load| T::kernel(steps, a, b, c, stride, load))
                };
            }
        }
    }

    /// Where the sums of a tile stay that C cannot hold: over the parts of k, or for a moment.
    fn place_of_sums(&self, row: usize, col: usize) -> usize {
        let [down, across] = self.sizes.sums_tiles;
        (row / SIDE % down * across + col / SIDE % across) * SIDE * SIDE
    }

    /// One tile of C: what it starts from, products, rounding.
    ///
    /// # Safety
    /// `multiply` may write a whole tile where it is told to; the rest as `block`.
    unsafe fn tile(
        &mut self,
        strip: Strip,
        tile: Tile,
        multiply: impl FnOnce(*mut f32, usize, bool),
    ) {
        let (first, last) = (strip.k == 0, strip.k + strip.ks == self.dims.k);
        let load = !first || !self.c.initial.is_zero();
        let row_of_all = self.c.initial.row().filter(|_| first);
        if C::DTYPE == DType::F32 && tile.rows == SIDE && tile.cols == SIDE {
            let c = self.c.start.wrapping_add(tile.at);
            if let Some(start) = row_of_all {
                for row in 0..SIDE {
                    let start = start[tile.col..][..SIDE].as_ptr();
                    // SAFETY: a row of the tile, inside C, that nobody else touches.
                    unsafe { c.add(row * self.c.stride).copy_from_nonoverlapping(start, SIDE) };
                }
            }
            return multiply(c.cast(), self.c.stride * size_of::<f32>(), load);
        }
        let sums = &mut self.sums[tile.sums..];
        if first && load {
            for row in 0..tile.rows {
                let c = self.c.start.wrapping_add(tile.at + row * self.c.stride);
                // SAFETY: a row of the tile, inside C, that nobody else touches.
                let old = || unsafe { std::slice::from_raw_parts(c, tile.cols) };
                let c = row_of_all.map_or_else(old, |start| &start[tile.col..][..tile.cols]);
                let sums = &mut sums[row * SIDE..];
                sums.iter_mut().zip(c).for_each(|(sum, c)| *sum = c.widen());
            }
        }
        multiply(sums.as_mut_ptr(), SIDE * size_of::<f32>(), load);
        if last {
            let c = self.c.start.wrapping_add(tile.at);
            // SAFETY: the tile lies inside C; the processor has AVX-512.
            unsafe { narrow_rows(tile.rows, tile.cols, sums, SIDE, c, self.c.stride) };
        }
    }

    /// A's rows as tiles can be loaded from: where they are, or packed.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn panel_of_a(&mut self, strip: Strip, slot: usize, row: usize, rows: usize) -> Rows {
        let steps = strip.ks.div_ceil(STEP);
        let a = self.a.skip(row).skip_k(strip.k);
        if self.sizes.in_place && rows == SIDE {
            let (start, stride) = (a.data.as_ptr().cast::<u8>(), a.outer_stride * size_of::<T>());
            let tiles = [start, start.wrapping_add(TILE * stride)];
            return Rows { tiles, stride, step: STEP * size_of::<T>() };
        }
        let panel_bytes = steps * panel_step::<T>();
        let slots = (self.packed_a.len() / panel_bytes.max(1)).max(1);
        let slot = slot % slots;
        let together = PANELS_TOGETHER.min(slots - slot);
        if self.sizes.in_place || (!strip.packed && slot.is_multiple_of(PANELS_TOGETHER)) {
            let rows = (self.dims.m - row).min(together * SIDE);
            let out = &mut self.packed_a[slot * panel_bytes..][..together * panel_bytes];
            // SAFETY: the processor has AVX-512.
            unsafe { T::pack_a(a, rows, strip.ks, out) };
        }
        let packed = &self.packed_a[slot * panel_bytes..][..panel_bytes];
        let start = packed.as_ptr();
        Rows::packed::<T>(start, steps)
    }
}

/// Asks for the lines of 32 columns of C, to be written, before they are needed.
#[inline]
fn fetch_tile<C>(c: *mut C, stride: usize, rows: usize) {
    for row in 0..rows {
        for line in (0..SIDE).step_by(64 / size_of::<C>()) {
            let at = c.wrapping_add(row * stride + line);
            // SAFETY: a hint, which reads nothing.
            unsafe { asm!("prefetchw [{}]", in(reg) at, options(nostack, readonly)) };
        }
    }
}

/// Rounds sums to C.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn narrow<C: Num<Acc = f32>>(c: &mut [C], sums: &[f32]) {
    if C::DTYPE != DType::Bf16 {
        return c.iter_mut().zip(sums).for_each(|(c, sum)| *c = C::narrow(*sum));
    }
    let mut whole = c.chunks_exact_mut(SIDE);
    let whole_sums = sums.chunks_exact(SIDE);
    let sums = whole_sums.remainder();
    for (c, sums) in whole.by_ref().zip(whole_sums) {
        // SAFETY: 32 elements; C holds bf16.
        unsafe {
            let (low, high) = (sums.as_ptr(), sums.as_ptr().wrapping_add(TILE));
            let both = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(high), _mm512_loadu_ps(low));
            let both = std::mem::transmute::<__m512bh, __m512i>(both);
            _mm512_storeu_si512(c.as_mut_ptr().cast(), both);
        }
    }
    let c = whole.into_remainder();
    if !c.is_empty() {
        let mask = u32::MAX >> (SIDE - c.len());
        let (low, high) = (mask as __mmask16, (mask >> TILE) as __mmask16);
        // SAFETY: as many elements as the masks have bits; C holds bf16.
        unsafe {
            let low = _mm512_maskz_loadu_ps(low, sums.as_ptr());
            let high = _mm512_maskz_loadu_ps(high, sums.as_ptr().wrapping_add(TILE));
            let both = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
            _mm512_mask_storeu_epi16(c.as_mut_ptr().cast(), mask, both);
        }
    }
}

/// [`narrow`] row by row.
///
/// # Safety
/// `c` points to `rows` rows of `cols` elements.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(in super::super) unsafe fn narrow_rows<C: Num<Acc = f32>>(
    rows: usize,
    cols: usize,
    sums: &[f32],
    stride: usize,
    c: *mut C,
    c_stride: usize,
) {
    for row in 0..rows {
        // SAFETY: a row of C.
        let c = unsafe { std::slice::from_raw_parts_mut(c.add(row * c_stride), cols) };
        narrow(c, &sums[row * stride..][..cols]);
    }
}
