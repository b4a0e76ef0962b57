//! What a device gives for its memory to be held by a buffer.

use crate::{Buf, BufferError, DType, DeviceStamp};
use std::any::Any;
use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

/// Memory of a device behind a [`Buf`]. Its backend finds its own type in it again, through [`Any`].
///
/// *Order.* Memory belongs to one queue of its device, such as a stream. Every method below works behind all that the
/// queue has been given before.
pub trait DeviceMemory: Any + Debug + Send + Sync {
    /// What it is for: for messages.
    fn name(&self) -> &str;

    /// Sets bytes to zero.
    ///
    /// # Errors
    /// If the device does not take it.
    fn zero(&mut self, bytes: Range<usize>) -> Result<(), BufferError>;

    /// Copies from memory of a device of the same backend.
    ///
    /// # Errors
    /// If the lengths differ, `from` is of another backend, or the device does not take it.
    fn copy_from(
        &mut self,
        bytes: Range<usize>,
        from: &dyn DeviceMemory,
        from_bytes: Range<usize>,
    ) -> Result<(), BufferError>;

    /// Copies from the host, which may change `from` as soon as this returns. Nobody waits for the device.
    ///
    /// # Errors
    /// If the lengths differ or the device does not take it.
    fn upload(&mut self, bytes: Range<usize>, from: &[u8]) -> Result<(), BufferError>;

    /// Copies to the host, which waits for the queue.
    ///
    /// # Errors
    /// If the lengths differ, or work of the device has failed.
    fn download(&self, bytes: Range<usize>, to: &mut [u8]) -> Result<(), BufferError>;
}

/// Gives memory of one queue of a device.
pub trait Allocator: Debug + Send + Sync {
    /// Memory for `len` elements, with arbitrary contents.
    ///
    /// # Errors
    /// If the device has too little left.
    fn alloc(&self, dtype: DType, len: usize) -> Result<Box<dyn DeviceMemory>, BufferError>;

    /// A point behind all work of the queue so far.
    ///
    /// # Errors
    /// If the device does not take it.
    fn stamp(&self) -> Result<Arc<dyn DeviceStamp>, BufferError>;
}

/// Where buffers lie.
#[derive(Debug, Clone, Default)]
pub enum Place {
    /// In the host's memory.
    #[default]
    Host,
    /// In memory of a device, of one of its queues.
    Device(Arc<dyn Allocator>),
}

impl Place {
    /// Whether the host can read and write what lies here.
    pub fn is_host(&self) -> bool {
        matches!(self, Self::Host)
    }

    /// A buffer of zeros here, outside any pool: weights, gradients, optimizer state.
    ///
    /// # Errors
    /// If the device has too little memory, or does not take the work.
    pub fn zeros(&self, dtype: DType, len: usize) -> Result<Buf, BufferError> {
        let mut buf = self.alloc(dtype, len)?;
        // Memory of the host is born as zeros, page by page when it is touched.
        if !self.is_host() {
            buf.slice_mut().zero()?;
        }
        Ok(buf)
    }

    /// A host's buffer here: itself on the host, else its copy.
    ///
    /// # Errors
    /// As [`Place::zeros`]; or if `buf` lies on a device.
    pub fn hold(&self, buf: Buf) -> Result<Buf, BufferError> {
        if self.is_host() {
            return Ok(buf);
        }
        let mut held = self.alloc(buf.dtype(), buf.len())?;
        held.slice_mut().copy_from(buf.slice())?;
        Ok(held)
    }

    /// A buffer outside any pool. On a device its contents are arbitrary.
    fn alloc(&self, dtype: DType, len: usize) -> Result<Buf, BufferError> {
        match self {
            Self::Host => Ok(Buf::zeros(dtype, len)),
            Self::Device(allocator) => Ok(Buf::on_device(allocator.alloc(dtype, len)?, dtype, len)),
        }
    }
}

/// A read-only view of elements on a device.
#[derive(Debug, Clone, Copy)]
pub struct DeviceSlice<'a> {
    memory: &'a dyn DeviceMemory,
    dtype: DType,
    start: usize,
    len: usize,
}

/// A writable view of elements on a device.
#[derive(Debug)]
pub struct DeviceSliceMut<'a> {
    memory: &'a mut dyn DeviceMemory,
    dtype: DType,
    start: usize,
    len: usize,
}

impl<'a> DeviceSlice<'a> {
    /// The whole of a memory, as elements.
    pub(crate) fn new(memory: &'a dyn DeviceMemory, dtype: DType, len: usize) -> Self {
        Self { memory, dtype, start: 0, len }
    }

    /// The memory that it looks at.
    pub fn memory(&self) -> &'a dyn DeviceMemory {
        self.memory
    }

    /// The elements' type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Elements in view.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is in view.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes in view, within the memory.
    pub fn bytes(&self) -> Range<usize> {
        let each = self.dtype.bytes();
        self.start * each..(self.start + self.len) * each
    }

    /// A part; the caller has checked it.
    pub(crate) fn part(self, range: Range<usize>) -> Self {
        Self { start: self.start + range.start, len: range.len(), ..self }
    }

    pub(crate) fn refused(&self) -> BufferError {
        BufferError::OnDevice { name: self.memory.name().to_owned() }
    }
}

impl<'a> DeviceSliceMut<'a> {
    /// The whole of a memory, as elements.
    pub(crate) fn new(memory: &'a mut dyn DeviceMemory, dtype: DType, len: usize) -> Self {
        Self { memory, dtype, start: 0, len }
    }

    /// The same view, read-only.
    pub fn as_slice(&self) -> DeviceSlice<'_> {
        let Self { dtype, start, len, .. } = *self;
        DeviceSlice { memory: &*self.memory, dtype, start, len }
    }

    /// The same view for a shorter time.
    pub(crate) fn reborrow(&mut self) -> DeviceSliceMut<'_> {
        let Self { dtype, start, len, .. } = *self;
        DeviceSliceMut { memory: &mut *self.memory, dtype, start, len }
    }

    /// The memory that it looks at, and the bytes in view within it.
    pub fn into_memory(self) -> (&'a mut dyn DeviceMemory, Range<usize>) {
        let bytes = self.as_slice().bytes();
        (self.memory, bytes)
    }

    /// A part; the caller has checked it.
    pub(crate) fn part(self, range: Range<usize>) -> Self {
        Self { start: self.start + range.start, len: range.len(), ..self }
    }
}
