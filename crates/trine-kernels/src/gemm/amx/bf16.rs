//! bf16 on tiles: rows of A as they are, B in pairs along k.

use super::super::Operand;
use super::super::x86::{transpose_block, transpose_quarters};
use super::{
    LINE, Rows, SIDE, STEP, Strip, TILE, TILE_BYTES, TileElement, in_order, quarters, start_sums,
    store_sums, sum_over_steps,
};
use half::bf16;
use std::arch::asm;
use std::arch::x86_64::*;

impl TileElement for bf16 {
    const PARTS: usize = 1;
    const STEPS_CLOSE: usize = 10;
    const STEPS_LONG_MIN: usize = 16;

    // Along k, from cache line to cache line. Rows a multiple of 2 KiB apart would crowd a few sets of the first-level
    // cache.
    fn lies_in_tiles(a: Operand<'_, Self>, k: usize) -> bool {
        let stride = a.outer_stride * size_of::<bf16>();
        a.k_stride == 1
            && k.is_multiple_of(STEP)
            && a.data.as_ptr().addr().is_multiple_of(LINE)
            && stride.is_multiple_of(LINE)
            && !stride.is_multiple_of(2048)
    }

    unsafe fn pack_a(a: Operand<'_, Self>, rows: usize, ks: usize, out: &mut [u8]) {
        // SAFETY: the caller's promise.
        unsafe { pack_a(a, rows, ks, out) };
    }

    unsafe fn pack_b(b: Operand<'_, Self>, strip: Strip, out: &mut [u8]) {
        // SAFETY: as above.
        unsafe { pack_b(b, strip, out) };
    }

    // B's panel of two steps ahead is asked for: A's stays in the first-level cache from
    // column to column, B's comes from the second.
    unsafe fn kernel(
        steps: usize,
        a: Rows,
        b: *const u8,
        c: *mut f32,
        c_stride: usize,
        load: bool,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            sum_over_steps!(
                (steps, a, b), (c, c_stride, load),
                {
                    "tileloadd tmm6, [{b} + {line}*1]",
                    "tileloadd tmm4, [{upper} + {stride}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    ".irp line, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
                    "prefetcht0 [{b} + 4096 + 64 * \\line]",
                    ".endr",
                    "tileloadd tmm7, [{b} + {line}*1 + 1024]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tileloadd tmm5, [{lower} + {stride}*1]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    ".irp line, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
                    "prefetcht0 [{b} + 5120 + 64 * \\line]",
                    ".endr",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    "add {upper}, {step}",
                    "add {lower}, {step}",
                    "add {b}, 2048",
                },
                stride = in(reg) a.stride,
                step = in(reg) a.step,
            );
        }
    }
}

/// Rows of A in panels, `[panel][2 tiles][step][16 rows][32 elements]`; what does not exist is zero.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn pack_a(a: Operand<'_, bf16>, rows: usize, ks: usize, out: &mut [u8]) {
    let steps = ks.div_ceil(STEP);
    let tiles = out.len() / (steps * TILE_BYTES).max(1);
    in_order(a, tiles, steps, |tile, step| {
        let out = &mut out[(tile * steps + step) * TILE_BYTES..][..TILE_BYTES];
        let rows = rows.saturating_sub(tile * TILE).min(TILE);
        let (a, k) = (a.skip(tile * TILE), step * STEP);
        match (a.k_stride == 1, rows == TILE && ks - k >= STEP) {
            (true, true) => whole_rows(a, k, out),
            (true, false) => store(rows_along_k(a, rows, k, ks), out),
            (false, true) => turned_halves(a, k, out),
            (false, false) => store(transpose_block(pairs_across_k(a, rows, k, ks)), out),
        }
    });
}

/// B's strip, `[panel of 32 columns][step][2 tiles][16 pairs of k][16 columns]`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn pack_b(b: Operand<'_, bf16>, strip: Strip, out: &mut [u8]) {
    let steps = strip.ks.div_ceil(STEP);
    let b = b.skip_k(strip.k);
    in_order(b, strip.cols.div_ceil(SIDE) * 2, steps, |tile, step| {
        let (panel, half) = (tile / 2, tile % 2);
        let out = &mut out[((panel * steps + step) * 2 + half) * TILE_BYTES..][..TILE_BYTES];
        let cols = strip.cols.saturating_sub(tile * TILE).min(TILE);
        let (b, k) = (b.skip(tile * TILE), step * STEP);
        match (b.k_stride == 1, cols == TILE && strip.ks - k >= STEP) {
            (true, true) => turned_words(b, k, out),
            (true, false) => store(transpose_block(rows_along_k(b, cols, k, strip.ks)), out),
            (false, true) => whole_pairs(b, k, out),
            (false, false) => store(pairs_across_k(b, cols, k, strip.ks), out),
        }
    });
}

/// 16 whole rows of A's factor, 32 elements of k each.
fn whole_rows(a: Operand<'_, bf16>, k: usize, out: &mut [u8]) {
    for (row, out) in out.chunks_exact_mut(LINE).enumerate() {
        let row = &a.data[row * a.outer_stride + k..][..STEP];
        out.copy_from_slice(bytemuck::cast_slice(row));
    }
}

/// 16 whole rows of B's factor, 32 elements each, as pairs across: word `c` of line `p` is pair `p`
/// of row `c`.
#[inline]
#[target_feature(enable = "avx512f")]
fn turned_words(b: Operand<'_, bf16>, k: usize, out: &mut [u8]) {
    let data = &b.data[k..];
    assert!(data.len() >= (TILE - 1) * b.outer_stride + STEP, "invariant: rows in bounds");
    for (four, out) in out.chunks_exact_mut(4 * LINE).enumerate() {
        let rows =
            quarters::<4>(|row| data.as_ptr().wrapping_add(row * b.outer_stride + 8 * four).cast());
        store(transpose_quarters(rows), out);
    }
}

/// 16 whole columns of A's factor, 32 elements of k each: line `r` is column `r`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn turned_halves(a: Operand<'_, bf16>, k: usize, out: &mut [u8]) {
    let data = &a.data[k * a.k_stride..];
    assert!(data.len() >= (STEP - 1) * a.k_stride + TILE, "invariant: rows in bounds");
    for (eight, out) in out.chunks_exact_mut(8 * LINE).enumerate() {
        let ks = quarters::<8>(|k| data.as_ptr().wrapping_add(k * a.k_stride + 8 * eight).cast());
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
        for (columns, out) in out.chunks_exact_mut(2 * LINE).enumerate() {
            let halves = [
                _mm512_unpacklo_epi64(a[columns], b[columns]),
                _mm512_unpackhi_epi64(a[columns], b[columns]),
            ];
            store(halves, out);
        }
    }
}

/// 16 whole columns of B's factor, 32 elements of k each: word `c` of line `p` is pair `p` of column `c`.
#[inline]
#[target_feature(enable = "avx512f")]
fn whole_pairs(b: Operand<'_, bf16>, k: usize, out: &mut [u8]) {
    let data = &b.data[k * b.k_stride..];
    assert!(data.len() >= (STEP - 1) * b.k_stride + TILE, "invariant: rows in bounds");
    for (pair, out) in out.chunks_exact_mut(LINE).enumerate() {
        let [first, second] = [2 * pair, 2 * pair + 1].map(|k| {
            let run = data.as_ptr().wrapping_add(k * b.k_stride).cast();
            // SAFETY: a whole run, in bounds by the assertion.
            _mm512_cvtepu16_epi32(unsafe { _mm256_loadu_si256(run) })
        });
        store([_mm512_or_si512(first, _mm512_slli_epi32::<16>(second))], out);
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store<const LINES: usize>(block: [__m512i; LINES], out: &mut [u8]) {
    for (words, out) in block.into_iter().zip(out.chunks_exact_mut(LINE)) {
        // SAFETY: a line.
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
