//! Working memory of kernels, kept between calls: packed panels, tiles, partial sums.

use bytemuck::{Pod, Zeroable};
use std::sync::{Mutex, PoisonError};

/// One cache line.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// A list of idle pieces of memory. It holds as many pieces as were ever in use at once.
#[derive(Debug, Default)]
pub(crate) struct ScratchPool(Mutex<Vec<Vec<Line>>>);

/// A piece of memory, aligned to cache lines, that goes back to its pool when dropped.
#[derive(Debug)]
pub(crate) struct Scratch<'a> {
    pool: &'a ScratchPool,
    lines: Vec<Line>,
}

impl ScratchPool {
    /// Memory with arbitrary contents. It grows when [`Scratch::slice`] asks for more.
    pub(crate) fn take(&self) -> Scratch<'_> {
        let idle = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Scratch { pool: self, lines: idle.unwrap_or_default() }
    }
}

impl Scratch<'_> {
    /// `len` elements, contents arbitrary.
    pub(crate) fn slice<T: Pod>(&mut self, len: usize) -> &mut [T] {
        let lines = (len * size_of::<T>()).div_ceil(size_of::<Line>());
        if self.lines.len() < lines {
            self.lines.resize(lines, Line::zeroed());
        }
        &mut bytemuck::cast_slice_mut(&mut self.lines[..lines])[..len]
    }
}

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        self.pool.0.lock().unwrap_or_else(PoisonError::into_inner).push(lines);
    }
}

/// A slice that several threads write at disjoint places.
pub(crate) struct Split<'a, T> {
    start: *mut T,
    len: usize,
    borrow: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: it stands for the exclusive borrow it was made from; `range` demands disjointness.
unsafe impl<T: Send> Send for Split<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Split<'_, T> {}

impl<'a, T> Split<'a, T> {
    pub(crate) fn new(values: &'a mut [T]) -> Self {
        Self { start: values.as_mut_ptr(), len: values.len(), borrow: std::marker::PhantomData }
    }

    /// The first element.
    pub(crate) fn start(&self) -> *mut T {
        self.start
    }

    /// The elements in `range`.
    ///
    /// # Safety
    /// No two ranges that are alive at the same time may overlap.
    #[expect(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
    pub(crate) unsafe fn range(&self, range: std::ops::Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "invariant: range in bounds");
        // SAFETY: in bounds by the check above, exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}
