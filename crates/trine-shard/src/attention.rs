//! Attention over the heads of one rank.

use crate::qk_norm::HeadNorms;
use crate::{QkNorm, Split, TensorGroup, group::failed};
use std::sync::Arc;
use trine_buffer::{Act, Buf};
use trine_comm::{Communicator, Name, ReduceOp};
use trine_kernels::{MatMut, MatRef};
use trine_nn::{AttentionCore, Context, GradStore, NnError, ParamStore, Saved};

/// Attention by heads. Heads are independent, so nothing crosses ranks, with one exception: with
/// fewer KV heads than ranks, several ranks hold the same KV head and each has some of its query
/// heads; the gradients of that key and value are then summed over those ranks.
#[derive(Debug, Clone)]
pub struct ShardedAttention {
    core: AttentionCore,
    /// The ranks that share this rank's KV head, if there are others.
    sharers: Option<Arc<dyn Communicator>>,
    name: Name,
    /// Norms of queries and keys, before they are turned.
    norms: Option<Box<HeadNorms>>,
    /// The place in a cache of keys and values.
    layer: Option<usize>,
}

impl ShardedAttention {
    /// Attention over the heads of `core`. `replicas` ranks of the group hold the same KV head.
    /// A collective call when `replicas > 1`.
    ///
    /// # Errors
    /// A failed split.
    pub fn new(
        core: AttentionCore,
        group: &TensorGroup,
        replicas: usize,
        name: Name,
    ) -> Result<Self, NnError> {
        let split = |replicas| group.comm().split((group.rank() / replicas) as u64, "kv");
        let sharers = (replicas > 1).then(|| split(replicas)).transpose().map_err(failed)?;
        Ok(Self { core, sharers, name, norms: None, layer: None })
    }

    /// The same attention on queries and keys that are normalised first.
    pub fn with_norms(self, norms: QkNorm) -> Self {
        let replicas = self.sharers.as_ref().map_or(1, |sharers| sharers.size());
        let norms = Some(Box::new(HeadNorms::new(norms, self.core.shape, replicas)));
        Self { norms, ..self }
    }

    /// The same attention as layer `layer` of a [`DecodeCache`](trine_nn::DecodeCache), which it needs
    /// to continue a sequence.
    pub fn at_layer(self, layer: usize) -> Self {
        Self { layer: Some(layer), ..self }
    }

    /// `[tokens, q | k | v]` to `[tokens, q]`. With norms it keeps what they need beside what attention
    /// needs: `[tokens, q | k]` in the compute type, and in that of its sums a number for each token and
    /// head (over all heads two a token).
    ///
    /// # Errors
    /// A wrong shape, a failed collective, or a cache in the context that has no place for this layer or
    /// its tokens.
    pub fn forward(
        &self,
        weights: &ParamStore,
        qkv: Split,
        ctx: &Context<'_>,
    ) -> Result<(Split, Saved), NnError> {
        let (qkv, normed) = self.prepare(weights, qkv, ctx)?;
        let (o, log_sum) = self.attend(&qkv, ctx)?;
        if !ctx.training() {
            return Ok((o, Saved::nothing()));
        }
        let core = [qkv.into_inner(), (*o).clone(), log_sum];
        Ok((o, Self::saved(normed, core)))
    }

    /// What [`ShardedAttention::backward_input`] needs: what [`ShardedAttention::prepare`] keeps of the norms, and
    /// queries, keys and values as they are prepared, the output, and the logarithms of sums.
    pub fn saved(normed: Option<[Act; 2]>, core: [Act; 3]) -> Saved {
        match normed {
            Some(normed) => Saved::new(normed, [Saved::new(core, [])]),
            None => Saved::new(core, []),
        }
    }

    /// `[tokens, q | k | v]` as attention reads it, with queries and keys normalised and turned; and what the norms
    /// need backward, if there are any.
    ///
    /// # Errors
    /// A wrong shape, or a failed collective.
    pub fn prepare(
        &self,
        weights: &ParamStore,
        qkv: Split,
        ctx: &Context<'_>,
    ) -> Result<(Split, Option<[Act; 2]>), NnError> {
        let (qkv, normed) = match &self.norms {
            Some(norms) => {
                let (qkv, kept) = norms.forward(weights, qkv.into_inner(), ctx)?;
                (qkv, Some(kept))
            }
            None => (qkv.into_inner(), None),
        };
        Ok((Split::assume(Act::new(self.core.turn(qkv, ctx)?)), normed))
    }

    /// The output, `[tokens, q]`, and the logarithms of sums, `[tokens, heads]`, of what is prepared: a whole sequence
    /// or what continues the one in the cache.
    ///
    /// # Errors
    /// A wrong shape, or a cache that has no place for this layer or its tokens.
    pub fn attend(&self, qkv: &Split, ctx: &Context<'_>) -> Result<(Split, Act), NnError> {
        let (o, log_sum) = match self.layer {
            Some(layer) if ctx.decode.is_some() => self.core.decode(qkv, layer, ctx)?,
            Some(_) | None => self.core.attend(qkv, ctx)?,
        };
        Ok((Split::assume(Act::new(o)), Act::new(log_sum)))
    }

    /// The gradient of `[tokens, q | k | v]`. The gradients of norms' gains go into `grads`.
    ///
    /// # Errors
    /// A wrong shape, or a failed collective.
    pub fn backward_input(
        &self,
        weights: &ParamStore,
        saved: Saved,
        dy: Split,
        ctx: &Context<'_>,
        grads: &mut GradStore,
    ) -> Result<Split, NnError> {
        let Some(norms) = &self.norms else {
            return Ok(Split::assume(Act::new(self.turned_back(saved, &dy, ctx)?)));
        };
        let (kept, [saved]) = saved.take()?;
        let mut d = self.turned_back(saved, &dy, ctx)?;
        drop(dy);
        norms.backward(weights, kept, &mut d, ctx, grads)?;
        Ok(Split::assume(Act::new(d)))
    }

    /// The gradient of `[tokens, q | k | v]` before the rotation, summed over the ranks that share heads.
    fn turned_back(&self, saved: Saved, dy: &Buf, ctx: &Context<'_>) -> Result<Buf, NnError> {
        let mut d = self.core.head_gradients(saved, dy, ctx)?;
        if let Some(sharers) = &self.sharers {
            self.sum_shared(&mut d, &**sharers, ctx)?;
        }
        self.core.rotate_back(&mut d, ctx)?;
        Ok(d)
    }

    /// Sums the gradients of the shared key and value over the ranks that have them.
    fn sum_shared(
        &self,
        d: &mut Buf,
        sharers: &dyn Communicator,
        ctx: &Context<'_>,
    ) -> Result<(), NnError> {
        let (rows, shape) = (ctx.rows.tokens(), self.core.shape);
        let (all, kv) = (shape.qkv_cols(), 2 * shape.kv_cols());
        let mut shared = ctx.alloc(rows, kv)?;
        let columns = shape.q_cols()..all;
        let from = MatRef::new(d.slice(), rows, all).columns(columns.clone())?;
        ctx.ops.copy(MatMut::new(shared.slice_mut(), rows, kv), from)?;
        let shared = sharers.all_reduce(shared, ReduceOp::Sum, self.name).map_err(failed)?;
        let to = MatMut::new(d.slice_mut(), rows, all).columns(columns)?;
        Ok(ctx.ops.copy(to, MatRef::new(shared.slice(), rows, kv))?)
    }
}
