//! Register tiles in AVX2, AVX-512 and AVX-512 BF16.

use super::micro::{Feed, Micro};
use crate::num::Num;
use half::bf16;
use std::arch::x86_64::*;
use trine_buffer::DType;

/// f32, 6 × 16: twelve accumulators, two vectors of B, one of A.
#[derive(Debug)]
pub(crate) struct Avx2F32;

/// f32, 6 × 64: 24 accumulators, four vectors of B, one of A. (12 × 32 loads half as often again.)
#[derive(Debug)]
pub(crate) struct Avx512F32;

/// bf16 pairs, 6 × 64, summed in f32 by `vdpbf16ps`.
#[derive(Debug)]
pub(crate) struct Avx512Bf16Pairs;

impl<T: Num<Acc = f32>> Feed<T> for Avx2F32 {
    #[inline(always)]
    fn pack(first: T, _: T) -> f32 {
        first.widen()
    }

    #[inline(always)]
    unsafe fn transpose(
        x: *const T,
        stride: usize,
        lanes: usize,
        ks: usize,
        out: *mut f32,
        width: usize,
    ) -> usize {
        // SAFETY: the caller's promise.
        unsafe { transpose_widened(x, stride, lanes, ks, out, width) }
    }
}

impl<T: Num<Acc = f32>> Feed<T> for Avx512F32 {
    #[inline(always)]
    fn pack(first: T, _: T) -> f32 {
        first.widen()
    }

    #[inline(always)]
    unsafe fn transpose(
        x: *const T,
        stride: usize,
        lanes: usize,
        ks: usize,
        out: *mut f32,
        width: usize,
    ) -> usize {
        // Of few rows, blocks of 16 are half empty.
        if T::DTYPE == DType::Bf16 || lanes <= AVX2_BLOCK {
            // SAFETY: the caller's promise.
            return unsafe { transpose_widened(x, stride, lanes, ks, out, width) };
        }
        let steps = ks / BLOCK * BLOCK;
        // SAFETY: the caller's promise; the elements are words.
        unsafe { transpose_words(x.cast(), stride * 4, lanes, steps, out.cast(), width) };
        steps
    }
}

impl Feed<bf16> for Avx512Bf16Pairs {
    #[inline(always)]
    fn pack(first: bf16, second: bf16) -> u32 {
        u32::from(first.to_bits()) | u32::from(second.to_bits()) << 16
    }

    #[inline(always)]
    unsafe fn transpose(
        x: *const bf16,
        stride: usize,
        lanes: usize,
        ks: usize,
        out: *mut u32,
        width: usize,
    ) -> usize {
        let steps = ks / 2 / BLOCK * BLOCK;
        // SAFETY: the caller's promise; a step's two elements are one word, the first in its low
        // half.
        unsafe { transpose_words(x.cast(), stride * 2, lanes, steps, out, width) };
        steps
    }
}

/// Rows and steps of a transposition in registers.
const BLOCK: usize = 16;

/// Word `s` of row `l` goes to `out[s · width + l]`, for `steps` steps, a multiple of `BLOCK`. Rows
/// are `stride_bytes` apart and aligned to their elements only.
///
/// # Safety
/// `x` points to `lanes` rows of `steps` words, `out` to `steps` times `width ≥ lanes` words.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn transpose_words(
    x: *const u8,
    stride_bytes: usize,
    lanes: usize,
    steps: usize,
    out: *mut u32,
    width: usize,
) {
    for lane in (0..lanes).step_by(BLOCK) {
        let rows = BLOCK.min(lanes - lane);
        let mask = ((1u32 << rows) - 1) as __mmask16;
        for step in (0..steps).step_by(BLOCK) {
            let mut block = [_mm512_setzero_si512(); BLOCK];
            for (row, words) in block.iter_mut().enumerate() {
                if row < rows {
                    // SAFETY: row `lane + row`, steps `step..step + BLOCK`.
                    *words = unsafe {
                        _mm512_loadu_si512(x.add((lane + row) * stride_bytes + step * 4).cast())
                    };
                }
            }
            for (i, words) in transpose_block(block).into_iter().enumerate() {
                // SAFETY: `rows` words of step `step + i`.
                unsafe {
                    let out = out.add((step + i) * width + lane);
                    _mm512_mask_storeu_epi32(out.cast(), mask, words);
                }
            }
        }
    }
}

/// Rows and steps of a transposition in registers of AVX2.
const AVX2_BLOCK: usize = 8;

/// [`Feed::transpose`] with AVX2 of the two types whose sums are in f32.
///
/// # Safety
/// As there, on a processor with AVX2.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn transpose_widened<T: Num<Acc = f32>>(
    x: *const T,
    stride: usize,
    lanes: usize,
    ks: usize,
    out: *mut f32,
    width: usize,
) -> usize {
    let steps = ks / AVX2_BLOCK * AVX2_BLOCK;
    // SAFETY: the caller's promise.
    unsafe {
        if T::DTYPE == DType::Bf16 {
            let load = |x: *const bf16| widened_avx2(x);
            transpose_avx2(x.cast(), stride, lanes, steps, out, width, load);
        } else {
            let load = |x: *const f32| _mm256_loadu_ps(x);
            transpose_avx2(x.cast(), stride, lanes, steps, out, width, load);
        }
    }
    steps
}

/// Eight elements as f32.
///
/// # Safety
/// `x` points to them.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn widened_avx2(x: *const bf16) -> __m256 {
    // SAFETY: the caller's promise.
    let x = unsafe { _mm_loadu_si128(x.cast()) };
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(x)))
}

/// [`transpose_words`] with AVX2 of elements that `load` makes eight f32 of, rows being `stride` elements apart:
/// `steps` is a multiple of `AVX2_BLOCK`.
///
/// # Safety
/// `x` points to `lanes` rows of `steps` elements, `out` to `steps` times `width ≥ lanes`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn transpose_avx2<T>(
    x: *const T,
    stride: usize,
    lanes: usize,
    steps: usize,
    out: *mut f32,
    width: usize,
    load: impl Fn(*const T) -> __m256,
) {
    for lane in (0..lanes).step_by(AVX2_BLOCK) {
        let rows = AVX2_BLOCK.min(lanes - lane);
        let places = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        let mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(rows as i32), places);
        for step in (0..steps).step_by(AVX2_BLOCK) {
            let mut block = [_mm256_setzero_ps(); AVX2_BLOCK];
            for (row, values) in block.iter_mut().enumerate() {
                if row < rows {
                    // SAFETY: row `lane + row`, steps `step..step + AVX2_BLOCK`.
                    *values = load(unsafe { x.add((lane + row) * stride + step) });
                }
            }
            for (i, values) in transpose_avx2_block(block).into_iter().enumerate() {
                // SAFETY: `rows` elements of step `step + i`.
                unsafe { _mm256_maskstore_ps(out.add((step + i) * width + lane), mask, values) };
            }
        }
    }
}

/// The transpose of 8 rows of 8 values.
#[inline]
#[target_feature(enable = "avx2")]
fn transpose_avx2_block(rows: [__m256; AVX2_BLOCK]) -> [__m256; AVX2_BLOCK] {
    // Half `h` of `quads[g][c]` is column `4h + c` of rows `4g..4g + 4`.
    let mut quads = [[_mm256_setzero_ps(); 4]; 2];
    for (rows, quads) in rows.as_chunks::<4>().0.iter().zip(&mut quads) {
        let low = [_mm256_unpacklo_ps(rows[0], rows[1]), _mm256_unpacklo_ps(rows[2], rows[3])];
        let high = [_mm256_unpackhi_ps(rows[0], rows[1]), _mm256_unpackhi_ps(rows[2], rows[3])];
        *quads = [
            _mm256_shuffle_ps::<0x44>(low[0], low[1]),
            _mm256_shuffle_ps::<0xee>(low[0], low[1]),
            _mm256_shuffle_ps::<0x44>(high[0], high[1]),
            _mm256_shuffle_ps::<0xee>(high[0], high[1]),
        ];
    }
    let mut out = [_mm256_setzero_ps(); AVX2_BLOCK];
    for c in 0..4 {
        out[c] = _mm256_permute2f128_ps::<0x20>(quads[0][c], quads[1][c]);
        out[4 + c] = _mm256_permute2f128_ps::<0x31>(quads[0][c], quads[1][c]);
    }
    out
}

/// In each quarter, the transpose of 4 rows of 4 words.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn transpose_quarters(rows: [__m512i; 4]) -> [__m512i; 4] {
    let low = [_mm512_unpacklo_epi32(rows[0], rows[1]), _mm512_unpacklo_epi32(rows[2], rows[3])];
    let high = [_mm512_unpackhi_epi32(rows[0], rows[1]), _mm512_unpackhi_epi32(rows[2], rows[3])];
    [
        _mm512_unpacklo_epi64(low[0], low[1]),
        _mm512_unpackhi_epi64(low[0], low[1]),
        _mm512_unpacklo_epi64(high[0], high[1]),
        _mm512_unpackhi_epi64(high[0], high[1]),
    ]
}

/// The transpose of 16 rows of 16 words.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn transpose_block(rows: [__m512i; BLOCK]) -> [__m512i; BLOCK] {
    // Quarter `q` of `quads[g][c]` is column `4q + c` of rows `4g..4g + 4`.
    let mut quads = [[_mm512_setzero_si512(); 4]; 4];
    for (rows, quads) in rows.as_chunks().0.iter().zip(&mut quads) {
        *quads = transpose_quarters(*rows);
    }
    // Even and odd quarters of two groups, then of all four.
    const EVEN: i32 = 0x88;
    const ODD: i32 = 0xdd;
    let mut out = [_mm512_setzero_si512(); BLOCK];
    for c in 0..4 {
        let [a, b] =
            [(0, 1), (2, 3)].map(|(l, r)| _mm512_shuffle_i32x4::<EVEN>(quads[l][c], quads[r][c]));
        out[c] = _mm512_shuffle_i32x4::<EVEN>(a, b);
        out[8 + c] = _mm512_shuffle_i32x4::<ODD>(a, b);
        let [a, b] =
            [(0, 1), (2, 3)].map(|(l, r)| _mm512_shuffle_i32x4::<ODD>(quads[l][c], quads[r][c]));
        out[4 + c] = _mm512_shuffle_i32x4::<EVEN>(a, b);
        out[12 + c] = _mm512_shuffle_i32x4::<ODD>(a, b);
    }
    out
}

impl Micro for Avx2F32 {
    type Packed = f32;
    type Acc = f32;
    const MR: usize = 6;
    const NR: usize = 16;
    const GROUP: usize = 1;

    #[inline]
    unsafe fn run(
        steps: usize,
        a: *const f32,
        b: *const f32,
        b_stride: usize,
        c: *mut f32,
        stride: usize,
        load: bool,
    ) {
        // SAFETY: the caller's promise.
        unsafe { avx2_f32(steps, a, b, b_stride, c, stride, load) }
    }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn avx2_f32(
    steps: usize,
    a: *const f32,
    b: *const f32,
    b_stride: usize,
    c: *mut f32,
    stride: usize,
    load: bool,
) {
    let mut acc = [[_mm256_setzero_ps(); 2]; 6];
    // SAFETY: the caller's promise on the three pointers.
    unsafe {
        if load {
            for (i, acc) in acc.iter_mut().enumerate() {
                for (j, acc) in acc.iter_mut().enumerate() {
                    *acc = _mm256_loadu_ps(c.add(i * stride + j * 8));
                }
            }
        }
        for p in 0..steps {
            let b = b.add(p * b_stride);
            let b = [_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(8))];
            for (i, acc) in acc.iter_mut().enumerate() {
                let a = _mm256_set1_ps(*a.add(p * 6 + i));
                for (acc, b) in acc.iter_mut().zip(b) {
                    *acc = _mm256_fmadd_ps(a, b, *acc);
                }
            }
        }
        for (i, acc) in acc.iter().enumerate() {
            for (j, acc) in acc.iter().enumerate() {
                _mm256_storeu_ps(c.add(i * stride + j * 8), *acc);
            }
        }
    }
}

/// Rows of a tile in AVX-512, and the vectors in one.
const ROWS: usize = 6;
const VECTORS: usize = 4;
/// Columns of a tile in AVX-512.
const COLS: usize = VECTORS * 16;

impl Micro for Avx512F32 {
    type Packed = f32;
    type Acc = f32;
    const MR: usize = ROWS;
    const NR: usize = COLS;
    const GROUP: usize = 1;

    #[inline]
    unsafe fn run(
        steps: usize,
        a: *const f32,
        b: *const f32,
        b_stride: usize,
        c: *mut f32,
        stride: usize,
        load: bool,
    ) {
        // SAFETY: the caller's promise.
        unsafe { avx512_f32(steps, a, b, b_stride, c, stride, load) }
    }
}

#[target_feature(enable = "avx512f")]
unsafe fn avx512_f32(
    steps: usize,
    a: *const f32,
    b: *const f32,
    b_stride: usize,
    c: *mut f32,
    stride: usize,
    load: bool,
) {
    let mut acc = [[_mm512_setzero_ps(); VECTORS]; ROWS];
    // SAFETY: the caller's promise on the three pointers.
    unsafe {
        if load {
            load_tile(&mut acc, c, stride);
        }
        for p in 0..steps {
            let b = b.add(p * b_stride);
            prefetch(b.wrapping_add(AHEAD * b_stride).cast(), VECTORS * 64);
            let b: [_; VECTORS] = std::array::from_fn(|j| _mm512_loadu_ps(b.add(j * 16)));
            for (i, acc) in acc.iter_mut().enumerate() {
                let a = _mm512_set1_ps(*a.add(p * ROWS + i));
                for (acc, b) in acc.iter_mut().zip(b) {
                    *acc = _mm512_fmadd_ps(a, b, *acc);
                }
            }
        }
        store_tile(&acc, c, stride);
    }
}

impl Micro for Avx512Bf16Pairs {
    type Packed = u32;
    type Acc = f32;
    const MR: usize = ROWS;
    const NR: usize = COLS;
    const GROUP: usize = 2;

    #[inline]
    unsafe fn run(
        steps: usize,
        a: *const u32,
        b: *const u32,
        b_stride: usize,
        c: *mut f32,
        stride: usize,
        load: bool,
    ) {
        // SAFETY: the caller's promise.
        unsafe { avx512_bf16(steps, a, b, b_stride, c, stride, load) }
    }
}

#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn avx512_bf16(
    steps: usize,
    a: *const u32,
    b: *const u32,
    b_stride: usize,
    c: *mut f32,
    stride: usize,
    load: bool,
) {
    // SAFETY: any 64 bytes are a vector of pairs.
    let pairs = |x: __m512i| unsafe { std::mem::transmute::<__m512i, __m512bh>(x) };
    let mut acc = [[_mm512_setzero_ps(); VECTORS]; ROWS];
    // SAFETY: the caller's promise on the three pointers.
    unsafe {
        if load {
            load_tile(&mut acc, c, stride);
        }
        for p in 0..steps {
            let b = b.add(p * b_stride);
            prefetch(b.wrapping_add(AHEAD * b_stride).cast(), VECTORS * 64);
            let b: [_; VECTORS] =
                std::array::from_fn(|j| pairs(_mm512_loadu_si512(b.add(j * 16).cast())));
            for (i, acc) in acc.iter_mut().enumerate() {
                let a = pairs(_mm512_set1_epi32(a.add(p * ROWS + i).cast::<i32>().read()));
                for (acc, b) in acc.iter_mut().zip(b) {
                    *acc = _mm512_dpbf16_ps(*acc, a, b);
                }
            }
        }
        store_tile(&acc, c, stride);
    }
}

/// Steps of B that are prefetched ahead: a panel streams from the second-level cache.
const AHEAD: usize = 8;

/// Prefetches the lines of `bytes` bytes, wherever they are.
#[inline(always)]
pub(super) fn prefetch(x: *const u8, bytes: usize) {
    for start in (0..bytes).step_by(64) {
        // SAFETY: a prefetch touches no memory that the program can see.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(x.wrapping_add(start).cast()) };
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load_tile(acc: &mut [[__m512; VECTORS]; ROWS], c: *const f32, stride: usize) {
    for (i, acc) in acc.iter_mut().enumerate() {
        for (j, acc) in acc.iter_mut().enumerate() {
            // SAFETY: the caller's promise on `c`.
            *acc = unsafe { _mm512_loadu_ps(c.add(i * stride + j * 16)) };
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store_tile(acc: &[[__m512; VECTORS]; ROWS], c: *mut f32, stride: usize) {
    for (i, acc) in acc.iter().enumerate() {
        for (j, acc) in acc.iter().enumerate() {
            // SAFETY: the caller's promise on `c`.
            unsafe { _mm512_storeu_ps(c.add(i * stride + j * 16), *acc) };
        }
    }
}
