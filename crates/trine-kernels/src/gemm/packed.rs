//! Small products on one thread, of factors that are packed once and multiplied many times.

use super::micro::{Feed, Micro};
use super::{Dims, GemmElement, Initial, Operand, Target, pack};
use crate::Isa;
use crate::isa::vectorised;
use crate::num::{Num, Real};
use std::marker::PhantomData;
#[cfg(target_arch = "x86_64")]
use trine_buffer::DType;
use trine_buffer::Element;

#[cfg(target_arch = "x86_64")]
use super::{amx, x86};

/// Which factor of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// The left one: rows of C.
    A,
    /// The right one: columns of C.
    B,
}

/// The form of a kernel's panels.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Panels {
    /// Rows of C in a panel of A.
    pub(super) rows: usize,
    /// Columns of C in a panel of B.
    pub(super) cols: usize,
    /// Consecutive `k` in a step.
    pub(super) group: usize,
    /// Bytes that a row or column has in a step.
    pub(super) bytes: usize,
}

/// A factor that kernels can read, and its length along `k`. A product may use a shorter part of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Factor<'a> {
    /// Its panels, or the rows of a right factor that need no packing.
    pub(super) panels: &'a [u8],
    pub(super) k: usize,
    /// Values from row to row of such rows, which run across `k`.
    rows_apart: Option<usize>,
}

impl<'a> Factor<'a> {
    /// Panels that were packed with `k`.
    pub(crate) fn panels(panels: &'a [u8], k: usize) -> Self {
        Self { panels, k, rows_apart: None }
    }
}

/// What the kernels of an instruction set do with packed factors.
pub(crate) trait PackedKernel<T: Num> {
    const PANELS: Panels;

    /// Packs a factor into whole panels.
    ///
    /// # Safety
    /// The processor has `isa`, and `out` is as long as [`Products::packed_bytes`] says.
    unsafe fn pack(
        isa: Isa,
        side: Side,
        x: Operand<'_, T>,
        outers: usize,
        k: usize,
        out: &mut [u8],
    );

    /// # Safety
    /// The processor has `isa`, its tiles are on, and the factors and `c` have all the panels that
    /// `dims` reaches into.
    unsafe fn multiply(isa: Isa, dims: Dims, a: Factor<'_>, b: Factor<'_>, c: Target<'_, T::Acc>);
}

impl<T: Num, M: Feed<T> + Micro<Acc = T::Acc>> PackedKernel<T> for M {
    const PANELS: Panels =
        Panels { rows: M::MR, cols: M::NR, group: M::GROUP, bytes: size_of::<M::Packed>() };

    unsafe fn pack(
        isa: Isa,
        side: Side,
        x: Operand<'_, T>,
        outers: usize,
        k: usize,
        out: &mut [u8],
    ) {
        let width = if side == Side::A { M::MR } else { M::NR };
        panels::<M, T>(isa, x, width, outers, k, bytemuck::cast_slice_mut(out));
    }

    unsafe fn multiply(isa: Isa, dims: Dims, a: Factor<'_>, b: Factor<'_>, c: Target<'_, T::Acc>) {
        let steps = |x: Factor<'_>| x.k.div_ceil(M::GROUP);
        let (panel, step) = b.rows_apart.map_or((steps(b) * M::NR, M::NR), |apart| (M::NR, apart));
        let b = Right { values: bytemuck::cast_slice(b.panels), panel, step };
        whole_tiles::<M>(isa, dims, (bytemuck::cast_slice(a.panels), steps(a)), b, c);
    }
}

/// A right factor as the kernels read it: `NR` values in each step of a panel.
#[derive(Debug, Clone, Copy)]
struct Right<'a, P> {
    values: &'a [P],
    /// Values from panel to panel, and from step to step in one.
    panel: usize,
    step: usize,
}

vectorised! {
    fn panels<M: Feed<T>, T: Num>(
        x: Operand<'_, T>,
        width: usize,
        outers: usize,
        k: usize,
        out: &mut [M::Packed],
    ) {
        pack::panels::<M, T>(x, width, outers, 0, k, out);
    }

    /// C in whole register tiles; the panels of A come with their steps.
    fn whole_tiles<M: Micro>(
        dims: Dims,
        a: (&[M::Packed], usize),
        b: Right<'_, M::Packed>,
        c: Target<'_, M::Acc>,
    ) {
        let (a, a_steps) = a;
        let steps = dims.k.div_ceil(M::GROUP);
        for col in (0..dims.n).step_by(M::NR) {
            for row in (0..dims.m).step_by(M::MR) {
                let a = a[row * a_steps..].as_ptr();
                let values = b.values[col / M::NR * b.panel..].as_ptr();
                // SAFETY: C has the whole tile and the panels `steps` steps, by the promise of
                // `multiply`'s caller.
                unsafe {
                    let tile = c.start.add(row * c.stride + col);
                    let load = matches!(c.initial, Initial::Old);
                    M::run(steps, a, values, b.step, tile, c.stride, load);
                }
            }
        }
    }

    fn narrow_rows<T: Num>(rows: usize, cols: usize, x: &[T::Acc], stride: usize, out: Target<'_, T>) {
        for row in 0..rows {
            // SAFETY: a row of `out`, by the promise of `Products::round`'s caller.
            let out =
                unsafe { std::slice::from_raw_parts_mut(out.start.add(row * out.stride), cols) };
            for (out, x) in out.iter_mut().zip(&x[row * stride..]) {
                *out = T::narrow(*x);
            }
        }
    }

    fn transpose_words<A: Real>(
        x: &[A],
        stride: usize,
        rows: usize,
        cols: usize,
        out: &mut [A],
        width: usize,
    ) {
        for row in 0..rows {
            for (col, x) in x[row * stride..][..cols].iter().enumerate() {
                out[col * width + row] = *x;
            }
        }
    }
}

/// Small products of the calling thread. On AMX the tiles are on as long as this lives.
#[derive(Debug)]
pub(crate) struct Products<T> {
    isa: Isa,
    panels: Panels,
    #[cfg(target_arch = "x86_64")]
    _tiles: Option<amx::Tiles>,
    /// Tiles belong to a thread.
    _thread: PhantomData<*const T>,
}

impl<T: GemmElement> Products<T> {
    pub(crate) fn new(isa: Isa) -> Self {
        #[cfg(target_arch = "x86_64")]
        let wanted = isa == Isa::Amx && T::DTYPE != DType::F64;
        Self {
            isa,
            panels: T::panels(isa),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `CpuOps` only holds an `Isa` that `Isa::checked` found on this processor.
            _tiles: wanted.then(|| unsafe { amx::Tiles::on() }),
            _thread: PhantomData,
        }
    }

    /// The rows that C needs for a product of `m` rows: whole panels are written.
    pub(crate) fn rows(&self, m: usize) -> usize {
        m.next_multiple_of(self.panels.rows)
    }

    /// As [`Products::rows`], for columns.
    pub(crate) fn cols(&self, n: usize) -> usize {
        n.next_multiple_of(self.panels.cols)
    }

    /// Bytes of a packed factor of `outers` rows of A or columns of B.
    pub(crate) fn packed_bytes(&self, side: Side, outers: usize, k: usize) -> usize {
        let outers = if side == Side::A { self.rows(outers) } else { self.cols(outers) };
        outers * k.div_ceil(self.panels.group) * self.panels.bytes
    }

    /// Packs a factor into the front of `out`.
    pub(crate) fn pack<'o>(
        &self,
        side: Side,
        x: Operand<'_, T>,
        outers: usize,
        k: usize,
        out: &'o mut [u8],
    ) -> Factor<'o> {
        let panels = &mut out[..self.packed_bytes(side, outers, k)];
        // SAFETY: `isa` is this processor's; the length is right.
        unsafe { T::pack(self.isa, side, x, outers, k, panels) };
        Factor::panels(panels, k)
    }

    /// Rows across `k`, `stride` apart, as right factor: as they are where the kernels read such rows in whole
    /// panels, else packed into the front of `out`.
    pub(crate) fn right<'o>(
        &self,
        rows: &'o [T],
        stride: usize,
        n: usize,
        k: usize,
        out: &'o mut [u8],
    ) -> Factor<'o> {
        let Panels { group, bytes, .. } = self.panels;
        if group == 1 && bytes == size_of::<T>() && self.cols(n) <= stride {
            return Factor { panels: bytemuck::cast_slice(rows), k, rows_apart: Some(stride) };
        }
        self.pack(Side::B, Operand::across_k(rows, stride), n, k, out)
    }

    /// `C = A · B` in whole panels, or `C += A · B`: C has [`Products::rows`] rows of
    /// [`Products::cols`].
    pub(crate) fn multiply(
        &self,
        dims: Dims,
        a: Factor<'_>,
        b: Factor<'_>,
        c: &mut [T::Acc],
        stride: usize,
        accumulate: bool,
    ) {
        let Dims { m, n, k } = dims;
        if m * n == 0 {
            return;
        }
        assert!(k <= a.k && k <= b.k, "invariant: factors as long as the product");
        assert!(a.panels.len() >= self.packed_bytes(Side::A, m, a.k), "invariant: all of A");
        let b_bytes = match b.rows_apart {
            Some(apart) => (k.saturating_sub(1) * apart + self.cols(n)) * size_of::<T>(),
            None => self.packed_bytes(Side::B, n, b.k),
        };
        assert!(b.panels.len() >= b_bytes, "invariant: all of B");
        let end = (self.rows(m) - 1) * stride + self.cols(n);
        assert!(self.cols(n) <= stride && c.len() >= end, "invariant: C in whole panels");
        let initial = Initial::accumulate(accumulate);
        let c = Target { start: c.as_mut_ptr(), stride, initial };
        // SAFETY: `isa` is this processor's, tiles are on, lengths were checked above.
        unsafe { T::multiply(self.isa, dims, a, b, c) };
    }

    /// Rounds sums to the element type.
    ///
    /// # Safety
    /// `out` points to `rows` rows of `cols` elements that nobody else touches.
    pub(crate) unsafe fn round(
        &self,
        rows: usize,
        cols: usize,
        x: &[T::Acc],
        stride: usize,
        out: Target<'_, T>,
    ) {
        assert!(rows == 0 || x.len() >= (rows - 1) * stride + cols, "invariant: rows in bounds");
        #[cfg(target_arch = "x86_64")]
        if T::DTYPE == DType::Bf16 && self.isa >= Isa::Avx512Bf16 {
            let x = bytemuck::cast_slice(x);
            // SAFETY: this processor has the features; the caller's promise on `out`.
            return unsafe {
                amx::narrow_rows::<half::bf16>(rows, cols, x, stride, out.start.cast(), out.stride)
            };
        }
        narrow_rows::<T>(self.isa, rows, cols, x, stride, out);
    }

    /// Sums as elements, in `out` or, where both are the same type, where they are.
    pub(crate) fn rounded<'s>(&self, sums: &'s [T::Acc], out: &'s mut [T]) -> &'s [T] {
        if T::DTYPE == T::Acc::DTYPE {
            return bytemuck::cast_slice(sums);
        }
        let out = &mut out[..sums.len()];
        let target = Target { start: out.as_mut_ptr(), stride: sums.len(), initial: Initial::Zero };
        // SAFETY: `out` is exclusive and as long as the sums.
        unsafe { self.round(1, sums.len(), sums, sums.len(), target) };
        out
    }

    /// Element (`row`, `col`) of `x` goes to `out[col · width + row]`. Rows and columns are padded to
    /// multiples of [`TRANSPOSED`] on both sides.
    pub(crate) fn transpose(
        &self,
        x: &[T::Acc],
        stride: usize,
        rows: usize,
        cols: usize,
        out: &mut [T::Acc],
        width: usize,
    ) {
        let [rows, cols] = [rows, cols].map(|side| side.next_multiple_of(TRANSPOSED));
        if rows * cols == 0 {
            return;
        }
        assert!(x.len() >= (rows - 1) * stride + cols, "invariant: rows in bounds");
        assert!(out.len() >= (cols - 1) * width + rows, "invariant: columns in bounds");
        #[cfg(target_arch = "x86_64")]
        if size_of::<T::Acc>() == size_of::<u32>() && self.isa >= Isa::Avx512 {
            let (x, out) = (x.as_ptr().cast(), out.as_mut_ptr().cast());
            // SAFETY: this processor has AVX-512; in bounds by the assertions.
            return unsafe { x86::transpose_words(x, stride * 4, rows, cols, out, width) };
        }
        transpose_words(self.isa, x, stride, rows, cols, out, width);
    }
}

/// Rows and columns that a transposition works on together.
pub(crate) const TRANSPOSED: usize = 16;
