//! Attention forward: online softmax over blocks of keys.
//!
//! Scores and output are kept transposed, a query in each column: the maximum and the sum of a query
//! are then sums of vectors.

use super::{Blocks, KEYS, Problem, cut, inside};
use crate::check::{MatSplit, typed_mut, with_num};
use crate::gemm::{
    Dims, Factor, GemmElement, Initial, Operand, Products, Side, TRANSPOSED, Target,
};
use crate::isa::vectorised;
use crate::num::{LANES, Num, Real};
use crate::scratch::{Scratch, Split};
use crate::softcap::{Cap, soft_cap};
use crate::team::PARTS_PER_THREAD;
use crate::{AttentionDropout, AttentionShape, CpuOps, KernelError, MatMut, Qkv};
use std::ops::Range;
use trine_buffer::{Float, Slice, SliceMut};

/// Queries of a tile: enough for the panels of keys and values to be read seldom, few beside the keys.
const QUERIES: usize = 64;
/// Blocks of queries that a part of a head has at least: each part packs keys and values again.
const BLOCKS_PER_PART_MIN: usize = 2;

/// The keys of a block that each query of a tile sees, in vectors: `len` from `from` on.
struct Seen {
    from: [[u32; LANES]; QUERIES / LANES],
    len: [[u32; LANES]; QUERIES / LANES],
}

vectorised! {
    /// Takes a tile of scores, `[keys, QUERIES]`, into the running softmax of its queries: scores
    /// become `2^(score · scale − max)` or 0 where not visible, `max` the larger of theirs (times
    /// `scale`) and its old value, `shrink` the factor that earlier sums shrink by.
    fn online<A: Real>(
        scores: &mut [A],
        seen: &Seen,
        scale: A,
        max: &mut [A],
        sum: &mut [A],
        shrink: &mut [A],
    ) {
        let keys = (scores.len() / QUERIES) as u32;
        for (vector, (from, len)) in seen.from.iter().zip(&seen.len).enumerate() {
            let col = vector * LANES;
            let (from, len) = (*from, *len);
            let state = [&mut max[col..], &mut sum[col..], &mut shrink[col..]];
            if from == [0; LANES] && len == [keys; LANES] {
                strip(scores, col, scale, state, |_, _| true);
                continue;
            }
            let end: usize = (0..LANES).map(|l| (from[l] + len[l]) as usize).max().unwrap_or(0);
            let (scores, behind) = scores.split_at_mut(end * QUERIES);
            // A key before `from` wraps to a large number.
            strip(scores, col, scale, state, |key, l| key.wrapping_sub(from[l]) < len[l]);
            for row in behind.chunks_exact_mut(QUERIES) {
                row[col..col + LANES].fill(A::ZERO);
            }
        }
    }

    /// Multiplies each column with its factor.
    fn scale_columns<A: Real>(values: &mut [A], factors: &[A]) {
        for row in values.chunks_exact_mut(QUERIES) {
            for (value, factor) in row.iter_mut().zip(&factors[..QUERIES]) {
                *value = *value * *factor;
            }
        }
    }

    fn multiply<A: Real>(values: &mut [A], factors: &[A]) {
        for (value, factor) in values.iter_mut().zip(factors) {
            *value = *value * *factor;
        }
    }
}

/// [`online`] for the queries from `col` on.
#[inline(always)]
fn strip<A: Real>(
    scores: &mut [A],
    col: usize,
    scale: A,
    [max, sum, shrink]: [&mut [A]; 3],
    visible: impl Fn(u32, usize) -> bool,
) {
    let mut top = [A::LOWEST; LANES];
    for (key, row) in scores.chunks_exact(QUERIES).enumerate() {
        for (l, (top, score)) in top.iter_mut().zip(&row[col..col + LANES]).enumerate() {
            let score = if visible(key as u32, l) { *score } else { A::LOWEST };
            *top = score.larger(*top);
        }
    }
    for l in 0..LANES {
        top[l] = (top[l] * scale).larger(max[l]);
        shrink[l] = (max[l] - top[l]).exp2();
        max[l] = top[l];
    }
    let mut total = [A::ZERO; LANES];
    for (key, row) in scores.chunks_exact_mut(QUERIES).enumerate() {
        let row = &mut row[col..col + LANES];
        for l in 0..LANES {
            let p = row[l].fma(scale, -top[l]).exp2();
            let p = if visible(key as u32, l) { p } else { A::ZERO };
            row[l] = p;
            total[l] += p;
        }
    }
    for l in 0..LANES {
        sum[l] = sum[l] * shrink[l] + total[l];
    }
}

/// The working memory of a thread.
struct Tiles<'a, T: Num> {
    /// Blocks of keys and, transposed, of values.
    k: Blocks<'a>,
    v: Blocks<'a>,
    q: &'a mut [u8],
    /// Scores, then exponentials: `[KEYS, QUERIES]`; the same rounded, and packed.
    scores: &'a mut [T::Acc],
    p: &'a mut [T],
    packed_p: &'a mut [u8],
    /// Unfinished output: `[head_dim, QUERIES]`, and the finished one in rows.
    o: &'a mut [T::Acc],
    rows: &'a mut [T::Acc],
    /// For each query the largest score and the sum of exponentials so far, and a factor.
    max: &'a mut [T::Acc],
    sum: &'a mut [T::Acc],
    shrink: &'a mut [T::Acc],
    /// Dropout factors: `[QUERIES, KEYS]`, and transposed.
    factors: [&'a mut [T::Acc]; 2],
}

impl<'a, T: GemmElement> Tiles<'a, T> {
    fn new(
        scratch: &'a mut Scratch<'_>,
        products: &Products<T>,
        head_dim: usize,
        blocks: usize,
        keys: &Range<usize>,
        dropout: bool,
    ) -> Self {
        let block = keys.len().min(KEYS);
        let k = products.packed_bytes(Side::A, block, head_dim);
        let v = products.packed_bytes(Side::A, head_dim, block);
        let acc = |len: usize| len * size_of::<T::Acc>();
        let factors = if dropout { acc(QUERIES * KEYS) } else { 0 };
        let height = products.rows(head_dim).next_multiple_of(TRANSPOSED);
        let [k_blocks, v_blocks, q, scores, p, packed_p, o, rows, max, sum, shrink, own, turned] =
            cut(
                scratch,
                [
                    blocks * Blocks::lines(k),
                    blocks * Blocks::lines(v),
                    products.packed_bytes(Side::B, QUERIES, head_dim),
                    acc(products.rows(KEYS) * QUERIES),
                    KEYS * QUERIES * size_of::<T>(),
                    products.packed_bytes(Side::B, QUERIES, KEYS),
                    acc(height * QUERIES),
                    acc(QUERIES * height),
                    acc(QUERIES),
                    acc(QUERIES),
                    acc(QUERIES),
                    factors,
                    factors,
                ],
            );
        let cast = bytemuck::cast_slice_mut::<u8, T::Acc>;
        Self {
            k: Blocks::new(k_blocks, k),
            v: Blocks::new(v_blocks, v),
            q,
            scores: cast(scores),
            p: bytemuck::cast_slice_mut(p),
            packed_p,
            o: cast(o),
            rows: cast(rows),
            max: cast(max),
            sum: cast(sum),
            shrink: cast(shrink),
            factors: [cast(own), cast(turned)],
        }
    }
}

struct Forward<'a, T: Num> {
    problem: Problem<'a, T>,
    o: MatSplit<'a, T>,
    lse: Split<'a, T::Acc>,
}

impl<T: GemmElement> Forward<'_, T> {
    /// Some queries of some heads that share a key head.
    fn unit(&self, cpu: &CpuOps, sample: usize, heads: Range<usize>, queries: Range<usize>) {
        let problem = &self.problem;
        let head_dim = problem.shape.head_dim;
        let products = Products::<T>::new(cpu.isa);
        let keys = problem.key_range(sample, queries.clone());
        let mut memory = cpu.scratch.take();
        let dropout = problem.mask.is_some();
        let blocks = problem.blocks(&keys);
        let mut tiles = Tiles::new(&mut memory, &products, head_dim, blocks.len(), &keys, dropout);
        let kv_head = problem.kv_head(heads.start);
        for (place, block) in blocks.enumerate() {
            let Range { start, end } = problem.block(block, keys.end);
            let k = Operand::along_k(problem.k_at(sample, start, kv_head), problem.k.stride);
            products.pack(Side::A, k, end - start, head_dim, tiles.k.room(place));
            let v = Operand::across_k(problem.v_at(sample, start, kv_head), problem.v.stride);
            products.pack(Side::A, v, head_dim, end - start, tiles.v.room(place));
        }
        for head in heads {
            for query in queries.clone().step_by(QUERIES) {
                let rows = query..queries.end.min(query + QUERIES);
                self.rows(cpu, &products, &mut tiles, (sample, head), rows, keys.clone());
            }
        }
    }

    /// A block of queries of a head, the packed keys being `packed`.
    fn rows(
        &self,
        cpu: &CpuOps,
        products: &Products<T>,
        tiles: &mut Tiles<'_, T>,
        (sample, head): (usize, usize),
        queries: Range<usize>,
        packed: Range<usize>,
    ) {
        let problem = &self.problem;
        let head_dim = problem.shape.head_dim;
        let n = queries.len();
        let q = Operand::along_k(problem.q_at(sample, queries.start, head), problem.q.stride);
        products.pack(Side::B, q, n, head_dim, tiles.q);
        tiles.max.fill(T::Acc::LOWEST);
        tiles.sum.fill(T::Acc::ZERO);
        let visible = problem.key_range(sample, queries.clone());
        let (blocks, packed_blocks) = (problem.blocks(&visible), problem.blocks(&packed));
        if blocks.is_empty() {
            tiles.o[..head_dim * QUERIES].fill(T::Acc::ZERO);
        }
        for block in blocks.clone() {
            let keys = problem.block(block, visible.end);
            let place = block - packed_blocks.start;
            let dims = Dims { m: keys.len(), n, k: head_dim };
            let q = Factor::panels(tiles.q, head_dim);
            products.multiply(dims, tiles.k.get(place, head_dim), q, tiles.scores, QUERIES, false);
            self.softmax(cpu, products, tiles, (sample, head), queries.clone(), keys.clone());
            let first = block == blocks.start;
            if !first {
                let o = &mut tiles.o[..head_dim * QUERIES];
                scale_columns(cpu.isa, o, tiles.shrink);
            }
            let p = products.rounded(&tiles.scores[..keys.len() * QUERIES], tiles.p);
            let p = products.right(p, QUERIES, n, keys.len(), tiles.packed_p);
            let v = tiles.v.get(place, problem.block(block, packed.end).len());
            let dims = Dims { m: head_dim, n, k: keys.len() };
            products.multiply(dims, v, p, tiles.o, QUERIES, !first);
        }
        self.finish(cpu, products, tiles, (sample, head), queries);
    }

    /// Takes a block's scores into the running maximum and sum.
    fn softmax(
        &self,
        cpu: &CpuOps,
        products: &Products<T>,
        tiles: &mut Tiles<'_, T>,
        (sample, head): (usize, usize),
        queries: Range<usize>,
        keys: Range<usize>,
    ) {
        // Columns behind the last query are computed like the others: they hold zeros.
        let mut seen = Seen {
            from: [[0; LANES]; QUERIES / LANES],
            len: [[keys.len() as u32; LANES]; QUERIES / LANES],
        };
        let (from, len) = (seen.from.as_flattened_mut(), seen.len.as_flattened_mut());
        for (query, (from, len)) in queries.clone().zip(from.iter_mut().zip(len)) {
            let range = inside(&self.problem.visible(sample, query), &keys);
            (*from, *len) = (range.start as u32, range.len() as u32);
        }
        let AttentionShape { mut scale, softcap, .. } = self.problem.shape;
        let scores = &mut tiles.scores[..keys.len() * QUERIES];
        if let Some(cap) = softcap {
            soft_cap(cpu.isa, scores, Cap::new(scale, cap));
            scale = 1.0;
        }
        let scale = T::Acc::from_f64(scale * std::f64::consts::LOG2_E);
        online(cpu.isa, scores, &seen, scale, tiles.max, tiles.sum, tiles.shrink);
        if let Some(mask) = &self.problem.mask {
            let [own, turned] = &mut tiles.factors;
            self.problem.factors(cpu.isa, mask, (sample, head), queries, keys.start, own);
            products.transpose(own, KEYS, QUERIES, KEYS, turned, QUERIES);
            multiply(cpu.isa, scores, turned);
        }
    }

    fn finish(
        &self,
        cpu: &CpuOps,
        products: &Products<T>,
        tiles: &mut Tiles<'_, T>,
        (sample, head): (usize, usize),
        queries: Range<usize>,
    ) {
        let AttentionShape { queries: seq, head_dim, .. } = self.problem.shape;
        let stat = self.problem.stat(sample, head, queries.start);
        // SAFETY: each (row, head) is written by one thread.
        let lse = unsafe { self.lse.range(stat..stat + queries.len()) };
        let ln_2 = T::Acc::from_f64(std::f64::consts::LN_2);
        for (i, lse) in lse.iter_mut().enumerate() {
            *lse = tiles.max[i].fma(ln_2, tiles.sum[i].ln());
        }
        for (shrink, sum) in tiles.shrink.iter_mut().zip(&*tiles.sum) {
            // A query that saw no key has the sum 0, and an output of zeros that stays.
            *shrink = if *sum == T::Acc::ZERO { T::Acc::ONE } else { T::Acc::ONE / *sum };
        }
        scale_columns(cpu.isa, &mut tiles.o[..head_dim * QUERIES], tiles.shrink);
        let width = head_dim.next_multiple_of(TRANSPOSED);
        products.transpose(tiles.o, QUERIES, head_dim, QUERIES, tiles.rows, width);
        let row = sample * seq + queries.start;
        // SAFETY: each (row, head) lies inside `o` and is written by one thread.
        unsafe {
            let start = self.o.data.start().add(row * self.o.stride + head * head_dim);
            let target = Target { start, stride: self.o.stride, initial: Initial::Zero };
            products.round(queries.len(), head_dim, tiles.rows, width, target);
        }
    }
}

/// Bounds of `parts` ranges of queries that stand for about the same number of scores.
fn bounds(shape: AttentionShape, parts: usize) -> impl Fn(usize) -> usize {
    let blocks = shape.queries.div_ceil(QUERIES);
    let scores = shape.pairs(shape.queries);
    move |part| {
        let wanted = scores * part as f64 / parts as f64;
        let reached = |block: &usize| shape.pairs(block * QUERIES) >= wanted;
        (0..blocks).find(reached).map_or(shape.queries, |block| block * QUERIES)
    }
}

pub(crate) fn attention(
    cpu: &CpuOps,
    shape: AttentionShape,
    o: MatMut<'_>,
    lse: SliceMut<'_>,
    qkv: Qkv<'_>,
    document_start: Option<Slice<'_>>,
    dropout: Option<AttentionDropout>,
) -> Result<(), KernelError> {
    const OP: &str = "attention";
    with_num!(OP, "q", qkv.q.data.dtype(), T => {
        let problem = Problem::<T>::new(OP, shape, qkv, document_start, dropout)?;
        let AttentionShape { samples, queries, heads, kv_heads, .. } = shape;
        let o = MatSplit::<T>::new(OP, "o", o)?;
        let lse = typed_mut::<<T as Num>::Acc>(OP, "lse", lse)?;
        let forward = Forward { problem, o, lse: Split::new(lse) };
        let threads = cpu.team.threads();
        let wanted = if threads == 1 { 1 } else { threads * PARTS_PER_THREAD };
        // Heads that share keys share a unit where there are units enough.
        let shared = if samples * kv_heads >= wanted { heads / kv_heads } else { 1 };
        let units = samples * heads / shared;
        let parts_max = queries / QUERIES / BLOCKS_PER_PART_MIN;
        let parts = wanted.div_ceil(units.max(1)).min(parts_max).max(1);
        let bound = bounds(shape, parts);
        cpu.team.run(units * parts, |unit| {
            let (first, part) = (unit / parts * shared, unit % parts);
            let (sample, head) = (first / heads, first % heads);
            let rows = bound(part)..if part + 1 == parts { queries } else { bound(part + 1) };
            if !rows.is_empty() {
                forward.unit(cpu, sample, head..head + shared, rows);
            }
        });
        Ok(())
    })
}
