//! What a block keeps for its backward pass, as symbolic shapes.

use crate::{Block, Branch, BranchTensor, Inner, Norm, PassShape, Replay};
use trine_mesh::shard;

/// How a saved tensor's size shrinks over tensor parallelism.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// Every rank keeps all tokens and features.
    None,
    /// Features or heads are split over tensor parallelism.
    Tensor {
        /// In how many parts that stay whole, as [`trine_mesh::shard()`] shares them out.
        units: usize,
    },
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
    /// What it is; parts of one tensor have one name.
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

    /// Bytes on one of `tp` ranks, as trine keeps them. Parts that they cannot share count as whole.
    pub fn bytes(&self, tp: usize, shape: &PassShape) -> usize {
        let PassShape { tokens, tp_index, sequence_parallel, .. } = *shape;
        let (per_token, parts) = match self.split {
            Split::Gathered if !sequence_parallel || tp == 1 => (0, 1),
            Split::None | Split::Gathered => (self.per_token, 1),
            Split::Tensor { units } => {
                let own = shard(self.per_token, units, tp, tp_index);
                (own.map_or(self.per_token, |own| own.range.len()), 1)
            }
            Split::Sequence => (self.per_token, if sequence_parallel { tp } else { 1 }),
        };
        let element = match self.kept {
            Kept::Compute => shape.compute_bytes,
            Kept::Sums | Kept::Stream => shape.sum_bytes,
        };
        tokens * per_token * element / parts
    }
}

impl Norm {
    /// Statistics that are kept of a row: mean and reciprocal deviation, or the latter.
    pub fn stats(self) -> usize {
        match self {
            Self::Layer => 2,
            Self::Rms | Self::RmsOne => 1,
        }
    }
}

impl Branch {
    /// What the branch needs for its backward pass beside a stream of `hidden` features, for `tp` ranks, in forward
    /// order; several of a kind are parts of one. Attention keeps the row-wise log-sum instead of the score matrix (Dao
    /// et al., 2205.14135); dropout masks are never kept (contract C1).
    pub fn tensors(&self, hidden: usize, tp: usize) -> Vec<(BranchTensor, SavedTensor)> {
        let rows = |name: String, kept| SavedTensor::new(name, hidden, kept, Split::Sequence);
        let stats = |name: &str, kind: Norm| {
            SavedTensor::new(format!("{name}.stats"), kind.stats(), Kept::Sums, Split::Sequence)
        };
        let mut all = Vec::new();
        let mut add = |tensor, parts: Vec<SavedTensor>| {
            all.extend(parts.into_iter().map(|part| (tensor, part)));
        };
        if let Some(norm) = self.before {
            add(BranchTensor::Entering, vec![rows(format!("{}.input", norm.name), Kept::Stream)]);
            add(BranchTensor::ReadStats, vec![stats(norm.name, norm.kind)]);
        }
        add(BranchTensor::Read, vec![rows(format!("{}.input", self.name), Kept::Compute)]);
        add(BranchTensor::QkInput, self.before_qk_norm(tp));
        add(BranchTensor::QkStats, self.qk_norm_stats(tp));
        add(BranchTensor::Columns, self.before_inner(tp));
        add(BranchTensor::Given, vec![self.after_inner(tp)]);
        if let Inner::Attention(_) = self.inner {
            let name = format!("{}.log_sum", self.name);
            let split = Split::Tensor { units: self.row.parts(tp) };
            let sums = SavedTensor::new(name, self.row.units, Kept::Sums, split);
            add(BranchTensor::LogSum, vec![sums]);
        }
        if let Some(norm) = self.after {
            // One rank gives what the row comes to in the stream's type, several sum it in the compute type.
            let kept = if tp == 1 { Kept::Stream } else { Kept::Compute };
            add(BranchTensor::Row, vec![rows(format!("{}.input", norm.name), kept)]);
            add(BranchTensor::RowStats, vec![stats(norm.name, norm.kind)]);
        }
        all
    }
}

impl Block {
    /// What a block saves between its forward and its backward pass, for `tp` ranks, if it drops nothing. Branches
    /// side by side save what enters once.
    pub fn saved(&self, hidden: usize, tp: usize) -> Vec<SavedTensor> {
        let branches = 0..self.branches.len();
        branches.flat_map(|branch| self.saved_by(branch, hidden, tp)).collect()
    }

    /// What of it branch `number` saves.
    pub fn saved_by(&self, number: usize, hidden: usize, tp: usize) -> Vec<SavedTensor> {
        let is_shared = self.parallel && number > 0;
        let tensors = self.branches[number].tensors(hidden, tp).into_iter();
        let own = tensors.filter(|(kind, _)| !is_shared || *kind != BranchTensor::Entering);
        own.map(|(_, tensor)| tensor).collect()
    }

    /// What of it branch `number` keeps until its backward pass, where the rest is computed again.
    pub fn kept_by(
        &self,
        number: usize,
        replay: &Replay,
        hidden: usize,
        tp: usize,
    ) -> Vec<SavedTensor> {
        let branch = &self.branches[number];
        let is_shared = self.parallel && number > 0;
        let is_kept = |kind: &BranchTensor| {
            replay.kept.contains(kind) && !(is_shared && *kind == BranchTensor::Entering)
        };
        let tensors = branch.tensors(hidden, tp).into_iter();
        let mut kept: Vec<SavedTensor> =
            tensors.filter(|(kind, _)| is_kept(kind)).map(|(_, tensor)| tensor).collect();
        if branch.before.is_none() && is_kept(&BranchTensor::Entering) {
            // The stream itself, instead of a copy of it.
            let name = format!("{}.stream", branch.name);
            kept.push(SavedTensor::new(name, hidden, Kept::Stream, Split::Sequence));
        }
        kept
    }
}

#[cfg(test)]
mod tests {
    use crate::{PassShape, presets};

    #[test]
    fn a_gpt_block_keeps_the_textbook_bytes() {
        // Korthikanti et al. (2205.05198), flash attention, no dropout masks, bf16: per token
        // 2·(2h + 3h + h + 2·4h) bytes, and in f32 two inputs of norms, which are the residual
        // stream, 4 norm statistics and a log-sum a head.
        let model = presets::find("gpt2-124m").unwrap().model;
        let (h, tokens) = (768, 64);
        let bytes = |tp, sequence_parallel| {
            let shape = PassShape {
                tokens,
                tp_index: 0,
                sequence_parallel,
                compute_bytes: 2,
                sum_bytes: 4,
            };
            let saved = model.block(0).saved(h, tp);
            saved.iter().map(|tensor| tensor.bytes(tp, &shape)).sum::<usize>()
        };
        let whole = bytes(1, false);
        assert_eq!(whole, tokens * (2 * (2 * h + 3 * h + h + 8 * h) + 4 * (2 * h + 4 + 12)));
        assert_eq!(bytes(4, true) * 4, whole, "sequence parallelism splits everything");
    }
}
