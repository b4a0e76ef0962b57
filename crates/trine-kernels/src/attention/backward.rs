//! Attention backward: probabilities computed again, tile by tile.
//!
//! A block of keys meets all queries that see it before the next one comes. Its two gradients are
//! kept transposed, `[head_dim, KEYS]`: probabilities and scores' gradient are then right factors as
//! they are.

use super::{Blocks, KEYS, Problem, cut, inside};
use crate::check::{Mat, MatSplit, typed, with_num};
use crate::gemm::{
    Dims, Factor, GemmElement, Initial, Operand, Products, Side, TRANSPOSED, Target,
};
use crate::isa::vectorised;
use crate::num::{LANES, Num, Real, sum_lanes};
use crate::scratch::Scratch;
use crate::softcap::{Cap, multiply_seen, soft_cap_slopes};
use crate::{AttentionDropout, AttentionShape, CpuOps, KernelError, MatRef, Qkv, QkvMut};
use std::ops::Range;
use trine_buffer::{Float, Slice};

/// Queries of a tile: a multiple of the groups in which AMX sums, few beside the keys.
const QUERIES: usize = 64;

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
        let (q_cols, kv_cols) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
        match d {
            QkvMut::Fused(all) => {
                let all = MatSplit::new(op, "d", all)?;
                Ok(Self::Fused { all, k: q_cols, v: q_cols + kv_cols })
            }
            QkvMut::Separate { q, k, v } => {
                let q = MatSplit::new(op, "d.q", q)?;
                let k = MatSplit::new(op, "d.k", k)?;
                Ok(Self::Separate { q, k, v: MatSplit::new(op, "d.v", v)? })
            }
        }
    }

    /// Where the gradient of a row begins, from column `col` of its part on.
    fn target(&self, part: Part, row: usize, col: usize) -> Target<'_, T> {
        let (mat, offset) = match (self, part) {
            (Self::Fused { all, .. }, Part::Query) => (all, 0),
            (Self::Fused { all, k, .. }, Part::Key) => (all, *k),
            (Self::Fused { all, v, .. }, Part::Value) => (all, *v),
            (Self::Separate { q, .. }, Part::Query) => (q, 0),
            (Self::Separate { k, .. }, Part::Key) => (k, 0),
            (Self::Separate { v, .. }, Part::Value) => (v, 0),
        };
        let start = mat.data.start().wrapping_add(row * mat.stride + offset + col);
        Target { start, stride: mat.stride, initial: Initial::Zero }
    }
}

vectorised! {
    /// Turns a tile of scores into probabilities (times the dropout factors) and a tile of their
    /// gradients into dS = P · (dP · factor − D) · scale; both become 0 where not visible.
    fn gradients<A: Real>(
        p: &mut [A],
        dp: &mut [A],
        factors: Option<&[A]>,
        seen: &[Range<usize>],
        lse: &[A],
        delta: &[A],
        scale: A,
    ) {
        let log2_e = A::from_f64(std::f64::consts::LOG2_E);
        let tile = p.chunks_exact_mut(KEYS).zip(dp.chunks_exact_mut(KEYS));
        for (row, ((p, dp), seen)) in tile.zip(seen).enumerate() {
            // Whole vectors: what is computed too much is overwritten.
            let cols = seen.start / LANES * LANES..seen.end.next_multiple_of(LANES);
            let (max, delta) = (lse[row] * log2_e, delta[row]);
            let values = p[cols.clone()].iter_mut().zip(&mut dp[cols.clone()]);
            match factors {
                None => {
                    for (p, dp) in values {
                        *p = p.fma(scale * log2_e, -max).exp2();
                        *dp = *p * (*dp - delta) * scale;
                    }
                }
                Some(factors) => {
                    for ((p, dp), factor) in values.zip(&factors[row * KEYS..][cols]) {
                        let whole = p.fma(scale * log2_e, -max).exp2();
                        *p = whole * *factor;
                        *dp = whole * (*dp * *factor - delta) * scale;
                    }
                }
            }
            for row in [p, dp] {
                row[..seen.start].fill(A::ZERO);
                row[seen.end..].fill(A::ZERO);
            }
        }
    }

    /// The products of rows with rows.
    fn dots<T: Num>(a: &[T], a_stride: usize, b: &[T], b_stride: usize, cols: usize, out: &mut [T::Acc]) {
        for (row, out) in out.iter_mut().enumerate() {
            let (a, b) = (&a[row * a_stride..][..cols], &b[row * b_stride..][..cols]);
            let mut lanes = [T::Acc::ZERO; LANES];
            let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
            let rest = a_chunks.remainder().iter().zip(b_chunks.remainder());
            for (a, b) in a_chunks.zip(b_chunks) {
                for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
                    *lane += a.widen() * b.widen();
                }
            }
            for (lane, (a, b)) in lanes.iter_mut().zip(rest) {
                *lane += a.widen() * b.widen();
            }
            *out = sum_lanes(lanes);
        }
    }

    fn add_to<A: Real>(sum: &mut [A], values: &[A]) {
        for (sum, value) in sum.iter_mut().zip(values) {
            *sum += *value;
        }
    }
}

/// The working memory of a thread.
struct Tiles<'a, T: Num> {
    /// Blocks of the head's queries and of their outputs' gradient, and the same transposed.
    q: Blocks<'a>,
    q_turned: Blocks<'a>,
    d_o: Blocks<'a>,
    d_o_turned: Blocks<'a>,
    /// The block of keys at work, as factor of scores and of dQ, and its values.
    k: &'a mut [u8],
    k_turned: &'a mut [u8],
    v: &'a mut [u8],
    /// Scores, then probabilities, and their gradient, then that of scores: `[QUERIES, KEYS]`.
    p: &'a mut [T::Acc],
    dp: &'a mut [T::Acc],
    /// Either of them rounded, and packed.
    rounded: &'a mut [T],
    packed: &'a mut [u8],
    factors: &'a mut [T::Acc],
    /// Derivatives of bounded scores.
    slopes: &'a mut [T::Acc],
    /// Σ dO · O for each query of the head.
    delta: &'a mut [T::Acc],
    /// Unfinished gradient of the head's queries, in blocks of `dq_block`.
    dq: &'a mut [T::Acc],
    dq_block: usize,
    /// A finished gradient of a block of keys, in rows.
    rows: &'a mut [T::Acc],
}

impl<'a, T: GemmElement> Tiles<'a, T> {
    fn new(scratch: &'a mut Scratch<'_>, products: &Products<T>, problem: &Problem<'_, T>) -> Self {
        let AttentionShape { queries, head_dim, softcap, .. } = problem.shape;
        let blocks = queries.div_ceil(QUERIES);
        let along = products.packed_bytes(Side::A, QUERIES, head_dim);
        let turned = products.packed_bytes(Side::A, head_dim, QUERIES);
        let key_rows = products.packed_bytes(Side::B, KEYS, head_dim);
        let acc = |len: usize| len * size_of::<T::Acc>();
        let tile = products.rows(QUERIES) * KEYS;
        let dq_block = products.rows(QUERIES) * products.cols(head_dim);
        let packed = products.packed_bytes(Side::A, QUERIES, KEYS);
        let packed = packed.max(products.packed_bytes(Side::B, KEYS, QUERIES));
        let bytes = [
            blocks * Blocks::lines(along),
            blocks * Blocks::lines(turned),
            blocks * Blocks::lines(along),
            blocks * Blocks::lines(turned),
            key_rows,
            products.packed_bytes(Side::B, head_dim, KEYS),
            key_rows,
            acc(tile),
            acc(tile),
            tile * size_of::<T>(),
            packed,
            if problem.mask.is_some() { acc(tile) } else { 0 },
            if softcap.is_some() { acc(tile) } else { 0 },
            acc(queries),
            acc(blocks * dq_block),
            acc(KEYS * head_dim.next_multiple_of(TRANSPOSED)),
        ];
        let cast = bytemuck::cast_slice_mut::<u8, T::Acc>;
        let [q, q_turned, d_o, d_o_turned, k, k_turned, v, rest @ ..] = cut(scratch, bytes);
        let [p, dp, rounded, packed, factors, slopes, delta, dq, rows] = rest;
        Self {
            q: Blocks::new(q, along),
            q_turned: Blocks::new(q_turned, turned),
            d_o: Blocks::new(d_o, along),
            d_o_turned: Blocks::new(d_o_turned, turned),
            k,
            k_turned,
            v,
            p: cast(p),
            dp: cast(dp),
            rounded: bytemuck::cast_slice_mut(rounded),
            packed,
            factors: cast(factors),
            slopes: cast(slopes),
            delta: cast(delta),
            dq: cast(dq),
            dq_block,
            rows: cast(rows),
        }
    }
}

/// The place of a tile.
#[derive(Debug, Clone)]
struct Place {
    sample: usize,
    head: usize,
    queries: Range<usize>,
    /// Of a block of keys those up to the last one that is seen.
    keys: Range<usize>,
    /// All keys of the block.
    block: usize,
}

struct Backward<'a, T: Num> {
    problem: Problem<'a, T>,
    d: Gradients<'a, T>,
    d_o: Mat<'a, T>,
    o: Mat<'a, T>,
    lse: &'a [T::Acc],
}

/// One thread's work on a sample.
struct Work<'a, T> {
    cpu: &'a CpuOps,
    products: Products<T>,
    sample: usize,
    /// Elements of dK, and of dV, of a block of keys.
    part: usize,
}

impl<T: GemmElement> Backward<'_, T> {
    /// All gradients of one key head of one sample.
    fn kv_head(&self, cpu: &CpuOps, sample: usize, kv_head: usize) {
        let AttentionShape { keys: seq, heads, kv_heads, head_dim, .. } = self.problem.shape;
        let products = Products::<T>::new(cpu.isa);
        let part = products.rows(head_dim).next_multiple_of(TRANSPOSED) * KEYS;
        let work = Work { cpu, products, sample, part };
        let (mut memory, mut sums) = (cpu.scratch.take(), cpu.scratch.take_beside(1));
        let mut tiles = Tiles::new(&mut memory, &work.products, &self.problem);
        let blocks = self.problem.blocks(&(0..seq));
        // dK and dV of a block of keys, one behind the other.
        let sums = sums.slice::<T::Acc>(blocks.len() * 2 * part);
        let group = heads / kv_heads;
        self.tree(&work, &mut tiles, kv_head * group..(kv_head + 1) * group, sums, 2);
        let width = head_dim.next_multiple_of(TRANSPOSED);
        for (block, sums) in blocks.zip(sums.chunks_exact(2 * part)) {
            let keys = self.problem.block(block, seq);
            for (part, sums) in [Part::Key, Part::Value].into_iter().zip(sums.chunks_exact(part)) {
                work.products.transpose(sums, KEYS, head_dim, KEYS, tiles.rows, width);
                let target = self.d.target(part, sample * seq + keys.start, kv_head * head_dim);
                // SAFETY: each (row, key head) lies inside its matrix and is written by one thread.
                unsafe { work.products.round(keys.len(), head_dim, tiles.rows, width, target) };
            }
        }
    }

    /// dK and dV summed over a range of query heads in a tree that halves the range. The thread holds
    /// `pieces` of working memory.
    fn tree(
        &self,
        work: &Work<'_, T>,
        tiles: &mut Tiles<'_, T>,
        heads: Range<usize>,
        sums: &mut [T::Acc],
        pieces: usize,
    ) {
        if heads.len() == 1 {
            return self.head(work, tiles, heads.start, sums);
        }
        let middle = heads.start + heads.len() / 2;
        self.tree(work, tiles, heads.start..middle, sums, pieces);
        let mut right = work.cpu.scratch.take_beside(pieces);
        let right = right.slice::<T::Acc>(sums.len());
        self.tree(work, tiles, middle..heads.end, right, pieces + 1);
        add_to(work.cpu.isa, sums, right);
    }

    /// The gradients of one query head: dQ to its place, dK and dV into `sums`.
    fn head(&self, work: &Work<'_, T>, tiles: &mut Tiles<'_, T>, head: usize, sums: &mut [T::Acc]) {
        let AttentionShape { queries: seq, keys, head_dim, .. } = self.problem.shape;
        let (products, sample) = (&work.products, work.sample);
        self.pack_queries(work, tiles, head);
        tiles.dq.fill(T::Acc::ZERO);
        sums.fill(T::Acc::ZERO);
        let blocks = self.problem.blocks(&(0..keys));
        for (block, sums) in blocks.zip(sums.chunks_exact_mut(2 * work.part)) {
            let block = self.problem.block(block, keys);
            let (dk, dv) = sums.split_at_mut(work.part);
            self.pack_keys(work, tiles, head, block.clone());
            for query in self.query_range(&block).step_by(QUERIES) {
                let queries = query..seq.min(query + QUERIES);
                let visible = self.problem.key_range(sample, queries.clone());
                if visible.start >= block.end {
                    continue;
                }
                let keys = block.start..block.end.min(visible.end);
                let place = Place { sample, head, queries, keys, block: block.len() };
                self.tile(work, tiles, place, [&mut *dk, &mut *dv]);
            }
        }
        let stride = products.cols(head_dim);
        for (block, dq) in tiles.dq.chunks_exact(tiles.dq_block).enumerate() {
            let query = block * QUERIES;
            let target = self.d.target(Part::Query, sample * seq + query, head * head_dim);
            let rows = QUERIES.min(seq - query);
            // SAFETY: each (row, query head) lies inside its matrix and is written by one thread.
            unsafe { products.round(rows, head_dim, dq, stride, target) };
        }
    }

    /// The queries that may see some of `keys`, from the beginning of a tile. None of them lies in a
    /// tile whose last query is in front of the keys.
    fn query_range(&self, keys: &Range<usize>) -> Range<usize> {
        let AttentionShape { queries, query_start, key_start, .. } = self.problem.shape;
        let to_query = |position: usize| position.saturating_sub(query_start).min(queries);
        let first = to_query(key_start + keys.start);
        let last_key = key_start + keys.end - 1;
        let end = to_query(last_key.saturating_add(self.problem.window));
        if first < end { first / QUERIES * QUERIES..end } else { end..end }
    }

    /// The packed blocks of a head's queries, and Σ dO · O.
    fn pack_queries(&self, work: &Work<'_, T>, tiles: &mut Tiles<'_, T>, head: usize) {
        let AttentionShape { queries: seq, head_dim, .. } = self.problem.shape;
        let (products, sample) = (&work.products, work.sample);
        for (block, query) in (0..seq).step_by(QUERIES).enumerate() {
            let rows = QUERIES.min(seq - query);
            let (q, q_stride) = (self.problem.q_at(sample, query, head), self.problem.q.stride);
            let at = |x: &Mat<'_, T>| (sample * seq + query) * x.stride + head * head_dim;
            let (d_o, o) = (&self.d_o.data[at(&self.d_o)..], &self.o.data[at(&self.o)..]);
            for (x, stride, along, turned) in [
                (q, q_stride, &mut tiles.q, &mut tiles.q_turned),
                (d_o, self.d_o.stride, &mut tiles.d_o, &mut tiles.d_o_turned),
            ] {
                let (room, x_along) = (along.room(block), Operand::along_k(x, stride));
                products.pack(Side::A, x_along, rows, head_dim, room);
                let (room, x_across) = (turned.room(block), Operand::across_k(x, stride));
                products.pack(Side::A, x_across, head_dim, rows, room);
            }
            let delta = &mut tiles.delta[query..query + rows];
            dots(work.cpu.isa, d_o, self.d_o.stride, o, self.o.stride, head_dim, delta);
        }
    }

    /// A packed block of keys and values.
    fn pack_keys(
        &self,
        work: &Work<'_, T>,
        tiles: &mut Tiles<'_, T>,
        head: usize,
        keys: Range<usize>,
    ) {
        let (products, problem, n) = (&work.products, &self.problem, keys.len());
        let (kv_head, head_dim) = (problem.kv_head(head), problem.shape.head_dim);
        let k = problem.k_at(work.sample, keys.start, kv_head);
        let v = problem.v_at(work.sample, keys.start, kv_head);
        let (k_stride, v_stride) = (problem.k.stride, problem.v.stride);
        products.pack(Side::B, Operand::along_k(k, k_stride), n, head_dim, tiles.k);
        products.pack(Side::B, Operand::across_k(k, k_stride), head_dim, n, tiles.k_turned);
        products.pack(Side::B, Operand::along_k(v, v_stride), n, head_dim, tiles.v);
    }

    /// Adds a tile's part to dQ, and to dK and dV of its block of keys.
    fn tile(
        &self,
        work: &Work<'_, T>,
        tiles: &mut Tiles<'_, T>,
        place: Place,
        [dk, dv]: [&mut [T::Acc]; 2],
    ) {
        let (rows, keys) = (place.queries.len(), place.keys.len());
        let (products, head_dim) = (&work.products, self.problem.shape.head_dim);
        let block = place.queries.start / QUERIES;

        let scores = Dims { m: rows, n: keys, k: head_dim };
        let (q, k) = (tiles.q.get(block, head_dim), Factor::panels(tiles.k, head_dim));
        products.multiply(scores, q, k, tiles.p, KEYS, false);
        let (d_o, v) = (tiles.d_o.get(block, head_dim), Factor::panels(tiles.v, head_dim));
        products.multiply(scores, d_o, v, tiles.dp, KEYS, false);
        self.elements(work, tiles, &place);

        let by_key = Dims { m: head_dim, n: keys, k: rows };
        let p = products.rounded(&tiles.p[..rows * KEYS], tiles.rounded);
        let p = products.right(p, KEYS, keys, rows, tiles.packed);
        products.multiply(by_key, tiles.d_o_turned.get(block, rows), p, dv, KEYS, true);
        let ds = products.rounded(&tiles.dp[..rows * KEYS], tiles.rounded);
        let right = products.right(ds, KEYS, keys, rows, tiles.packed);
        products.multiply(by_key, tiles.q_turned.get(block, rows), right, dk, KEYS, true);
        let left = products.pack(Side::A, Operand::along_k(ds, KEYS), rows, keys, tiles.packed);
        let by_query = Dims { m: rows, n: head_dim, k: keys };
        let dq = &mut tiles.dq[block * tiles.dq_block..][..tiles.dq_block];
        let k = Factor::panels(tiles.k_turned, place.block);
        products.multiply(by_query, left, k, dq, products.cols(head_dim), true);
    }

    /// From scores and dP to P (with dropout) and dS.
    fn elements(&self, work: &Work<'_, T>, tiles: &mut Tiles<'_, T>, place: &Place) {
        let Place { sample, head, ref queries, ref keys, .. } = *place;
        let (problem, isa) = (&self.problem, work.cpu.isa);
        let seen: [Range<usize>; QUERIES] = std::array::from_fn(|i| {
            let query = queries.start + i;
            if query < queries.end { inside(&problem.visible(sample, query), keys) } else { 0..0 }
        });
        let seen = &seen[..queries.len()];
        let factors = problem.mask.as_ref().map(|mask| {
            let (own, key) = (&mut *tiles.factors, keys.start);
            problem.factors(isa, mask, (sample, head), queries.clone(), key, own);
            &*tiles.factors
        });
        let AttentionShape { mut scale, softcap, .. } = problem.shape;
        if let Some(cap) = softcap {
            soft_cap_slopes(isa, tiles.p, tiles.slopes, KEYS, seen, Cap::new(scale, cap));
            scale = 1.0;
        }
        let lse = &self.lse[problem.stat(sample, head, queries.start)..][..queries.len()];
        let delta = &tiles.delta[queries.clone()];
        let scale = T::Acc::from_f64(scale);
        gradients(isa, tiles.p, tiles.dp, factors, seen, lse, delta, scale);
        if softcap.is_some() {
            multiply_seen(isa, tiles.dp, tiles.slopes, KEYS, seen);
        }
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
        let AttentionShape { samples, kv_heads, head_dim, .. } = shape;
        let problem = Problem::<T>::new(OP, shape, qkv, document_start, dropout)?;
        let (d_o, o) = (Mat::<T>::new(OP, "d_o", d_o)?, Mat::<T>::new(OP, "o", o)?);
        let lse = typed::<<T as Num>::Acc>(OP, "lse", lse)?;
        let d = Gradients::new(OP, shape, d)?;
        let backward = Backward { problem, d, d_o, o, lse };
        if head_dim == 0 {
            return Ok(());
        }
        cpu.team.run(samples * kv_heads, |unit| {
            backward.kv_head(cpu, unit / kv_heads, unit % kv_heads);
        });
        Ok(())
    })
}
