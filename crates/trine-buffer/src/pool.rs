//! A recycling pool with exact accounting.

use crate::{Buf, BufferError, DType, buf::HostVec};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes held by a pool's buffers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// In buffers that somebody holds.
    pub bytes_in_use: usize,
    /// The most that was ever in use at once since the last [`Pool::reset_peak`].
    pub bytes_in_use_max: usize,
    /// In buffers that wait to be used again.
    pub bytes_idle: usize,
    /// How many times fresh memory had to be allocated.
    pub allocations: usize,
}

#[derive(Debug, Default)]
struct Inner {
    idle: BTreeMap<(DType, usize), Vec<HostVec>>,
    stats: PoolStats,
}

/// A pool of buffers, shared by the layers of one rank. Buffers are recycled by exact type and
/// length, because a training step asks for the same shapes again and again.
#[derive(Debug, Clone, Default)]
pub struct Pool(Arc<Mutex<Inner>>);

impl Pool {
    /// An empty pool.
    pub fn new() -> Self {
        Self::default()
    }

    // A panic while the lock is held cannot leave the lists inconsistent, so poison is ignored:
    // buffers must be droppable while another thread unwinds.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A buffer whose contents are arbitrary (zeros or an earlier use's values): for outputs that
    /// are written whole.
    ///
    /// # Errors
    /// None on the host today; device pools report exhaustion.
    pub fn alloc(&self, dtype: DType, len: usize) -> Result<Buf, BufferError> {
        let bytes = dtype.bytes() * len;
        let recycled = {
            let mut inner = self.lock();
            let found = inner.idle.get_mut(&(dtype, len)).and_then(Vec::pop);
            inner.stats.bytes_in_use += bytes;
            inner.stats.bytes_in_use_max =
                inner.stats.bytes_in_use_max.max(inner.stats.bytes_in_use);
            match found {
                Some(_) => inner.stats.bytes_idle -= bytes,
                None => inner.stats.allocations += 1,
            }
            found
        };
        let host = recycled.unwrap_or_else(|| HostVec::zeros(dtype, len));
        Ok(Buf::pooled(host, self.clone()))
    }

    /// A buffer of zeros.
    ///
    /// # Errors
    /// As [`Pool::alloc`].
    pub fn zeros(&self, dtype: DType, len: usize) -> Result<Buf, BufferError> {
        let mut buf = self.alloc(dtype, len)?;
        buf.slice_mut().zero();
        Ok(buf)
    }

    /// Takes memory for so many more buffers, so that [`Pool::alloc`] has it later.
    pub fn reserve(&self, dtype: DType, len: usize, buffers: usize) {
        let fresh = (0..buffers).map(|_| HostVec::zeros(dtype, len)).collect::<Vec<_>>();
        let mut inner = self.lock();
        inner.stats.bytes_idle += dtype.bytes() * len * buffers;
        inner.stats.allocations += buffers;
        inner.idle.entry((dtype, len)).or_default().extend(fresh);
    }

    /// What the pool holds now.
    pub fn stats(&self) -> PoolStats {
        self.lock().stats
    }

    /// Starts a new measurement of the peak.
    pub fn reset_peak(&self) {
        let mut inner = self.lock();
        inner.stats.bytes_in_use_max = inner.stats.bytes_in_use;
    }

    /// Frees all idle memory.
    pub fn trim(&self) {
        let mut inner = self.lock();
        inner.idle.clear();
        inner.stats.bytes_idle = 0;
    }

    pub(crate) fn recycle(&self, host: HostVec) {
        let key = (host.slice().dtype(), host.slice().len());
        let bytes = key.0.bytes() * key.1;
        let mut inner = self.lock();
        inner.stats.bytes_in_use -= bytes;
        inner.stats.bytes_idle += bytes;
        inner.idle.entry(key).or_default().push(host);
    }

    pub(crate) fn forget(&self, host: &HostVec) {
        self.lock().stats.bytes_in_use -= host.slice().bytes().len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_and_counted() {
        let pool = Pool::new();
        let a = pool.alloc(DType::F32, 8).unwrap();
        let b = pool.alloc(DType::F32, 8).unwrap();
        drop(a);
        let c = pool.alloc(DType::F32, 8).unwrap();
        let d = pool.alloc(DType::Bf16, 8).unwrap();
        let expected =
            PoolStats { bytes_in_use: 80, bytes_in_use_max: 80, bytes_idle: 0, allocations: 3 };
        assert_eq!(pool.stats(), expected);
        drop((b, c));
        assert_eq!(d.into_vec::<half::bf16>().unwrap().len(), 8);
        let expected =
            PoolStats { bytes_in_use: 0, bytes_in_use_max: 80, bytes_idle: 64, allocations: 3 };
        assert_eq!(pool.stats(), expected);
        pool.trim();
        assert_eq!(pool.stats().bytes_idle, 0);
    }

    #[test]
    fn what_is_reserved_is_there_for_later() {
        let pool = Pool::new();
        pool.reserve(DType::F32, 8, 2);
        pool.reserve(DType::F32, 8, 1);
        let expected =
            PoolStats { bytes_in_use: 0, bytes_in_use_max: 0, bytes_idle: 96, allocations: 3 };
        assert_eq!(pool.stats(), expected);
        let held: Vec<Buf> = (0..3).map(|_| pool.alloc(DType::F32, 8).unwrap()).collect();
        assert_eq!((pool.stats().allocations, pool.stats().bytes_idle), (3, 0));
        drop(held);
        pool.alloc(DType::F32, 8).unwrap();
        assert_eq!(pool.stats().allocations, 3);
    }

    #[test]
    fn zeros_clears_what_an_earlier_use_left() {
        let pool = Pool::new();
        let mut dirty = pool.alloc(DType::U32, 2).unwrap();
        dirty.typed_mut::<u32>().unwrap().fill(9);
        drop(dirty);
        assert_eq!(pool.zeros(DType::U32, 2).unwrap().typed::<u32>().unwrap(), [0, 0]);
    }
}
