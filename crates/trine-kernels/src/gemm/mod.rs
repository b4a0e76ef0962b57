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

use crate::check::{Mat, MatSplit, typed, with_num};
use crate::checks::product_dims;
use crate::num::Num;
use crate::scratch::Scratch;
use crate::team::PARTS_PER_THREAD;
use crate::{CpuOps, Isa, KernelError, MatMut, MatRef, Product};
use driver::block;
use half::bf16;
use micro::Generic;
pub(crate) use packed::{Factor, Products, Side, TRANSPOSED};
use packed::{PackedKernel, Panels};
use trine_buffer::{Element, Slice};

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

    /// The factor from element `k` on.
    #[cfg(target_arch = "x86_64")]
    fn skip_k(self, k: usize) -> Self {
        let start = (k * self.k_stride).min(self.data.len());
        Self { data: &self.data[start..], ..self }
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
pub(crate) struct Target<'a, C> {
    /// The first element.
    pub(crate) start: *mut C,
    /// Elements from row to row.
    pub(crate) stride: usize,
    pub(crate) initial: Initial<'a, C>,
}

/// What each sum of C starts from.
#[derive(Debug)]
pub(crate) enum Initial<'a, C> {
    Zero,
    /// The old value.
    Old,
    /// One row, the same for all rows of C and as wide.
    Row(&'a [C]),
}

impl<'a, C> Initial<'a, C> {
    pub(crate) fn accumulate(accumulate: bool) -> Self {
        if accumulate { Self::Old } else { Self::Zero }
    }

    /// The same for C from a column on.
    fn skip(self, cols: usize) -> Self {
        match self {
            Self::Zero | Self::Old => self,
            Self::Row(row) => Self::Row(&row[cols..]),
        }
    }

    /// The row that sums of the first part of k start from.
    fn row(self) -> Option<&'a [C]> {
        match self {
            Self::Zero | Self::Old => None,
            Self::Row(row) => Some(row),
        }
    }

    /// Whether it is zero.
    fn is_zero(self) -> bool {
        matches!(self, Self::Zero)
    }
}

impl<C> Clone for Initial<'_, C> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<C> Copy for Initial<'_, C> {}

impl<C> Clone for Target<'_, C> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<C> Copy for Target<'_, C> {}

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
        c: Target<'_, C>,
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
    unsafe fn multiply(
        isa: Isa,
        dims: Dims,
        a: Factor<'_>,
        b: Factor<'_>,
        c: Target<'_, Self::Acc>,
    );
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
            a: Factor<'_>,
            b: Factor<'_>,
            c: Target<'_, Self::Acc>,
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

/// An element type with the register tile of each instruction set, and the one that has tiles of its own.
macro_rules! gemm_element {
    ($type:ty: $($isa:ident => $micro:ty),+ $(; $amx:ident)?) => {
        impl GemmElement for $type {
            unsafe fn gemm<C: Num<Acc = Self::Acc>>(
                isa: Isa,
                scratch: &mut Scratch<'_>,
                dims: Dims,
                a: Operand<'_, Self>,
                b: Operand<'_, Self>,
                c: Target<'_, C>,
            ) {
                // SAFETY: the caller's promise; each arm's kernel needs its arm's features.
                unsafe {
                    match isa {
                        $(Isa::$isa => block::<$micro, Self, C>(isa, scratch, dims, a, b, c),)+
                        $(Isa::$amx => amx::block(scratch, dims, a, b, c),)?
                    }
                }
            }

            packed_methods!($($isa => $micro),+ $(, $amx => amx::InTiles)?);
        }
    };
}

type GenericF64 = Generic<f64, 4, 8>;
type GenericF32 = Generic<f32, 4, 16>;
gemm_element!(
    f64: Portable => GenericF64, Neon => GenericF64, Avx2 => GenericF64, Avx512 => GenericF64,
    Avx512Bf16 => GenericF64, Amx => GenericF64
);
#[cfg(target_arch = "x86_64")]
gemm_element!(
    f32: Portable => GenericF32, Neon => GenericF32, Avx2 => x86::Avx2F32,
    Avx512 => x86::Avx512F32, Avx512Bf16 => x86::Avx512F32; Amx
);
#[cfg(target_arch = "x86_64")]
gemm_element!(
    bf16: Portable => GenericF32, Neon => GenericF32, Avx2 => x86::Avx2F32,
    Avx512 => x86::Avx512F32, Avx512Bf16 => x86::Avx512Bf16Pairs; Amx
);
#[cfg(target_arch = "aarch64")]
type NeonF32 = neon::NeonF32;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
type NeonF32 = GenericF32;
#[cfg(not(target_arch = "x86_64"))]
gemm_element!(
    f32: Portable => GenericF32, Neon => NeonF32, Avx2 => GenericF32, Avx512 => GenericF32,
    Avx512Bf16 => GenericF32, Amx => GenericF32
);
#[cfg(not(target_arch = "x86_64"))]
gemm_element!(
    bf16: Portable => GenericF32, Neon => NeonF32, Avx2 => GenericF32, Avx512 => GenericF32,
    Avx512Bf16 => GenericF32, Amx => GenericF32
);

/// Prefetches rows of `cols` elements, wherever they are, where there is an instruction for it.
#[inline(always)]
fn prefetch_rows<T>(x: *const T, rows: usize, cols: usize, stride: usize) {
    #[cfg(target_arch = "x86_64")]
    for row in 0..rows {
        x86::prefetch(x.wrapping_add(row * stride).cast(), cols * size_of::<T>());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (x, rows, cols, stride);
}

/// A factor whose rows run along `k`, or across it.
fn operand<T: Element>(mat: Mat<'_, T>, along_k: bool) -> Operand<'_, T> {
    if along_k {
        Operand::along_k(mat.data, mat.stride)
    } else {
        Operand::across_k(mat.data, mat.stride)
    }
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
        let [m, n, k] = product_dims(OP, product, a.shape(), b.shape(), c.shape())?;
        let (a, b) = (operand(a, product != Product::Tn), operand(b, product == Product::Nt));
        threaded(cpu, Initial::accumulate(accumulate), Dims { m, n, k }, a, b, &c);
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

pub(crate) fn linear(
    cpu: &CpuOps,
    y: MatMut<'_>,
    x: MatRef<'_>,
    w: MatRef<'_>,
    bias: Slice<'_>,
) -> Result<(), KernelError> {
    const OP: &str = "linear";
    fn run<T: GemmElement, Y: Num<Acc = T::Acc>>(
        cpu: &CpuOps,
        y: MatMut<'_>,
        x: MatRef<'_>,
        w: MatRef<'_>,
        bias: Slice<'_>,
    ) -> Result<(), KernelError> {
        let (x, w) = (Mat::<T>::new(OP, "x", x)?, Mat::<T>::new(OP, "w", w)?);
        let (y, bias) = (MatSplit::<Y>::new(OP, "y", y)?, typed::<T>(OP, "bias", bias)?);
        let [m, n, k] = product_dims(OP, Product::Nt, x.shape(), w.shape(), y.shape())?;
        let dims = Dims { m, n, k };
        // Beside the piece that each part of the product takes.
        let mut scratch = cpu.scratch.take_beside(1);
        let row = scratch.slice::<Y>(dims.n);
        row.iter_mut().zip(bias).for_each(|(start, bias)| *start = Y::narrow(bias.widen()));
        threaded(cpu, Initial::Row(row), dims, operand(x, true), operand(w, true), &y);
        Ok(())
    }
    let y_dtype = y.data.dtype();
    with_num!(OP, "x", x.data.dtype(), T => {
        if y_dtype == T::DTYPE {
            run::<T, T>(cpu, y, x, w, bias)
        } else {
            run::<T, <T as Num>::Acc>(cpu, y, x, w, bias)
        }
    })
}

/// Splits the longer side of C over the threads: the factor on that side is packed once, the other
/// by each part.
fn threaded<T: GemmElement, C: Num<Acc = T::Acc>>(
    cpu: &CpuOps,
    initial: Initial<'_, C>,
    dims: Dims,
    a: Operand<'_, T>,
    b: Operand<'_, T>,
    c: &MatSplit<'_, C>,
) {
    // Whole register tiles of every kernel.
    const ROWS: usize = 96;
    const COLS: usize = 64;
    // Wide enough for the repeated packing of the other side to stay small.
    const WIDTH_MIN: usize = 768;
    let Dims { m, n, k } = dims;
    let split_n = n >= m;
    let (side, unit) = if split_n { (n, COLS) } else { (m, ROWS) };
    let threads = cpu.team.threads();
    // As many for each thread: nobody waits for the last one.
    let wanted = match threads {
        1 => 1,
        _ => (side / WIDTH_MIN / threads).clamp(1, PARTS_PER_THREAD) * threads,
    };
    let parts = wanted.min(side.div_ceil(unit)).min(m * n * k / FMAS_PER_PART_MIN).max(1);
    let bound = |part: usize| {
        if part == parts { side } else { (part * side / parts).next_multiple_of(unit).min(side) }
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
                let c = Target { start, stride: c.stride, initial: initial.skip(from) };
                T::gemm(cpu.isa, &mut scratch, dims, a, b.skip(from), c);
            } else {
                let dims = Dims { m: to - from, ..dims };
                let start = c.data.start().add(from * c.stride);
                let c = Target { start, stride: c.stride, initial };
                T::gemm(cpu.isa, &mut scratch, dims, a.skip(from), b, c);
            }
        }
    });
}
