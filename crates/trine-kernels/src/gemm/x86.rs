//! Register tiles in AVX2, AVX-512 and AVX-512 BF16.

use super::micro::{Feed, Micro};
use crate::num::Num;
use half::bf16;
use std::arch::x86_64::*;

/// f32, 6 × 16: twelve accumulators, two vectors of B, one of A.
#[derive(Debug)]
pub(crate) struct Avx2F32;

/// f32, 12 × 32: 24 accumulators, two vectors of B, one of A.
#[derive(Debug)]
pub(crate) struct Avx512F32;

/// bf16 pairs, 12 × 32, summed in f32 by `vdpbf16ps`.
#[derive(Debug)]
pub(crate) struct Avx512Bf16Pairs;

impl<T: Num<Acc = f32>> Feed<T> for Avx2F32 {
    #[inline(always)]
    fn pack(first: T, _: T) -> f32 {
        first.widen()
    }
}

impl<T: Num<Acc = f32>> Feed<T> for Avx512F32 {
    #[inline(always)]
    fn pack(first: T, _: T) -> f32 {
        first.widen()
    }
}

impl Feed<bf16> for Avx512Bf16Pairs {
    #[inline(always)]
    fn pack(first: bf16, second: bf16) -> u32 {
        u32::from(first.to_bits()) | u32::from(second.to_bits()) << 16
    }
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
        c: *mut f32,
        stride: usize,
        load: bool,
    ) {
        // SAFETY: the caller's promise.
        unsafe { avx2_f32(steps, a, b, c, stride, load) }
    }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn avx2_f32(
    steps: usize,
    a: *const f32,
    b: *const f32,
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
            let b = [_mm256_loadu_ps(b.add(p * 16)), _mm256_loadu_ps(b.add(p * 16 + 8))];
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

impl Micro for Avx512F32 {
    type Packed = f32;
    type Acc = f32;
    const MR: usize = 12;
    const NR: usize = 32;
    const GROUP: usize = 1;

    #[inline]
    unsafe fn run(
        steps: usize,
        a: *const f32,
        b: *const f32,
        c: *mut f32,
        stride: usize,
        load: bool,
    ) {
        // SAFETY: the caller's promise.
        unsafe { avx512_f32(steps, a, b, c, stride, load) }
    }
}

#[target_feature(enable = "avx512f")]
unsafe fn avx512_f32(
    steps: usize,
    a: *const f32,
    b: *const f32,
    c: *mut f32,
    stride: usize,
    load: bool,
) {
    let mut acc = [[_mm512_setzero_ps(); 2]; 12];
    // SAFETY: the caller's promise on the three pointers.
    unsafe {
        if load {
            load_tile(&mut acc, c, stride);
        }
        for p in 0..steps {
            let b = [_mm512_loadu_ps(b.add(p * 32)), _mm512_loadu_ps(b.add(p * 32 + 16))];
            for (i, acc) in acc.iter_mut().enumerate() {
                let a = _mm512_set1_ps(*a.add(p * 12 + i));
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
    const MR: usize = 12;
    const NR: usize = 32;
    const GROUP: usize = 2;

    #[inline]
    unsafe fn run(
        steps: usize,
        a: *const u32,
        b: *const u32,
        c: *mut f32,
        stride: usize,
        load: bool,
    ) {
        // SAFETY: the caller's promise.
        unsafe { avx512_bf16(steps, a, b, c, stride, load) }
    }
}

#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn avx512_bf16(
    steps: usize,
    a: *const u32,
    b: *const u32,
    c: *mut f32,
    stride: usize,
    load: bool,
) {
    // SAFETY: any 64 bytes are a vector of pairs.
    let pairs = |x: __m512i| unsafe { std::mem::transmute::<__m512i, __m512bh>(x) };
    let mut acc = [[_mm512_setzero_ps(); 2]; 12];
    // SAFETY: the caller's promise on the three pointers.
    unsafe {
        if load {
            load_tile(&mut acc, c, stride);
        }
        for p in 0..steps {
            let b = [
                pairs(_mm512_loadu_si512(b.add(p * 32).cast())),
                pairs(_mm512_loadu_si512(b.add(p * 32 + 16).cast())),
            ];
            for (i, acc) in acc.iter_mut().enumerate() {
                let a = pairs(_mm512_set1_epi32(a.add(p * 12 + i).cast::<i32>().read()));
                for (acc, b) in acc.iter_mut().zip(b) {
                    *acc = _mm512_dpbf16_ps(*acc, a, b);
                }
            }
        }
        store_tile(&acc, c, stride);
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load_tile(acc: &mut [[__m512; 2]; 12], c: *const f32, stride: usize) {
    for (i, acc) in acc.iter_mut().enumerate() {
        for (j, acc) in acc.iter_mut().enumerate() {
            // SAFETY: the caller's promise on `c`.
            *acc = unsafe { _mm512_loadu_ps(c.add(i * stride + j * 16)) };
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store_tile(acc: &[[__m512; 2]; 12], c: *mut f32, stride: usize) {
    for (i, acc) in acc.iter().enumerate() {
        for (j, acc) in acc.iter().enumerate() {
            // SAFETY: the caller's promise on `c`.
            unsafe { _mm512_storeu_ps(c.add(i * stride + j * 16), *acc) };
        }
    }
}
