//! Parameter and gradient stores, the layer trait with an explicit backward pass, and dense layers.
//!
//! Training does not go through candle's autograd: it pins every activation, cannot take a gradient
//! from the next pipeline stage, and cannot split a backward pass. Here a [`Layer`] says what it
//! saves ([`Saved`]), returns the gradient of its input at once, and leaves its weight gradients as
//! data ([`WeightWork`]) that any schedule may run later. Weights live in flat buckets
//! ([`ParamStore`], [`GradStore`]) and are lent to layers call by call.
//!
//! * [`Context`]: kernels, memory, numerics and coordinates of one call; [`DecodeCache`]: what a
//!   sequence that is continued keeps between calls.
//! * [`Linear`], [`NormLayer`], [`Activation`], [`AttentionCore`]: the dense parts.
//! * [`Recompute`], [`Stack`]: wrappers around any layer.
//! * [`gradcheck`]: finite differences in f64 against any layer.
//! * `candle_layer` (feature `candle`): a closure over candle tensors as a layer; `oracle`: every layer
//!   held against candle's autograd.
#![doc = include_str!("../example.md")]

mod activation;
mod attention;
#[cfg(feature = "candle")]
pub mod candle_layer;
mod context;
mod decode;
mod dropout;
pub mod gradcheck;
mod grads;
mod layer;
mod linear;
mod norm;
#[cfg(feature = "candle")]
pub mod oracle;
mod params;

pub use activation::Activation;
pub use attention::{AttentionCore, AttentionShape, Rotary};
pub use context::{Context, Mode, Numerics, Rows, stream_type};
pub use decode::DecodeCache;
pub use dropout::Dropout;
pub use grads::{GradStore, Node, SampleTree, TakenGrads, subtrees};
pub use layer::{Layer, Recompute, Saved, Stack, WeightTask, WeightWork};
pub use linear::Linear;
pub use norm::{NormGrads, NormLayer};
pub use params::{Lease, ParamId, ParamStore, initial_weights};

use trine_buffer::{BufferError, DType};
use trine_kernels::KernelError;
use trine_spec::Piece;

/// What can go wrong in a layer or a store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NnError {
    /// A buffer has the wrong type or length.
    #[error(transparent)]
    Buffer(#[from] BufferError),
    /// A kernel refused its arguments.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// A collective inside a layer failed.
    #[error(transparent)]
    Communication(Box<dyn std::error::Error + Send + Sync>),
    /// A piece of one's own failed.
    #[error("{piece} (\"{kind}\"): {error}")]
    Piece {
        /// Its place.
        piece: Piece,
        /// What kind of piece it is.
        kind: String,
        /// Why.
        error: Box<Self>,
    },
    /// A layer has run backward and left out a parameter.
    #[error(
        "backward has added nothing to the gradient of \"{0}\"; a layer adds to that of every parameter of its own, \
         zeros too (`GradStore::add`)"
    )]
    NoGradient(String),
    /// Nobody builds the layer of a piece.
    #[error(
        "{piece} is a {kind}, which the zoo does not have: the builder of pieces must give its layer"
    )]
    NoLayer {
        /// The piece.
        piece: String,
        /// What kind of piece it is.
        kind: String,
    },
    /// The layer that the builder gives is of the wrong kind.
    #[error("the builder of pieces gives {piece} {found}, and {expected} is needed")]
    OtherLayer {
        /// The piece.
        piece: Piece,
        /// What the layer is.
        found: &'static str,
        /// What it must be.
        expected: &'static str,
    },
    /// What a piece's layer gives does not fit the next one.
    #[error(
        "the layer of {piece} gives {what} of {} elements of {}, expected {} of {}",
        .held.1, .held.0, .expected.1, .expected.0
    )]
    Output {
        /// The piece.
        piece: Piece,
        /// Which of its results.
        what: &'static str,
        /// The type and number of the elements that it gives.
        held: (DType, usize),
        /// Those that it should give.
        expected: (DType, usize),
    },
    /// No parameter of this name is on this stage.
    #[error("this stage holds no parameter \"{0}\"")]
    Unknown(String),
    /// Parameters that are used as one matrix do not lie behind one another.
    #[error("parameters {0} are not neighbours in one bucket")]
    NotNeighbours(String),
    /// A bucket is used while it is away.
    #[error("{what} of bucket {bucket} are in flight and cannot be used")]
    Away {
        /// Weights or gradients.
        what: &'static str,
        /// The bucket.
        bucket: usize,
    },
    /// A buffer put back into a store does not fit.
    #[error("{what} of bucket {bucket} must be {len} elements of {dtype}")]
    WrongBuffer {
        /// Weights or gradients.
        what: &'static str,
        /// The bucket.
        bucket: usize,
        /// Its length in elements.
        len: usize,
        /// Its type.
        dtype: DType,
    },
    /// A saved state was made by another layer.
    #[error(
        "a saved state holds {held:?} activations and inner states where {expected:?} are expected"
    )]
    Saved {
        /// What it holds.
        held: (usize, usize),
        /// What the layer expects.
        expected: (usize, usize),
    },
    /// An input has the wrong number of elements.
    #[error("{layer}: {what} has {held} elements, expected {expected}")]
    Shape {
        /// The layer.
        layer: &'static str,
        /// Which input.
        what: &'static str,
        /// What it has.
        held: usize,
        /// What it should have.
        expected: usize,
    },
    /// Master weights in a type that is not an accumulator.
    #[error("master weights are f32 or f64, not {0}")]
    Master(DType),
    /// A sequence has become longer than its cache.
    #[error("{tokens} tokens do not fit behind {position} others into a cache for {capacity}; at most {} do", capacity - position)]
    CacheFull {
        /// Tokens to add.
        tokens: usize,
        /// Tokens that are there.
        position: usize,
        /// Tokens that there is room for in all.
        capacity: usize,
    },
    /// The cache was made for a model with fewer attention layers.
    #[error("attention layer {layer} has no place in a cache of {layers} layers")]
    CacheLayer {
        /// The layer, counted from 0.
        layer: usize,
        /// Layers of the cache.
        layers: usize,
    },
    /// The context lacks something that the layer needs.
    #[error("{layer} needs {what}")]
    Missing {
        /// The layer.
        layer: &'static str,
        /// What is missing.
        what: &'static str,
    },
}

/// Refuses an activation of the wrong length, naming the layer.
pub(crate) fn check_len(
    layer: &'static str,
    what: &'static str,
    held: usize,
    expected: usize,
) -> Result<(), NnError> {
    if held == expected {
        return Ok(());
    }
    Err(NnError::Shape { layer, what, held, expected })
}
