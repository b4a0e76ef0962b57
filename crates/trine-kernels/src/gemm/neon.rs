//! The register tile in NEON.

use super::micro::{Feed, Micro};
use crate::num::Num;
use std::arch::aarch64::*;

/// f32, 12 × 8: 24 accumulators, two vectors of B, three of A, of 32 registers. (8 × 12 is as dense, but
/// attention wants columns that divide its blocks of 128 keys.)
#[derive(Debug)]
pub(crate) struct NeonF32;

impl<T: Num<Acc = f32>> Feed<T> for NeonF32 {
    #[inline(always)]
    fn pack(first: T, _: T) -> f32 {
        first.widen()
    }
}

impl Micro for NeonF32 {
    type Packed = f32;
    type Acc = f32;
    const MR: usize = 12;
    const NR: usize = 8;
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
        unsafe { neon_f32(steps, a, b, b_stride, c, stride, load) }
    }
}

/// Adds the products of four rows, the lanes of `$a`, with the columns of `$b`.
macro_rules! add_rows {
    ($acc:ident[$($row:literal: $lane:literal),+], $a:expr, $b:ident) => {
        $(for (acc, b) in $acc[$row].iter_mut().zip($b) {
            *acc = vfmaq_laneq_f32::<$lane>(*acc, b, $a);
        })+
    };
}

#[target_feature(enable = "neon")]
unsafe fn neon_f32(
    steps: usize,
    a: *const f32,
    b: *const f32,
    b_stride: usize,
    c: *mut f32,
    stride: usize,
    load: bool,
) {
    let mut acc = [[vdupq_n_f32(0.0); 2]; 12];
    // SAFETY: the caller's promise on the three pointers.
    unsafe {
        if load {
            for (i, acc) in acc.iter_mut().enumerate() {
                for (j, acc) in acc.iter_mut().enumerate() {
                    *acc = vld1q_f32(c.add(i * stride + j * 4));
                }
            }
        }
        for p in 0..steps {
            let (a, b) = (a.add(p * 12), b.add(p * b_stride));
            let a = [vld1q_f32(a), vld1q_f32(a.add(4)), vld1q_f32(a.add(8))];
            let b = [vld1q_f32(b), vld1q_f32(b.add(4))];
            add_rows!(acc[0: 0, 1: 1, 2: 2, 3: 3], a[0], b);
            add_rows!(acc[4: 0, 5: 1, 6: 2, 7: 3], a[1], b);
            add_rows!(acc[8: 0, 9: 1, 10: 2, 11: 3], a[2], b);
        }
        for (i, acc) in acc.iter().enumerate() {
            for (j, acc) in acc.iter().enumerate() {
                vst1q_f32(c.add(i * stride + j * 4), *acc);
            }
        }
    }
}
