//! What is asked of a save.

use crate::RunState;
use crate::storage::Storage;
use std::path::Path;
use trine_buffer::DType;
use trine_mesh::Mesh;
use trine_spec::{ModelParts, RankLayout};

/// What to save, and where. The same on every rank.
#[derive(Debug, Clone)]
pub struct SaveRequest<'a> {
    /// The folder of checkpoints; `step-N/` is made in it.
    pub dir: &'a Path,
    /// The model.
    pub model: &'a ModelParts,
    /// The layout of ranks.
    pub mesh: &'a Mesh,
    /// What each rank holds: `ranks[pp][tp]`. A pure function of the configuration, so every rank
    /// knows it of every other.
    pub ranks: &'a [Vec<RankLayout>],
    /// The type of the buckets: f32, or f64.
    pub dtype: DType,
    /// What is saved beside [`WEIGHTS`](crate::WEIGHTS): the optimizer's moments by name.
    pub moments: &'a [&'a str],
    /// How far the run is.
    pub run: &'a RunState,
    /// The tokenizer to put beside the weights.
    pub tokenizer: Option<TokenizerFile<'a>>,
    /// The file system, [`Disk`](crate::Disk) outside tests. Only rank 0 uses it.
    pub storage: &'a dyn Storage,
}

/// A tokenizer, and its token that ends a text: what others must know to end there too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenizerFile<'a> {
    /// The text of its `tokenizer.json`.
    pub text: &'a str,
    /// The id of the token.
    pub end_of_text: u32,
    /// The token as it stands in the vocabulary, such as `<|endoftext|>`.
    pub end_of_text_name: &'a str,
}
