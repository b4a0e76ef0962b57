//! What a block is: branches beside the residual stream. Parameters, saved tensors, layers, FLOPs and memory are read
//! off the same list, so that the order of operations stands once.

use crate::{Family, Kept, ModelSpec, Norm, SavedTensor, Split};

/// `x += dropout(row(inner(columns(norm(x)))))`: one branch of a block. It enters and leaves one tensor-parallel
/// region. A parameter of block 3 is called `block.3.NORM.weight`, `block.3.NAME.COLUMN.weight` or
/// `block.3.NAME.ROW.weight`, and a bias accordingly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Branch {
    /// Its norm's name.
    pub norm: &'static str,
    /// Its norm's kind.
    pub norm_kind: Norm,
    /// The name of the rest.
    pub name: &'static str,
    /// Matrices that share the norm's output, split by output features and used as one.
    pub columns: Vec<Features>,
    /// What is done between columns and row, by features.
    pub inner: Inner,
    /// The matrix back to the stream, split by input features.
    pub row: Features,
    /// Whether columns and row have biases.
    pub biases: bool,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inner {
    /// Attention over queries, keys and values (Vaswani et al., 1706.03762).
    Attention,
    /// GELU in the form of tanh (Hendrycks & Gimpel, 1606.08415).
    Gelu,
    /// The gate's SiLU times the rest (Shazeer, 2002.05202).
    SwiGlu,
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
            Self::Attention => "qkv",
            Self::Gelu | Self::SwiGlu => "up",
        }
    }

    /// What goes into it and what comes out, by name.
    fn ends(self) -> [&'static str; 2] {
        match self {
            Self::Attention => ["qkv", "output"],
            Self::Gelu | Self::SwiGlu => ["inner", "activated"],
        }
    }
}

impl Branch {
    /// What its inner part reads: what the columns give, for `tp` ranks.
    pub(crate) fn before(&self, tp: usize) -> SavedTensor {
        let width = self.columns.iter().map(|part| part.held(tp)).sum();
        self.split_tensor(self.inner.ends()[0], width)
    }

    /// What its inner part gives, and the row reads.
    pub(crate) fn after(&self) -> SavedTensor {
        self.split_tensor(self.inner.ends()[1], self.row.width)
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
    /// The branches of each block, in forward order.
    pub fn branches(&self) -> [Branch; 2] {
        let features = |name, width, units| Features { name, width, units };
        let (norm_kind, biases, ffn) = (self.norm(), self.biases(), self.ffn);
        let (columns, inner) = match self.family {
            Family::Gpt => (vec![features("up", ffn, ffn)], Inner::Gelu),
            Family::Llama => {
                (vec![features("gate", ffn, ffn), features("up", ffn, ffn)], Inner::SwiGlu)
            }
        };
        let attention = Branch {
            norm: "norm1",
            norm_kind,
            name: "attention",
            columns: vec![
                features("q", self.q_dim(), self.heads),
                features("k", self.kv_dim(), self.kv_heads),
                features("v", self.kv_dim(), self.kv_heads),
            ],
            inner: Inner::Attention,
            row: features("output", self.q_dim(), self.heads),
            biases,
        };
        let row = features("down", ffn, ffn);
        [attention, Branch { norm: "norm2", norm_kind, name: "mlp", columns, inner, row, biases }]
    }
}
