//! What every implementation of [`crate::Ops`] refuses before it touches anything: one function a method, with its
//! arguments by reference. They look at types, lengths and dimensions only, wherever the elements lie.

mod attention;
mod elementwise;
mod norms;
mod op;
mod products;
mod rows;
mod update;

pub use attention::{attention, attention_backward, attention_merge};
pub use elementwise::{
    activation, activation_backward, add, add_assign, add_bias, cast, copy, dropout, gated,
    gated_backward, offset, scale, softcap, sum_rows,
};
pub(crate) use norms::group_cols;
pub use norms::{
    layer_norm, layer_norm_backward, rms_backward, rms_gain, rms_norm, rms_norm_backward,
    rms_products, rms_scale, rms_squares,
};
pub(crate) use products::product_dims;
pub use products::{linear, matmul};
pub use rows::{ce_grad, ce_loss, ce_max, ce_sum, embedding, embedding_backward, rope};
pub use update::{adamw, first_non_finite, row_sums, sgd, sum_squares};
