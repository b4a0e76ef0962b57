//! Working memory of kernels, kept between calls: packed panels, tiles, partial sums.

use bytemuck::{Pod, Zeroable};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// One cache line.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Levels with a list of their own; those above share the last one.
const LEVELS: usize = 8;

/// Idle pieces of memory, by level: how many pieces the thread that takes one holds already.
///
/// Pieces of a level are all as long as the longest that was ever asked for, and there is one for each
/// thread as soon as one thread has asked: whichever thread finds the first work of a later call has
/// its memory already.
#[derive(Debug)]
pub(crate) struct ScratchPool {
    threads: usize,
    levels: [Mutex<Level>; LEVELS],
}

#[derive(Debug, Default)]
struct Level {
    idle: Vec<Vec<Line>>,
    /// Pieces that there are, idle or not.
    made: usize,
    /// Lines of each.
    len: usize,
}

/// A piece of memory, aligned to cache lines, that goes back to its pool when dropped.
#[derive(Debug)]
pub(crate) struct Scratch<'a> {
    level: &'a Mutex<Level>,
    threads: usize,
    lines: Vec<Line>,
}

fn lock(level: &Mutex<Level>) -> MutexGuard<'_, Level> {
    level.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lengthens a piece. What it held is not kept.
fn grow(lines: &mut Vec<Line>, len: usize) {
    if lines.len() < len {
        *lines = vec![Line::zeroed(); len];
    }
}

impl ScratchPool {
    /// Memory for the kernels of a team of `threads` threads.
    pub(crate) fn new(threads: usize) -> Self {
        Self { threads, levels: Default::default() }
    }

    /// Memory with arbitrary contents, for a thread that holds no other piece. It grows when
    /// [`Scratch::slice`] asks for more.
    pub(crate) fn take(&self) -> Scratch<'_> {
        self.take_beside(0)
    }

    /// The same for a thread that holds `pieces` others.
    pub(crate) fn take_beside(&self, pieces: usize) -> Scratch<'_> {
        let level = &self.levels[pieces.min(LEVELS - 1)];
        let mut state = lock(level);
        let lines = state.idle.pop().unwrap_or_else(|| {
            state.made += 1;
            Vec::new()
        });
        drop(state);
        Scratch { level, threads: self.threads, lines }
    }
}

impl Scratch<'_> {
    /// `len` elements, contents arbitrary.
    pub(crate) fn slice<T: Pod>(&mut self, len: usize) -> &mut [T] {
        let lines = (len * size_of::<T>()).div_ceil(size_of::<Line>());
        if self.lines.len() < lines {
            self.reserve(lines);
        }
        &mut bytemuck::cast_slice_mut(&mut self.lines[..lines])[..len]
    }

    /// Lengthens this piece and the idle ones; those that others hold grow when they come back.
    fn reserve(&mut self, lines: usize) {
        let mut level = lock(self.level);
        level.len = level.len.max(lines);
        let len = level.len;
        while level.made < self.threads {
            level.made += 1;
            level.idle.push(Vec::new());
        }
        level.idle.iter_mut().for_each(|piece| grow(piece, len));
        drop(level);
        grow(&mut self.lines, len);
    }
}

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        let mut lines = std::mem::take(&mut self.lines);
        let mut level = lock(self.level);
        grow(&mut lines, level.len);
        level.idle.push(lines);
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Lengths of the idle pieces of a level.
    fn idle(pool: &ScratchPool, level: usize) -> Vec<usize> {
        lock(&pool.levels[level]).idle.iter().map(Vec::len).collect()
    }

    #[test]
    fn what_one_thread_has_asked_for_is_there_for_all() {
        let pool = ScratchPool::new(3);
        pool.take().slice::<u8>(64 * 10)[639] = 1;
        assert_eq!(idle(&pool, 0), [10; 3]);
        let (mut first, second) = (pool.take(), pool.take());
        // Longer, while another thread holds a piece: it grows when it comes back.
        assert_eq!(first.slice::<f64>(8 * 12).len(), 96);
        assert_eq!(idle(&pool, 0), [12]);
        drop(second);
        drop(first);
        assert_eq!(idle(&pool, 0), [12; 3]);
        // What is shorter changes nothing; a level has lengths of its own.
        pool.take().slice::<u8>(1);
        let outer = pool.take();
        assert_eq!(pool.take_beside(1).slice::<u8>(65).len(), 65);
        drop(outer);
        assert_eq!((idle(&pool, 0), idle(&pool, 1)), (vec![12; 3], vec![2; 3]));
        assert_eq!(idle(&pool, 2), [0; 0]);
    }

    #[test]
    fn more_pieces_than_threads_are_made_when_they_are_taken() {
        let pool = ScratchPool::new(1);
        let mut pieces = [pool.take(), pool.take()];
        pieces[1].slice::<u8>(100);
        drop(pieces);
        assert_eq!(idle(&pool, 0), [2; 2]);
        // Levels beyond the last one share it.
        pool.take_beside(LEVELS).slice::<u8>(1);
        pool.take_beside(LEVELS + 1).slice::<u8>(1);
        assert_eq!(idle(&pool, LEVELS - 1), [1]);
    }
}
