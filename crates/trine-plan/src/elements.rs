//! Elements of a model's pieces, by what tensor parallelism splits them by.

use std::ops::{Add, Mul};
use trine_spec::{OUTPUT_LAYER, ParamSpec, Piece};

/// Numbers of a piece, or what a rank needs for them: those that every rank has, and those that tensor parallelism
/// splits, by what it splits.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Elements {
    pub(crate) replicated: f64,
    /// By heads.
    pub(crate) heads: f64,
    /// By features of the MLP.
    pub(crate) inner: f64,
    /// By rows of the vocabulary.
    pub(crate) vocab: f64,
    /// By tokens, where the stream is split over the sequence.
    pub(crate) tokens: f64,
}

/// Over how many ranks tensor parallelism splits, as far as the fullest rank is concerned, which sets pace and memory:
/// its degree, but for what that does not divide.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Degree {
    pub(crate) heads: f64,
    pub(crate) inner: f64,
    pub(crate) vocab: f64,
}

impl Elements {
    /// Those of the fullest rank, where tokens are split over `sequence` ranks.
    pub(crate) fn local(self, tp: &Degree, sequence: f64) -> f64 {
        let split = self.heads / tp.heads + self.inner / tp.inner + self.vocab / tp.vocab;
        self.replicated + split + self.tokens / sequence
    }

    /// Of some parameters.
    pub(crate) fn of(params: &[ParamSpec]) -> Self {
        let mut elements = Self::default();
        for param in params {
            let len = param.shape.iter().product::<usize>() as f64;
            let kind = match param.split_dim() {
                None => &mut elements.replicated,
                Some(_) if param.name.contains(".attention.") => &mut elements.heads,
                Some(_) if param.name.contains(".mlp.") => &mut elements.inner,
                Some(_) => &mut elements.vocab,
            };
            *kind += len;
        }
        elements
    }

    fn each(self, of: impl Fn(f64) -> f64) -> Self {
        let Self { replicated, heads, inner, vocab, tokens } = self;
        let [replicated, heads, inner, vocab, tokens] =
            [replicated, heads, inner, vocab, tokens].map(of);
        Self { replicated, heads, inner, vocab, tokens }
    }
}

impl Mul<f64> for Elements {
    type Output = Self;

    fn mul(self, share: f64) -> Self {
        self.each(|number| number * share)
    }
}

impl Add for Elements {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            replicated: self.replicated + other.replicated,
            heads: self.heads + other.heads,
            inner: self.inner + other.inner,
            vocab: self.vocab + other.vocab,
            tokens: self.tokens + other.tokens,
        }
    }
}

/// Elements of each piece of a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct PieceElements {
    /// On average over the blocks.
    pub(crate) block: Elements,
    pub(crate) embedding: Elements,
    /// The final norm.
    pub(crate) norm: Elements,
    /// The output layer, which a stage without the embedding holds in any case.
    pub(crate) output: Elements,
}

impl PieceElements {
    /// Of the parameters that count of each piece of a model of so many blocks.
    pub(crate) fn of(layers: usize, params: impl Fn(Piece) -> Vec<ParamSpec>) -> Self {
        let is_output = |param: &ParamSpec| param.name == OUTPUT_LAYER;
        let (output, norm): (Vec<ParamSpec>, Vec<ParamSpec>) =
            params(Piece::Head).into_iter().partition(is_output);
        Self {
            block: mean((0..layers).map(|block| Elements::of(&params(Piece::Block(block))))),
            embedding: Elements::of(&params(Piece::Embedding)),
            norm: Elements::of(&norm),
            output: Elements::of(&output),
        }
    }
}

/// The mean of some values; nothing of none.
pub(crate) fn mean<T: Default + Add<Output = T> + Mul<f64, Output = T>>(
    values: impl Iterator<Item = T>,
) -> T {
    let (sum, count) =
        values.fold((T::default(), 0), |(sum, count), value| (sum + value, count + 1));
    sum * (1.0 / f64::from(count.max(1)))
}
