//! An allocator for binaries that compute: large blocks on cache lines and on large pages.

use std::alloc::{GlobalAlloc, Layout, System};
use std::fmt::{self, Debug, Formatter};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Blocks of at least so many bytes begin on a cache line.
const ALIGNED_BYTES: usize = 4096;
const LINE_BYTES: usize = 64;
/// Blocks of at least so many bytes lie on large pages where the system has some to give.
const PAGE_BYTES: usize = 2 << 20;

/// The system's allocator with two habits for large blocks. They begin on a cache line: vectors and
/// tiles then load whole lines, and matrix products can read their factors in place. And from 2 MiB on
/// the system is asked for large pages, which spares a walk over gigabytes of weights most of its
/// address translations.
///
/// Kernels give the same numbers without it, more slowly. It also counts, so that a test can say that
/// a training step allocates nothing of size:
///
/// ```
/// use trine_kernels::LargeBlocks;
///
/// #[global_allocator]
/// static BLOCKS: LargeBlocks = LargeBlocks::new();
///
/// let before = BLOCKS.counted();
/// let block = vec![0u8; 1 << 20];
/// assert_eq!(BLOCKS.counted() - before, 1);
/// assert!(block.as_ptr().addr().is_multiple_of(64));
/// ```
#[derive(Default)]
pub struct LargeBlocks {
    counted: AtomicU64,
    refused: OnceLock<Refused>,
}

type Refused = Box<dyn Fn(usize) + Send + Sync>;

impl Debug for LargeBlocks {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "LargeBlocks({} counted)", self.counted())
    }
}

impl LargeBlocks {
    /// Blocks of more bytes than this are counted.
    pub const COUNTED_BYTES: usize = 64 << 10;

    /// For a `#[global_allocator]`.
    pub const fn new() -> Self {
        Self { counted: AtomicU64::new(0), refused: OnceLock::new() }
    }

    /// How many blocks of more than [`LargeBlocks::COUNTED_BYTES`] have been allocated.
    pub fn counted(&self) -> u64 {
        self.counted.load(Ordering::Relaxed)
    }

    /// Sets, once, what is called with the bytes of a block that the system refuses, before whoever asked for it is
    /// told. It may allocate, and may end the process with a message, where the standard library would abort.
    pub fn when_refused(&self, call: impl Fn(usize) + Send + Sync + 'static) {
        self.refused.get_or_init(|| Box::new(call));
    }

    /// A block as the system gave it; if it did not, that is told.
    fn given(&self, block: *mut u8, layout: Layout) -> *mut u8 {
        if let (true, Some(refused)) = (block.is_null(), self.refused.get()) {
            // An allocator must not unwind.
            let _ = catch_unwind(AssertUnwindSafe(|| refused(layout.size())));
        }
        block
    }
}

/// The layout that a block really has: a function of the layout asked for, so that it is known again
/// when the block is freed.
fn raised(layout: Layout) -> Layout {
    let align = match layout.size() {
        PAGE_BYTES.. => PAGE_BYTES,
        ALIGNED_BYTES.. => LINE_BYTES,
        _ => 1,
    };
    layout.align_to(align).unwrap_or(layout)
}

// SAFETY: `System`, with another layout that `dealloc` derives from the same arguments as `alloc`.
unsafe impl GlobalAlloc for LargeBlocks {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() > Self::COUNTED_BYTES {
            self.counted.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the caller's promise; the size is the same.
        let block = self.given(unsafe { System.alloc(raised(layout)) }, layout);
        if layout.size() >= PAGE_BYTES && !block.is_null() {
            ask_for_large_pages(block, layout.size());
        }
        block
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if layout.size() < PAGE_BYTES {
            if layout.size() > Self::COUNTED_BYTES {
                self.counted.fetch_add(1, Ordering::Relaxed);
            }
            // SAFETY: the caller's promise.
            return self.given(unsafe { System.alloc_zeroed(raised(layout)) }, layout);
        }
        // Pages must be asked for before they are touched.
        // SAFETY: the caller's promise; the block is as large as the layout says.
        unsafe {
            let block = self.alloc(layout);
            if !block.is_null() {
                block.write_bytes(0, layout.size());
            }
            block
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the layout that `alloc` used.
        unsafe { System.dealloc(block, raised(layout)) }
    }
}

/// A refusal changes nothing but speed.
#[cfg(all(target_os = "linux", not(miri)))]
fn ask_for_large_pages(block: *mut u8, bytes: usize) {
    // SAFETY: the block is ours and begins on a page; the advice changes no content.
    let advised = unsafe {
        rustix::mm::madvise(
            block.cast(),
            bytes / PAGE_BYTES * PAGE_BYTES,
            rustix::mm::Advice::LinuxHugepage,
        )
    };
    let _ = advised;
}

#[cfg(not(all(target_os = "linux", not(miri))))]
fn ask_for_large_pages(_: *mut u8, _: usize) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_all_sizes_are_aligned_zeroed_and_grow() {
        let blocks = LargeBlocks::new();
        let mut large = 0;
        for size in [1, 100, 4096, 70_000, (2 << 20) - 1, 5 << 20] {
            let layout = Layout::from_size_align(size, 8).unwrap();
            // SAFETY: the size is not 0; each block is freed with the layout it has.
            unsafe {
                let block = blocks.alloc_zeroed(layout);
                assert!((0..size).step_by(97).all(|at| block.add(at).read() == 0));
                assert!(block.addr().is_multiple_of(raised(layout).align()));
                block.add(size - 1).write(7);
                let grown = blocks.realloc(block, layout, 3 * size);
                assert_eq!(grown.add(size - 1).read(), 7);
                let layout = Layout::from_size_align(3 * size, 8).unwrap();
                assert!(grown.addr().is_multiple_of(raised(layout).align()));
                blocks.dealloc(grown, layout);
            }
            large += [size, 3 * size].iter().filter(|s| **s > LargeBlocks::COUNTED_BYTES).count();
        }
        assert_eq!((blocks.counted(), large), (6, 6));
    }

    #[test]
    fn a_block_that_is_refused_is_told_once_and_nothing_unwinds() {
        let blocks = LargeBlocks::new();
        let (told, count) = std::sync::mpsc::channel();
        blocks.when_refused(move |bytes| {
            told.send(bytes).unwrap();
            std::panic::resume_unwind(Box::new("a panic"));
        });
        blocks.when_refused(|_| panic!("the first counts"));
        let whole = usize::MAX / 2;
        for bytes in [whole - (4 << 20), 64] {
            let layout = Layout::from_size_align(bytes, 8).unwrap();
            // SAFETY: the size is not 0, and a block that there is is freed with its layout.
            unsafe {
                for block in [blocks.alloc(layout), blocks.alloc_zeroed(layout)] {
                    assert_eq!(block.is_null(), bytes > 64);
                    if !block.is_null() {
                        blocks.dealloc(block, layout);
                    }
                }
            }
        }
        assert_eq!(count.try_iter().collect::<Vec<_>>(), [whole - (4 << 20); 2]);
    }

    #[test]
    fn the_alignment_asked_for_is_kept() {
        let wide = Layout::from_size_align(8192, 4096).unwrap();
        assert_eq!(raised(wide).align(), 4096);
        assert_eq!(raised(Layout::from_size_align(16, 8).unwrap()).align(), 8);
    }
}
