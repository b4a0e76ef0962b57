//! What of a model is trained. The rest has weights, but neither weight gradients nor state of an optimizer.

use crate::elements::{Elements, PieceElements, mean};
use std::ops::{Add, Mul, Range};
use trine_spec::{Body, ModelParts, ParamSpec, Piece, PieceParts};

/// The trained products of a block: 1 of each that is, 0 of each that is not, and shares on average over several.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Products {
    /// The columns of attention, and of the MLP.
    pub(crate) columns: [f64; 2],
    /// Their rows.
    pub(crate) rows: [f64; 2],
}

impl Products {
    fn of(part: &PieceParts) -> Self {
        let mut products = Self::default();
        let Body::Block(block) = &part.body else { return products };
        for branch in &block.branches {
            let (trains, kind) = (part.trains_of(branch), branch.inner.number());
            products.columns[kind] = f64::from(u8::from(trains.columns));
            products.rows[kind] = f64::from(u8::from(trains.row));
        }
        products
    }
}

impl Add for Products {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let both = |a: [f64; 2], b: [f64; 2]| [a[0] + b[0], a[1] + b[1]];
        Self { columns: both(self.columns, other.columns), rows: both(self.rows, other.rows) }
    }
}

impl Mul<f64> for Products {
    type Output = Self;

    fn mul(self, share: f64) -> Self {
        let both = |numbers: [f64; 2]| numbers.map(|number| number * share);
        Self { columns: both(self.columns), rows: both(self.rows) }
    }
}

/// The trained part of a model.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Trained {
    /// Of each block; none where all of the model is trained.
    pub(crate) blocks: Vec<(Products, Elements)>,
    /// On average over the blocks.
    pub(crate) products: Products,
    /// Of each piece, as a model has them of all.
    pub(crate) elements: PieceElements,
}

impl Trained {
    /// All of a model that has so many elements.
    pub(crate) fn all(elements: PieceElements) -> Self {
        let products = Products { columns: [1.0; 2], rows: [1.0; 2] };
        Self { blocks: Vec::new(), products, elements }
    }

    /// What is not frozen of a model's parts.
    pub(crate) fn of(parts: &ModelParts) -> Self {
        let params = |piece| -> Vec<ParamSpec> {
            let part = parts.get(piece).into_iter().flat_map(|part| &part.params);
            part.filter(|param| param.trainable).cloned().collect()
        };
        let is_block = |part: &&PieceParts| matches!(part.piece, Piece::Block(_));
        let blocks = parts.pieces.iter().filter(is_block);
        let blocks: Vec<(Products, Elements)> =
            blocks.map(|part| (Products::of(part), Elements::of(&params(part.piece)))).collect();
        Self {
            products: mean(blocks.iter().map(|block| block.0)),
            elements: PieceElements::of(blocks.len(), params),
            blocks,
        }
    }

    /// Whether nothing is frozen.
    pub(crate) fn is_all(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Whether the output layer is.
    pub(crate) fn has_output(&self) -> bool {
        self.elements.output != Elements::default()
    }

    /// The products of some blocks, on average.
    pub(crate) fn products_of(&self, blocks: Range<usize>) -> Products {
        if self.is_all() {
            return self.products;
        }
        mean(self.blocks.get(blocks).unwrap_or_default().iter().map(|block| block.0))
    }
}
