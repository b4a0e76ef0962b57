//! Checked, typed forms of the arguments: after these, kernels may index freely.

use crate::scratch::Split;
use crate::view::span;
use crate::{KernelError, MatMut, MatRef};
use std::ops::Range;
use trine_buffer::{BufferError, DType, Element, Slice, SliceMut};

/// The typed elements of an argument.
pub(crate) fn typed<'a, T: Element>(
    op: &'static str,
    argument: &'static str,
    slice: Slice<'a>,
) -> Result<&'a [T], KernelError> {
    slice.typed().map_err(wrong::<T>(op, argument))
}

/// The typed elements of a writable argument.
pub(crate) fn typed_mut<'a, T: Element>(
    op: &'static str,
    argument: &'static str,
    slice: SliceMut<'a>,
) -> Result<&'a mut [T], KernelError> {
    slice.typed().map_err(wrong::<T>(op, argument))
}

fn wrong<T: Element>(
    op: &'static str,
    argument: &'static str,
) -> impl Fn(BufferError) -> KernelError {
    move |error| match error {
        BufferError::Type { held, .. } => {
            KernelError::Type { op, argument, held, expected: T::DTYPE }
        }
        other => other.into(),
    }
}

/// Fails with `message` unless `holds`.
pub(crate) fn dims(
    op: &'static str,
    holds: bool,
    message: impl FnOnce() -> String,
) -> Result<(), KernelError> {
    if holds { Ok(()) } else { Err(KernelError::Dims { op, message: message() }) }
}

/// The error for an element type that kernels do not compute in.
pub(crate) fn not_computable(op: &'static str, argument: &'static str, held: DType) -> KernelError {
    KernelError::NotComputable { op, argument, held }
}

/// Runs `$body` with `$t` standing for the compute type `$dtype`.
macro_rules! with_num {
    ($op:expr, $argument:expr, $dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            trine_buffer::DType::F64 => {
                type $t = f64;
                $body
            }
            trine_buffer::DType::F32 => {
                type $t = f32;
                $body
            }
            trine_buffer::DType::Bf16 => {
                type $t = half::bf16;
                $body
            }
            held @ (trine_buffer::DType::F16
            | trine_buffer::DType::U64
            | trine_buffer::DType::U32
            | trine_buffer::DType::U8) => Err($crate::check::not_computable($op, $argument, held)),
        }
    };
}
pub(crate) use with_num;

/// A checked matrix to read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mat<'a, T> {
    pub(crate) data: &'a [T],
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) stride: usize,
}

impl<'a, T: Element> Mat<'a, T> {
    pub(crate) fn new(
        op: &'static str,
        argument: &'static str,
        mat: MatRef<'a>,
    ) -> Result<Self, KernelError> {
        let data = typed(op, argument, mat.data)?;
        let (rows, cols, stride) = (mat.rows, mat.cols, mat.stride);
        check_span(op, argument, data.len(), rows, cols, stride)?;
        Ok(Self { data, rows, cols, stride })
    }

    #[inline(always)]
    pub(crate) fn row(&self, row: usize) -> &'a [T] {
        &self.data[row * self.stride..][..self.cols]
    }

    pub(crate) fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }
}

/// A checked matrix that several threads write at disjoint places.
pub(crate) struct MatSplit<'a, T> {
    pub(crate) data: Split<'a, T>,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) stride: usize,
}

impl<'a, T: Element> MatSplit<'a, T> {
    pub(crate) fn new(
        op: &'static str,
        argument: &'static str,
        mat: MatMut<'a>,
    ) -> Result<Self, KernelError> {
        let (rows, cols, stride) = (mat.rows, mat.cols, mat.stride);
        let data = typed_mut(op, argument, mat.data)?;
        check_span(op, argument, data.len(), rows, cols, stride)?;
        Ok(Self { data: Split::new(data), rows, cols, stride })
    }

    /// Some columns of one row.
    ///
    /// # Safety
    /// No two places that are alive at the same time may overlap.
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
    pub(crate) unsafe fn part(&self, row: usize, cols: Range<usize>) -> &mut [T] {
        let start = row * self.stride;
        // SAFETY: the caller's promise.
        unsafe { self.data.range(start + cols.start..start + cols.end) }
    }

    pub(crate) fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }
}

/// Refuses rows that overlap, or that end beyond the elements.
pub(crate) fn check_span(
    op: &'static str,
    argument: &'static str,
    held: usize,
    rows: usize,
    cols: usize,
    stride: usize,
) -> Result<(), KernelError> {
    dims(op, stride >= cols || rows <= 1, || {
        format!("`{argument}` has rows of {cols} elements but a stride of {stride}")
    })?;
    let expected = span(rows, cols, stride);
    if held >= expected {
        return Ok(());
    }
    let dims = format!("at least [{rows}, {cols}] with stride {stride}");
    Err(KernelError::Length { op, argument, held, expected, dims })
}
