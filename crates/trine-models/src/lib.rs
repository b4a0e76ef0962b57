//! The model zoo: GPT and Llama, built as pipeline stages for any layout.
//!
//! A [`ModelSpec`](trine_spec::ModelSpec) says what a model is; [`StageModel::of_rank`] builds the part
//! of it that one rank holds, from tensor-parallel layers whose weights are looked up by name in the
//! rank's [`RankLayout`](trine_spec::RankLayout). [`families`] says what a block and the two ends
//! consist of, and where the families differ.
//!
//! With one rank the same code is the serial model:
//!
//! ```
//! use trine_models::{RankParts, StageModel};
//! use trine_spec::{RankLayout, RankRequest, StagePieces, presets};
//!
//! let mut model = presets::find("gpt2-124m")?.model;
//! (model.layers, model.hidden, model.heads, model.head_dim) = (2, 32, 4, 8);
//! (model.kv_heads, model.ffn, model.vocab, model.seq_max) = (4, 64, 100, 16);
//! let whole = [StagePieces::whole(&model)];
//! let layout = RankLayout::new(&RankRequest::serial(&model, &whole))?;
//! let stages = StageModel::of_rank(&RankParts {
//!     model: &model, layout: &layout, comm: trine_comm::SelfComm::new(),
//!     sequence_parallel: false, recompute: false,
//!     numerics: Default::default(), compute: trine_buffer::DType::F32, seed: 1,
//! })?;
//! assert_eq!((stages.len(), stages[0].pieces().len()), (1, 4));
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
pub use stage::{RankParts, StageModel};
