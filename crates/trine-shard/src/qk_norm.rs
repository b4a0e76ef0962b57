//! RMS norms of queries and keys, before they are turned by their positions.

use crate::TensorGroup;
use std::ops::Range;
use trine_buffer::{Act, Buf, SliceMut};
use trine_comm::{Name, ReduceOp};
use trine_kernels::{MatMut, MatRef, RmsShape};
use trine_nn::{AttentionShape, Context, GradStore, NnError, Numerics, ParamId, ParamStore};

/// Over what queries and keys are normalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNormKind {
    /// Each head by itself (Qwen3). All query heads have one gain `[head_dim]`, and all key heads;
    /// both are whole on every rank.
    EachHead,
    /// All heads of a token together (OLMo 2). The gains have an element for each column and are
    /// split by heads, as the columns are.
    AllHeads,
}

/// RMS norms of the queries and the keys of a [`ShardedAttention`](crate::ShardedAttention).
#[derive(Debug, Clone)]
pub struct QkNorm {
    /// The tensor-parallel group.
    pub group: TensorGroup,
    /// Over what the mean square is taken.
    pub kind: QkNormKind,
    /// The gain of the queries.
    pub q: ParamId,
    /// The gain of the keys.
    pub k: ParamId,
    /// Columns of the queries and of the keys of all ranks, each counted once.
    pub cols: [usize; 2],
    /// Added to the mean square.
    pub eps: f64,
    /// Of the collectives: one each way over all heads, one backward (of the gains' gradients) by
    /// heads.
    pub name: Name,
}

/// The queries or the keys of one rank.
#[derive(Debug, Clone)]
struct Half {
    gain: ParamId,
    /// The place of the gain's gradient in that of both gains.
    gains: Range<usize>,
    /// The place of the columns in `[tokens, q | k | v]`.
    columns: Range<usize>,
    /// Runs of columns that are normalised by themselves: the heads, or one of all of them.
    groups: usize,
    /// Groups of the half before this one.
    groups_before: usize,
    /// Its columns on all ranks.
    cols: usize,
    /// Ranks that hold different heads.
    parts: usize,
    /// Whether this rank's heads count in a sum over the ranks: those that several hold count on the
    /// first of these.
    counts: bool,
}

impl Half {
    /// Its columns of a matrix.
    fn of<'a>(&self, all: MatRef<'a>) -> Result<MatRef<'a>, NnError> {
        Ok(all.columns(self.columns.clone())?)
    }

    /// The place of the numbers of some of the tokens, one for each token and group, behind those of
    /// the half before.
    fn stats(&self, tokens: usize, rows: Range<usize>) -> Range<usize> {
        let first = tokens * self.groups_before;
        first + rows.start * self.groups..first + rows.end * self.groups
    }
}

/// [`QkNorm`] on the heads of one rank.
#[derive(Debug, Clone)]
pub(crate) struct HeadNorms {
    norm: QkNorm,
    /// Queries, then keys.
    halves: [Half; 2],
    qkv_cols: usize,
}

impl HeadNorms {
    /// The norms of `shape`, whose KV heads `replicas` ranks of the group hold each.
    pub(crate) fn new(norm: QkNorm, shape: AttentionShape, replicas: usize) -> Self {
        let AttentionShape { heads, kv_heads, .. } = shape;
        let (ranks, q_cols, gains) = (norm.group.size(), shape.q_cols(), norm.q.len());
        let [groups, kv_groups] = match norm.kind {
            QkNormKind::EachHead => [heads, kv_heads],
            QkNormKind::AllHeads => [1, 1],
        };
        let q = Half {
            gain: norm.q,
            gains: 0..gains,
            columns: 0..q_cols,
            groups,
            groups_before: 0,
            cols: norm.cols[0],
            parts: ranks,
            counts: true,
        };
        let k = Half {
            gain: norm.k,
            gains: gains..gains + norm.k.len(),
            columns: q_cols..q_cols + shape.kv_cols(),
            groups: kv_groups,
            groups_before: groups,
            cols: norm.cols[1],
            parts: ranks / replicas,
            counts: norm.group.rank().is_multiple_of(replicas),
        };
        Self { norm, halves: [q, k], qkv_cols: shape.qkv_cols() }
    }

    /// `[tokens, q | k | v]` with queries and keys normalised, and what backward needs: queries and
    /// keys as they came, `[tokens, q | k]`, and the reciprocal deviations, `[tokens, heads]` of the
    /// queries and behind them of the keys (over all heads `[tokens]` of each).
    ///
    /// # Errors
    /// A wrong shape, weights that are away, or a failed collective.
    pub(crate) fn forward(
        &self,
        weights: &ParamStore,
        qkv: Act,
        ctx: &Context<'_>,
    ) -> Result<(Act, [Act; 2]), NnError> {
        let tokens = ctx.rows.tokens();
        let mut qkv = qkv.into_buf(ctx.pool)?;
        let mut x = ctx.alloc(tokens, self.cols())?;
        let both = MatRef::new(qkv.slice(), tokens, self.qkv_cols).columns(0..self.cols())?;
        ctx.ops.copy(MatMut::new(x.slice_mut(), tokens, self.cols()), both)?;
        let of_x = MatRef::new(x.slice(), tokens, self.cols());
        let mut stats = self.sums(ctx, |half, sums| {
            let x = half.of(of_x)?;
            Ok(ctx.ops.rms_squares(self.shape(half, ctx), sums, x)?)
        })?;
        for half in &self.halves {
            let all = MatMut::new(qkv.slice_mut(), tokens, self.qkv_cols);
            let (y, x) = (all.columns(half.columns.clone())?, half.of(of_x)?);
            let stats = stats.slice_mut().range(half.stats(tokens, 0..tokens))?;
            let gain = weights.lease(&half.gain)?;
            ctx.ops.rms_scale(self.shape(half, ctx), y, stats, x, gain.slice())?;
        }
        Ok((Act::new(qkv), [Act::new(x), Act::new(stats)]))
    }

    /// Turns the gradient `d` of `[tokens, q | k | v]` behind the norms into the one before them, in
    /// place. The gains' gradients go into `grads`.
    ///
    /// # Errors
    /// As [`HeadNorms::forward`], or gradients that are away.
    pub(crate) fn backward(
        &self,
        weights: &ParamStore,
        [x, stats]: [Act; 2],
        d: &mut Buf,
        ctx: &Context<'_>,
        grads: &mut GradStore,
    ) -> Result<(), NnError> {
        let tokens = ctx.rows.tokens();
        let x = MatRef::new(x.slice(), tokens, self.cols());
        let dy = MatRef::new(d.slice(), tokens, self.qkv_cols);
        self.add_gains((x, &stats, dy), ctx, grads)?;
        let products = self.sums(ctx, |half, sums| {
            let (x, dy) = (half.of(x)?, half.of(dy)?);
            let gain = weights.lease(&half.gain)?;
            Ok(ctx.ops.rms_products(self.shape(half, ctx), sums, x, gain.slice(), dy)?)
        })?;
        for half in &self.halves {
            let all = MatMut::new(d.slice_mut(), tokens, self.qkv_cols);
            let (d, x) = (all.columns(half.columns.clone())?, half.of(x)?);
            let at = half.stats(tokens, 0..tokens);
            let (rstd, products) = (stats.slice().range(at.clone())?, products.slice().range(at)?);
            let gain = weights.lease(&half.gain)?;
            ctx.ops.rms_backward(self.shape(half, ctx), d, x, rstd, products, gain.slice())?;
        }
        Ok(())
    }

    /// Columns of queries and keys.
    fn cols(&self) -> usize {
        self.halves[1].columns.end
    }

    fn shape(&self, half: &Half, ctx: &Context<'_>) -> RmsShape {
        let groups = half.groups;
        let (blocks, elements) = match self.norm.kind {
            QkNormKind::EachHead => (1, half.columns.len() / groups),
            QkNormKind::AllHeads => (ctx.numerics.blocks(half.parts), half.cols),
        };
        RmsShape { groups, blocks, elements, eps: self.norm.eps }
    }

    /// Both halves, without those that do not count where a sum is taken over the ranks.
    fn counted(&self, over_ranks: bool) -> impl Iterator<Item = &Half> {
        self.halves.iter().filter(move |half| half.counts || !over_ranks)
    }

    fn total(&self, sums: Buf, over_ranks: bool) -> Result<Buf, NnError> {
        match over_ranks {
            true => self.norm.group.all_reduce(sums, ReduceOp::Sum, self.norm.name),
            false => Ok(sums),
        }
    }

    /// What `sum` gives for both halves: over all heads the sum over the ranks, of both at once.
    fn sums(
        &self,
        ctx: &Context<'_>,
        mut sum: impl FnMut(&Half, SliceMut<'_>) -> Result<(), NnError>,
    ) -> Result<Buf, NnError> {
        let tokens = ctx.rows.tokens();
        let over_ranks = self.norm.kind == QkNormKind::AllHeads;
        let len = self.halves[1].stats(tokens, 0..tokens).end;
        let mut sums = ctx.pool.zeros(ctx.compute.accumulator(), len)?;
        for half in self.counted(over_ranks) {
            sum(half, sums.slice_mut().range(half.stats(tokens, 0..tokens))?)?;
        }
        self.total(sums, over_ranks)
    }

    /// Adds the gradients of both gains: in reference numerics a sum of its own for each sample.
    /// Those of a gain that heads share are summed over the heads, and over the ranks.
    fn add_gains(
        &self,
        (x, stats, dy): (MatRef<'_>, &Buf, MatRef<'_>),
        ctx: &Context<'_>,
        grads: &mut GradStore,
    ) -> Result<(), NnError> {
        let tokens = ctx.rows.tokens();
        let over_ranks = self.norm.kind == QkNormKind::EachHead;
        let each = match ctx.numerics {
            Numerics::Fast => tokens,
            Numerics::Reference => ctx.rows.seq,
        };
        let each = each.max(1);
        let gains = self.halves[1].gains.end;
        let place = |half: &Half, first_row: usize| {
            let first = first_row / each * gains;
            first + half.gains.start..first + half.gains.end
        };
        let mut sums = ctx.pool.zeros(ctx.compute.accumulator(), (tokens / each).max(1) * gains)?;
        for first in (0..tokens).step_by(each) {
            for half in self.counted(over_ranks) {
                let rows = first..first + each;
                let (x, dy) = (half.of(x)?.rows(rows.clone())?, half.of(dy)?.rows(rows.clone())?);
                let rstd = stats.slice().range(half.stats(tokens, rows))?;
                let into = sums.slice_mut().range(place(half, first))?;
                ctx.ops.rms_gain(self.shape(half, ctx), into, x, rstd, dy)?;
            }
        }
        let sums = self.total(sums, over_ranks)?;
        self.halves.iter().try_for_each(|half| {
            grads.add(&half.gain, &ctx.rows, |rows, total| {
                let own = sums.slice().range(place(half, rows.start))?;
                Ok(ctx.ops.add_assign(total, own)?)
            })
        })
    }
}
