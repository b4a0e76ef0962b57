//! Device memory behind the buffers of `trine-buffer`.

use crate::error::GpuError;
use crate::memory::{Memory, Span, SpanMut};
use crate::pinned::Pinned;
use crate::stream::{Stream, Timestamp};
use std::any::Any;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use trine_buffer::{
    Allocator, BufferError, DType, DeviceMemory, DeviceStamp, Place, Slice, SliceMut,
};

impl From<GpuError> for BufferError {
    fn from(error: GpuError) -> Self {
        Self::Device(error.to_string())
    }
}

/// The least that is pinned at once.
const STAGING_BYTES_MIN: usize = 4096;

/// Memory of a stream, for buffers.
#[derive(Debug)]
struct Heap {
    stream: Stream,
    /// Pinned memory that copies from and to other memory of the host go through, to be used again.
    staging: Mutex<Vec<Pinned>>,
}

impl Heap {
    /// Pinned memory of at least so many bytes that no copy is using.
    fn staging(&self, bytes: usize) -> Result<Pinned, GpuError> {
        let mut all = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        for at in 0..all.len() {
            if all[at].len() >= bytes && all[at].is_idle()? {
                return Ok(all.swap_remove(at));
            }
        }
        self.stream.device().pinned(bytes.next_power_of_two().max(STAGING_BYTES_MIN))
    }

    fn give_back(&self, staging: Pinned) {
        self.staging.lock().unwrap_or_else(PoisonError::into_inner).push(staging);
    }
}

/// The memory of a buffer.
#[derive(Debug)]
struct Held {
    memory: Memory,
    heap: Arc<Heap>,
}

impl DeviceMemory for Held {
    fn name(&self) -> &str {
        self.memory.name()
    }

    fn zero(&mut self, bytes: Range<usize>) -> Result<(), BufferError> {
        Ok(self.heap.stream.fill(self.memory.span_mut().range(bytes)?, 0)?)
    }

    fn copy_from(
        &mut self,
        bytes: Range<usize>,
        from: &dyn DeviceMemory,
        from_bytes: Range<usize>,
    ) -> Result<(), BufferError> {
        let from = held(from)?.span().range(from_bytes)?;
        Ok(self.heap.stream.copy(self.memory.span_mut().range(bytes)?, from)?)
    }

    fn upload(&mut self, bytes: Range<usize>, from: &[u8]) -> Result<(), BufferError> {
        let (heap, len) = (&self.heap, from.len());
        let to = self.memory.span_mut().range(bytes)?;
        if to.bytes() != len {
            return Err(GpuError::Length { from: len, to: to.bytes() }.into());
        }
        let mut staging = heap.staging(len)?;
        staging.bytes()?[..len].copy_from_slice(from);
        heap.stream.upload(to, &mut staging, 0..len)?;
        heap.give_back(staging);
        Ok(())
    }

    fn download(&self, bytes: Range<usize>, to: &mut [u8]) -> Result<(), BufferError> {
        let (heap, len) = (&self.heap, to.len());
        let mut staging = heap.staging(len)?;
        heap.stream.download(&mut staging, 0..len, self.memory.span().range(bytes)?)?;
        to.copy_from_slice(&staging.bytes()?[..len]);
        heap.give_back(staging);
        Ok(())
    }
}

/// This backend's memory behind a buffer.
fn held(memory: &dyn DeviceMemory) -> Result<&Memory, GpuError> {
    let any: &dyn Any = memory;
    let found = any.downcast_ref().map(|held: &Held| &held.memory);
    found.ok_or_else(|| GpuError::Foreign { name: memory.name().into() })
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
        held(device.memory())?.span().range(device.bytes())
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
        let held: &mut Held = any.downcast_mut().ok_or(GpuError::Foreign { name })?;
        held.memory.span_mut().range(bytes)
    }
}

/// Gives memory of a heap.
#[derive(Debug)]
struct Giver(Arc<Heap>);

impl Allocator for Giver {
    fn alloc(&self, dtype: DType, len: usize) -> Result<Box<dyn DeviceMemory>, BufferError> {
        let (name, heap) = (format!("buffer of {len} {dtype}"), self.0.clone());
        let memory = heap.stream.alloc(&name, dtype.bytes() * len)?;
        Ok(Box::new(Held { memory, heap }))
    }

    fn stamp(&self) -> Result<Arc<dyn DeviceStamp>, BufferError> {
        Ok(Arc::new(self.0.stream.timestamp()?))
    }
}

impl DeviceStamp for Timestamp {
    fn wait(&self) -> Result<(), BufferError> {
        Ok(self.synchronize()?)
    }

    fn seconds_since(&self, earlier: &dyn DeviceStamp) -> Result<f64, BufferError> {
        let any: &dyn Any = earlier;
        let earlier: Option<&Self> = any.downcast_ref();
        let foreign = || BufferError::Device("a point in time of another backend".into());
        Ok(Timestamp::seconds_since(self, earlier.ok_or_else(foreign)?)?)
    }
}

impl Stream {
    /// A place of buffers whose work this stream does. Each has pinned memory of its own for copies from the host.
    pub fn place(&self) -> Place {
        let heap = Heap { stream: self.clone(), staging: Mutex::default() };
        Place::Device(Arc::new(Giver(Arc::new(heap))))
    }
}
