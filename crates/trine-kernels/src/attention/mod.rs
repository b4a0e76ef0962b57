//! Causal attention in tiles (arXiv 2205.14135): scores exist for one block of queries and one block
//! of keys at a time.
//!
//! Blocks of keys begin at positions that are multiples of [`KEYS`], so the order of a row's sums
//! depends on the row's position only, not on which rows or which other keys a call holds or which
//! thread computes them. Keys that a row does not see enter as exact zeros, which change no sum. As on
//! GPUs, probabilities are rounded to the compute type before they meet the values, their sum is not.

mod backward;
mod forward;
mod merge;
mod shape;

pub(crate) use backward::attention_backward;
pub(crate) use forward::attention;
pub(crate) use merge::attention_merge;
pub use shape::{AttentionDropout, AttentionShape};

use crate::check::{Mat, typed};
use crate::gemm::Factor;
use crate::mask::Mask;
use crate::num::Num;
use crate::scratch::Scratch;
use crate::{Isa, KernelError, Qkv};
use std::ops::Range;
use trine_buffer::Slice;

/// Keys of a block.
const KEYS: usize = 256;

/// The checked inputs of an attention.
struct Problem<'a, T: Num> {
    shape: AttentionShape,
    q: Mat<'a, T>,
    k: Mat<'a, T>,
    v: Mat<'a, T>,
    document_start: Option<&'a [u32]>,
    mask: Option<Mask>,
    first_head: usize,
    /// Positions that a query sees, more than there are where there is no window.
    window: usize,
}

impl<'a, T: Num> Problem<'a, T> {
    fn new(
        op: &'static str,
        shape: AttentionShape,
        qkv: Qkv<'a>,
        document_start: Option<Slice<'a>>,
        dropout: Option<AttentionDropout>,
    ) -> Result<Self, KernelError> {
        let q = Mat::<T>::new(op, "q", qkv.q)?;
        let k = Mat::<T>::new(op, "k", qkv.k)?;
        let v = Mat::<T>::new(op, "v", qkv.v)?;
        let document_start =
            document_start.map(|starts| typed::<u32>(op, "document_start", starts)).transpose()?;
        let first_head = dropout.map_or(0, |d| d.first_head);
        let mask = dropout.map(|d| Mask::new(op, d.dropout)).transpose()?;
        let window = shape.window.unwrap_or(usize::MAX);
        Ok(Self { shape, q, k, v, document_start, mask, first_head, window })
    }

    /// The keys that a query row sees: from the start of its document or window to itself, as far as
    /// the call has them.
    fn visible(&self, sample: usize, query: usize) -> Range<usize> {
        let AttentionShape { queries, keys, query_start, key_start, .. } = self.shape;
        let own = query_start + query;
        let document = self
            .document_start
            .map_or(0, |starts| (starts[sample * queries + query] as usize).min(own));
        let first = document.max((own + 1).saturating_sub(self.window));
        let end = (own + 1).saturating_sub(key_start).min(keys);
        first.saturating_sub(key_start).min(end)..end
    }

    /// The keys that some row of `queries` sees, from the beginning of a block.
    fn key_range(&self, sample: usize, queries: Range<usize>) -> Range<usize> {
        let end = self.visible(sample, queries.end - 1).end;
        let first = match self.document_start {
            Some(_) => queries.map(|query| self.visible(sample, query).start).min().unwrap_or(end),
            // A later query sees from the same key on, or from a later one.
            None => self.visible(sample, queries.start).start,
        };
        let block = self.blocks(&(first..end)).start;
        if first == end { end..end } else { self.block(block, end).start..end }
    }

    /// The blocks in which `keys` lie, counted from that of the call's first key.
    fn blocks(&self, keys: &Range<usize>) -> Range<usize> {
        let before = self.shape.key_start % KEYS;
        let first = (before + keys.start) / KEYS;
        if keys.is_empty() { first..first } else { first..(before + keys.end).div_ceil(KEYS) }
    }

    /// The keys of a block, as far as they lie before `end`.
    fn block(&self, block: usize, end: usize) -> Range<usize> {
        let before = self.shape.key_start % KEYS;
        let start = (block * KEYS).saturating_sub(before);
        start..((block + 1) * KEYS - before).min(end)
    }

    fn kv_head(&self, head: usize) -> usize {
        head / (self.shape.heads / self.shape.kv_heads)
    }

    /// The queries of one head from `query` on.
    fn q_at(&self, sample: usize, query: usize, head: usize) -> &'a [T] {
        let row = sample * self.shape.queries + query;
        &self.q.data[row * self.q.stride + head * self.shape.head_dim..]
    }

    fn k_at(&self, sample: usize, key: usize, kv_head: usize) -> &'a [T] {
        let row = sample * self.shape.keys + key;
        &self.k.data[row * self.k.stride + kv_head * self.shape.head_dim..]
    }

    fn v_at(&self, sample: usize, key: usize, kv_head: usize) -> &'a [T] {
        let row = sample * self.shape.keys + key;
        &self.v.data[row * self.v.stride + kv_head * self.shape.head_dim..]
    }

    /// The place of `lse` and of other values of (sample, head, query).
    fn stat(&self, sample: usize, head: usize, query: usize) -> usize {
        (sample * self.shape.heads + head) * self.shape.queries + query
    }

    /// Dropout factors (0 or 1 / keep probability) of a tile's rows, for keys from `key` on, in rows
    /// of [`KEYS`].
    fn factors(
        &self,
        isa: Isa,
        mask: &Mask,
        (sample, head): (usize, usize),
        queries: Range<usize>,
        key: usize,
        out: &mut [T::Acc],
    ) {
        let AttentionShape { query_start, key_start, .. } = self.shape;
        let (head, key) = (self.first_head + head, key_start + key);
        for (query, out) in queries.zip(out.chunks_exact_mut(KEYS)) {
            mask.attention_row(isa, sample, head, query_start + query, key, out);
        }
    }
}

/// The part of `visible` inside a block of keys, relative to the block.
fn inside(visible: &Range<usize>, block: &Range<usize>) -> Range<usize> {
    let within = |key: usize| key.saturating_sub(block.start).min(block.len());
    within(visible.start)..within(visible.end)
}

/// Cuts a piece of memory, each part beginning on its own cache line.
fn cut<'a, const N: usize>(scratch: &'a mut Scratch<'_>, bytes: [usize; N]) -> [&'a mut [u8]; N] {
    let lines = bytes.map(|bytes| bytes.next_multiple_of(64));
    let mut rest = scratch.slice::<u8>(lines.iter().sum());
    lines.map(|len| {
        let (part, behind) = std::mem::take(&mut rest).split_at_mut(len);
        rest = behind;
        part
    })
}

/// Memory for packed blocks of a factor.
struct Blocks<'a> {
    panels: &'a mut [u8],
    bytes: usize,
}

impl<'a> Blocks<'a> {
    /// The bytes of a block, on whole cache lines.
    fn lines(bytes: usize) -> usize {
        bytes.next_multiple_of(64)
    }

    /// Room for blocks of `bytes`.
    fn new(panels: &'a mut [u8], bytes: usize) -> Self {
        Self { panels, bytes: Self::lines(bytes) }
    }

    fn room(&mut self, block: usize) -> &mut [u8] {
        &mut self.panels[block * self.bytes..][..self.bytes]
    }

    /// A block that was packed with `k`.
    fn get(&self, block: usize, k: usize) -> Factor<'_> {
        Factor::panels(&self.panels[block * self.bytes..][..self.bytes], k)
    }
}
