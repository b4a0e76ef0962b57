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
use crate::gemm::Operand;
use crate::isa::vectorised;
use crate::mask::Mask;
use crate::num::{Num, Real, max_row, sum_row};
use crate::{AttentionDropout, AttentionShape, Isa, KernelError, Qkv};
use std::fmt;
use std::ops::Range;
use trine_buffer::{Element, Slice};

/// Query rows of a tile: whole register tiles.
const QUERIES: usize = 96;
/// Keys of a tile.
const KEYS: usize = 128;

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

    /// The blocks of keys that some row of `queries` sees, as first keys.
    fn key_blocks(&self, sample: usize, queries: Range<usize>) -> impl Iterator<Item = usize> {
        let visible = |query| self.visible(sample, query);
        let first = queries.clone().map(|q| visible(q).start).min().unwrap_or(0);
        let end = queries.map(|q| visible(q).end).max().unwrap_or(0);
        (first / KEYS * KEYS..end).step_by(KEYS)
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

    /// Dropout factors (0 or 1 / keep probability) of one row for keys from `key` on, if any.
    fn factors<'f>(
        &self,
        isa: Isa,
        sample: usize,
        head: usize,
        query: usize,
        key: usize,
        out: &'f mut [T::Acc],
    ) -> Option<&'f [T::Acc]> {
        let mask = self.mask.as_ref()?;
        let position = self.shape.keys - self.shape.queries + query;
        mask.attention_row(isa, sample, self.first_head + head, position, key, out);
        Some(out)
    }
}

/// The part of `visible` inside a block of keys, relative to the block.
fn inside(visible: &Range<usize>, block: usize, keys: usize) -> Range<usize> {
    let start = visible.start.clamp(block, block + keys) - block;
    let end = visible.end.clamp(block, block + keys) - block;
    start..end.max(start)
}

/// Pieces of one scratch memory, each beginning on its own cache line.
struct Pieces<'a>(&'a mut [u8]);

impl<'a> Pieces<'a> {
    fn bytes<T: Element>(len: usize) -> usize {
        (len * size_of::<T>()).next_multiple_of(64)
    }

    fn take<T: Element>(&mut self, len: usize) -> &'a mut [T] {
        let (piece, rest) = std::mem::take(&mut self.0).split_at_mut(Self::bytes::<T>(len));
        self.0 = rest;
        &mut bytemuck::cast_slice_mut(piece)[..len]
    }
}

vectorised! {
    /// Takes scores into a running softmax: they become `e^(score · scale − max)`, `max` being the
    /// larger of theirs (times `scale`) and `old_max`. Gives `max`, the factor that earlier sums
    /// shrink by, and the sum.
    fn online<A: Real>(scores: &mut [A], scale: A, old_max: A) -> (A, A, A) {
        let max = (max_row(scores) * scale).larger(old_max);
        for score in scores.iter_mut() {
            *score = (*score * scale - max).exp();
        }
        (max, (old_max - max).exp(), sum_row(scores, |p| p))
    }

    /// Turns scores into `e^(score · scale − max)`.
    fn exponentials<A: Real>(scores: &mut [A], scale: A, max: A) {
        for score in scores {
            *score = (*score * scale - max).exp();
        }
    }

    fn multiply<A: Real>(values: &mut [A], factors: &[A]) {
        for (value, factor) in values.iter_mut().zip(factors) {
            *value = *value * *factor;
        }
    }

    fn scale_all<A: Real>(values: &mut [A], factor: A) {
        for value in values {
            *value = *value * factor;
        }
    }

    fn round<T: Num>(out: &mut [T], values: &[T::Acc], factor: T::Acc) {
        for (out, value) in out.iter_mut().zip(values) {
            *out = T::narrow(*value * factor);
        }
    }

    fn dot<T: Num>(a: &[T], b: &[T]) -> T::Acc {
        let mut lanes = [T::Acc::ZERO; crate::num::LANES];
        let (a_chunks, b_chunks) = (a.chunks(lanes.len()), b.chunks(lanes.len()));
        for (a, b) in a_chunks.zip(b_chunks) {
            for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
                *lane += a.widen() * b.widen();
            }
        }
        crate::num::sum_lanes(lanes)
    }

    /// dS = P · (dP · factor − D) · scale, in the compute type.
    fn score_gradient<T: Num>(
        ds: &mut [T],
        p: &[T::Acc],
        dp: &[T::Acc],
        factors: Option<&[T::Acc]>,
        delta: T::Acc,
        scale: T::Acc,
    ) {
        match factors {
            Some(factors) => {
                for (((ds, p), dp), factor) in ds.iter_mut().zip(p).zip(dp).zip(factors) {
                    *ds = T::narrow(*p * (*dp * *factor - delta) * scale);
                }
            }
            None => {
                for ((ds, p), dp) in ds.iter_mut().zip(p).zip(dp) {
                    *ds = T::narrow(*p * (*dp - delta) * scale);
                }
            }
        }
    }

    fn add_to<A: Real>(sum: &mut [A], values: &[A]) {
        for (sum, value) in sum.iter_mut().zip(values) {
            *sum += *value;
        }
    }
}

/// A factor of a tile product whose rows run along the summed dimension.
fn along<T>(data: &[T], stride: usize) -> Operand<'_, T> {
    Operand::along_k(data, stride)
}

/// A factor of a tile product whose rows run across the summed dimension.
fn across<T>(data: &[T], stride: usize) -> Operand<'_, T> {
    Operand::across_k(data, stride)
}
