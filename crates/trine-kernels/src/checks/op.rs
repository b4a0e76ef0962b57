//! An operation that refuses arguments under its name.

use crate::check::{check_span, dims, not_computable};
use crate::{KernelError, MatMut, MatRef};
use std::fmt;
use trine_buffer::{DType, Slice, SliceMut};

type Done = Result<(), KernelError>;

/// A view, to be read or written.
pub(super) trait View {
    fn dtype(&self) -> DType;
    fn len(&self) -> usize;
}

impl View for Slice<'_> {
    fn dtype(&self) -> DType {
        Slice::dtype(self)
    }
    fn len(&self) -> usize {
        Slice::len(self)
    }
}

impl View for SliceMut<'_> {
    fn dtype(&self) -> DType {
        SliceMut::dtype(self)
    }
    fn len(&self) -> usize {
        SliceMut::len(self)
    }
}

/// A matrix, to be read or written.
pub(super) trait Matrix {
    fn as_ref(&self) -> MatRef<'_>;
}

impl Matrix for MatRef<'_> {
    fn as_ref(&self) -> MatRef<'_> {
        *self
    }
}

impl Matrix for MatMut<'_> {
    fn as_ref(&self) -> MatRef<'_> {
        MatMut::as_ref(self)
    }
}

/// The accumulator of a compute type.
pub(super) fn accumulator(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

/// An operation that refuses arguments under its name.
#[derive(Clone, Copy)]
pub(super) struct Op(pub(super) &'static str);

impl Op {
    pub(super) fn dims(self, holds: bool, message: impl FnOnce() -> String) -> Done {
        dims(self.0, holds, message)
    }

    /// The compute type that an argument holds.
    pub(super) fn computes(
        self,
        argument: &'static str,
        held: DType,
    ) -> Result<DType, KernelError> {
        match held {
            DType::F64 | DType::F32 | DType::Bf16 => Ok(held),
            DType::F16 | DType::U64 | DType::U32 | DType::U8 => {
                Err(not_computable(self.0, argument, held))
            }
        }
    }

    pub(super) fn holds(self, argument: &'static str, held: DType, expected: DType) -> Done {
        if held == expected {
            return Ok(());
        }
        Err(KernelError::Type { op: self.0, argument, held, expected })
    }

    /// `T` or `Acc`.
    pub(super) fn holds_either(self, argument: &'static str, held: DType, t: DType) -> Done {
        if held == t { Ok(()) } else { self.holds(argument, held, accumulator(t)) }
    }

    pub(super) fn length(
        self,
        argument: &'static str,
        view: &impl View,
        expected: usize,
        dims: impl fmt::Display,
    ) -> Done {
        let (op, held) = (self.0, view.len());
        if held == expected {
            return Ok(());
        }
        Err(KernelError::Length { op, argument, held, expected, dims: dims.to_string() })
    }

    /// Type and length of a vector.
    pub(super) fn vector(
        self,
        argument: &'static str,
        view: &impl View,
        dtype: DType,
        expected: usize,
        dims: impl fmt::Display,
    ) -> Done {
        self.holds(argument, view.dtype(), dtype)?;
        self.length(argument, view, expected, dims)
    }

    /// Rows and columns of a matrix that lies in its elements.
    pub(super) fn matrix(
        self,
        argument: &'static str,
        mat: &impl Matrix,
    ) -> Result<(usize, usize), KernelError> {
        let MatRef { data, rows, cols, stride } = mat.as_ref();
        check_span(self.0, argument, data.len(), rows, cols, stride)?;
        Ok((rows, cols))
    }

    /// A matrix of a type and these rows and columns.
    pub(super) fn shaped(
        self,
        argument: &'static str,
        mat: &impl Matrix,
        dtype: DType,
        (rows, cols): (usize, usize),
    ) -> Done {
        self.holds(argument, mat.as_ref().data.dtype(), dtype)?;
        let held = self.matrix(argument, mat)?;
        self.dims(held == (rows, cols), || {
            format!("`{argument}` is [{}, {}], it must be [{rows}, {cols}]", held.0, held.1)
        })
    }
}
