//! What a block is: branches beside the residual stream. Parameters, saved tensors, layers, FLOPs and memory are read
//! off the same list, so that the order of operations stands once.

use crate::{
    Activation, BranchTensor, Kept, ModelSpec, Norm, NormAt, QkNorm, RopeScaling, SavedTensor,
    Split,
};

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
    /// What it saves is all of [`Branch::tensors`] but these, which are computed again before its backward pass.
    pub dropped: Vec<BranchTensor>,
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
    /// In how many parts that stay whole where there is one for every rank: the query heads of a KV head.
    pub groups: usize,
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
    /// In how many parts that stay whole `tp` ranks share them.
    pub fn parts(&self, tp: usize) -> usize {
        if tp <= self.groups { self.groups } else { self.units }
    }

    /// Over how many ranks they are split, as far as the fullest of `tp` is concerned: `tp` where that divides them,
    /// less where it has more than others.
    pub fn degree(&self, tp: usize) -> f64 {
        let parts = self.parts(tp);
        parts as f64 / parts.div_ceil(tp) as f64
    }
}

impl Inner {
    /// Its place where both kinds have one: attention, then the MLP.
    pub fn number(self) -> usize {
        match self {
            Self::Attention(_) => 0,
            Self::Mlp { .. } => 1,
        }
    }

    /// What the columns before it are called together: in the names of collectives and of what they give.
    pub fn columns(self) -> &'static str {
        match self {
            Self::Attention(_) => "qkv",
            Self::Mlp { .. } => "up",
        }
    }

    /// What comes out of it, by name.
    fn given(self) -> &'static str {
        match self {
            Self::Attention(_) => "core",
            Self::Mlp { .. } => "activation",
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
    /// The name of the matrix of some of its features, in block `index`.
    pub fn weight_name(&self, index: usize, part: &Features) -> String {
        format!("block.{index}.{}.{}.weight", self.name, part.name)
    }

    /// The name of the bias behind that matrix.
    pub(crate) fn bias_name(&self, index: usize, part: &Features) -> String {
        format!("block.{index}.{}.{}.bias", self.name, part.name)
    }

    /// What its inner part reads: what the columns give, for `tp` ranks.
    pub(crate) fn before_inner(&self, tp: usize) -> Vec<SavedTensor> {
        let name = self.inner.columns();
        self.columns.iter().map(|part| self.split_tensor(name, part, tp)).collect()
    }

    /// What its inner part gives, and the row reads.
    pub(crate) fn after_inner(&self, tp: usize) -> SavedTensor {
        self.split_tensor(self.inner.given(), &self.row, tp)
    }

    /// Queries and keys as they are before their norms.
    pub(crate) fn before_qk_norm(&self, tp: usize) -> Vec<SavedTensor> {
        let of_part = |part: &Features| self.split_tensor("qk_input", part, tp);
        self.normed_heads().iter().map(of_part).collect()
    }

    /// The statistics of the norms of queries and keys.
    pub(crate) fn qk_norm_stats(&self, tp: usize) -> Vec<SavedTensor> {
        let of_part = |part: &Features| {
            let (per_token, split) = match self.inner.qk_norm() {
                QkNorm::Head => (part.units, Split::Tensor { units: part.parts(tp) }),
                QkNorm::All | QkNorm::None => (1, Split::None),
            };
            let name = format!("{}.qk_stats", self.name);
            SavedTensor::new(name, per_token, Kept::Sums, split)
        };
        self.normed_heads().iter().map(of_part).collect()
    }

    /// Queries and keys, if they have norms.
    fn normed_heads(&self) -> &[Features] {
        match self.inner.qk_norm() {
            QkNorm::Head | QkNorm::All => &self.columns[..2],
            QkNorm::None => &[],
        }
    }

    /// A number for each of some features.
    fn split_tensor(&self, what: &str, part: &Features, tp: usize) -> SavedTensor {
        let split = Split::Tensor { units: part.parts(tp) };
        SavedTensor::new(format!("{}.{what}", self.name), part.width, Kept::Compute, split)
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

    /// The query heads of a block. Those of a KV head stay with it, as long as there is one for every rank.
    pub fn query_features(&self) -> Features {
        let (width, units, groups) = (self.q_dim(), self.heads, self.kv_heads);
        Features { name: "q", width, units, groups }
    }

    /// The features inside the MLP of a block.
    pub fn inner_features(&self) -> Features {
        Features { name: "up", width: self.ffn, units: self.ffn, groups: self.ffn }
    }

    /// Whether `tp` ranks have equal parts of every layer.
    pub fn divides_evenly(&self, tp: usize) -> bool {
        [self.query_features(), self.inner_features()]
            .iter()
            .all(|features| features.parts(tp).is_multiple_of(tp))
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
        let queries = self.query_features();
        let shared =
            |name| Features { name, width: self.kv_dim(), units: self.kv_heads, ..queries };
        let [before, after] = self.norms(index, ["norm1", "norm1_after"]);
        Branch {
            before,
            name: "attention",
            columns: vec![queries, shared("k"), shared("v")],
            columns_bias: *self.qkv_bias.of(index),
            inner: Inner::Attention(self.attention_traits(index)),
            row: Features { name: "output", ..queries },
            row_bias: *self.output_bias.of(index),
            after,
            dropout: self.dropout.residual,
            dropped: Vec::new(),
        }
    }

    fn mlp(&self, index: usize) -> Branch {
        let features = |name| Features { name, ..self.inner_features() };
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
            dropped: Vec::new(),
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
