//! The keys and values of tokens that a model has already seen.

use crate::NnError;
use std::sync::{Mutex, MutexGuard, PoisonError};
use trine_buffer::{Buf, BufferError, DType, Place};
use trine_kernels::{MatMut, MatRef, Ops, Qkv};

/// The keys and values of one sequence at every attention layer, so that its next tokens cost a pass
/// over themselves alone.
///
/// A forward pass with a cache in its [`Context`](crate::Context) continues the sequence behind its
/// first [`DecodeCache::position`] tokens. Whoever runs the pass says with [`DecodeCache::advance`]
/// that it is through: the position moves between passes only, so that all layers of a pass agree on
/// it, and a pass that failed can be run again.
///
/// ```
/// use trine_nn::DecodeCache;
///
/// let (layers, kv_cols, capacity) = (12, 64, 5);
/// let mut cache = DecodeCache::new(layers, kv_cols, capacity, trine_buffer::DType::F32);
/// cache.advance(3)?;
/// assert_eq!(cache.position(), 3);
/// assert!(cache.advance(3).is_err(), "there is room for two more");
/// cache.clear();
/// assert_eq!(cache.position(), 0);
/// # Ok::<(), trine_nn::NnError>(())
/// ```
#[derive(Debug)]
pub struct DecodeCache {
    /// `[capacity, k | v]` of each layer. Layers are shared and see a shared context, hence the locks;
    /// nobody ever waits for one.
    layers: Vec<Mutex<Buf>>,
    kv_cols: usize,
    capacity: usize,
    position: usize,
}

impl DecodeCache {
    /// An empty cache on the host for `capacity` tokens and `layers` attention layers with keys of `kv_cols`
    /// elements (and values of as many) in the compute type.
    pub fn new(layers: usize, kv_cols: usize, capacity: usize, compute: DType) -> Self {
        let made = Self::at(&Place::Host, layers, kv_cols, capacity, compute);
        made.expect("invariant: the host gives memory or ends the process")
    }

    /// [`DecodeCache::new`] at `place`.
    ///
    /// # Errors
    /// If a device has too little memory.
    pub fn at(
        place: &Place,
        layers: usize,
        kv_cols: usize,
        capacity: usize,
        compute: DType,
    ) -> Result<Self, BufferError> {
        let layer = |_| Ok(Mutex::new(place.zeros(compute, capacity * 2 * kv_cols)?));
        let layers: Result<_, BufferError> = (0..layers).map(layer).collect();
        Ok(Self { layers: layers?, kv_cols, capacity, position: 0 })
    }

    /// Tokens in the cache: the position of the next one.
    pub fn position(&self) -> usize {
        self.position
    }

    /// A pass over `tokens` tokens is through all layers: they count from now on.
    ///
    /// # Errors
    /// More tokens than there is room for.
    pub fn advance(&mut self, tokens: usize) -> Result<(), NnError> {
        self.position = self.end(tokens)?;
        Ok(())
    }

    /// Forgets all tokens.
    pub fn clear(&mut self) {
        self.position = 0;
    }

    /// The position behind `tokens` more tokens.
    fn end(&self, tokens: usize) -> Result<usize, NnError> {
        let end = self.position.checked_add(tokens).filter(|end| *end <= self.capacity);
        let (position, capacity) = (self.position, self.capacity);
        end.ok_or(NnError::CacheFull { tokens, position, capacity })
    }

    /// Writes the keys and values of a pass's tokens at a layer, `[tokens, k | v]`, behind those that
    /// are there.
    pub(crate) fn extend(
        &self,
        layer: usize,
        tokens: MatRef<'_>,
        ops: &dyn Ops,
    ) -> Result<CachedKv<'_>, NnError> {
        let layers = self.layers.len();
        let held = self.layers.get(layer).ok_or(NnError::CacheLayer { layer, layers })?;
        // What a panic elsewhere has left half-written is written anew by the next pass.
        let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
        let keys = self.end(tokens.rows)?;
        let all = MatMut::new(held.slice_mut(), self.capacity, 2 * self.kv_cols);
        ops.copy(all.rows(self.position..keys)?, tokens)?;
        Ok(CachedKv { held, keys, kv_cols: self.kv_cols })
    }
}

/// One layer's keys and values up to the end of the running pass.
pub(crate) struct CachedKv<'a> {
    held: MutexGuard<'a, Buf>,
    keys: usize,
    kv_cols: usize,
}

impl CachedKv<'_> {
    /// Number of tokens.
    pub(crate) fn keys(&self) -> usize {
        self.keys
    }

    /// What the queries `q` attend to.
    pub(crate) fn with_queries<'a>(&'a self, q: MatRef<'a>) -> Result<Qkv<'a>, NnError> {
        let (cols, values) = (self.kv_cols, self.kv_cols..2 * self.kv_cols);
        let used = self.held.slice().range(0..self.keys * 2 * cols)?;
        let all = MatRef::new(used, self.keys, 2 * cols);
        Ok(Qkv { q, k: all.columns(0..cols)?, v: all.columns(values)? })
    }
}
