//! Every parameter of a model, piece by piece.

use crate::{Branch, BranchNorm, Features, ModelSpec, Norm, QkNorm};
use serde::{Deserialize, Serialize};
use std::fmt;
use trine_mesh::{Axis, DimPlacement};

/// A part of a model that is never cut: stages are runs of pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Piece {
    /// Token (and position) embedding.
    Embedding,
    /// The block of this index.
    Block(usize),
    /// Final norm, output layer and loss.
    Head,
}

impl fmt::Display for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedding => f.write_str("embedding"),
            Self::Block(index) => write!(f, "block {index}"),
            Self::Head => f.write_str("head"),
        }
    }
}

/// How a parameter starts. Normal values come from the stream named after the parameter, at the
/// element's *global* index (contract C1).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Init {
    /// All zero.
    Zeros,
    /// All one.
    Ones,
    /// Normal with mean 0.
    Normal {
        /// Standard deviation.
        std: f64,
    },
}

/// One parameter: a global tensor and where it lies on the mesh.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ParamSpec {
    /// trine's name; also the name of the stream of its initial values.
    pub name: String,
    /// Global stored shape, padding included. Matrices are `[out, in]`.
    pub shape: Vec<usize>,
    /// One placement a dimension.
    pub placement: Vec<DimPlacement>,
    /// How it starts.
    pub init: Init,
    /// Whether weight decay applies: matrices yes, biases and norms no.
    pub decay: bool,
    /// Leading rows that are real; the rest is padding: zero, masked, never trained.
    pub valid_rows: usize,
    /// Lies directly behind the previous parameter in its bucket, so that both can be used as one
    /// matrix (q, k and v; gate and up; a norm's gain and bias).
    pub fused: bool,
    /// The parameter that this one is a copy of (a tied output layer).
    pub tied_to: Option<String>,
    /// Whether it is trained. What is not has weights and nothing else ([`crate::ModelParts::freeze`]).
    pub trainable: bool,
}

impl ParamSpec {
    /// A parameter that every rank holds whole. Weight decay applies to matrices.
    pub fn new(name: impl Into<String>, shape: &[usize], init: Init) -> Self {
        Self {
            name: name.into(),
            shape: shape.to_vec(),
            placement: vec![DimPlacement::REPLICATED; shape.len()],
            init,
            decay: shape.len() > 1,
            valid_rows: shape.first().copied().unwrap_or(1),
            fused: false,
            tied_to: None,
            trainable: true,
        }
    }

    /// The same, with dimension `dim` split over tensor parallelism in `units` that stay whole
    /// (heads, features).
    ///
    /// # Panics
    /// `dim` is no dimension of the shape.
    #[must_use]
    pub fn split(mut self, dim: usize, units: usize) -> Self {
        self.placement[dim] = DimPlacement::tensor(units);
        self
    }

    /// The dimension that is split over tensor parallelism, if one is.
    pub fn split_dim(&self) -> Option<usize> {
        self.placement.iter().position(|placement| placement.axes.contains(Axis::Tp))
    }

    /// The name that its weights are known by: its own, or that of the parameter it is a copy of.
    pub fn known_as(&self) -> &str {
        self.tied_to.as_ref().unwrap_or(&self.name)
    }

    /// Elements without padding.
    pub fn unpadded_len(&self) -> usize {
        self.valid_rows * self.shape[1..].iter().product::<usize>()
    }
}

/// The token embedding's name: the target of a tied output layer.
pub(crate) const TOKEN_EMBEDDING: &str = "embedding.token";

/// The output layer's name, tied or not.
pub const OUTPUT_LAYER: &str = "head.output.weight";

impl ModelSpec {
    /// All pieces in forward order.
    pub fn pieces(&self) -> impl Iterator<Item = Piece> + use<> {
        let blocks = (0..self.layers).map(Piece::Block);
        std::iter::once(Piece::Embedding).chain(blocks).chain(std::iter::once(Piece::Head))
    }

    /// The parameters of one piece in bucket order, as `tp` ranks share them. A tied output layer
    /// is listed as a copy of the token embedding.
    pub fn params(&self, piece: Piece, tp: usize) -> Vec<ParamSpec> {
        match piece {
            Piece::Embedding => self.embedding_params(tp),
            Piece::Block(index) => self.block_params(index, tp),
            Piece::Head => self.head_params(tp),
        }
    }

    fn embedding_params(&self, tp: usize) -> Vec<ParamSpec> {
        let mut params = vec![self.vocab_matrix(TOKEN_EMBEDDING, tp)];
        if self.learned_positions() {
            let init = Init::Normal { std: self.init_std };
            let shape = [self.seq_max, self.hidden];
            params.push(matrix("embedding.position", shape, None, init));
        }
        params
    }

    fn head_params(&self, tp: usize) -> Vec<ParamSpec> {
        let mut params = self.norm_params("head.norm", self.head_norm());
        let tied_to = self.tied.then(|| TOKEN_EMBEDDING.to_string());
        params.push(ParamSpec { tied_to, ..self.vocab_matrix(OUTPUT_LAYER, tp) });
        params
    }

    fn vocab_matrix(&self, name: &str, tp: usize) -> ParamSpec {
        let rows = self.vocab_stored(tp);
        let init = Init::Normal { std: self.init_std };
        let split = Some((0, rows));
        ParamSpec { valid_rows: self.vocab, ..matrix(name, [rows, self.hidden], split, init) }
    }

    fn norm_params(&self, name: &str, kind: Norm) -> Vec<ParamSpec> {
        let init = match kind {
            Norm::Layer | Norm::Rms => Init::Ones,
            Norm::RmsOne => Init::Zeros,
        };
        let mut params = vec![vector(&format!("{name}.weight"), self.hidden, None, init)];
        if kind == Norm::Layer {
            let bias = vector(&format!("{name}.bias"), self.hidden, None, Init::Zeros);
            params.push(ParamSpec { fused: true, ..bias });
        }
        params
    }

    fn block_params(&self, index: usize, tp: usize) -> Vec<ParamSpec> {
        let mut params = Vec::new();
        for branch in self.block(index).branches {
            let name = format!("block.{index}.{}", branch.name);
            let norm = |norm: BranchNorm| {
                self.norm_params(&format!("block.{index}.{}", norm.name), norm.kind)
            };
            params.extend(branch.before.into_iter().flat_map(norm));
            params.extend(self.column(index, &branch, tp));
            params.extend(self.qk_norm_params(&name, &branch, tp));
            params.extend(self.row(index, &branch, tp));
            params.extend(branch.after.into_iter().flat_map(norm));
        }
        params
    }

    /// Column-parallel matrices that share their input, fused; then their biases, fused.
    fn column(&self, index: usize, branch: &Branch, tp: usize) -> Vec<ParamSpec> {
        let init = Init::Normal { std: self.init_std };
        let weights = branch.columns.iter().enumerate().map(|(i, part)| {
            let (name, shape) = (branch.weight_name(index, part), [part.width, self.hidden]);
            ParamSpec { fused: i > 0, ..matrix(&name, shape, Some((0, part.parts(tp))), init) }
        });
        let biases = branch.columns.iter().enumerate().map(|(i, part)| {
            let name = branch.bias_name(index, part);
            let split = Some(part.parts(tp));
            ParamSpec { fused: i > 0, ..vector(&name, part.width, split, Init::Zeros) }
        });
        weights.chain(biases.filter(|_| branch.columns_bias)).collect()
    }

    /// The gains of queries and keys: one for the elements of all heads, or one for each element of each.
    fn qk_norm_params(&self, name: &str, branch: &Branch, tp: usize) -> Vec<ParamSpec> {
        let kind = branch.inner.qk_norm();
        let gain = |part: &Features| {
            let name = format!("{name}.{}_norm.weight", part.name);
            match kind {
                QkNorm::None => None,
                QkNorm::Head => Some(vector(&name, self.head_dim, None, Init::Ones)),
                QkNorm::All => Some(vector(&name, part.width, Some(part.parts(tp)), Init::Ones)),
            }
        };
        branch.columns[..2.min(branch.columns.len())].iter().filter_map(gain).collect()
    }

    /// A row-parallel matrix: input features split; its bias, added after the sum, replicated.
    /// Residual projections start smaller (GPT-2: 1/√(2·layers)).
    fn row(&self, index: usize, branch: &Branch, tp: usize) -> Vec<ParamSpec> {
        let init = Init::Normal { std: self.init_std / (2.0 * self.layers as f64).sqrt() };
        let (shape, split) = ([self.hidden, branch.row.width], Some((1, branch.row.parts(tp))));
        let mut params = vec![matrix(&branch.weight_name(index, &branch.row), shape, split, init)];
        if branch.row_bias {
            let name = branch.bias_name(index, &branch.row);
            params.push(vector(&name, self.hidden, None, Init::Zeros));
        }
        params
    }
}

/// A matrix, split over tensor parallelism on `split = (dimension, units)`.
fn matrix(name: &str, shape: [usize; 2], split: Option<(usize, usize)>, init: Init) -> ParamSpec {
    let mut placement = vec![DimPlacement::REPLICATED; 2];
    if let Some((dim, units)) = split {
        placement[dim] = DimPlacement::tensor(units);
    }
    ParamSpec {
        name: name.into(),
        shape: shape.into(),
        placement,
        init,
        decay: true,
        valid_rows: shape[0],
        fused: false,
        tied_to: None,
        trainable: true,
    }
}

/// A vector, split over tensor parallelism in `units`.
fn vector(name: &str, len: usize, units: Option<usize>, init: Init) -> ParamSpec {
    ParamSpec {
        name: name.into(),
        shape: vec![len],
        placement: vec![units.map_or(DimPlacement::REPLICATED, DimPlacement::tensor)],
        init,
        decay: false,
        valid_rows: len,
        fused: false,
        tied_to: None,
        trainable: true,
    }
}

#[cfg(test)]
mod tests {
    use crate::{Piece, presets};
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_ranks_of_a_shape_agree() {
        for name in ["gpt2-124m", "llama3-8b"] {
            let model = presets::find(name).unwrap().model;
            let mut names = BTreeSet::new();
            for param in model.pieces().flat_map(|piece| model.params(piece, 2)) {
                assert_eq!(param.shape.len(), param.placement.len(), "{}", param.name);
                assert!(names.insert(param.name.clone()), "{} twice", param.name);
            }
            assert!(names.len() > 9 * model.layers, "{} parameters", names.len());
        }
    }

    #[test]
    fn a_tied_head_is_a_copy_of_the_embedding() {
        let model = presets::find("gpt2-124m").unwrap().model;
        let head = model.params(Piece::Head, 1).pop().unwrap();
        assert_eq!(head.tied_to.as_deref(), Some("embedding.token"));
        assert_eq!((head.shape[0], head.valid_rows), (50304, 50257));
    }
}
