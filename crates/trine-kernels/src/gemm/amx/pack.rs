//! Factors in tiles: rows of A as they are, B in pairs along k.

use super::super::Operand;
use super::super::x86::{transpose_block, transpose_quarters};
use super::{SIDE, STEP, Strip, TILE, TILE_BYTES};
use half::bf16;
use std::arch::x86_64::*;

/// Rows of A in panels, `[panel][2 tiles][step][16 rows][32 elements]`; what does not exist is zero.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) unsafe fn pack_a(a: Operand<'_, bf16>, rows: usize, ks: usize, out: &mut [u8]) {
    let steps = ks.div_ceil(STEP);
    let tiles = out.len() / (steps * TILE_BYTES).max(1);
    in_order(a, tiles, steps, |tile, step| {
        let out = &mut out[(tile * steps + step) * TILE_BYTES..][..TILE_BYTES];
        let rows = rows.saturating_sub(tile * TILE).min(TILE);
        let (a, k) = (a.skip(tile * TILE), step * STEP);
        let block = if a.k_stride == 1 {
            rows_along_k(a, rows, k, ks)
        } else if rows == TILE && ks - k >= STEP {
            turned_halves(a, k)
        } else {
            transpose_block(pairs_across_k(a, rows, k, ks))
        };
        store(block, out);
    });
}

/// B's strip, `[panel of 32 columns][step][2 tiles][16 pairs of k][16 columns]`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) unsafe fn pack_b(b: Operand<'_, bf16>, strip: Strip, out: &mut [u8]) {
    let steps = strip.ks.div_ceil(STEP);
    let start = (strip.k * b.k_stride).min(b.data.len());
    let b = Operand { data: &b.data[start..], ..b };
    in_order(b, strip.cols.div_ceil(SIDE) * 2, steps, |tile, step| {
        let (panel, half) = (tile / 2, tile % 2);
        let out = &mut out[((panel * steps + step) * 2 + half) * TILE_BYTES..][..TILE_BYTES];
        let cols = strip.cols.saturating_sub(tile * TILE).min(TILE);
        let (b, k) = (b.skip(tile * TILE), step * STEP);
        let block = if b.k_stride != 1 {
            pairs_across_k(b, cols, k, strip.ks)
        } else if cols == TILE && strip.ks - k >= STEP {
            turned_words(b, k)
        } else {
            transpose_block(rows_along_k(b, cols, k, strip.ks))
        };
        store(block, out);
    });
}

/// Visits tiles and steps in the order in which a factor lies in memory.
#[inline]
fn in_order(x: Operand<'_, bf16>, tiles: usize, steps: usize, mut pack: impl FnMut(usize, usize)) {
    if x.k_stride == 1 {
        return (0..tiles).for_each(|tile| (0..steps).for_each(|step| pack(tile, step)));
    }
    (0..steps).for_each(|step| (0..tiles).for_each(|tile| pack(tile, step)));
}

/// Quarter `q` is the 16 bytes of run `runs · q + i`, for each `i`: gathered by loads, so that the
/// shuffles that follow stay inside quarters.
#[inline]
#[target_feature(enable = "avx512f")]
fn quarters<const RUNS: usize>(run: impl Fn(usize) -> *const bf16) -> [__m512i; RUNS] {
    let mut out = [_mm512_setzero_si512(); RUNS];
    for (i, out) in out.iter_mut().enumerate() {
        // SAFETY: the caller's runs have 16 bytes.
        let load = |q: usize| unsafe { _mm_loadu_si128(run(RUNS * q + i).cast()) };
        let words = _mm512_castsi128_si512(load(0));
        let words = _mm512_mask_broadcast_i32x4(words, 0x00f0, load(1));
        let words = _mm512_mask_broadcast_i32x4(words, 0x0f00, load(2));
        *out = _mm512_mask_broadcast_i32x4(words, 0xf000, load(3));
    }
    out
}

/// 16 whole rows of B's factor, 32 elements each, as pairs across: word `c` of line `p` is pair `p`
/// of row `c`.
#[inline]
#[target_feature(enable = "avx512f")]
fn turned_words(b: Operand<'_, bf16>, k: usize) -> [__m512i; TILE] {
    let data = &b.data[k..];
    assert!(data.len() >= (TILE - 1) * b.outer_stride + STEP, "invariant: rows in bounds");
    let mut block = [_mm512_setzero_si512(); TILE];
    for (four, out) in block.chunks_exact_mut(4).enumerate() {
        let rows = quarters::<4>(|row| data.as_ptr().wrapping_add(row * b.outer_stride + 8 * four));
        out.copy_from_slice(&transpose_quarters(rows));
    }
    block
}

/// 16 whole columns of A's factor, 32 elements of k each: line `r` is column `r`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn turned_halves(a: Operand<'_, bf16>, k: usize) -> [__m512i; TILE] {
    let data = &a.data[k * a.k_stride..];
    assert!(data.len() >= (STEP - 1) * a.k_stride + TILE, "invariant: rows in bounds");
    let mut block = [_mm512_setzero_si512(); TILE];
    for (eight, out) in block.chunks_exact_mut(8).enumerate() {
        let ks = quarters::<8>(|k| data.as_ptr().wrapping_add(k * a.k_stride + 8 * eight));
        // In each quarter: pairs of k, then fours, then eights.
        let pair = |i: usize| {
            [_mm512_unpacklo_epi16(ks[i], ks[i + 1]), _mm512_unpackhi_epi16(ks[i], ks[i + 1])]
        };
        let four = |[a, b]: [[__m512i; 2]; 2]| {
            [
                _mm512_unpacklo_epi32(a[0], b[0]),
                _mm512_unpackhi_epi32(a[0], b[0]),
                _mm512_unpacklo_epi32(a[1], b[1]),
                _mm512_unpackhi_epi32(a[1], b[1]),
            ]
        };
        let [a, b] = [four([pair(0), pair(2)]), four([pair(4), pair(6)])];
        for (columns, out) in out.chunks_exact_mut(2).enumerate() {
            out[0] = _mm512_unpacklo_epi64(a[columns], b[columns]);
            out[1] = _mm512_unpackhi_epi64(a[columns], b[columns]);
        }
    }
    block
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(block: [__m512i; TILE], out: &mut [u8]) {
    for (words, out) in block.into_iter().zip(out.chunks_exact_mut(64)) {
        // SAFETY: 64 bytes.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), words) };
    }
}

/// 32 elements along k of up to 16 rows, zeros behind `ks` and behind the rows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn rows_along_k(x: Operand<'_, bf16>, rows: usize, k: usize, ks: usize) -> [__m512i; TILE] {
    let mut block = [_mm512_setzero_si512(); TILE];
    if rows == 0 {
        return block;
    }
    let len = STEP.min(ks - k);
    let data = &x.data[k..];
    assert!(data.len() >= (rows - 1) * x.outer_stride + len, "invariant: rows in bounds");
    let at = |row: usize| data.as_ptr().wrapping_add(row * x.outer_stride).cast::<i16>();
    if rows == TILE && len == STEP {
        for (row, words) in block.iter_mut().enumerate() {
            // SAFETY: a whole row, in bounds by the assertion.
            *words = unsafe { _mm512_loadu_si512(at(row).cast()) };
        }
        return block;
    }
    let mask = u32::MAX >> (STEP - len);
    for (row, words) in block.iter_mut().enumerate().take(rows) {
        // SAFETY: `len` elements, the others are masked.
        *words = unsafe { _mm512_maskz_loadu_epi16(mask, at(row)) };
    }
    block
}

/// Pairs (k, k + 1) of up to 16 columns, one pair a word, for 16 pairs; zeros where nothing is.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn pairs_across_k(x: Operand<'_, bf16>, cols: usize, k: usize, ks: usize) -> [__m512i; TILE] {
    let mut block = [_mm512_setzero_si512(); TILE];
    if cols == 0 {
        return block;
    }
    let count = STEP.min(ks - k);
    let data = &x.data[k * x.k_stride..];
    assert!(data.len() >= (count - 1) * x.k_stride + cols, "invariant: rows in bounds");
    let at = |k: usize| data.as_ptr().wrapping_add(k * x.k_stride);
    if cols == TILE && count == STEP {
        for (pair, words) in block.iter_mut().enumerate() {
            // SAFETY: two whole runs, in bounds by the assertion.
            let [first, second] = [2 * pair, 2 * pair + 1]
                .map(|k| unsafe { _mm512_cvtepu16_epi32(_mm256_loadu_si256(at(k).cast())) });
            *words = _mm512_or_si512(first, _mm512_slli_epi32::<16>(second));
        }
        return block;
    }
    let mask = ((1u32 << cols) - 1) as __mmask16;
    let run = |k: usize| {
        if k >= count {
            return _mm512_setzero_si512();
        }
        // SAFETY: `cols` elements, the others are masked.
        _mm512_cvtepu16_epi32(unsafe { _mm256_maskz_loadu_epi16(mask, at(k).cast()) })
    };
    for (pair, words) in block.iter_mut().enumerate() {
        *words = _mm512_or_si512(run(2 * pair), _mm512_slli_epi32::<16>(run(2 * pair + 1)));
    }
    block
}
