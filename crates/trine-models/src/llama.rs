//! Llama 2 and 3 (Touvron et al., 2307.09288; Dubey et al., 2407.21783): RMSNorm, rotary positions,
//! grouped KV heads, SwiGLU, no biases.

use crate::{Block, Builder, Embedding, Head};
use trine_comm::Name;
use trine_nn::{Activation, NnError};

/// Token embedding; positions are rotary, inside attention.
///
/// # Errors
/// A parameter that the stage does not hold.
pub fn embedding(b: &Builder<'_>) -> Result<Embedding, NnError> {
    Ok(Embedding { tables: b.embedding()?, dropout: b.dropout("embedding") })
}

/// Block `index`: RMSNorm, grouped-query attention with rotary positions, RMSNorm, SwiGLU MLP.
///
/// # Errors
/// A parameter that the stage does not hold, or a failed collective.
pub fn block(b: &Builder<'_>, index: usize) -> Result<Block, NnError> {
    let block = format!("block.{index}");
    let label = |label| Name::new(label).with("block", index as u64);
    let (attention, mlp) = (format!("{block}.attention"), format!("{block}.mlp"));
    let down = format!("{mlp}.down");
    Ok(Block {
        norm1: b.norm(&format!("{block}.norm1"), label("norm1"))?,
        qkv: b.column(&attention, &["q", "k", "v"], label("qkv"))?,
        attention: b.attention(&attention, index, label("attention"))?,
        output: b.row(&format!("{attention}.output"), label("output"))?,
        dropout1: b.dropout(&format!("{attention}.dropout")),
        norm2: b.norm(&format!("{block}.norm2"), label("norm2"))?,
        up: b.column(&mlp, &["gate", "up"], label("up"))?,
        activation: Activation::SwiGlu { cols: b.inner_width(&down)? },
        down: b.row(&down, label("down"))?,
        dropout2: b.dropout(&format!("{mlp}.dropout")),
    })
}

/// Final RMSNorm, output layer and loss.
///
/// # Errors
/// A parameter that the stage does not hold.
pub fn head(b: &Builder<'_>) -> Result<Head, NnError> {
    Ok(Head { norm: b.norm("head.norm", Name::new("head.norm"))?, output: b.output()? })
}
