//! Memory of a device, and views of it.

use crate::block::Block;
use crate::device::Device;
use crate::error::GpuError;
use crate::ledger::Touch;
use crate::pool::Pool;
use crate::stream::Stream;
use std::marker::PhantomData;
use std::ops::Range;
use trine_gpu_sys::driver::DevicePtr;

/// One exclusive allocation on a device. It is freed, or goes back to its [`Pool`], when it is dropped: in the order
/// of the stream that it was allocated on, which must come after all its uses.
#[derive(Debug)]
pub struct Memory {
    /// `None` after it has been dropped only.
    block: Option<Block>,
    name: String,
    pool: Option<Pool>,
}

impl Stream {
    /// Memory with no values yet, which errors call `name`, for work that comes after this point of the stream.
    ///
    /// # Errors
    /// If the device has too little left.
    pub fn alloc(&self, name: &str, bytes: usize) -> Result<Memory, GpuError> {
        Ok(Memory::new(Block::new(self, name, bytes)?, name, None))
    }
}

impl Pool {
    /// Memory whose contents are arbitrary, for outputs that are written whole; errors call it `name`.
    ///
    /// # Errors
    /// If nothing of this size is idle and the device has too little left.
    pub fn alloc(&self, name: &str, bytes: usize) -> Result<Memory, GpuError> {
        Ok(Memory::new(self.take(name, bytes)?, name, Some(self.clone())))
    }
}

impl Stream {
    /// Refuses memory of another device.
    pub(crate) fn holds(&self, span: Span<'_>) -> Result<(), GpuError> {
        let (held, asked) = (span.device().index(), self.device().index());
        if held == asked {
            return Ok(());
        }
        let (name, stream) = (span.name().into(), self.name().into());
        Err(GpuError::OtherDevice { name, held, stream, asked })
    }
}

impl Memory {
    fn new(block: Block, name: &str, pool: Option<Pool>) -> Self {
        Self { block: Some(block), name: name.into(), pool }
    }

    fn block(&self) -> &Block {
        self.block.as_ref().expect("invariant: only dropping takes the block away")
    }

    /// Its size in bytes.
    pub fn bytes(&self) -> usize {
        self.block().bytes
    }

    /// What it is for.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All of it, to be read.
    pub fn span(&self) -> Span<'_> {
        Span { memory: self, start: 0, bytes: self.bytes() }
    }

    /// All of it, to be written.
    pub fn span_mut(&mut self) -> SpanMut<'_> {
        let bytes = self.bytes();
        SpanMut { span: Span { memory: self, start: 0, bytes }, exclusive: PhantomData }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let (Some(pool), Some(block)) = (self.pool.take(), self.block.take()) {
            pool.recycle(block);
        }
    }
}

/// Bytes of a [`Memory`] that work may read.
#[derive(Debug, Clone, Copy)]
pub struct Span<'a> {
    memory: &'a Memory,
    start: usize,
    bytes: usize,
}

impl<'a> Span<'a> {
    /// Their number.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Their address, for work of a device.
    pub fn address(&self) -> DevicePtr {
        self.memory.block().address + self.start as DevicePtr
    }

    /// A part.
    ///
    /// # Errors
    /// If it ends beyond this one.
    pub fn range(self, range: Range<usize>) -> Result<Self, GpuError> {
        let Range { start, end } = range;
        if start > end || end > self.bytes {
            let name = self.memory.name.clone();
            return Err(GpuError::Range { name, start, end, bytes: self.bytes });
        }
        Ok(Self { start: self.start + start, bytes: end - start, ..self })
    }

    /// The stream that their memory is allocated and freed on.
    pub fn stream(&self) -> &'a Stream {
        &self.memory.block().stream
    }

    pub(crate) fn name(&self) -> &'a str {
        &self.memory.name
    }

    pub(crate) fn device(&self) -> &'a Device {
        self.memory.block().stream.device()
    }

    pub(crate) fn touch(&self) -> Touch {
        let bytes = self.start..self.start + self.bytes;
        Touch { buffer: self.memory.block().buffer, bytes, writes: false }
    }
}

/// Bytes of a [`Memory`] that work may read and write.
#[derive(Debug)]
pub struct SpanMut<'a> {
    span: Span<'a>,
    exclusive: PhantomData<&'a mut Memory>,
}

impl<'a> SpanMut<'a> {
    /// Their number.
    pub fn bytes(&self) -> usize {
        self.span.bytes
    }

    /// Their address, for work of a device.
    pub fn address(&self) -> DevicePtr {
        self.span.address()
    }

    /// The same bytes, to be read.
    pub fn as_span(&self) -> Span<'_> {
        self.span
    }

    /// The same bytes for a shorter time, so that they can be used again afterwards.
    pub fn reborrow(&mut self) -> SpanMut<'_> {
        SpanMut { span: self.span, exclusive: PhantomData }
    }

    /// A part.
    ///
    /// # Errors
    /// If it ends beyond this one.
    pub fn range(self, range: Range<usize>) -> Result<Self, GpuError> {
        Ok(Self { span: self.span.range(range)?, exclusive: PhantomData })
    }

    /// The bytes before `at` and those from there on.
    ///
    /// # Errors
    /// If there are fewer.
    pub fn split_at(self, at: usize) -> Result<(Self, Self), GpuError> {
        let (first, second) = (self.span.range(0..at)?, self.span.range(at..self.span.bytes)?);
        let part = |span| Self { span, exclusive: PhantomData };
        Ok((part(first), part(second)))
    }

    pub(crate) fn name(&self) -> &'a str {
        self.span.name()
    }

    pub(crate) fn touch(&self) -> Touch {
        Touch { writes: true, ..self.span.touch() }
    }
}
