//! What a block keeps for its backward pass, as symbolic shapes.

use crate::{ModelSpec, Norm};

/// How a saved tensor's size shrinks over tensor parallelism.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// Every rank keeps all tokens and features.
    None,
    /// Features or heads are split over tensor parallelism.
    Tensor,
    /// Tokens are split over tensor parallelism when sequence parallelism is on.
    Sequence,
}

/// In which type a saved tensor is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// The compute type: factors of products.
    Compute,
    /// The accumulator type (f32 beside bf16): statistics.
    Sums,
    /// The residual stream's type: in trine the accumulator type too, in other frameworks often the
    /// compute type.
    Stream,
}

/// One tensor that a piece saves, per token of its micro-batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedTensor {
    /// What it is.
    pub name: &'static str,
    /// Elements for each token.
    pub per_token: usize,
    /// In which type.
    pub kept: Kept,
    /// How it is split.
    pub split: Split,
}

impl SavedTensor {
    /// Local bytes for `tokens` tokens, as trine keeps them.
    pub fn bytes(
        &self,
        tokens: usize,
        tp: usize,
        sequence_parallel: bool,
        compute_bytes: usize,
        accumulator_bytes: usize,
    ) -> usize {
        let parts = match self.split {
            Split::None => 1,
            Split::Tensor => tp,
            Split::Sequence => {
                if sequence_parallel {
                    tp
                } else {
                    1
                }
            }
        };
        let element = match self.kept {
            Kept::Compute => compute_bytes,
            Kept::Sums | Kept::Stream => accumulator_bytes,
        };
        tokens * self.per_token * element / parts
    }
}

impl ModelSpec {
    /// What one block saves between its forward and its backward pass without recompute, for
    /// `tp` ranks. Attention keeps the row-wise log-sum instead of the score matrix
    /// (Dao et al., 2205.14135); dropout masks are never kept (contract C1).
    pub fn saved(&self, tp: usize) -> Vec<SavedTensor> {
        let of = |kept| move |name, per_token, split| SavedTensor { name, per_token, kept, split };
        let (tensor, sums, stream) = (of(Kept::Compute), of(Kept::Sums), of(Kept::Stream));
        let stats = match self.norm() {
            Norm::Layer => 2,
            Norm::Rms => 1,
        };
        // Replicated KV heads: tp ranks hold tp / kv_heads copies of each.
        let kv = self.head_dim * self.kv_heads.max(tp);
        let inner = if self.gated() { 2 * self.ffn } else { self.ffn };
        vec![
            stream("norm1.input", self.hidden, Split::Sequence),
            sums("norm1.stats", stats, Split::Sequence),
            tensor("attention.input", self.hidden, Split::Sequence),
            tensor("attention.qkv", self.q_dim() + 2 * kv, Split::Tensor),
            tensor("attention.output", self.q_dim(), Split::Tensor),
            sums("attention.log_sum", self.heads, Split::Tensor),
            stream("norm2.input", self.hidden, Split::Sequence),
            sums("norm2.stats", stats, Split::Sequence),
            tensor("mlp.input", self.hidden, Split::Sequence),
            tensor("mlp.inner", inner, Split::Tensor),
            tensor("mlp.activated", self.ffn, Split::Tensor),
        ]
    }

    /// Local bytes that one block keeps for a micro-batch of `tokens` tokens: all of
    /// [`ModelSpec::saved`], or with full recompute its input alone.
    pub fn block_saved_bytes(
        &self,
        tokens: usize,
        tp: usize,
        sequence_parallel: bool,
        recompute: bool,
        compute_bytes: usize,
        accumulator_bytes: usize,
    ) -> usize {
        let kept = if recompute { 1 } else { usize::MAX };
        self.saved(tp)
            .iter()
            .take(kept)
            .map(|saved| {
                saved.bytes(tokens, tp, sequence_parallel, compute_bytes, accumulator_bytes)
            })
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use crate::presets;

    #[test]
    fn a_gpt_block_keeps_the_textbook_bytes() {
        // Korthikanti et al. (2205.05198), flash attention, no dropout masks, bf16: per token
        // 2·(2h + 3h + h + 2·4h) bytes, and in f32 two inputs of norms, which are the residual
        // stream, 4 norm statistics and a log-sum a head.
        let model = presets::find("gpt2-124m").unwrap().model;
        let (h, tokens) = (768, 64);
        let whole = model.block_saved_bytes(tokens, 1, false, false, 2, 4);
        assert_eq!(whole, tokens * (2 * (2 * h + 3 * h + h + 8 * h) + 4 * (2 * h + 4 + 12)));
        let split = model.block_saved_bytes(tokens, 4, true, false, 2, 4);
        assert_eq!(split * 4, whole, "sequence parallelism splits everything");
        assert_eq!(model.block_saved_bytes(tokens, 4, false, true, 2, 4), tokens * 4 * h);
    }
}
