//! Matrix products: packed panels, register tiles.
//!
//! Every element of C is one chain of fused multiply-adds over ascending `k` (in the bf16 kernel: of
//! pair products), whatever the blocking: a block of `k` that is not the first goes on from the sum
//! that the block before left. Edge tiles run the same kernel on panels padded with zeros.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
mod driver;
mod micro;
#[cfg(target_arch = "aarch64")]
mod neon;
mod pack;
mod packed;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::check::{Mat, MatSplit, dims, with_num};
use crate::cpu::PARTS_PER_THREAD;
use crate::num::Num;
use crate::scratch::Scratch;
use crate::{CpuOps, Isa, KernelError, MatMut, MatRef, Product};
use driver::block;
use half::bf16;
use micro::Generic;
pub(crate) use packed::{Packed, Products, Side, TRANSPOSED};
use packed::{PackedKernel, Panels};
use trine_buffer::Element;

/// Products of fewer multiply-adds than this stay on one thread.
const FMAS_PER_PART_MIN: usize = 1 << 19;

/// A factor as packing reads it: element (`outer`, `k`) lies at
/// `outer · outer_stride + k · k_stride`, where `outer` is a row of A or a column of B.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Operand<'a, T> {
    pub(crate) data: &'a [T],
    pub(crate) outer_stride: usize,
    pub(crate) k_stride: usize,
}

impl<'a, T> Operand<'a, T> {
    /// A factor whose rows run along `k`.
    pub(crate) fn along_k(data: &'a [T], stride: usize) -> Self {
        Self { data, outer_stride: stride, k_stride: 1 }
    }

    /// A factor whose rows run across `k`.
    pub(crate) fn across_k(data: &'a [T], stride: usize) -> Self {
        Self { data, outer_stride: 1, k_stride: stride }
    }

    /// The factor from `outer` on.
    fn skip(self, outer: usize) -> Self {
        let start = (outer * self.outer_stride).min(self.data.len());
        Self { data: &self.data[start..], ..self }
    }
}

/// The dimensions of a product.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dims {
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
}

/// The result matrix as threads write it.
#[derive(Debug)]
pub(crate) struct Target<C> {
    /// The first element.
    pub(crate) start: *mut C,
    /// Elements from row to row.
    pub(crate) stride: usize,
    /// Whether to add to the old values.
    pub(crate) accumulate: bool,
}

impl<C> Clone for Target<C> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<C> Copy for Target<C> {}

/// An element type with a micro-kernel for each instruction set.
pub(crate) trait GemmElement: Num {
    /// The product on the calling thread.
    ///
    /// # Safety
    /// `c` points to `dims.m` rows of `dims.n` elements that nobody else touches, and this
    /// processor has `isa`.
    unsafe fn gemm<C: Num<Acc = Self::Acc>>(
        isa: Isa,
        scratch: &mut Scratch<'_>,
        dims: Dims,
        a: Operand<'_, Self>,
        b: Operand<'_, Self>,
        c: Target<C>,
    );

    /// The panels of this instruction set's kernel.
    fn panels(isa: Isa) -> Panels;

    /// [`PackedKernel::pack`] of this instruction set.
    ///
    /// # Safety
    /// As there.
    unsafe fn pack(
        isa: Isa,
        side: Side,
        x: Operand<'_, Self>,
        outers: usize,
        k: usize,
        out: &mut [u8],
    );

    /// [`PackedKernel::multiply`] of this instruction set.
    ///
    /// # Safety
    /// As there.
    unsafe fn multiply(isa: Isa, dims: Dims, a: Packed<'_>, b: Packed<'_>, c: Target<Self::Acc>);
}

/// The methods on packed factors, from the kernel of each instruction set.
macro_rules! packed_methods {
    ($($isa:ident => $kernel:ty),+) => {
        fn panels(isa: Isa) -> Panels {
            match isa {
                $(Isa::$isa => <$kernel as PackedKernel<Self>>::PANELS,)+
            }
        }

        unsafe fn pack(
            isa: Isa,
            side: Side,
            x: Operand<'_, Self>,
            outers: usize,
            k: usize,
            out: &mut [u8],
        ) {
            // SAFETY: the caller's promise; each arm's kernel needs its arm's features.
            unsafe {
                match isa {
                    $(Isa::$isa => {
                        <$kernel as PackedKernel<Self>>::pack(isa, side, x, outers, k, out);
                    })+
                }
            }
        }

        unsafe fn multiply(
            isa: Isa,
            dims: Dims,
            a: Packed<'_>,
            b: Packed<'_>,
            c: Target<Self::Acc>,
        ) {
            // SAFETY: as above.
            unsafe {
                match isa {
                    $(Isa::$isa => {
                        <$kernel as PackedKernel<Self>>::multiply(isa, dims, a, b, c);
                    })+
                }
            }
        }
    };
}

macro_rules! gemm_element {
    ($type:ty: $($isa:ident => $micro:ty),+) => {
        impl GemmElement for $type {
            unsafe fn gemm<C: Num<Acc = Self::Acc>>(
                isa: Isa,
                scratch: &mut Scratch<'_>,
                dims: Dims,
                a: Operand<'_, Self>,
                b: Operand<'_, Self>,
                c: Target<C>,
            ) {
                // SAFETY: the caller's promise; each arm's kernel needs its arm's features.
                unsafe {
                    match isa {
                        $(Isa::$isa => block::<$micro, Self, C>(isa, scratch, dims, a, b, c),)+
                    }
                }
            }

            packed_methods!($($isa => $micro),+);
        }
    };
}

type GenericF64 = Generic<f64, 4, 8>;
type GenericF32 = Generic<f32, 4, 16>;
gemm_element!(f64: Portable => GenericF64, Neon => GenericF64, Avx2 => GenericF64, Avx512 => GenericF64, Avx512Bf16 => GenericF64, Amx => GenericF64);
#[cfg(target_arch = "x86_64")]
gemm_element!(f32: Portable => GenericF32, Neon => GenericF32, Avx2 => x86::Avx2F32, Avx512 => x86::Avx512F32, Avx512Bf16 => x86::Avx512F32, Amx => x86::Avx512F32);
#[cfg(target_arch = "x86_64")]
impl GemmElement for bf16 {
    unsafe fn gemm<C: Num<Acc = f32>>(
        isa: Isa,
        scratch: &mut Scratch<'_>,
        dims: Dims,
        a: Operand<'_, Self>,
        b: Operand<'_, Self>,
        c: Target<C>,
    ) {
        // SAFETY: the caller's promise; each arm's kernel needs its arm's features.
        unsafe {
            match isa {
                Isa::Portable | Isa::Neon => {
                    block::<GenericF32, Self, C>(isa, scratch, dims, a, b, c);
                }
                Isa::Avx2 => block::<x86::Avx2F32, Self, C>(isa, scratch, dims, a, b, c),
                Isa::Avx512 => block::<x86::Avx512F32, Self, C>(isa, scratch, dims, a, b, c),
                Isa::Avx512Bf16 => {
                    block::<x86::Avx512Bf16Pairs, Self, C>(isa, scratch, dims, a, b, c);
                }
                Isa::Amx => amx::block(scratch, dims, a, b, c),
            }
        }
    }

    packed_methods!(
        Portable => GenericF32,
        Neon => GenericF32,
        Avx2 => x86::Avx2F32,
        Avx512 => x86::Avx512F32,
        Avx512Bf16 => x86::Avx512Bf16Pairs,
        Amx => amx::Bf16Tiles
    );
}
#[cfg(target_arch = "aarch64")]
type NeonF32 = neon::NeonF32;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
type NeonF32 = GenericF32;
#[cfg(not(target_arch = "x86_64"))]
gemm_element!(f32: Portable => GenericF32, Neon => NeonF32, Avx2 => GenericF32, Avx512 => GenericF32, Avx512Bf16 => GenericF32, Amx => GenericF32);
#[cfg(not(target_arch = "x86_64"))]
gemm_element!(bf16: Portable => GenericF32, Neon => NeonF32, Avx2 => GenericF32, Avx512 => GenericF32, Avx512Bf16 => GenericF32, Amx => GenericF32);

/// Checks the three shapes against each other.
fn shape(
    product: Product,
    a: (usize, usize),
    b: (usize, usize),
    c: (usize, usize),
) -> Result<Dims, KernelError> {
    let (m, k) = match product {
        Product::Nt | Product::Nn => a,
        Product::Tn => (a.1, a.0),
    };
    let (n, k_b) = match product {
        Product::Nt => b,
        Product::Nn | Product::Tn => (b.1, b.0),
    };
    dims("matmul", k == k_b && c == (m, n), || {
        format!(
            "{product:?} of a [{}, {}] and b [{}, {}] does not give c [{}, {}]",
            a.0, a.1, b.0, b.1, c.0, c.1
        )
    })?;
    Ok(Dims { m, n, k })
}

pub(crate) fn matmul(
    cpu: &CpuOps,
    product: Product,
    accumulate: bool,
    a: MatRef<'_>,
    b: MatRef<'_>,
    c: MatMut<'_>,
) -> Result<(), KernelError> {
    const OP: &str = "matmul";
    fn run<T: GemmElement, C: Num<Acc = T::Acc>>(
        cpu: &CpuOps,
        product: Product,
        accumulate: bool,
        a: MatRef<'_>,
        b: MatRef<'_>,
        c: MatMut<'_>,
    ) -> Result<(), KernelError> {
        let (a, b) = (Mat::<T>::new(OP, "a", a)?, Mat::<T>::new(OP, "b", b)?);
        let c = MatSplit::<C>::new(OP, "c", c)?;
        let dims = shape(product, a.shape(), b.shape(), c.shape())?;
        let a = match product {
            Product::Nt | Product::Nn => Operand::along_k(a.data, a.stride),
            Product::Tn => Operand::across_k(a.data, a.stride),
        };
        let b = match product {
            Product::Nt => Operand::along_k(b.data, b.stride),
            Product::Nn | Product::Tn => Operand::across_k(b.data, b.stride),
        };
        threaded(cpu, accumulate, dims, a, b, &c);
        Ok(())
    }
    let c_dtype = c.data.dtype();
    with_num!(OP, "a", a.data.dtype(), T => {
        if c_dtype == T::DTYPE {
            run::<T, T>(cpu, product, accumulate, a, b, c)
        } else {
            run::<T, <T as Num>::Acc>(cpu, product, accumulate, a, b, c)
        }
    })
}

/// Splits the longer side of C over the threads: the factor on that side is packed once, the other
/// by each thread.
fn threaded<T: GemmElement, C: Num<Acc = T::Acc>>(
    cpu: &CpuOps,
    accumulate: bool,
    dims: Dims,
    a: Operand<'_, T>,
    b: Operand<'_, T>,
    c: &MatSplit<'_, C>,
) {
    // Whole register tiles of every kernel.
    const UNIT: usize = 96;
    let Dims { m, n, k } = dims;
    let split_n = n >= m;
    // Wide enough for the repeated packing of the other side to stay small; B's costs more than A's.
    let (side, width_min) = if split_n { (n, 384) } else { (m, 768) };
    let threads = cpu.team.threads();
    let wanted = if threads == 1 {
        1
    } else {
        (side / width_min).clamp(threads, threads * PARTS_PER_THREAD)
    };
    let parts = wanted.min(side.div_ceil(UNIT)).min(m * n * k / FMAS_PER_PART_MIN).max(1);
    let bound = |part: usize| {
        if part == parts { side } else { (part * side / parts).next_multiple_of(UNIT).min(side) }
    };
    cpu.team.run(parts, |part| {
        let (from, to) = (bound(part), bound(part + 1));
        if from == to || m * n == 0 {
            return;
        }
        let mut scratch = cpu.scratch.take();
        // SAFETY: each thread writes its own rows or columns, which lie inside `c` as checked when
        // `c` was made; `cpu.isa` was found on this processor.
        unsafe {
            if split_n {
                let dims = Dims { n: to - from, ..dims };
                let start = c.data.start().add(from);
                let c = Target { start, stride: c.stride, accumulate };
                T::gemm(cpu.isa, &mut scratch, dims, a, b.skip(from), c);
            } else {
                let dims = Dims { m: to - from, ..dims };
                let start = c.data.start().add(from * c.stride);
                let c = Target { start, stride: c.stride, accumulate };
                T::gemm(cpu.isa, &mut scratch, dims, a.skip(from), b, c);
            }
        }
    });
}
