//! Device memory behind the buffers of `trine-buffer`.

use crate::error::GpuError;
use crate::memory::{Memory, Span, SpanMut};
use crate::stream::Stream;
use std::any::Any;
use std::ops::Range;
use std::sync::Arc;
use trine_buffer::{Allocator, BufferError, DType, DeviceMemory, Place, Slice, SliceMut};

impl From<GpuError> for BufferError {
    fn from(error: GpuError) -> Self {
        Self::Device(error.to_string())
    }
}

impl DeviceMemory for Memory {
    fn name(&self) -> &str {
        Self::name(self)
    }

    fn zero(&mut self, bytes: Range<usize>) -> Result<(), BufferError> {
        let stream = self.stream().clone();
        Ok(stream.fill(self.span_mut().range(bytes)?, 0)?)
    }

    fn copy_from(
        &mut self,
        bytes: Range<usize>,
        from: &dyn DeviceMemory,
        from_bytes: Range<usize>,
    ) -> Result<(), BufferError> {
        let from = found(from)?.span().range(from_bytes)?;
        let stream = self.stream().clone();
        Ok(stream.copy(self.span_mut().range(bytes)?, from)?)
    }

    fn upload(&mut self, bytes: Range<usize>, from: &[u8]) -> Result<(), BufferError> {
        let stream = self.stream().clone();
        let to = self.span_mut().range(bytes)?;
        if to.bytes() != from.len() {
            return Err(GpuError::Length { from: from.len(), to: to.bytes() }.into());
        }
        let mut staging = stream.staging(from.len())?;
        staging.bytes()?[..from.len()].copy_from_slice(from);
        stream.upload(to, &mut staging, 0..from.len())?;
        stream.give_back(staging);
        Ok(())
    }

    fn download(&self, bytes: Range<usize>, to: &mut [u8]) -> Result<(), BufferError> {
        let (stream, len) = (self.stream(), to.len());
        let mut staging = stream.staging(len)?;
        stream.download(&mut staging, 0..len, self.span().range(bytes)?)?;
        to.copy_from_slice(&staging.bytes()?[..len]);
        stream.give_back(staging);
        Ok(())
    }
}

/// This backend's memory behind a buffer.
fn found(memory: &dyn DeviceMemory) -> Result<&Memory, GpuError> {
    let any: &dyn Any = memory;
    any.downcast_ref().ok_or_else(|| GpuError::Foreign { name: memory.name().into() })
}

impl<'a> Span<'a> {
    /// The bytes of a view of a buffer.
    ///
    /// # Errors
    /// If the buffer lies on the host, or on a device of another backend.
    pub fn of(slice: Slice<'a>) -> Result<Self, GpuError> {
        let Slice::Device(device) = slice else {
            return Err(GpuError::OnHost { dtype: slice.dtype(), len: slice.len() });
        };
        found(device.memory())?.span().range(device.bytes())
    }
}

impl<'a> SpanMut<'a> {
    /// The bytes of a view of a buffer.
    ///
    /// # Errors
    /// As [`Span::of`].
    pub fn of(slice: SliceMut<'a>) -> Result<Self, GpuError> {
        let SliceMut::Device(device) = slice else {
            return Err(GpuError::OnHost { dtype: slice.dtype(), len: slice.len() });
        };
        let (memory, bytes) = device.into_memory();
        let name = memory.name().to_owned();
        let any: &mut dyn Any = memory;
        let memory: &mut Memory = any.downcast_mut().ok_or(GpuError::Foreign { name })?;
        memory.span_mut().range(bytes)
    }
}

/// Memory of a stream, for buffers.
#[derive(Debug)]
struct Heap(Stream);

impl Allocator for Heap {
    fn alloc(&self, dtype: DType, len: usize) -> Result<Box<dyn DeviceMemory>, BufferError> {
        let name = format!("buffer of {len} {dtype}");
        Ok(Box::new(self.0.alloc(&name, dtype.bytes() * len)?))
    }
}

impl Stream {
    /// The place of buffers whose work this stream does.
    pub fn place(&self) -> Place {
        Place::Device(Arc::new(Heap(self.clone())))
    }
}
