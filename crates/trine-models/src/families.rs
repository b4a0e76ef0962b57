//! What each family's parts are. They differ in what the spec says (norm, positions, biases, KV heads) and in
//! the MLP, which is written here.
//!
//! * GPT-2 and GPT-3 (Radford et al., 2019; Brown et al., 2005.14165), the family of Oak Ridge's Frontier run
//!   (2312.12705): LayerNorm, learned positions, GELU, biases, tied output layer.
//! * Llama 2 and 3 (Touvron et al., 2307.09288; Dubey et al., 2407.21783): RMSNorm, rotary positions inside
//!   attention, grouped KV heads, SwiGLU, no biases.

use crate::{Block, Builder, Embedding, Head};
use trine_comm::Name;
use trine_nn::{Activation, NnError};
use trine_spec::Family;

/// The embedding of tokens and, where they are learned, of positions.
///
/// # Errors
/// A parameter that the stage does not hold.
pub fn embedding(b: &Builder<'_>) -> Result<Embedding, NnError> {
    Ok(Embedding { tables: b.embedding()?, dropout: b.dropout("embedding") })
}

/// Block `index`: norm, attention, norm, MLP.
///
/// # Errors
/// A parameter that the stage does not hold, or a failed collective.
pub fn block(b: &Builder<'_>, index: usize) -> Result<Block, NnError> {
    let block = format!("block.{index}");
    let label = |label| Name::new(label).with("block", index as u64);
    let (attention, mlp) = (format!("{block}.attention"), format!("{block}.mlp"));
    let down = format!("{mlp}.down");
    let cols = b.inner_width(&down)?;
    let (up, activation): (&[&str], _) = match b.model.family {
        Family::Gpt => (&["up"], Activation::Gelu { cols }),
        Family::Llama => (&["gate", "up"], Activation::SwiGlu { cols }),
    };
    Ok(Block {
        norm1: b.norm(&format!("{block}.norm1"), label("norm1"))?,
        qkv: b.column(&attention, &["q", "k", "v"], label("qkv"))?,
        attention: b.attention(&attention, index, label("attention"))?,
        output: b.row(&format!("{attention}.output"), label("output"))?,
        dropout1: b.dropout(&format!("{attention}.dropout")),
        norm2: b.norm(&format!("{block}.norm2"), label("norm2"))?,
        up: b.column(&mlp, up, label("up"))?,
        activation,
        down: b.row(&down, label("down"))?,
        dropout2: b.dropout(&format!("{mlp}.dropout")),
    })
}

/// The final norm, the output layer and the loss.
///
/// # Errors
/// A parameter that the stage does not hold.
pub fn head(b: &Builder<'_>) -> Result<Head, NnError> {
    Ok(Head { norm: b.norm("head.norm", Name::new("head.norm"))?, output: b.output()? })
}
