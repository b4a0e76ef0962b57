//! Attention forward: online softmax over blocks of keys.

use super::{
    KEYS, Pieces, Problem, QUERIES, across, along, inside, multiply, online, round, scale_all,
};
use crate::check::{MatSplit, length, same_shape, typed_mut, with_num};
use crate::gemm::{Dims, GemmElement, Target};
use crate::num::{Num, Real};
use crate::scratch::{Scratch, Split};
use crate::{AttentionDropout, AttentionShape, CpuOps, KernelError, MatMut, Qkv};
use std::ops::Range;
use trine_buffer::{Float, Slice, SliceMut};

/// The working memory of one block of queries.
struct Tiles<'a, T: Num> {
    /// Scores, then exponentials: `[queries, KEYS]`.
    scores: &'a mut [T::Acc],
    /// The same, rounded.
    p: &'a mut [T],
    /// Unfinished output: `[queries, head_dim]`.
    o: &'a mut [T::Acc],
    /// Largest score and sum of exponentials so far, for each query.
    max: &'a mut [T::Acc],
    sum: &'a mut [T::Acc],
    factors: &'a mut [T::Acc],
}

impl<'a, T: Num> Tiles<'a, T> {
    fn new(scratch: &'a mut Scratch<'_>, head_dim: usize) -> Self {
        let acc = Pieces::bytes::<T::Acc>;
        let bytes = acc(QUERIES * KEYS)
            + Pieces::bytes::<T>(QUERIES * KEYS)
            + acc(QUERIES * head_dim)
            + 2 * acc(QUERIES)
            + acc(KEYS);
        let mut pieces = Pieces(scratch.slice(bytes));
        Self {
            scores: pieces.take(QUERIES * KEYS),
            p: pieces.take(QUERIES * KEYS),
            o: pieces.take(QUERIES * head_dim),
            max: pieces.take(QUERIES),
            sum: pieces.take(QUERIES),
            factors: pieces.take(KEYS),
        }
    }
}

struct Forward<'a, T: Num> {
    problem: Problem<'a, T>,
    o: MatSplit<'a, T>,
    lse: Split<'a, T::Acc>,
}

impl<T: GemmElement> Forward<'_, T> {
    fn block(&self, cpu: &CpuOps, sample: usize, head: usize, queries: Range<usize>) {
        let head_dim = self.problem.shape.head_dim;
        let (mut memory, mut packing) = (cpu.scratch.take(), cpu.scratch.take());
        let mut tiles = Tiles::<T>::new(&mut memory, head_dim);
        let rows = queries.len();
        tiles.o[..rows * head_dim].fill(T::Acc::ZERO);
        tiles.max.fill(T::Acc::NEG_INFINITY);
        tiles.sum.fill(T::Acc::ZERO);
        for key in self.problem.key_blocks(sample, queries.clone()) {
            let end = self.problem.visible(sample, queries.end - 1).end;
            let keys = KEYS.min(end - key);
            self.scores(cpu, &mut packing, &mut tiles, (sample, head), &queries, key, keys);
            for (i, query) in queries.clone().enumerate() {
                self.online_row(cpu, &mut tiles, (sample, head), (i, query), key, keys);
            }
            let v = self.problem.v_at(sample, key, self.problem.kv_head(head));
            let start = tiles.o.as_mut_ptr();
            let target = Target { start, stride: head_dim, accumulate: true };
            let dims = Dims { m: rows, n: head_dim, k: keys };
            let (p, v) = (along(tiles.p, KEYS), across(v, self.problem.v.stride));
            // SAFETY: `tiles.o` has `rows` rows of `head_dim`, and is ours.
            unsafe { T::gemm(cpu.isa, &mut packing, dims, p, v, target) };
        }
        for (i, query) in queries.enumerate() {
            self.finish_row(cpu, &tiles, (sample, head), (i, query));
        }
    }

    fn scores(
        &self,
        cpu: &CpuOps,
        packing: &mut Scratch<'_>,
        tiles: &mut Tiles<'_, T>,
        (sample, head): (usize, usize),
        queries: &Range<usize>,
        key: usize,
        keys: usize,
    ) {
        let problem = &self.problem;
        let q = along(problem.q_at(sample, queries.start, head), problem.q.stride);
        let k = along(problem.k_at(sample, key, problem.kv_head(head)), problem.k.stride);
        let dims = Dims { m: queries.len(), n: keys, k: problem.shape.head_dim };
        let start = tiles.scores.as_mut_ptr();
        let target = Target { start, stride: KEYS, accumulate: false };
        // SAFETY: `tiles.scores` has QUERIES rows of KEYS, and is ours.
        unsafe { T::gemm(cpu.isa, packing, dims, q, k, target) };
    }

    /// Takes a block's scores of one row into the running maximum, sum and output.
    fn online_row(
        &self,
        cpu: &CpuOps,
        tiles: &mut Tiles<'_, T>,
        (sample, head): (usize, usize),
        (i, query): (usize, usize),
        key: usize,
        keys: usize,
    ) {
        let head_dim = self.problem.shape.head_dim;
        let scale = T::Acc::from_f64(self.problem.shape.scale);
        let p = &mut tiles.p[i * KEYS..][..keys];
        p.fill(T::narrow(T::Acc::ZERO));
        let seen = inside(&self.problem.visible(sample, query), key, keys);
        if seen.is_empty() {
            return;
        }
        let scores = &mut tiles.scores[i * KEYS..][seen.clone()];
        let (max, shrink, sum) = online(cpu.isa, scores, scale, tiles.max[i]);
        tiles.sum[i] = tiles.sum[i] * shrink + sum;
        tiles.max[i] = max;
        scale_all(cpu.isa, &mut tiles.o[i * head_dim..][..head_dim], shrink);
        let factors =
            self.problem.factors(cpu.isa, sample, head, query, key, &mut tiles.factors[..keys]);
        if let Some(factors) = factors {
            multiply(cpu.isa, scores, &factors[seen.clone()]);
        }
        round(cpu.isa, &mut p[seen], scores, T::Acc::ONE);
    }

    fn finish_row(
        &self,
        cpu: &CpuOps,
        tiles: &Tiles<'_, T>,
        (sample, head): (usize, usize),
        (i, query): (usize, usize),
    ) {
        let AttentionShape { queries, head_dim, .. } = self.problem.shape;
        let stat = self.problem.stat(sample, head, query);
        let cols = head * head_dim..(head + 1) * head_dim;
        // SAFETY: each (row, head) is written by one thread.
        let (o, lse) = unsafe {
            (self.o.part(sample * queries + query, cols), self.lse.range(stat..stat + 1))
        };
        lse[0] = tiles.max[i] + tiles.sum[i].ln();
        round(cpu.isa, o, &tiles.o[i * head_dim..][..head_dim], T::Acc::ONE / tiles.sum[i]);
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
        let AttentionShape { samples, queries, heads, head_dim, .. } = shape;
        let o = MatSplit::<T>::new(OP, "o", o)?;
        same_shape(OP, "o", o.shape(), (samples * queries, heads * head_dim))?;
        let lse = typed_mut::<<T as Num>::Acc>(OP, "lse", lse)?;
        length(OP, "lse", lse.len(), samples * heads * queries, shape)?;
        let forward = Forward { problem, o, lse: Split::new(lse) };
        let blocks = queries.div_ceil(QUERIES);
        cpu.team.run(samples * heads * blocks, |unit| {
            // The long blocks first, so that the threads end together.
            let (pair, block) = (unit / blocks, blocks - 1 - unit % blocks);
            let start = block * QUERIES;
            let rows = start..queries.min(start + QUERIES);
            forward.block(cpu, pair / heads, pair % heads, rows);
        });
        Ok(())
    })
}
