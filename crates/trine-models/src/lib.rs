//! The model zoo: transformers of blocks with traits, built as pipeline stages for any layout.
//!
//! A [`ModelSpec`](trine_spec::ModelSpec) says what a model is, its
//! [`ModelParts`](trine_spec::ModelParts) what its pieces consist of; [`StageModel::of_rank`] builds the part
//! of it that one rank holds, from tensor-parallel layers whose weights are looked up by name in the
//! rank's [`RankLayout`](trine_spec::RankLayout). What a block and the two ends consist of, its
//! [`ModelParts`](trine_spec::ModelParts) say; [`zoo`] builds them, and pieces of one's own are built by
//! one's own function.
//!
//! With one rank the same code is the serial model:
//!
//! ```
//! use trine_models::{RankParts, StageModel, zoo};
//! use trine_spec::{RankLayout, RankRequest, StagePieces, presets};
//!
//! let mut model = presets::find("gpt2-124m")?.model;
//! (model.layers, model.hidden, model.heads, model.head_dim) = (2, 32, 4, 8);
//! (model.kv_heads, model.ffn, model.vocab, model.seq_max) = (4, 64, 100, 16);
//! let model = model.parts(1)?;
//! let whole = [StagePieces::whole(&model)];
//! let layout = RankLayout::new(&RankRequest::serial(&model, &whole))?;
//! let stages = StageModel::of_rank(&RankParts {
//!     model: &model, layout: &layout, comm: trine_comm::SelfComm::new(),
//!     sequence_parallel: false,
//!     numerics: Default::default(), compute: trine_buffer::DType::F32, seed: 1,
//!     place: &trine_buffer::Place::Host,
//! }, &zoo)?;
//! assert_eq!((stages.len(), stages[0].pieces().len()), (1, 4));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod block;
mod branch;
mod builder;
mod ends;
mod held;
mod stage;
mod zoo;

pub use block::BlockLayer;
pub use branch::{BranchLayer, InnerLayer};
pub use builder::Builder;
pub use ends::{Embedding, Head};
pub use stage::{RankParts, StageModel};
pub use zoo::{BuildPiece, LossLayer, PieceLayer, zoo};
