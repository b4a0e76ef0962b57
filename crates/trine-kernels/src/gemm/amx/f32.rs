//! f32 on tiles: each number as the sum of three of bf16, each product as six of theirs.
//!
//! A number has 24 digits and a part eight: the parts' sum is the number itself. Of the nine products
//! of parts, the three smallest are left out, which are 2⁻²³ of the product at most in sum: the error is of the size
//! of f32's own rounding. (Henry, Tang, Heinecke: Leveraging the bfloat16 Artificial Intelligence Datatype
//! For Higher-Precision Computations, 2019.)
//!
//! Within a step, element k stands beside k + 16, in both factors.

use super::super::Operand;
use super::super::x86::transpose_quarters;
use super::{
    LINE, Rows, SIDE, STEP, Strip, TILE, TILE_BYTES, TileElement, in_order, quarters, start_sums,
    store_sums, sum_over_steps,
};
use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

/// Parts of a number.
const PARTS: usize = 3;
/// Products of parts that a product takes.
pub(crate) const F32_IN_BF16_PRODUCTS: usize = 6;

/// The four products of tiles of one part of A with one part of B, numbered from the largest. The parts that are named
/// are loaded; one that is not is still there from the products before.
#[rustfmt::skip]
macro_rules! products {
    (@left $part:literal) => { concat!("tileloadd tmm6, [{b} + {line}*1 + 2048*", $part, "]\n") };
    (@right $part:literal) => { concat!("tileloadd tmm7, [{b} + {line}*1 + 2048*", $part, " + 1024]\n") };
    (@upper $part:literal) => { concat!("tileloadd tmm4, [{upper} + {line}*1 + 1024*", $part, "]\n") };
    (@lower $part:literal) => { concat!("tileloadd tmm5, [{lower} + {line}*1 + 1024*", $part, "]\n") };
    (a $a:literal, b $b:literal) => {
        concat!(
            products!(@left $b), products!(@upper $a), "tdpbf16ps tmm0, tmm4, tmm6\n",
            products!(@right $b), "tdpbf16ps tmm1, tmm4, tmm7\n",
            products!(@lower $a), "tdpbf16ps tmm2, tmm5, tmm6\n", "tdpbf16ps tmm3, tmm5, tmm7\n",
        )
    };
    (a $a:literal) => {
        concat!(
            products!(@upper $a), "tdpbf16ps tmm0, tmm4, tmm6\n", "tdpbf16ps tmm1, tmm4, tmm7\n",
            products!(@lower $a), "tdpbf16ps tmm2, tmm5, tmm6\n", "tdpbf16ps tmm3, tmm5, tmm7\n",
        )
    };
    (b $b:literal) => {
        concat!(
            products!(@left $b), "tdpbf16ps tmm0, tmm4, tmm6\n", "tdpbf16ps tmm2, tmm5, tmm6\n",
            products!(@right $b), "tdpbf16ps tmm1, tmm4, tmm7\n", "tdpbf16ps tmm3, tmm5, tmm7\n",
        )
    };
}

/// Asks for one of the next step's six tiles of B.
#[rustfmt::skip]
macro_rules! ask {
    ($tile:literal) => {
        concat!(
            ".irp line, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15\n",
            "prefetcht0 [{b} + 6144 + 1024 * ", $tile, " + 64 * \\line]\n",
            ".endr\n",
        )
    };
}

impl TileElement for f32 {
    const PARTS: usize = PARTS;
    const STEPS_CLOSE: usize = 8;
    const STEPS_LONG_MIN: usize = 8;

    fn lies_in_tiles(_: Operand<'_, Self>, _: usize) -> bool {
        false
    }

    unsafe fn pack_a(a: Operand<'_, Self>, rows: usize, ks: usize, out: &mut [u8]) {
        let steps = ks.div_ceil(STEP);
        let tiles = out.len() / (steps * PARTS * TILE_BYTES).max(1);
        // SAFETY: the caller's promise.
        in_order(a, tiles, steps, |tile, step| unsafe {
            let out = &mut out[(tile * steps + step) * PARTS * TILE_BYTES..];
            let rows = rows.saturating_sub(tile * TILE).min(TILE);
            let x = a.skip(tile * TILE);
            let lines = Lines { x, outers: rows, k: step * STEP, ks, along_k: true };
            lines.pack(out, TILE_BYTES);
        });
    }

    unsafe fn pack_b(b: Operand<'_, Self>, strip: Strip, out: &mut [u8]) {
        let steps = strip.ks.div_ceil(STEP);
        let b = b.skip_k(strip.k);
        // SAFETY: the caller's promise.
        in_order(b, strip.cols.div_ceil(SIDE) * 2, steps, |tile, step| unsafe {
            let (panel, half) = (tile / 2, tile % 2);
            let out = &mut out[((panel * steps + step) * PARTS * 2 + half) * TILE_BYTES..];
            let cols = strip.cols.saturating_sub(tile * TILE).min(TILE);
            let x = b.skip(tile * TILE);
            let lines = Lines { x, outers: cols, k: step * STEP, ks: strip.ks, along_k: false };
            lines.pack(out, 2 * TILE_BYTES);
        });
    }

    // The smallest products of parts first.
    //
    // A tile that is stored behind more than some 120 products of tiles holds up the processor on which this was
    // measured, whatever tile it is, and no tile does that is stored sooner. So each step stores one for nothing.
    unsafe fn kernel(
        steps: usize,
        a: Rows,
        b: *const u8,
        c: *mut f32,
        c_stride: usize,
        load: bool,
    ) {
        let mut unused = MaybeUninit::<[u8; TILE_BYTES]>::uninit();
        // SAFETY: the caller's promise.
        unsafe {
            sum_over_steps!(
                (steps, a, b), (c, c_stride, load),
                {
                    products!(a 2, b 0),
                    ask!(0),
                    products!(a 1),
                    ask!(1),
                    products!(b 1),
                    ask!(2),
                    products!(a 0),
                    ask!(3),
                    products!(b 2),
                    ask!(4),
                    products!(b 0),
                    ask!(5),
                    "tilestored [{unused} + {line}*1], tmm7",
                    "add {upper}, 3072",
                    "add {lower}, 3072",
                    "add {b}, 6144",
                },
                unused = in(reg) unused.as_mut_ptr(),
            );
        }
    }
}

/// Up to 16 rows or columns of a step, and which of both a line of a tile holds.
#[derive(Debug, Clone, Copy)]
struct Lines<'a> {
    x: Operand<'a, f32>,
    outers: usize,
    /// The step's first element of k, and how many elements of k there are in all.
    k: usize,
    ks: usize,
    /// A line is one row or column along k; else it is one element of k.
    along_k: bool,
}

impl Lines<'_> {
    /// Puts the parts into tiles that lie `part_bytes` apart; what does not exist is zero.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn pack(self, out: &mut [u8], part_bytes: usize) {
        let Self { x, outers, k, ks, along_k } = self;
        if outers == TILE && ks - k >= STEP {
            let x = Operand { data: &x.data[k * x.k_stride..], ..x };
            return pack_whole(x, along_k, out, part_bytes);
        }
        let len = STEP.min(ks - k);
        let mut edge = [0.0; TILE * STEP];
        let (outer_stride, k_stride) = if x.k_stride == 1 { (STEP, 1) } else { (1, TILE) };
        for outer in 0..outers {
            for i in 0..len {
                let from = outer * x.outer_stride + (k + i) * x.k_stride;
                edge[outer * outer_stride + i * k_stride] = x.data[from];
            }
        }
        pack_whole(Operand { data: &edge, outer_stride, k_stride }, along_k, out, part_bytes);
    }
}

/// [`Lines::pack`] of 16 rows or columns of 32 elements.
#[inline]
#[target_feature(enable = "avx512f")]
fn pack_whole(x: Operand<'_, f32>, along_k: bool, out: &mut [u8], part_bytes: usize) {
    let (stride, [runs, len]) = match x.k_stride {
        1 => (x.outer_stride, [TILE, STEP]),
        _ => (x.k_stride, [STEP, TILE]),
    };
    assert!(x.data.len() >= (runs - 1) * stride + len, "invariant: runs in bounds");
    assert!(out.len() >= (PARTS - 1) * part_bytes + TILE_BYTES, "invariant: tiles in bounds");
    // Where the first and the last 16 elements of k begin.
    let halves = [0, TILE * x.k_stride].map(|start| x.data[start..].as_ptr());
    let out = out.as_mut_ptr();
    if (x.k_stride == 1) == along_k {
        for line in 0..TILE {
            let at = |half: *const f32| half.wrapping_add(line * stride).cast();
            // SAFETY: runs of 16 numbers and whole tiles, in bounds by the assertions.
            unsafe {
                let [first, second] =
                    [_mm512_loadu_si512(at(halves[0])), _mm512_loadu_si512(at(halves[1]))];
                store_parts(first, second, out.wrapping_add(line * LINE), part_bytes);
            }
        }
        return;
    }
    for four in (0..TILE).step_by(4) {
        let at = |half: *const f32, run| half.wrapping_add(run * stride + four).cast();
        let first = transpose_quarters(quarters::<4>(|run| at(halves[0], run)));
        let second = transpose_quarters(quarters::<4>(|run| at(halves[1], run)));
        for (line, (first, second)) in first.into_iter().zip(second).enumerate() {
            // SAFETY: whole tiles, in bounds by the assertion.
            unsafe {
                store_parts(first, second, out.wrapping_add((four + line) * LINE), part_bytes)
            };
        }
    }
}

/// Stores a line of each part: of two numbers one word, the first in its lower half.
///
/// # Safety
/// `out` leads to three lines, `part_bytes` apart.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store_parts(first: __m512i, second: __m512i, out: *mut u8, part_bytes: usize) {
    // The bits of the first operand, and those of the second that the third one has.
    const FIRST_OR_MASKED: i32 = 0xf8;
    let upper_half = _mm512_set1_epi32(!0xffff);
    for (part, (first, second)) in parts(first).into_iter().zip(parts(second)).enumerate() {
        let first = _mm512_srli_epi32::<16>(first);
        let words = _mm512_ternarylogic_epi32::<FIRST_OR_MASKED>(first, second, upper_half);
        // SAFETY: the caller's promise.
        unsafe { _mm512_storeu_si512(out.wrapping_add(part * part_bytes).cast(), words) };
    }
}

/// The parts of 16 numbers, in the upper halves of their words: the nearest bf16, the nearest of what is left,
/// and the rest. An infinite number has parts that are not, and stays one that is not finite.
#[inline]
#[target_feature(enable = "avx512f")]
fn parts(x: __m512i) -> [__m512i; PARTS] {
    let (half, upper_half) = (_mm512_set1_epi32(0x8000), _mm512_set1_epi32(!0xffff));
    let nearest = |x| _mm512_and_si512(_mm512_add_epi32(x, half), upper_half);
    let minus =
        |x, y| _mm512_castps_si512(_mm512_sub_ps(_mm512_castsi512_ps(x), _mm512_castsi512_ps(y)));
    let first = nearest(x);
    let rest = minus(x, first);
    let second = nearest(rest);
    [first, second, minus(rest, second)]
}
