//! Borrowed views of buffers.

use crate::{Buf, BufferError, DType, DeviceSlice, DeviceSliceMut, Element};
use half::{bf16, f16};
use std::ops::Range;

macro_rules! each {
    ($on:expr, $values:ident => $result:expr, $device:ident => $other:expr) => {
        match $on {
            Self::Device($device) => $other,
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
    ($self:expr, $out:ident, $values:ident => $result:expr, $device:ident => $other:expr) => {
        match $self {
            Self::Device($device) => $out::Device($other),
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

/// A read-only view of elements.
#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "the variants are the element types on the host, and the device")]
pub enum Slice<'a> {
    F64(&'a [f64]),
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
    F16(&'a [f16]),
    U64(&'a [u64]),
    U32(&'a [u32]),
    U8(&'a [u8]),
    Device(DeviceSlice<'a>),
}

/// A writable view of elements.
#[derive(Debug)]
#[expect(missing_docs, reason = "the variants are the element types on the host, and the device")]
pub enum SliceMut<'a> {
    F64(&'a mut [f64]),
    F32(&'a mut [f32]),
    Bf16(&'a mut [bf16]),
    F16(&'a mut [f16]),
    U64(&'a mut [u64]),
    U32(&'a mut [u32]),
    U8(&'a mut [u8]),
    Device(DeviceSliceMut<'a>),
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
        each!(self, values => values.len(), device => device.len())
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
            Self::Device(device) => device.dtype(),
        }
    }

    /// A part of the view.
    ///
    /// # Errors
    /// If `range` ends beyond the view.
    pub fn range(self, range: Range<usize>) -> Result<Self, BufferError> {
        check(&range, self.len())?;
        Ok(rewrap!(self, Slice, values => &values[range], device => device.part(range)))
    }

    /// The elements, if they are of type `T`.
    ///
    /// # Errors
    /// If they are of another type, or on a device.
    pub fn typed<T: Element>(self) -> Result<&'a [T], BufferError> {
        self.on_host()?;
        T::of(self).ok_or(BufferError::Type { held: self.dtype(), asked: T::DTYPE })
    }

    /// The raw bytes, in the machine's byte order.
    ///
    /// # Errors
    /// If they are on a device.
    pub fn bytes(self) -> Result<&'a [u8], BufferError> {
        each!(self, values => Ok(bytemuck::cast_slice(values)), device => Err(device.refused()))
    }

    /// A copy on the host. On a device the host waits for it.
    ///
    /// # Errors
    /// If work of the device has failed.
    pub fn to_host(self) -> Result<Buf, BufferError> {
        let mut copy = Buf::zeros(self.dtype(), self.len());
        match self {
            Self::Device(device) => {
                device.memory().download(device.bytes(), copy.slice_mut().bytes()?)?;
            }
            host => copy.slice_mut().copy_from(host)?,
        }
        Ok(copy)
    }

    /// Refuses what lies on a device.
    fn on_host(self) -> Result<(), BufferError> {
        if let Self::Device(device) = self { Err(device.refused()) } else { Ok(()) }
    }
}

impl<'a> SliceMut<'a> {
    /// Elements in view.
    pub fn len(&self) -> usize {
        self.as_slice().len()
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
        rewrap!(self, Slice, values => &**values, device => device.as_slice())
    }

    /// The same view for a shorter time, so that the view can be used again afterwards.
    pub fn reborrow(&mut self) -> SliceMut<'_> {
        rewrap!(self, SliceMut, values => &mut **values, device => device.reborrow())
    }

    /// A part of the view.
    ///
    /// # Errors
    /// If `range` ends beyond the view.
    pub fn range(self, range: Range<usize>) -> Result<Self, BufferError> {
        check(&range, self.len())?;
        Ok(rewrap!(self, SliceMut, values => &mut values[range], device => device.part(range)))
    }

    /// The elements, if they are of type `T`.
    ///
    /// # Errors
    /// If they are of another type, or on a device.
    pub fn typed<T: Element>(self) -> Result<&'a mut [T], BufferError> {
        self.as_slice().on_host()?;
        let held = self.dtype();
        T::of_mut(self).ok_or(BufferError::Type { held, asked: T::DTYPE })
    }

    /// The raw bytes, in the machine's byte order.
    ///
    /// # Errors
    /// If they are on a device.
    pub fn bytes(self) -> Result<&'a mut [u8], BufferError> {
        each!(self, values => Ok(bytemuck::cast_slice_mut(values)), device => Err(device.as_slice().refused()))
    }

    /// Copies equally many elements of the same type: within a host or a device, or from a host to a device, for which
    /// nobody waits. [`Slice::to_host`] is the other way.
    ///
    /// # Errors
    /// If type or length differ, the elements would go from a device to a host, or a device fails.
    pub fn copy_from(self, from: Slice<'_>) -> Result<(), BufferError> {
        if self.dtype() != from.dtype() {
            return Err(BufferError::Type { held: from.dtype(), asked: self.dtype() });
        }
        if self.len() != from.len() {
            return Err(BufferError::Length { left: self.len(), right: from.len() });
        }
        match (self, from) {
            (Self::Device(to), Slice::Device(from)) => {
                let (memory, bytes) = to.into_memory();
                memory.copy_from(bytes, from.memory(), from.bytes())
            }
            (Self::Device(to), from) => {
                let (memory, bytes) = to.into_memory();
                memory.upload(bytes, from.bytes()?)
            }
            (to, from) => {
                to.bytes()?.copy_from_slice(from.bytes()?);
                Ok(())
            }
        }
    }

    /// Sets every element to zero.
    ///
    /// # Errors
    /// If the device does not take it.
    pub fn zero(self) -> Result<(), BufferError> {
        if let Self::Device(device) = self {
            let (memory, bytes) = device.into_memory();
            return memory.zero(bytes);
        }
        self.bytes()?.fill(0);
        Ok(())
    }
}
