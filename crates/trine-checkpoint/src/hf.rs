//! The small files that `transformers` needs, and the import of Hugging Face's checkpoints.

use crate::error::During;
use crate::load::load;
use crate::table::Table;
use crate::tensors::{Located, TensorFile};
use crate::{CONFIG_FILE, CheckpointError, MODEL_FILE, TokenizerFile, WEIGHTS};
use serde_json::json;
use std::path::Path;
use trine_buffer::{DType, SliceMut};
use trine_files::TEXT_BYTES_MAX;
use trine_spec::hf::{self, HfError};
use trine_spec::{ModelParts, ModelSpec, RankLayout};

/// The small files beside the weights, by name: what `transformers` needs to open them.
pub(crate) fn descriptions(
    model: &ModelParts,
    dtype: DType,
    tokenizer: Option<&TokenizerFile<'_>>,
) -> Vec<(&'static str, String)> {
    let end = tokenizer.map(|tokenizer| tokenizer.end_of_text);
    let dtype = if dtype == DType::F64 { "float64" } else { "float32" };
    let mut files = vec![
        (CONFIG_FILE, hf::config(model, dtype, end)),
        // A text begins behind the end of another.
        ("generation_config.json", json!({ "bos_token_id": end, "eos_token_id": end })),
    ];
    if let Some(tokenizer) = tokenizer {
        let name = tokenizer.end_of_text_name;
        let config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": model.spec.seq_max,
            "clean_up_tokenization_spaces": false,
            "bos_token": name,
            "eos_token": name,
            "unk_token": name,
        });
        files.push(("tokenizer_config.json", config));
    }
    files.into_iter().map(|(name, value)| (name, format!("{value:#}\n"))).collect()
}

/// The model that a `config.json` describes: GPT-2 or Llama.
///
/// # Errors
/// A file that cannot be read or lacks a size, another kind of model, or one with an option that trine lacks.
pub fn model_from_config(path: &Path) -> Result<ModelSpec, CheckpointError> {
    let text = trine_files::read_text(path, TEXT_BYTES_MAX).during("reading", path)?;
    let refused = |error| match error {
        HfError::Malformed(why) => CheckpointError::Malformed { path: path.into(), why },
        HfError::Unsupported(why) => CheckpointError::Unsupported { path: path.into(), why },
    };
    let config = serde_json::from_str(&text).map_err(|e| HfError::Malformed(e.to_string()));
    config.and_then(|config| hf::model_from_config(&config)).map_err(refused)
}

/// Weights as Hugging Face publishes them, without a manifest of ours.
#[derive(Debug)]
pub struct HfWeights {
    model: ModelSpec,
    table: Table,
    located: Located,
}

/// Opens a directory with `config.json` and `model.safetensors` (f64, f32, bf16 or f16; tensor
/// names with or without the prefix of the base model).
///
/// # Errors
/// A model that trine lacks, weights in several files, a missing tensor, or one of another shape.
pub fn open_hf(dir: &Path) -> Result<HfWeights, CheckpointError> {
    let path = dir.join(MODEL_FILE);
    if !path.is_file() {
        let several = dir.join(format!("{MODEL_FILE}.index.json")).is_file();
        let hint = if several { "its weights are in several files; join them" } else { "" };
        let why = format!("it has no {MODEL_FILE}; {hint}");
        let why = why.trim_end_matches("; ").into();
        return Err(CheckpointError::NotACheckpoint { path: dir.into(), why });
    }
    let model = model_from_config(&dir.join(CONFIG_FILE))?;
    let file = TensorFile::open(&path)?;
    let prefix = hf::prefix(&model);
    let pieces = model.pieces().map(|piece| model.part(piece, 1));
    let table = Table::within(pieces, file.room());
    let located = Located::new(&file, &table, |name| match name.strip_prefix(prefix) {
        Some(short) if !file.has(name) && file.has(short) => short.into(),
        Some(_) | None => name.into(),
    })?;
    Ok(HfWeights { model, table, located })
}

impl HfWeights {
    /// The model that `config.json` describes.
    pub fn model(&self) -> &ModelSpec {
        &self.model
    }

    /// Fills `out` with the weights of a whole bucket of `layout`; see
    /// [`Checkpoint::load_bucket`](crate::Checkpoint::load_bucket).
    ///
    /// # Errors
    /// As there.
    pub fn load_bucket(
        &self,
        layout: &RankLayout,
        bucket: usize,
        out: SliceMut<'_>,
    ) -> Result<(), CheckpointError> {
        load(&self.located, &self.table, WEIGHTS, layout, bucket, out)
    }
}
