//! What can go wrong while a model is built or sampled from.

use trine_buffer::BufferError;
use trine_nn::NnError;
use trine_spec::SpecError;

/// Why weights could not be had: whatever the caller's source of weights says.
pub type LoadError = Box<dyn std::error::Error + Send + Sync>;

/// What can go wrong while a model is built or sampled from.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// A value is out of its range.
    #[error("{field} = {value}: {rule}; nearest valid value: {nearest}")]
    Value {
        /// The value's name.
        field: &'static str,
        /// The value.
        value: String,
        /// What must hold.
        rule: &'static str,
        /// A value that would do.
        nearest: String,
    },
    /// A token id that the model does not have.
    #[error("{place} is {token}, but the vocabulary has {vocab} entries: ids go up to {}", vocab - 1)]
    Token {
        /// Where the id stands.
        place: String,
        /// The id.
        token: u32,
        /// Entries of the vocabulary.
        vocab: usize,
    },
    /// There is nothing to start from.
    #[error("the prompt is empty and no end-of-text id is given to start from; give one token")]
    EmptyPrompt,
    /// A logit that no probability follows from.
    #[error(
        "the logit of token {token} is {logit}, it must be a number below infinity: the weights are damaged or the training diverged"
    )]
    Logit {
        /// The token.
        token: usize,
        /// Its logit.
        logit: f32,
    },
    /// Every token has probability zero.
    #[error("none of {0} tokens can be drawn: one logit at least must be above −∞")]
    NoToken(usize),
    /// The caller's source of weights failed.
    #[error("weights of bucket {bucket}: {source}")]
    Load {
        /// The bucket.
        bucket: usize,
        /// What the source says.
        source: LoadError,
    },
    /// An impossible model.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// A layer or a kernel failed.
    #[error(transparent)]
    Layer(#[from] NnError),
    /// A buffer has the wrong type or length.
    #[error(transparent)]
    Buffer(#[from] BufferError),
}
