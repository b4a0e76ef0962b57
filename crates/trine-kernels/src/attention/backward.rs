//! Attention backward: probabilities computed again, tile by tile.

use super::{
    KEYS, Pieces, Problem, QUERIES, across, add_to, along, dot, exponentials, inside, multiply,
    round, score_gradient,
};
use crate::check::{Mat, MatSplit, dims, length, same_shape, typed, with_num};
use crate::gemm::{Dims, GemmElement, Operand, Target};
use crate::num::{Num, Real};
use crate::scratch::Scratch;
use crate::view::check_sections;
use crate::{AttentionDropout, AttentionShape, CpuOps, KernelError, MatRef, Qkv, QkvMut};
use std::ops::Range;
use trine_buffer::{Float, Slice};

/// Where the three gradients are written.
enum Gradients<'a, T> {
    Fused { all: MatSplit<'a, T>, k: usize, v: usize },
    Separate { q: MatSplit<'a, T>, k: MatSplit<'a, T>, v: MatSplit<'a, T> },
}

/// Which of the three.
#[derive(Debug, Clone, Copy)]
enum Part {
    Query,
    Key,
    Value,
}

impl<'a, T: Num> Gradients<'a, T> {
    fn new(op: &'static str, shape: AttentionShape, d: QkvMut<'a>) -> Result<Self, KernelError> {
        let rows = shape.samples * shape.keys;
        let (q_cols, kv_cols) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
        match d {
            QkvMut::Fused(all) => {
                check_sections(op, all.cols, &[q_cols, kv_cols, kv_cols])?;
                same_shape(op, "d", (all.rows, all.cols), (rows, q_cols + 2 * kv_cols))?;
                let all = MatSplit::new(op, "d", all)?;
                Ok(Self::Fused { all, k: q_cols, v: q_cols + kv_cols })
            }
            QkvMut::Separate { q, k, v } => {
                same_shape(op, "d.q", (q.rows, q.cols), (rows, q_cols))?;
                same_shape(op, "d.k", (k.rows, k.cols), (rows, kv_cols))?;
                same_shape(op, "d.v", (v.rows, v.cols), (rows, kv_cols))?;
                let q = MatSplit::new(op, "d.q", q)?;
                let k = MatSplit::new(op, "d.k", k)?;
                Ok(Self::Separate { q, k, v: MatSplit::new(op, "d.v", v)? })
            }
        }
    }

    /// # Safety
    /// No two places that are alive at the same time may overlap.
    #[expect(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
    unsafe fn row(&self, part: Part, row: usize, cols: Range<usize>) -> &mut [T] {
        let (mat, offset) = match (self, part) {
            (Self::Fused { all, .. }, Part::Query) => (all, 0),
            (Self::Fused { all, k, .. }, Part::Key) => (all, *k),
            (Self::Fused { all, v, .. }, Part::Value) => (all, *v),
            (Self::Separate { q, .. }, Part::Query) => (q, 0),
            (Self::Separate { k, .. }, Part::Key) => (k, 0),
            (Self::Separate { v, .. }, Part::Value) => (v, 0),
        };
        // SAFETY: the caller's promise; the sections of a fused row do not overlap.
        unsafe { mat.part(row, cols.start + offset..cols.end + offset) }
    }
}

/// The working memory of one tile, and of one query head.
struct Tiles<'a, T: Num> {
    /// Scores, then probabilities: `[queries, KEYS]`.
    p: &'a mut [T::Acc],
    /// Gradient of the probabilities.
    dp: &'a mut [T::Acc],
    /// Probabilities, then the scores' gradient, rounded.
    p_rounded: &'a mut [T],
    ds: &'a mut [T],
    factors: &'a mut [T::Acc],
    /// Σ dO · O for each query of the head.
    delta: &'a mut [T::Acc],
    /// Unfinished gradient of the head's queries: `[queries, head_dim]`.
    dq: &'a mut [T::Acc],
}

impl<'a, T: Num> Tiles<'a, T> {
    fn new(scratch: &'a mut Scratch<'_>, seq: usize, head_dim: usize) -> Self {
        let (acc, own) = (Pieces::bytes::<T::Acc>, Pieces::bytes::<T>);
        let tile = QUERIES * KEYS;
        let bytes = 2 * acc(tile) + 2 * own(tile) + acc(KEYS) + acc(seq) + acc(seq * head_dim);
        let mut pieces = Pieces(scratch.slice(bytes));
        Self {
            p: pieces.take(tile),
            dp: pieces.take(tile),
            p_rounded: pieces.take(tile),
            ds: pieces.take(tile),
            factors: pieces.take(KEYS),
            delta: pieces.take(seq),
            dq: pieces.take(seq * head_dim),
        }
    }
}

/// The place of a tile.
#[derive(Debug, Clone, Copy)]
struct Place {
    sample: usize,
    head: usize,
    query: usize,
    rows: usize,
    key: usize,
    keys: usize,
}

struct Backward<'a, T: Num> {
    problem: Problem<'a, T>,
    d: Gradients<'a, T>,
    d_o: Mat<'a, T>,
    o: Mat<'a, T>,
    lse: &'a [T::Acc],
}

/// One product of a tile on the calling thread.
fn product<T: GemmElement>(
    cpu: &CpuOps,
    packing: &mut Scratch<'_>,
    (m, n, k): (usize, usize, usize),
    a: Operand<'_, T>,
    b: Operand<'_, T>,
    c: &mut [T::Acc],
    stride: usize,
    accumulate: bool,
) {
    assert!(c.len() >= (m - 1) * stride + n, "invariant: the tile fits");
    let target = Target { start: c.as_mut_ptr(), stride, accumulate };
    // SAFETY: `c` is exclusive and long enough.
    unsafe { T::gemm(cpu.isa, packing, Dims { m, n, k }, a, b, target) };
}

impl<T: GemmElement> Backward<'_, T> {
    /// All gradients of one key head of one sample.
    fn kv_head(&self, cpu: &CpuOps, sample: usize, kv_head: usize) {
        let AttentionShape { keys, heads, kv_heads, head_dim, .. } = self.problem.shape;
        let group = heads / kv_heads;
        let (mut memory, mut sums, mut packing) =
            (cpu.scratch.take(), cpu.scratch.take(), cpu.scratch.take());
        let mut tiles = Tiles::<T>::new(&mut memory, keys, head_dim);
        let sums = sums.slice::<T::Acc>(2 * keys * head_dim);
        let group = kv_head * group..(kv_head + 1) * group;
        self.tree(cpu, &mut packing, &mut tiles, sample, group, sums);
        let (dk, dv) = sums.split_at(keys * head_dim);
        let cols = kv_head * head_dim..(kv_head + 1) * head_dim;
        for (part, sums) in [(Part::Key, dk), (Part::Value, dv)] {
            for (key, sum) in sums.chunks_exact(head_dim).enumerate() {
                // SAFETY: each (row, key head) is written by one thread.
                let out = unsafe { self.d.row(part, sample * keys + key, cols.clone()) };
                round(cpu.isa, out, sum, T::Acc::ONE);
            }
        }
    }

    /// dK and dV, `[2, keys, head_dim]`, summed over a range of query heads in a tree that halves
    /// the range.
    fn tree(
        &self,
        cpu: &CpuOps,
        packing: &mut Scratch<'_>,
        tiles: &mut Tiles<'_, T>,
        sample: usize,
        heads: Range<usize>,
        sums: &mut [T::Acc],
    ) {
        if heads.len() == 1 {
            sums.fill(T::Acc::ZERO);
            return self.head(cpu, packing, tiles, sample, heads.start, sums);
        }
        let middle = heads.start + heads.len() / 2;
        self.tree(cpu, packing, tiles, sample, heads.start..middle, sums);
        let mut right = cpu.scratch.take();
        let right = right.slice::<T::Acc>(sums.len());
        self.tree(cpu, packing, tiles, sample, middle..heads.end, right);
        add_to(cpu.isa, sums, right);
    }

    /// The gradients of one query head: dQ to its place, dK and dV into `sums`.
    fn head(
        &self,
        cpu: &CpuOps,
        packing: &mut Scratch<'_>,
        tiles: &mut Tiles<'_, T>,
        sample: usize,
        head: usize,
        sums: &mut [T::Acc],
    ) {
        let AttentionShape { keys: seq, head_dim, .. } = self.problem.shape;
        let cols = head * head_dim..(head + 1) * head_dim;
        for (query, delta) in tiles.delta.iter_mut().enumerate() {
            let row = sample * seq + query;
            *delta = dot(cpu.isa, &self.d_o.row(row)[cols.clone()], &self.o.row(row)[cols.clone()]);
        }
        tiles.dq.fill(T::Acc::ZERO);
        for query in (0..seq).step_by(QUERIES) {
            let rows = QUERIES.min(seq - query);
            for key in self.problem.key_blocks(sample, query..query + rows) {
                let keys = KEYS.min(query + rows - key);
                let place = Place { sample, head, query, rows, key, keys };
                self.tile(cpu, packing, tiles, place, sums);
            }
        }
        for (query, dq) in tiles.dq.chunks_exact(head_dim).enumerate() {
            // SAFETY: each (row, query head) is written by one thread.
            let out = unsafe { self.d.row(Part::Query, sample * seq + query, cols.clone()) };
            round(cpu.isa, out, dq, T::Acc::ONE);
        }
    }

    fn tile(
        &self,
        cpu: &CpuOps,
        packing: &mut Scratch<'_>,
        tiles: &mut Tiles<'_, T>,
        place: Place,
        sums: &mut [T::Acc],
    ) {
        let Place { sample, head, query, rows, key, keys } = place;
        let problem = &self.problem;
        let AttentionShape { keys: seq, head_dim, .. } = problem.shape;
        let kv_head = problem.kv_head(head);
        let (q, q_stride) = (problem.q_at(sample, query, head), problem.q.stride);
        let (k, k_stride) = (problem.k_at(sample, key, kv_head), problem.k.stride);
        let (v, v_stride) = (problem.v_at(sample, key, kv_head), problem.v.stride);
        let d_o = &self.d_o.data[(sample * seq + query) * self.d_o.stride + head * head_dim..];
        let d_o_stride = self.d_o.stride;
        let (dk, dv) = sums.split_at_mut(seq * head_dim);
        let (dk, dv) = (&mut dk[key * head_dim..], &mut dv[key * head_dim..]);

        let scores = (rows, keys, head_dim);
        let (a, b) = (along(q, q_stride), along(k, k_stride));
        product::<T>(cpu, packing, scores, a, b, tiles.p, KEYS, false);
        let (a, b) = (along(d_o, d_o_stride), along(v, v_stride));
        product::<T>(cpu, packing, scores, a, b, tiles.dp, KEYS, false);
        for i in 0..rows {
            self.tile_row(cpu, tiles, place, i);
        }
        let by_key = (keys, head_dim, rows);
        let (a, b) = (across(&*tiles.p_rounded, KEYS), across(d_o, d_o_stride));
        product(cpu, packing, by_key, a, b, dv, head_dim, true);
        let (a, b) = (across(&*tiles.ds, KEYS), across(q, q_stride));
        product(cpu, packing, by_key, a, b, dk, head_dim, true);
        let (a, b) = (along(&*tiles.ds, KEYS), across(k, k_stride));
        let dq = &mut tiles.dq[query * head_dim..];
        product(cpu, packing, (rows, head_dim, keys), a, b, dq, head_dim, true);
    }

    /// From scores and dP to rounded P (with dropout) and dS, in one row of the tile.
    fn tile_row(&self, cpu: &CpuOps, tiles: &mut Tiles<'_, T>, place: Place, i: usize) {
        let Place { sample, head, key, keys, .. } = place;
        let query = place.query + i;
        let row = i * KEYS..i * KEYS + keys;
        let scale = T::Acc::from_f64(self.problem.shape.scale);
        let lse = self.lse[self.problem.stat(sample, head, query)];
        let seen = inside(&self.problem.visible(sample, query), key, keys);
        let p = &mut tiles.p[row.clone()];
        p[..seen.start].fill(T::Acc::ZERO);
        p[seen.end..].fill(T::Acc::ZERO);
        exponentials(cpu.isa, &mut p[seen], scale, lse);
        let factors =
            self.problem.factors(cpu.isa, sample, head, query, key, &mut tiles.factors[..keys]);
        let (dp, ds) = (&tiles.dp[row.clone()], &mut tiles.ds[row.clone()]);
        score_gradient(cpu.isa, ds, p, dp, factors, tiles.delta[query], scale);
        if let Some(factors) = factors {
            multiply(cpu.isa, p, factors);
        }
        round(cpu.isa, &mut tiles.p_rounded[row], p, T::Acc::ONE);
    }
}

pub(crate) fn attention_backward(
    cpu: &CpuOps,
    shape: AttentionShape,
    d: QkvMut<'_>,
    d_o: MatRef<'_>,
    o: MatRef<'_>,
    lse: Slice<'_>,
    qkv: Qkv<'_>,
    document_start: Option<Slice<'_>>,
    dropout: Option<AttentionDropout>,
) -> Result<(), KernelError> {
    const OP: &str = "attention_backward";
    with_num!(OP, "q", qkv.q.data.dtype(), T => {
        let AttentionShape { samples, queries, keys, heads, kv_heads, head_dim, .. } = shape;
        dims(OP, queries == keys, || {
            format!("{queries} queries against {keys} keys: only whole sequences have gradients")
        })?;
        let problem = Problem::<T>::new(OP, shape, qkv, document_start, dropout)?;
        let (d_o, o) = (Mat::<T>::new(OP, "d_o", d_o)?, Mat::<T>::new(OP, "o", o)?);
        same_shape(OP, "d_o", d_o.shape(), (samples * queries, heads * head_dim))?;
        same_shape(OP, "o", o.shape(), (samples * queries, heads * head_dim))?;
        let lse = typed::<<T as Num>::Acc>(OP, "lse", lse)?;
        length(OP, "lse", lse.len(), samples * heads * queries, shape)?;
        let d = Gradients::new(OP, shape, d)?;
        let backward = Backward { problem, d, d_o, o, lse };
        if queries * head_dim == 0 {
            return Ok(());
        }
        cpu.team.run(samples * kv_heads, |unit| {
            backward.kv_head(cpu, unit / kv_heads, unit % kv_heads);
        });
        Ok(())
    })
}
