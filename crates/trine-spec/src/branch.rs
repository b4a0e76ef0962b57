//! What a block is: branches beside the residual stream. Parameters, saved tensors, layers, FLOPs and memory are read
//! off the same list, so that the order of operations stands once.

use crate::{Activation, Kept, ModelSpec, Norm, NormAt, QkNorm, RopeScaling, SavedTensor, Split};

/// The branches of a block.
#[derive(Debug, Clone, PartialEq)]
pub struct Block {
    /// In forward order.
    pub branches: Vec<Branch>,
    /// Whether all of them read what enters the block; else each reads what the one before has added to.
    pub parallel: bool,
}

/// `x += dropout(norm(row(inner(columns(norm(x))))))`: one branch of a block. It enters and leaves one tensor-parallel
/// region. A parameter of block 3 is called `block.3.NORM.weight`, `block.3.NAME.COLUMN.weight` or
/// `block.3.NAME.ROW.weight`, and a bias accordingly.
#[derive(Debug, Clone, PartialEq)]
pub struct Branch {
    /// The norm of what it reads.
    pub before: Option<BranchNorm>,
    /// The name of what lies between the norms.
    pub name: &'static str,
    /// Matrices that share their input, split by output features and used as one.
    pub columns: Vec<Features>,
    /// Whether they have biases.
    pub columns_bias: bool,
    /// What is done between columns and row, by features.
    pub inner: Inner,
    /// The matrix back to the stream, split by input features.
    pub row: Features,
    /// Whether it has a bias.
    pub row_bias: bool,
    /// The norm of what it gives.
    pub after: Option<BranchNorm>,
    /// Dropout of what it adds.
    pub dropout: f64,
}

/// A norm beside a branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BranchNorm {
    /// Its name.
    pub name: &'static str,
    /// Its kind.
    pub kind: Norm,
}

/// Features that tensor parallelism splits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// The matrix's name.
    pub name: &'static str,
    /// How many.
    pub width: usize,
    /// In how many parts that stay whole: heads, or single features.
    pub units: usize,
}

/// What a branch does between its two products.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Inner {
    /// Attention over queries, keys and values (Vaswani et al., 1706.03762).
    Attention(Attention),
    /// An element-wise function.
    Mlp {
        /// The function.
        activation: Activation,
        /// Whether the first column is a gate, whose function the second is multiplied by.
        gated: bool,
    },
}

/// Attention's traits beside its heads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attention {
    /// Norms of queries and keys.
    pub qk_norm: QkNorm,
    /// Elements of each head that are turned by their position.
    pub turned: usize,
    /// How the frequencies of turning are stretched.
    pub rope_scaling: RopeScaling,
    /// How many tokens each one sees: itself and those directly before; all where there is none.
    pub window: Option<usize>,
    /// The factor of scores.
    pub scale: f64,
    /// Their bound.
    pub cap: Option<f64>,
    /// Dropout of probabilities.
    pub dropout: f64,
}

impl Features {
    /// Features of all `tp` ranks together: where there are fewer parts than ranks, several hold the same one.
    pub(crate) fn held(&self, tp: usize) -> usize {
        self.width / self.units * self.units.max(tp)
    }
}

impl Inner {
    /// What the columns before it are called together: in the names of collectives.
    pub fn columns(self) -> &'static str {
        match self {
            Self::Attention(_) => "qkv",
            Self::Mlp { .. } => "up",
        }
    }

    /// What goes into it and what comes out, by name.
    fn ends(self) -> [&'static str; 2] {
        match self {
            Self::Attention(_) => ["qkv", "output"],
            Self::Mlp { .. } => ["inner", "activated"],
        }
    }

    /// The norms of queries and keys, if there are any.
    pub(crate) fn qk_norm(self) -> QkNorm {
        match self {
            Self::Attention(attention) => attention.qk_norm,
            Self::Mlp { .. } => QkNorm::None,
        }
    }
}

impl Branch {
    /// What its inner part reads: what the columns give, for `tp` ranks.
    pub(crate) fn before_inner(&self, tp: usize) -> SavedTensor {
        let width = self.columns.iter().map(|part| part.held(tp)).sum();
        self.split_tensor(self.inner.ends()[0], width)
    }

    /// What its inner part gives, and the row reads.
    pub(crate) fn after_inner(&self) -> SavedTensor {
        self.split_tensor(self.inner.ends()[1], self.row.width)
    }

    /// Queries and keys as they are before their norms, with the statistics of these.
    pub(crate) fn before_qk_norm(&self, tp: usize) -> Vec<SavedTensor> {
        let (QkNorm::Head | QkNorm::All, [q, k, ..]) = (self.inner.qk_norm(), &self.columns[..])
        else {
            return Vec::new();
        };
        let (width, heads) = (q.width + k.held(tp), q.units + k.units.max(tp));
        let (per_token, split) = match self.inner.qk_norm() {
            QkNorm::Head => (heads, Split::Tensor),
            QkNorm::All | QkNorm::None => (2, Split::None),
        };
        let stats = format!("{}.qk_stats", self.name);
        let stats = SavedTensor::new(stats, per_token, Kept::Sums, split);
        vec![self.split_tensor("qk", width), stats]
    }

    fn split_tensor(&self, what: &str, width: usize) -> SavedTensor {
        SavedTensor::new(format!("{}.{what}", self.name), width, Kept::Compute, Split::Tensor)
    }

    /// Elements of its matrices, beside a stream of `hidden` features.
    pub(crate) fn matrix_elements(&self, hidden: usize) -> usize {
        let columns: usize = self.columns.iter().map(|part| part.width).sum();
        hidden * (columns + self.row.width)
    }
}

impl ModelSpec {
    /// What block `index` is.
    pub fn block(&self, index: usize) -> Block {
        let branches = vec![self.attention(index), self.mlp(index)];
        Block { branches, parallel: *self.parallel.of(index) }
    }

    /// Attention's traits in block `index`.
    pub fn attention_traits(&self, index: usize) -> Attention {
        let score_dim = self.score_dim.of(index).get().unwrap_or(self.head_dim);
        Attention {
            qk_norm: *self.qk_norm.of(index),
            turned: self.turned(index),
            rope_scaling: self.rope_scaling,
            window: self.window.of(index).get(),
            scale: 1.0 / (score_dim as f64).sqrt(),
            cap: self.score_cap.of(index).get(),
            dropout: self.dropout.attention,
        }
    }

    fn attention(&self, index: usize) -> Branch {
        let features = |name, width, units| Features { name, width, units };
        let [before, after] = self.norms(index, ["norm1", "norm1_after"]);
        Branch {
            before,
            name: "attention",
            columns: vec![
                features("q", self.q_dim(), self.heads),
                features("k", self.kv_dim(), self.kv_heads),
                features("v", self.kv_dim(), self.kv_heads),
            ],
            columns_bias: *self.qkv_bias.of(index),
            inner: Inner::Attention(self.attention_traits(index)),
            row: features("output", self.q_dim(), self.heads),
            row_bias: *self.output_bias.of(index),
            after,
            dropout: self.dropout.residual,
        }
    }

    fn mlp(&self, index: usize) -> Branch {
        let features = |name| Features { name, width: self.ffn, units: self.ffn };
        let (gated, bias) = (*self.gated.of(index), *self.mlp_bias.of(index));
        let columns: &[&str] = if gated { &["gate", "up"] } else { &["up"] };
        let [before, after] = self.norms(index, ["norm2", "norm2_after"]);
        Branch {
            before,
            name: "mlp",
            columns: columns.iter().map(|name| features(name)).collect(),
            columns_bias: bias,
            inner: Inner::Mlp { activation: *self.activation.of(index), gated },
            row: features("down"),
            row_bias: bias,
            after,
            dropout: self.dropout.residual,
        }
    }

    /// The norms before and after a branch, of these names.
    fn norms(&self, index: usize, names: [&'static str; 2]) -> [Option<BranchNorm>; 2] {
        let kind = *self.norm.of(index);
        let [before, after] = names.map(|name| BranchNorm { name, kind });
        match self.norm_at.of(index) {
            NormAt::Before => [Some(before), None],
            NormAt::After => [None, Some(after)],
            NormAt::Both => [Some(before), Some(after)],
        }
    }
}
