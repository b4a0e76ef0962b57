//! Causal attention over the heads that one rank holds.

use crate::{
    Context, Dropout, GradStore, Layer, NnError, ParamStore, Saved, WeightWork, check_len,
};
use trine_buffer::{Act, Buf};
use trine_kernels::{AttentionDropout, MatMut, MatRef, Qkv, QkvMut, RopeShape};

/// Heads of one rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionShape {
    /// Query heads held here.
    pub heads: usize,
    /// Key and value heads held here; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Global index of the first query head: a coordinate of dropout masks.
    pub first_head: usize,
}

impl AttentionShape {
    /// Columns of the queries (and of the output).
    pub fn q_cols(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Columns of the keys (and of the values).
    pub fn kv_cols(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Columns of the fused input: queries, keys, values.
    pub fn qkv_cols(&self) -> usize {
        self.q_cols() + 2 * self.kv_cols()
    }
}

/// Causal softmax attention with grouped KV heads, optional rotary positions and dropout:
/// `[tokens, q | k | v]` to `[tokens, q]`. Keeps the row-wise log-sum, never the scores
/// (Dao et al., 2205.14135).
#[derive(Debug, Clone)]
pub struct AttentionCore {
    /// The heads.
    pub shape: AttentionShape,
    /// Cosines and sines of rotary positions (2104.09864), shared by all layers: the table that
    /// `trine_kernels::rope_table` makes.
    pub rope: Option<Act>,
    /// Dropout on probabilities.
    pub dropout: Dropout,
}

impl AttentionCore {
    fn kernel_shape(&self, ctx: &Context<'_>) -> trine_kernels::AttentionShape {
        trine_kernels::AttentionShape {
            samples: ctx.rows.samples.len(),
            queries: ctx.rows.seq,
            keys: ctx.rows.seq,
            heads: self.shape.heads,
            kv_heads: self.shape.kv_heads,
            head_dim: self.shape.head_dim,
            scale: 1.0 / (self.shape.head_dim as f64).sqrt(),
        }
    }

    fn attention_dropout(&self, ctx: &Context<'_>) -> Option<AttentionDropout> {
        let first_head = self.shape.first_head;
        self.dropout.kernel(ctx).map(|dropout| AttentionDropout { dropout, first_head })
    }

    fn qkv<'a>(&self, all: &'a Buf, ctx: &Context<'_>) -> Result<Qkv<'a>, NnError> {
        let all = MatRef::new(all.slice(), ctx.rows.tokens(), self.shape.qkv_cols());
        Ok(Qkv::fused(all, self.shape.q_cols(), self.shape.kv_cols())?)
    }

    /// Turns queries and keys by their positions, in place.
    fn rotate(&self, qkv: &mut Buf, inverse: bool, ctx: &Context<'_>) -> Result<(), NnError> {
        let Some(table) = &self.rope else { return Ok(()) };
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.shape;
        // Keys lie directly behind the queries, so both are one run of heads.
        let shape = RopeShape { heads: heads + kv_heads, head_dim, seq: ctx.rows.seq, start: 0 };
        let all = MatMut::new(qkv.slice_mut(), ctx.rows.tokens(), self.shape.qkv_cols());
        let turned = all.columns(0..self.shape.q_cols() + self.shape.kv_cols())?;
        Ok(ctx.ops.rope(shape, inverse, turned, table.slice())?)
    }

    /// The gradient of the queries, keys and values as attention sees them: after the rotation. Ranks
    /// that share a KV head add up its gradient before [`AttentionCore::rotate_back`], as one rank
    /// with all its query heads does.
    ///
    /// # Errors
    /// A wrong shape.
    pub fn head_gradients(
        &self,
        saved: Saved,
        dy: &Buf,
        ctx: &Context<'_>,
    ) -> Result<Buf, NnError> {
        let ([qkv, o, log_sum], []) = saved.take()?;
        let (shape, rows) = (self.shape, ctx.rows.tokens());
        check_len("attention", "output gradient", dy.len(), rows * shape.q_cols())?;
        let mut d = ctx.alloc(rows, shape.qkv_cols())?;
        ctx.ops.attention_backward(
            self.kernel_shape(ctx),
            QkvMut::Fused(MatMut::new(d.slice_mut(), rows, shape.qkv_cols())),
            MatRef::new(dy.slice(), rows, shape.q_cols()),
            MatRef::new(o.slice(), rows, shape.q_cols()),
            log_sum.slice(),
            self.qkv(&qkv, ctx)?,
            ctx.document_start,
            self.attention_dropout(ctx),
        )?;
        Ok(d)
    }

    /// Turns a gradient by [`AttentionCore::head_gradients`] back: the gradient of the input.
    ///
    /// # Errors
    /// A wrong shape.
    pub fn rotate_back(&self, d: &mut Buf, ctx: &Context<'_>) -> Result<(), NnError> {
        self.rotate(d, true, ctx)
    }
}

impl Layer for AttentionCore {
    fn forward(
        &self,
        _: &ParamStore,
        qkv: Act,
        ctx: &Context<'_>,
    ) -> Result<(Act, Saved), NnError> {
        let (shape, rows) = (self.shape, ctx.rows.tokens());
        check_len("attention", "input", qkv.len(), rows * shape.qkv_cols())?;
        let mut qkv = qkv.into_buf(ctx.pool)?;
        self.rotate(&mut qkv, false, ctx)?;
        let mut o = ctx.alloc(rows, shape.q_cols())?;
        let mut log_sum = ctx.alloc_sums(rows * shape.heads)?;
        ctx.ops.attention(
            self.kernel_shape(ctx),
            MatMut::new(o.slice_mut(), rows, shape.q_cols()),
            log_sum.slice_mut(),
            self.qkv(&qkv, ctx)?,
            ctx.document_start,
            self.attention_dropout(ctx),
        )?;
        let o = Act::new(o);
        if !ctx.training() {
            return Ok((o, Saved::nothing()));
        }
        Ok((o.clone(), Saved::new([Act::new(qkv), o, Act::new(log_sum)], [])))
    }

    fn backward_input(
        &self,
        _: &ParamStore,
        saved: Saved,
        dy: Act,
        ctx: &Context<'_>,
        _: &mut GradStore,
    ) -> Result<(Act, WeightWork), NnError> {
        let mut d = self.head_gradients(saved, &dy, ctx)?;
        self.rotate_back(&mut d, ctx)?;
        Ok((Act::new(d), WeightWork::nothing()))
    }
}
