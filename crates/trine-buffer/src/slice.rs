//! Borrowed views of buffers.

use crate::{BufferError, DType, Element};
use half::{bf16, f16};
use std::ops::Range;

macro_rules! each {
    ($on:expr, $values:ident => $result:expr) => {
        match $on {
            Self::F64($values) => $result,
            Self::F32($values) => $result,
            Self::Bf16($values) => $result,
            Self::F16($values) => $result,
            Self::U64($values) => $result,
            Self::U32($values) => $result,
            Self::U8($values) => $result,
        }
    };
}

macro_rules! rewrap {
    ($self:expr, $out:ident, $values:ident => $result:expr) => {
        match $self {
            Self::F64($values) => $out::F64($result),
            Self::F32($values) => $out::F32($result),
            Self::Bf16($values) => $out::Bf16($result),
            Self::F16($values) => $out::F16($result),
            Self::U64($values) => $out::U64($result),
            Self::U32($values) => $out::U32($result),
            Self::U8($values) => $out::U8($result),
        }
    };
}

/// A read-only view of elements on the host. Device backends add variants.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the variants are the element types")]
pub enum Slice<'a> {
    F64(&'a [f64]),
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
    F16(&'a [f16]),
    U64(&'a [u64]),
    U32(&'a [u32]),
    U8(&'a [u8]),
}

/// A writable view of elements on the host. Device backends add variants.
#[derive(Debug)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the variants are the element types")]
pub enum SliceMut<'a> {
    F64(&'a mut [f64]),
    F32(&'a mut [f32]),
    Bf16(&'a mut [bf16]),
    F16(&'a mut [f16]),
    U64(&'a mut [u64]),
    U32(&'a mut [u32]),
    U8(&'a mut [u8]),
}

fn check(range: &Range<usize>, len: usize) -> Result<(), BufferError> {
    if range.start <= range.end && range.end <= len {
        return Ok(());
    }
    Err(BufferError::Range { start: range.start, end: range.end, len })
}

impl<'a> Slice<'a> {
    /// A view of a typed slice.
    pub fn new<T: Element>(values: &'a [T]) -> Self {
        T::wrap_ref(values)
    }

    /// Elements in view.
    pub fn len(&self) -> usize {
        each!(self, values => values.len())
    }

    /// Whether nothing is in view.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements' type.
    pub fn dtype(&self) -> DType {
        match self {
            Self::F64(_) => DType::F64,
            Self::F32(_) => DType::F32,
            Self::Bf16(_) => DType::Bf16,
            Self::F16(_) => DType::F16,
            Self::U64(_) => DType::U64,
            Self::U32(_) => DType::U32,
            Self::U8(_) => DType::U8,
        }
    }

    /// A part of the view.
    ///
    /// # Errors
    /// If `range` ends beyond the view.
    pub fn range(self, range: Range<usize>) -> Result<Self, BufferError> {
        check(&range, self.len())?;
        Ok(rewrap!(self, Slice, values => &values[range]))
    }

    /// The elements, if they are of type `T`.
    ///
    /// # Errors
    /// If they are of another type.
    pub fn typed<T: Element>(self) -> Result<&'a [T], BufferError> {
        T::of(self).ok_or(BufferError::Type { held: self.dtype(), asked: T::DTYPE })
    }

    /// The raw bytes, in the machine's byte order.
    pub fn bytes(self) -> &'a [u8] {
        each!(self, values => bytemuck::cast_slice(values))
    }
}

impl<'a> SliceMut<'a> {
    /// Elements in view.
    pub fn len(&self) -> usize {
        each!(self, values => values.len())
    }

    /// Whether nothing is in view.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements' type.
    pub fn dtype(&self) -> DType {
        self.as_slice().dtype()
    }

    /// The same view, read-only.
    pub fn as_slice(&self) -> Slice<'_> {
        rewrap!(self, Slice, values => &**values)
    }

    /// The same view for a shorter time, so that the view can be used again afterwards.
    pub fn reborrow(&mut self) -> SliceMut<'_> {
        rewrap!(self, SliceMut, values => &mut **values)
    }

    /// A part of the view.
    ///
    /// # Errors
    /// If `range` ends beyond the view.
    pub fn range(self, range: Range<usize>) -> Result<Self, BufferError> {
        check(&range, self.len())?;
        Ok(rewrap!(self, SliceMut, values => &mut values[range]))
    }

    /// The elements, if they are of type `T`.
    ///
    /// # Errors
    /// If they are of another type.
    pub fn typed<T: Element>(self) -> Result<&'a mut [T], BufferError> {
        let held = self.dtype();
        T::of_mut(self).ok_or(BufferError::Type { held, asked: T::DTYPE })
    }

    /// The raw bytes, in the machine's byte order.
    pub fn bytes(self) -> &'a mut [u8] {
        each!(self, values => bytemuck::cast_slice_mut(values))
    }

    /// Copies equally many elements of the same type.
    ///
    /// # Errors
    /// If type or length differ.
    pub fn copy_from(self, from: Slice<'_>) -> Result<(), BufferError> {
        if self.dtype() != from.dtype() {
            return Err(BufferError::Type { held: from.dtype(), asked: self.dtype() });
        }
        if self.len() != from.len() {
            return Err(BufferError::Length { left: self.len(), right: from.len() });
        }
        self.bytes().copy_from_slice(from.bytes());
        Ok(())
    }

    /// Sets every element to zero.
    pub fn zero(self) {
        self.bytes().fill(0);
    }
}
