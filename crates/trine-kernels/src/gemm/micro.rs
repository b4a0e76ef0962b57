//! The register tile: one trait, and its form for any processor.

use crate::num::{Num, Real};
use bytemuck::Pod;

/// A kernel for one tile of C.
pub(crate) trait Micro {
    /// What a packed panel holds: one element, or the elements of a few consecutive `k`.
    type Packed: Pod;
    /// The type of sums.
    type Acc: Real;
    /// Rows of the tile; a panel of A holds them for each step of `k`.
    const MR: usize;
    /// Columns of the tile; a panel of B holds them for each step of `k`.
    const NR: usize;
    /// Consecutive `k` in one packed value: a step.
    const GROUP: usize;

    /// `C = A · B` over `steps`, or `C += A · B` with `load`: then the sums start from C.
    ///
    /// # Safety
    /// `a` holds `steps · MR` values, `b` `NR` for each step, `b_stride` from one to the next, `c` `MR` rows
    /// of `NR` with `stride`, and the processor has the features of the kernel.
    unsafe fn run(
        steps: usize,
        a: *const Self::Packed,
        b: *const Self::Packed,
        b_stride: usize,
        c: *mut Self::Acc,
        stride: usize,
        load: bool,
    );
}

/// A kernel that can be fed with elements of type `T`.
pub(crate) trait Feed<T>: Micro {
    /// The packed value of the elements at `k` and, in kernels of pairs, `k + 1`.
    fn pack(first: T, second: T) -> Self::Packed;

    /// Packs the first steps of `lanes` rows that run along `k`, as many as suit the processor: row
    /// `l` goes to `out[step · width + l]`. Gives the number of steps done; the others are left.
    ///
    /// # Safety
    /// `x` points to `lanes` rows of at least `ks` elements with `stride`, `out` to as many panel
    /// steps of `width ≥ lanes`, and the processor has the features of the kernel.
    #[inline(always)]
    unsafe fn transpose(
        x: *const T,
        stride: usize,
        lanes: usize,
        ks: usize,
        out: *mut Self::Packed,
        width: usize,
    ) -> usize {
        let _ = (x, stride, lanes, ks, out, width);
        0
    }
}

/// A tile that the compiler vectorises.
#[derive(Debug)]
pub(crate) struct Generic<A, const MR: usize, const NR: usize>(std::marker::PhantomData<A>);

impl<A: Real, const MR: usize, const NR: usize> Micro for Generic<A, MR, NR> {
    type Packed = A;
    type Acc = A;
    const MR: usize = MR;
    const NR: usize = NR;
    const GROUP: usize = 1;

    #[inline(always)]
    unsafe fn run(
        steps: usize,
        a: *const A,
        b: *const A,
        b_stride: usize,
        c: *mut A,
        stride: usize,
        load: bool,
    ) {
        let mut acc = [[A::ZERO; NR]; MR];
        // SAFETY: the caller's promise on the three pointers.
        unsafe {
            if load {
                for (i, acc) in acc.iter_mut().enumerate() {
                    *acc = c.add(i * stride).cast::<[A; NR]>().read_unaligned();
                }
            }
            for p in 0..steps {
                let a: [A; MR] = a.add(p * MR).cast::<[A; MR]>().read_unaligned();
                let b: [A; NR] = b.add(p * b_stride).cast::<[A; NR]>().read_unaligned();
                for i in 0..MR {
                    for j in 0..NR {
                        acc[i][j] = a[i].fma(b[j], acc[i][j]);
                    }
                }
            }
            for (i, acc) in acc.iter().enumerate() {
                c.add(i * stride).cast::<[A; NR]>().write_unaligned(*acc);
            }
        }
    }
}

impl<T: Num, const MR: usize, const NR: usize> Feed<T> for Generic<T::Acc, MR, NR> {
    #[inline(always)]
    fn pack(first: T, _: T) -> T::Acc {
        first.widen()
    }
}
