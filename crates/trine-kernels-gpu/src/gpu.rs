//! The stream, its kernels and products, and the grids that kernels run on.

use crate::kernels::Kernels;
use crate::views::failed;
use std::sync::{Mutex, MutexGuard, PoisonError};
use trine_buffer::Place;
use trine_gpu::{Arg, GpuError, Grid, Memory, Pool, Products, Stream};
use trine_kernels::KernelError;

/// Threads of a block whose threads have nothing to do with each other.
const THREADS: usize = 256;
/// The most blocks of such a kernel: its threads go on to the next elements. Enough for every device at once.
const BLOCKS_MAX: usize = 4096;
/// The most blocks in a grid's second direction.
const BLOCKS_Y_MAX: usize = 65_535;
/// The most blocks that have rows: they go on to the next ones.
const ROW_BLOCKS_MAX: usize = 1 << 20;
/// Elements that a thread of a block with a row is there for, if there are not too few or too many.
const ELEMENTS_PER_THREAD: usize = 8;
/// The most threads of such a block.
const ROW_THREADS_MAX: usize = 512;
/// Elements that the kernels of `vectors.cuh` read at once.
const TOGETHER: usize = 4;
/// Threads that go on together.
const WARP: usize = 32;

/// Kernels on a stream.
#[derive(Debug)]
pub struct GpuOps {
    stream: Stream,
    kernels: Kernels,
    /// None: products are made by kernels of this crate.
    products: Option<Mutex<Products>>,
    /// Partial sums and the like: of the same sizes in each step.
    pool: Pool,
    pub(crate) place: Place,
}

impl GpuOps {
    /// Work on a stream by kernels of its device and products on the same stream.
    pub fn new(stream: &Stream, kernels: Kernels, products: Products) -> Self {
        Self::with(stream, kernels, Some(products))
    }

    /// The same with products in the order of the CPU's kernels: slower, and with the same bits in every layout. No
    /// library is needed.
    pub fn in_order(stream: &Stream, kernels: Kernels) -> Self {
        Self::with(stream, kernels, None)
    }

    fn with(stream: &Stream, kernels: Kernels, products: Option<Products>) -> Self {
        let (pool, place) = (Pool::new(stream), stream.place());
        Self { stream: stream.clone(), kernels, products: products.map(Mutex::new), pool, place }
    }

    /// The stream of all work.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Where partial sums come from.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Memory for partial sums, with arbitrary contents.
    pub(crate) fn scratch(&self, name: &str, bytes: usize) -> Result<Memory, KernelError> {
        self.pool.alloc(name, bytes).map_err(failed)
    }

    /// Products of the library, for one call at a time. A panic in between leaves at most a plan that nobody uses.
    pub(crate) fn products(&self) -> Option<MutexGuard<'_, Products>> {
        self.products.as_ref().map(|all| all.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Runs a kernel.
    ///
    /// # Safety
    /// The arguments hold what the kernel's comment asks for.
    pub(crate) unsafe fn launch(
        &self,
        name: &str,
        grid: Grid,
        args: &[Arg<'_>],
    ) -> Result<(), GpuError> {
        // SAFETY: the caller's promise.
        unsafe { self.kernels.launch(&self.stream, name, grid, args) }
    }

    /// Runs a kernel for arguments that `checks` has held against each other.
    ///
    /// # Safety
    /// As [`GpuOps::launch`].
    pub(crate) unsafe fn run(
        &self,
        name: &str,
        grid: Grid,
        args: &[Arg<'_>],
    ) -> Result<(), KernelError> {
        // SAFETY: the caller's promise.
        unsafe { self.launch(name, grid, args) }.map_err(failed)
    }
}

/// Threads for so many elements, each by itself.
pub(crate) fn elements(len: usize) -> Grid {
    Grid::line(len.div_ceil(THREADS).clamp(1, BLOCKS_MAX) as u32, THREADS as u32)
}

/// Threads for the elements of a vector, which go to each thread four at a time where they can be read so.
pub(crate) fn vector(len: usize) -> Grid {
    elements(len.div_ceil(TOGETHER))
}

/// The same for the rows of a matrix.
pub(crate) fn vectors(rows: usize, cols: usize) -> Grid {
    matrix(rows, cols.div_ceil(TOGETHER))
}

/// Threads for the elements of a matrix: columns in the first direction, rows in the second.
pub(crate) fn matrix(rows: usize, cols: usize) -> Grid {
    let threads = cols.next_multiple_of(WARP).clamp(WARP, THREADS);
    let columns = cols.div_ceil(threads).clamp(1, BLOCKS_MAX);
    Grid {
        blocks: [columns as u32, rows.clamp(1, BLOCKS_Y_MAX) as u32, 1],
        ..Grid::line(1, threads as u32)
    }
}

/// A block for each of so many rows, or parts of rows, that are `width` long. Its threads depend on the width alone, as
/// the order of a sum does.
pub(crate) fn rows(count: usize, width: usize) -> Grid {
    let threads = width.div_ceil(ELEMENTS_PER_THREAD).next_multiple_of(WARP);
    let threads = threads.clamp(WARP, ROW_THREADS_MAX);
    Grid::line(count.clamp(1, ROW_BLOCKS_MAX) as u32, threads as u32)
}
