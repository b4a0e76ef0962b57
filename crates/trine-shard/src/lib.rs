//! Tensor-parallel layers (Shoeybi et al., 1909.08053) with an explicit backward pass.
//!
//! A block's residual stream enters a parallel region, is worked on by features or heads, and
//! leaves it again. Both crossings are methods of one object, [`TensorGroup`], each beside its
//! backward, and what lies on either side is a type: a [`Stream`] cannot be used where a [`Whole`]
//! is wanted, and a [`Partial`] sum cannot be used at all before it has left the region. With
//! sequence parallelism (Korthikanti et al., 2205.05198) the stream is split by rows, and the same
//! crossings gather and scatter instead.
//!
//! * [`ColumnLinear`], [`RowLinear`]: the two halves of an attention or MLP branch.
//! * [`ShardedAttention`]: heads of one rank, also when KV heads are shared by several ranks; [`QkNorm`]: norms of its
//!   queries and keys.
//! * [`VocabEmbedding`], [`VocabHead`]: the vocabulary split by rows; the loss without gathering
//!   logits.
//! * [`StreamNorm`], [`StreamDropout`]: row-wise layers on the stream, split or not.
//! * [`Replicated`]: a layer that every rank computes whole, such as a closure over candle tensors.
//!
//! With a [`trine_comm::SelfComm`] every layer is its dense counterpart: there is no second, serial
//! implementation.
//!
//! A partial sum is not a stream, and the compiler says so:
//!
//! ```compile_fail
//! # use trine_shard::{Partial, Stream, TensorGroup};
//! fn forget_the_reduction(group: &TensorGroup, sum: Partial) -> Stream {
//!     sum
//! }
//! ```

mod attention;
mod embedding;
mod group;
mod head;
mod linear;
mod qk_norm;
mod replicated;
mod stream;

pub use attention::ShardedAttention;
pub use embedding::VocabEmbedding;
pub use group::{Partial, Split, Stream, TensorGroup, Whole};
pub use head::{VocabHead, VocabShard};
pub use linear::{ColumnLinear, RowLinear, Section};
pub use qk_norm::{QkNorm, QkNormKind};
pub use replicated::Replicated;
pub use stream::{StreamDropout, StreamNorm};
