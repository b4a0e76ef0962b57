//! Elements of a model's pieces, by what tensor parallelism splits them by.

use std::ops::{Add, Mul};
use trine_spec::{ModelParts, OUTPUT_LAYER, ParamSpec, Piece, PieceParts};

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

    /// Of those parameters that count.
    pub(crate) fn of(params: &[ParamSpec], counts: impl Fn(&ParamSpec) -> bool) -> Self {
        let mut elements = Self::default();
        for param in params.iter().filter(|param| counts(param)) {
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
    /// Of those parameters that count.
    pub(crate) fn of(parts: &ModelParts, counts: impl Fn(&ParamSpec) -> bool + Copy) -> Self {
        let of = |part: &PieceParts| Elements::of(&part.params, counts);
        let is_block = |part: &&PieceParts| matches!(part.piece, Piece::Block(_));
        let [embedding, head] = [Piece::Embedding, Piece::Head]
            .map(|piece| parts.get(piece).map_or(&[][..], |part| &part.params));
        let is_output = |param: &ParamSpec| param.name == OUTPUT_LAYER;
        Self {
            block: mean(parts.pieces.iter().filter(is_block).map(of)),
            embedding: Elements::of(embedding, counts),
            norm: Elements::of(head, |param| !is_output(param) && counts(param)),
            output: Elements::of(head, |param| is_output(param) && counts(param)),
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
