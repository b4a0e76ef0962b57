//! The layers of the pieces that the zoo has.
//!
//! * GPT-2 and GPT-3 (Radford et al., 2019; Brown et al., 2005.14165), the family of Oak Ridge's Frontier run
//!   (2312.12705): LayerNorm, learned positions, GELU, biases, tied output layer.
//! * Llama 2 and 3 (Touvron et al., 2307.09288; Dubey et al., 2407.21783): RMSNorm, rotary positions inside
//!   attention, grouped KV heads, SwiGLU, no biases.
//!
//! Which of these a piece has, its parts say ([`trine_spec::ModelParts`]).

use crate::{Builder, Embedding, Head};
use trine_buffer::{Act, Buf};
use trine_comm::Name;
use trine_nn::{Context, Layer, NnError, ParamStore};
use trine_spec::{Body, Piece, PieceParts};

/// The layer of a piece.
#[derive(Debug)]
pub enum PieceLayer {
    /// Token ids or the residual stream to the residual stream.
    Inner(Box<dyn Layer>),
    /// The residual stream to the loss of each token.
    Head(Box<dyn LossLayer>),
}

/// The end of a model.
pub trait LossLayer: Layer {
    /// This rank's columns of the logits, `[tokens, local vocabulary]`: for scoring and sampling.
    ///
    /// # Errors
    /// A wrong shape, or a failed collective.
    fn logits(&self, w: &ParamStore, x: Act, ctx: &Context<'_>) -> Result<Buf, NnError>;
}

/// Builds the layer of a piece: [`zoo`], or a function that builds some pieces itself and leaves the others to it. All
/// tensor-parallel ranks call it for the same pieces in the same order.
pub type BuildPiece<'a> = &'a dyn Fn(&Builder<'_>, &PieceParts) -> Result<PieceLayer, NnError>;

/// The layer of a piece that the zoo has.
///
/// # Errors
/// A piece of one's own; a parameter that this rank does not hold, or a failed collective.
pub fn zoo(b: &Builder<'_>, part: &PieceParts) -> Result<PieceLayer, NnError> {
    Ok(match (&part.body, part.piece) {
        (Body::Embedding, _) => {
            let dropout = b.dropout("embedding", b.model.dropout.embedding);
            PieceLayer::Inner(Box::new(Embedding { tables: b.embedding()?, dropout }))
        }
        (Body::Block(block), Piece::Block(index)) => {
            PieceLayer::Inner(Box::new(b.block(index, block)?))
        }
        (Body::Head(head), _) => {
            let norm = b.norm("head.norm", head.norm, Name::new("head.norm"))?;
            let (output, dropped) = (b.output()?, head.dropped.clone());
            PieceLayer::Head(Box::new(Head { norm, output, dropped }))
        }
        (Body::Block(_) | Body::Own(_), piece) => {
            let kind = part.own_name().unwrap_or("block").into();
            return Err(NnError::NoLayer { piece: piece.to_string(), kind });
        }
    })
}
