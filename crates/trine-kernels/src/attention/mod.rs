//! Causal attention in tiles (arXiv 2205.14135): scores exist for one block of queries and one block
//! of keys at a time.
//!
//! Blocks of keys begin at multiples of [`KEYS`], so the order of a row's sums depends on the row's
//! position only, not on which rows a call covers or which thread computes them. Keys that a row
//! does not see enter as exact zeros, which change no sum. As on GPUs, probabilities are rounded to
//! the compute type before they meet the values, their sum is not.

mod backward;
mod forward;

pub(crate) use backward::attention_backward;
pub(crate) use forward::attention;

use crate::check::{Mat, dims, length, typed};
use crate::gemm::Factor;
use crate::mask::Mask;
use crate::num::Num;
use crate::scratch::Scratch;
use crate::{AttentionDropout, AttentionShape, Isa, KernelError, Qkv};
use std::fmt;
use std::ops::Range;
use trine_buffer::Slice;

/// Keys of a tile.
const KEYS: usize = 256;

impl fmt::Display for AttentionShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} samples of {} queries and {} keys, {} heads and {} key heads of {}",
            self.samples, self.queries, self.keys, self.heads, self.kv_heads, self.head_dim
        )
    }
}

/// The checked inputs of an attention.
struct Problem<'a, T: Num> {
    shape: AttentionShape,
    q: Mat<'a, T>,
    k: Mat<'a, T>,
    v: Mat<'a, T>,
    document_start: Option<&'a [u32]>,
    mask: Option<Mask>,
    first_head: usize,
}

impl<'a, T: Num> Problem<'a, T> {
    fn new(
        op: &'static str,
        shape: AttentionShape,
        qkv: Qkv<'a>,
        document_start: Option<Slice<'a>>,
        dropout: Option<AttentionDropout>,
    ) -> Result<Self, KernelError> {
        let AttentionShape { samples, queries, keys, heads, kv_heads, head_dim, scale } = shape;
        dims(op, kv_heads > 0 && heads.is_multiple_of(kv_heads), || {
            format!("{heads} query heads do not share {kv_heads} key heads evenly")
        })?;
        dims(op, queries <= keys, || format!("{queries} queries but only {keys} keys"))?;
        dims(op, scale > 0.0 && scale.is_finite(), || format!("a scale of {scale}"))?;
        let (rows, kv_cols) = (samples * keys, kv_heads * head_dim);
        let q = Mat::<T>::new(op, "q", qkv.q)?;
        let k = Mat::<T>::new(op, "k", qkv.k)?;
        let v = Mat::<T>::new(op, "v", qkv.v)?;
        let q_shape = (samples * queries, heads * head_dim);
        crate::check::same_shape(op, "q", q.shape(), q_shape)?;
        crate::check::same_shape(op, "k", k.shape(), (rows, kv_cols))?;
        crate::check::same_shape(op, "v", v.shape(), (rows, kv_cols))?;
        let document_start =
            document_start.map(|starts| typed::<u32>(op, "document_start", starts)).transpose()?;
        if let Some(starts) = document_start {
            length(op, "document_start", starts.len(), samples * queries, shape)?;
        }
        let first_head = dropout.map_or(0, |d| d.first_head);
        let mask = dropout.map(|d| Mask::new(op, d.dropout)).transpose()?;
        Ok(Self { shape, q, k, v, document_start, mask, first_head })
    }

    /// The keys that a query row sees: from the start of its document to itself.
    fn visible(&self, sample: usize, query: usize) -> Range<usize> {
        let own = self.shape.keys - self.shape.queries + query;
        let start = self
            .document_start
            .map_or(0, |starts| (starts[sample * self.shape.queries + query] as usize).min(own));
        start..own + 1
    }

    /// The keys that some row of `queries` sees, from the beginning of a block.
    fn key_range(&self, sample: usize, queries: Range<usize>) -> Range<usize> {
        let end = self.visible(sample, queries.end - 1).end;
        let first = queries.map(|query| self.visible(sample, query).start).min().unwrap_or(0);
        first / KEYS * KEYS..end
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
        let first = self.shape.keys - self.shape.queries;
        for (query, out) in queries.zip(out.chunks_exact_mut(KEYS)) {
            mask.attention_row(isa, sample, self.first_head + head, first + query, key, out);
        }
    }
}

/// The part of `visible` inside a block of keys, relative to the block.
fn inside(visible: &Range<usize>, block: usize, keys: usize) -> Range<usize> {
    let start = visible.start.clamp(block, block + keys) - block;
    let end = visible.end.clamp(block, block + keys) - block;
    start..end.max(start)
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
