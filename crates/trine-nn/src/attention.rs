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

    /// The usual factor of the scores, 1 / √head_dim.
    pub fn scale(&self) -> f64 {
        1.0 / (self.head_dim as f64).sqrt()
    }
}

/// Rotary positions (2104.09864).
#[derive(Debug, Clone)]
pub struct Rotary {
    /// Cosines and sines of every position, shared by all layers: the table that
    /// `trine_kernels::rope_table` makes of `turned / 2` frequencies.
    pub table: Act,
    /// Elements at the front of each head that are turned: all of them, or as in GPT-NeoX a part.
    pub turned: usize,
}

/// Causal softmax attention with grouped KV heads, optional rotary positions, dropout, window and
/// bound of the scores: `[tokens, q | k | v]` to `[tokens, q]`. Keeps the row-wise log-sum, never the scores
/// (Dao et al., 2205.14135).
#[derive(Debug, Clone)]
pub struct AttentionCore {
    /// The heads.
    pub shape: AttentionShape,
    /// The factor of the scores, mostly [`AttentionShape::scale`].
    pub scale: f64,
    /// Rotary positions, where the model has them.
    pub rope: Option<Rotary>,
    /// Dropout on probabilities.
    pub dropout: Dropout,
    /// How many tokens each one attends to: itself and those directly before. `None` means all.
    pub window: Option<usize>,
    /// The bound of the scores, `softcap · tanh(score / softcap)` (Gemma 2); `None` leaves them.
    pub softcap: Option<f64>,
}

impl AttentionCore {
    fn kernel_shape(&self, keys: usize, ctx: &Context<'_>) -> trine_kernels::AttentionShape {
        trine_kernels::AttentionShape {
            samples: ctx.rows.samples.len(),
            queries: ctx.rows.seq,
            keys,
            query_start: ctx.first_position(),
            key_start: 0,
            window: self.window,
            heads: self.shape.heads,
            kv_heads: self.shape.kv_heads,
            head_dim: self.shape.head_dim,
            scale: self.scale,
            softcap: self.softcap,
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
        let Some(Rotary { table, turned }) = &self.rope else { return Ok(()) };
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.shape;
        // Keys lie directly behind the queries, so both are one run of heads.
        let (seq, start) = (ctx.rows.seq, ctx.first_position());
        let shape = RopeShape { heads: heads + kv_heads, head_dim, turned: *turned, seq, start };
        let all = MatMut::new(qkv.slice_mut(), ctx.rows.tokens(), self.shape.qkv_cols());
        let heads = all.columns(0..self.shape.q_cols() + self.shape.kv_cols())?;
        Ok(ctx.ops.rope(shape, inverse, heads, table.slice())?)
    }

    /// The input with queries and keys turned by their positions: what [`AttentionCore::attend`] and
    /// [`AttentionCore::decode`] read, and the backward pass too.
    ///
    /// # Errors
    /// A wrong shape.
    pub fn turn(&self, qkv: Act, ctx: &Context<'_>) -> Result<Buf, NnError> {
        check_len("attention", "input", qkv.len(), ctx.rows.tokens() * self.shape.qkv_cols())?;
        let mut qkv = qkv.into_buf(ctx.pool)?;
        self.rotate(&mut qkv, false, ctx)?;
        Ok(qkv)
    }

    /// The output of each query of whole sequences, `[tokens, q]`, and the logarithm of its sum of exponentials,
    /// `[tokens, heads]`, from queries and keys that are turned.
    ///
    /// # Errors
    /// A wrong shape, or a cache in the context: taking part without a place in it would forget everything before.
    pub fn attend(&self, qkv: &Buf, ctx: &Context<'_>) -> Result<(Buf, Buf), NnError> {
        if ctx.decode.is_some() {
            return Err(NnError::Missing { layer: "attention", what: "its place in the cache" });
        }
        self.outputs(self.qkv(qkv, ctx)?, ctx.rows.seq, ctx)
    }

    /// The output of each query, and the logarithm of its sum of exponentials.
    fn outputs(&self, qkv: Qkv<'_>, keys: usize, ctx: &Context<'_>) -> Result<(Buf, Buf), NnError> {
        let (shape, rows) = (self.shape, ctx.rows.tokens());
        let mut o = ctx.alloc(rows, shape.q_cols())?;
        let mut log_sum = ctx.alloc_sums(rows * shape.heads)?;
        ctx.ops.attention(
            self.kernel_shape(keys, ctx),
            MatMut::new(o.slice_mut(), rows, shape.q_cols()),
            log_sum.slice_mut(),
            qkv,
            ctx.document_start,
            self.attention_dropout(ctx),
        )?;
        Ok((o, log_sum))
    }

    /// [`AttentionCore::attend`] for tokens that continue the sequence in the context's cache, where this is attention
    /// layer `layer`. Their rows have the bits of a pass over the whole sequence.
    ///
    /// # Errors
    /// A wrong shape, several sequences, a training pass, or a cache that is missing, full or of
    /// another model.
    pub fn decode(
        &self,
        qkv: &Buf,
        layer: usize,
        ctx: &Context<'_>,
    ) -> Result<(Buf, Buf), NnError> {
        let cache = ctx
            .decode
            .ok_or(NnError::Missing { layer: "attention", what: "a cache in its context" })?;
        check_len("attention", "batch of a cache", ctx.rows.samples.len(), 1)?;
        if ctx.training() {
            return Err(NnError::Missing { layer: "a cache", what: "Mode::Eval" });
        }
        let (q_cols, qkv_cols) = (self.shape.q_cols(), self.shape.qkv_cols());
        let all = MatRef::new(qkv.slice(), ctx.rows.tokens(), qkv_cols);
        let cached = cache.extend(layer, all.columns(q_cols..qkv_cols)?, ctx.ops)?;
        let qkv = cached.with_queries(all.columns(0..q_cols)?)?;
        self.outputs(qkv, cached.keys(), ctx)
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
            self.kernel_shape(ctx.rows.seq, ctx),
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
        let qkv = self.turn(qkv, ctx)?;
        let (o, log_sum) = self.attend(&qkv, ctx)?;
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
