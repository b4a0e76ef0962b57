//! A recycling pool of device memory, in the order of one stream.

use crate::block::Block;
use crate::error::GpuError;
use crate::stream::Stream;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use trine_buffer::PoolStats;

#[derive(Debug, Default)]
struct Inner {
    idle: BTreeMap<usize, Vec<Block>>,
    stats: PoolStats,
}

/// Memory of one stream that is used again by exact size, because a step asks for the same sizes again and again.
/// What comes back is handed out at once: the stream's next work comes after its last. If another stream has used it,
/// this one must wait for it before the memory is used again, which the ledger looks at.
#[derive(Debug, Clone)]
pub struct Pool {
    stream: Stream,
    inner: Arc<Mutex<Inner>>,
}

impl Pool {
    /// An empty pool.
    pub fn new(stream: &Stream) -> Self {
        Self { stream: stream.clone(), inner: Arc::default() }
    }

    // A panic while the lock is held cannot leave the lists inconsistent: memory must be droppable while another
    // thread unwinds.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An idle block of this size, or a new one.
    pub(crate) fn take(&self, name: &str, bytes: usize) -> Result<Block, GpuError> {
        let idle = self.lock().idle.get_mut(&bytes).and_then(Vec::pop);
        let is_fresh = idle.is_none();
        let block = match idle {
            Some(block) => {
                block.rename(name);
                block
            }
            None => Block::new(&self.stream, name, bytes)?,
        };
        let stats = &mut self.lock().stats;
        stats.bytes_in_use += bytes;
        stats.bytes_in_use_max = stats.bytes_in_use_max.max(stats.bytes_in_use);
        stats.allocations += usize::from(is_fresh);
        stats.bytes_idle -= if is_fresh { 0 } else { bytes };
        Ok(block)
    }

    /// What the pool holds now.
    pub fn stats(&self) -> PoolStats {
        self.lock().stats
    }

    /// Frees all idle memory, in the order of the stream.
    pub fn trim(&self) {
        let mut inner = self.lock();
        inner.idle.clear();
        inner.stats.bytes_idle = 0;
    }

    pub(crate) fn recycle(&self, block: Block) {
        let mut inner = self.lock();
        inner.stats.bytes_in_use -= block.bytes;
        inner.stats.bytes_idle += block.bytes;
        inner.idle.entry(block.bytes).or_default().push(block);
    }
}
