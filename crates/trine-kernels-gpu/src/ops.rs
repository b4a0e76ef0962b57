//! The stream, its kernels, and how both are used.

use crate::kernels::Kernels;
use trine_gpu::{Arg, GpuError, Grid, Pool, Stream};

/// Threads of a block whose threads have nothing to do with each other.
const THREADS: u32 = 256;
/// The most blocks of such a kernel: its threads go on to the next elements. Enough for every device at once.
const BLOCKS_MAX: usize = 4096;

/// Kernels on a stream.
#[derive(Debug)]
pub struct GpuOps {
    stream: Stream,
    kernels: Kernels,
    /// Partial sums and the like: of the same sizes in each step.
    pool: Pool,
}

impl GpuOps {
    /// Work on a stream by kernels of its device.
    pub fn new(stream: &Stream, kernels: Kernels) -> Self {
        Self { stream: stream.clone(), kernels, pool: Pool::new(stream) }
    }

    /// The stream of all work.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Where partial sums come from.
    pub fn pool(&self) -> &Pool {
        &self.pool
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
}

/// Threads for so many elements, each by itself.
pub(crate) fn elements(len: usize) -> Grid {
    Grid::line(len.div_ceil(THREADS as usize).clamp(1, BLOCKS_MAX) as u32, THREADS)
}
