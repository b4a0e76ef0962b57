//! A recycling pool with exact accounting.

use crate::buf::{HostVec, Storage};
use crate::{Buf, BufferError, DType, Place, Slice};
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
    idle: BTreeMap<(DType, usize), Vec<Storage>>,
    stats: PoolStats,
}

/// A pool of buffers, shared by the layers of one rank. Buffers are recycled by exact type and
/// length, because a training step asks for the same shapes again and again.
///
/// On a device, what comes back is handed out at once: the next work of its queue comes after its last.
#[derive(Debug, Clone, Default)]
pub struct Pool {
    place: Place,
    inner: Arc<Mutex<Inner>>,
}

impl Pool {
    /// An empty pool on the host.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty pool at `place`.
    pub fn on(place: Place) -> Self {
        Self { place, ..Self::default() }
    }

    /// Where its buffers lie.
    pub fn place(&self) -> &Place {
        &self.place
    }

    fn fresh(&self, dtype: DType, len: usize) -> Result<Storage, BufferError> {
        Ok(match &self.place {
            Place::Host => Storage::Host(HostVec::zeros(dtype, len)),
            Place::Device(device) => {
                Storage::Device { memory: device.alloc(dtype, len)?, dtype, len }
            }
        })
    }

    // A panic while the lock is held cannot leave the lists inconsistent, so poison is ignored:
    // buffers must be droppable while another thread unwinds.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A buffer whose contents are arbitrary (zeros or an earlier use's values): for outputs that
    /// are written whole.
    ///
    /// # Errors
    /// None on the host; a device may have too little memory left.
    pub fn alloc(&self, dtype: DType, len: usize) -> Result<Buf, BufferError> {
        let idle = self.lock().idle.get_mut(&(dtype, len)).and_then(Vec::pop);
        let is_fresh = idle.is_none();
        let storage = idle.map_or_else(|| self.fresh(dtype, len), Ok)?;
        let bytes = storage.size_bytes();
        let stats = &mut self.lock().stats;
        stats.bytes_in_use += bytes;
        stats.bytes_in_use_max = stats.bytes_in_use_max.max(stats.bytes_in_use);
        stats.allocations += usize::from(is_fresh);
        stats.bytes_idle -= if is_fresh { 0 } else { bytes };
        Ok(Buf::pooled(storage, self.clone()))
    }

    /// A buffer of zeros.
    ///
    /// # Errors
    /// As [`Pool::alloc`].
    pub fn zeros(&self, dtype: DType, len: usize) -> Result<Buf, BufferError> {
        let mut buf = self.alloc(dtype, len)?;
        buf.slice_mut().zero()?;
        Ok(buf)
    }

    /// Elements of the host in a buffer of the pool.
    ///
    /// # Errors
    /// As [`Pool::alloc`]; or if `from` lies on a device and the pool on the host.
    pub fn copy_of(&self, from: Slice<'_>) -> Result<Buf, BufferError> {
        let mut buf = self.alloc(from.dtype(), from.len())?;
        buf.slice_mut().copy_from(from)?;
        Ok(buf)
    }

    /// Takes memory for so many more buffers, so that [`Pool::alloc`] has it later.
    ///
    /// # Errors
    /// As [`Pool::alloc`].
    pub fn reserve(&self, dtype: DType, len: usize, buffers: usize) -> Result<(), BufferError> {
        let fresh: Result<Vec<_>, _> = (0..buffers).map(|_| self.fresh(dtype, len)).collect();
        let fresh = fresh?;
        let mut inner = self.lock();
        inner.stats.bytes_idle += dtype.bytes() * len * buffers;
        inner.stats.allocations += buffers;
        inner.idle.entry((dtype, len)).or_default().extend(fresh);
        Ok(())
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

    pub(crate) fn recycle(&self, storage: Storage) {
        let key = (storage.slice().dtype(), storage.slice().len());
        let bytes = storage.size_bytes();
        let mut inner = self.lock();
        inner.stats.bytes_in_use -= bytes;
        inner.stats.bytes_idle += bytes;
        inner.idle.entry(key).or_default().push(storage);
    }

    pub(crate) fn forget(&self, storage: &Storage) {
        self.lock().stats.bytes_in_use -= storage.size_bytes();
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
        pool.reserve(DType::F32, 8, 2).unwrap();
        pool.reserve(DType::F32, 8, 1).unwrap();
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
