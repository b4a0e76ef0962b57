//! What a block keeps for its backward pass, as symbolic shapes.

use crate::{Branch, Inner, ModelSpec, Norm};

/// How a saved tensor's size shrinks over tensor parallelism.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// Every rank keeps all tokens and features.
    None,
    /// Features or heads are split over tensor parallelism.
    Tensor,
    /// Tokens are split over tensor parallelism when sequence parallelism is on.
    Sequence,
    /// The tokens of all ranks, brought together where sequence parallelism has split them. Where it has not, this is
    /// no tensor of its own.
    Gathered,
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
    pub name: String,
    /// Elements for each token.
    pub per_token: usize,
    /// In which type.
    pub kept: Kept,
    /// How it is split.
    pub split: Split,
}

impl SavedTensor {
    /// A tensor of `per_token` elements for each token.
    pub fn new(name: impl Into<String>, per_token: usize, kept: Kept, split: Split) -> Self {
        Self { name: name.into(), per_token, kept, split }
    }

    /// Local bytes for `tokens` tokens, as trine keeps them.
    pub fn bytes(
        &self,
        tokens: usize,
        tp: usize,
        sequence_parallel: bool,
        compute_bytes: usize,
        accumulator_bytes: usize,
    ) -> usize {
        let split_rows = sequence_parallel && tp > 1;
        let parts = match self.split {
            Split::Gathered if !split_rows => return 0,
            Split::None | Split::Gathered => 1,
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

impl Norm {
    /// Statistics of a row.
    pub(crate) fn stats(self) -> usize {
        match self {
            Self::Layer => 2,
            Self::Rms => 1,
        }
    }
}

impl Branch {
    /// What the branch saves beside a stream of `hidden` features, for `tp` ranks.
    pub fn saved(&self, hidden: usize, tp: usize) -> Vec<SavedTensor> {
        let named = |of: &str, what: &str| format!("{of}.{what}");
        let mut saved = vec![
            SavedTensor::new(named(self.norm, "input"), hidden, Kept::Stream, Split::Sequence),
            SavedTensor::new(
                named(self.norm, "stats"),
                self.norm_kind.stats(),
                Kept::Sums,
                Split::Sequence,
            ),
            SavedTensor::new(named(self.name, "input"), hidden, Kept::Compute, Split::Sequence),
            self.before(tp),
            self.after(),
        ];
        if self.inner == Inner::Attention {
            let heads = self.row.units;
            let name = named(self.name, "log_sum");
            saved.push(SavedTensor::new(name, heads, Kept::Sums, Split::Tensor));
        }
        saved
    }
}

impl ModelSpec {
    /// What one block saves between its forward and its backward pass without recompute, for
    /// `tp` ranks. Attention keeps the row-wise log-sum instead of the score matrix
    /// (Dao et al., 2205.14135); dropout masks are never kept (contract C1).
    pub fn saved(&self, tp: usize) -> Vec<SavedTensor> {
        self.branches().iter().flat_map(|branch| branch.saved(self.hidden, tp)).collect()
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
