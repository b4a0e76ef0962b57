//! The model zoo: GPT and Llama, built as pipeline stages for any layout.
//!
//! A [`ModelSpec`](trine_spec::ModelSpec) says what a model is; [`StageModel::new`] builds the part
//! of it that one rank holds, from tensor-parallel layers whose weights are looked up by name in the
//! rank's [`StageLayout`](trine_spec::StageLayout). [`families`] says what a block and the two ends
//! consist of, and where the families differ.
//!
//! With one rank the same code is the serial model:
//!
//! ```
//! use trine_models::{StageModel, StageParts};
//! use trine_spec::{Piece, StageLayout, StageRequest, presets};
//!
//! let mut model = presets::find("gpt2-124m")?.model;
//! (model.layers, model.hidden, model.heads, model.head_dim) = (2, 32, 4, 8);
//! (model.kv_heads, model.ffn, model.vocab, model.seq_max) = (4, 64, 100, 16);
//! let pieces: Vec<Piece> = model.pieces().collect();
//! let layout = StageLayout::new(&StageRequest {
//!     model: &model, pieces: &pieces, tp: 1, tp_index: 0, dp: 1,
//!     tied_apart: false, bucket_elements: 1 << 20,
//! })?;
//! let stage = StageModel::new(&StageParts {
//!     model: &model, layout: &layout, comm: trine_comm::SelfComm::new(),
//!     sequence_parallel: false, recompute: false,
//!     numerics: Default::default(), compute: trine_buffer::DType::F32, seed: 1,
//! })?;
//! assert_eq!(stage.pieces().len(), 4);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod block;
mod builder;
mod ends;
pub mod families;
mod stage;

pub use block::Block;
pub use builder::Builder;
pub use ends::{Embedding, Head};
pub use stage::{StageModel, StageParts};
