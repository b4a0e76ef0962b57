//! A transformer as data: one encoding that the model zoo, the checkpoints and the planner read.
//!
//! * [`ModelSpec`]: the shape of a model; [`ModelSpec::check`] refuses impossible ones.
//! * [`ModelSpec::params`]: every parameter of a [`Piece`] (embedding, block, head) with its global
//!   shape, placement on the mesh, initialisation and padding; [`hf`] says how Hugging Face names
//!   and lays out the same tensors.
//! * [`RankLayout`]: what one rank holds: local shapes and the flat buckets they lie in. A [`Bucket`]
//!   says over which axes its gradient is summed and what ranks divide of it ([`Shares`]: ZeRO).
//! * [`Pattern`]: names of parameters, several at once.
//! * [`assemble`]: whole tensors from the shards of all ranks.
//! * [`RankBytes`] and [`PieceSizes`]: bytes of a rank's training state, from lengths alone.
//! * [`Block::saved`]: what a block keeps for its backward pass, as symbolic shapes.
//! * [`ModelSpec::flops_per_token`]: model FLOPs.
//!
//! Pure: no device, no tensor, no clock.
//!
//! ```
//! use trine_spec::{ModelSpec, presets};
//!
//! let gpt2 = presets::find("gpt2-124m")?.model;
//! assert_eq!(gpt2.param_count(), 124_439_808);
//! # Ok::<(), trine_spec::SpecError>(())
//! ```

mod activations;
pub mod assemble;
mod branch;
mod bytes;
mod check;
mod families;
pub mod hf;
mod layout;
mod model;
mod params;
mod parts;
mod passes;
mod pattern;
pub mod presets;
mod recompute;
mod replay;
mod shares;
mod traits;

pub use activations::{Kept, SavedTensor, Split};
pub use branch::{Attention, Block, Branch, BranchNorm, Features, Inner};
pub use bytes::{BUCKET_ELEMENTS, ElementBytes, PieceSizes, RankBytes, StageShape};
pub use families::Family;
pub use layout::{
    Bucket, LocalParam, RankLayout, RankRequest, StagePieces, split_layers, stage_blocks,
};
pub use model::ModelSpec;
pub use params::{Init, OUTPUT_LAYER, ParamSpec, Piece};
pub use parts::{Body, HeadBody, HeadTensor, ModelParts, OwnBody, OwnPiece, PieceParts, Trains};
pub use passes::{Pass, PassShape, Passes};
pub use pattern::Pattern;
pub use recompute::Recompute;
pub use replay::{BranchTensor, Replay, Step};
pub use shares::Shares;
pub(crate) use traits::Listed;
pub use traits::{
    Activation, Dropouts, Each, Norm, NormAt, OrNone, Positions, QkNorm, RopeScaling,
};
// What the interface above names, so that a user of it needs no second dependency.
pub use trine_mesh::{AxisSet, Degrees};

/// Sums over dimensions that a layout may split are taken over this many canonical blocks in
/// reference numerics (contract C4), so tensor parallelism up to this degree is bit-equal.
pub const CANONICAL_BLOCKS: usize = 8;

/// The stored vocabulary is padded to a multiple of this (and of the tensor-parallel degree), so
/// that vocabularies of any size can be split; padded entries are masked in the loss.
pub const VOCAB_MULTIPLE: usize = 64;

/// What can be wrong with a model or with its layout.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpecError {
    /// A field of the model is out of its range.
    #[error("model.{field} = {value}: {rule}; nearest valid value: {nearest}")]
    Field {
        /// The field's name.
        field: &'static str,
        /// Its value.
        value: String,
        /// What must hold.
        rule: String,
        /// A value that would do.
        nearest: String,
    },
    /// The layout does not fit the model.
    #[error("{axis} {degree} does not fit the model: {rule}; nearest valid: {nearest}")]
    Layout {
        /// The axis.
        axis: &'static str,
        /// The degree asked for.
        degree: usize,
        /// What must hold.
        rule: String,
        /// Degrees that would do.
        nearest: String,
    },
    /// A stage has a piece that the model does not have.
    #[error("the model has no {piece}")]
    NoPiece {
        /// The piece.
        piece: Piece,
    },
    /// A piece of one's own lacks something.
    #[error("{piece}: {what}")]
    OwnPiece {
        /// Its place.
        piece: Piece,
        /// What is wrong with it.
        what: String,
    },
    /// What is asked to be computed again cannot be.
    #[error("what is computed again: {rule}; nearest valid: {nearest}")]
    Recompute {
        /// What is wrong.
        rule: String,
        /// What would do.
        nearest: String,
    },
    /// Parameters cannot be frozen as asked for.
    #[error("what is frozen: {rule}; nearest valid: {nearest}")]
    Frozen {
        /// What must hold.
        rule: String,
        /// What would do.
        nearest: String,
    },
    /// A dimension cannot be split over tensor parallelism.
    #[error(transparent)]
    Shard(#[from] trine_mesh::MeshError),
    /// No preset has this name.
    #[error("no preset is called \"{name}\"; nearest: \"{nearest}\" (see `trine presets`)")]
    Preset {
        /// The name asked for.
        name: String,
        /// The most similar name.
        nearest: String,
    },
}
