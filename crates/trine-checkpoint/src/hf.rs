//! Hugging Face's `config.json` as it is written, and the import of their checkpoints.

use crate::config::model_from_config;
use crate::load::load;
use crate::table::Table;
use crate::tensors::{Located, TensorFile};
use crate::{CONFIG_FILE, CheckpointError, MODEL_FILE, TokenizerFile, WEIGHTS};
use serde_json::{Value, json};
use std::path::Path;
use trine_buffer::{DType, SliceMut};
use trine_spec::{Family, ModelSpec, RankLayout};

/// A GPT that GPT-2's code cannot compute, under a name that nobody takes for it.
pub(crate) const OUR_GPT: &str = "trine-gpt";
/// Its architecture.
pub(crate) const OUR_GPT_CLASS: &str = "TrineGptForCausalLM";

/// Whether `transformers` has an architecture that computes the model: its GPT-2 has no grouped
/// heads, and cuts them from the width. A model that it cannot compute is saved under a name of its own.
pub fn is_expressible(model: &ModelSpec) -> bool {
    match model.family {
        Family::Gpt => model.kv_heads == model.heads && model.q_dim() == model.hidden,
        Family::Llama => true,
    }
}

/// The small files beside the weights, by name: what `transformers` needs to open them.
pub(crate) fn descriptions(
    model: &ModelSpec,
    dtype: DType,
    tokenizer: Option<&TokenizerFile<'_>>,
) -> Vec<(&'static str, String)> {
    let end = tokenizer.map(|tokenizer| tokenizer.end_of_text);
    let mut files = vec![
        (CONFIG_FILE, config(model, dtype, end)),
        // A text begins behind the end of another.
        ("generation_config.json", json!({ "bos_token_id": end, "eos_token_id": end })),
    ];
    if let Some(tokenizer) = tokenizer {
        let name = tokenizer.end_of_text_name;
        let config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": model.seq_max,
            "clean_up_tokenization_spaces": false,
            "bos_token": name,
            "eos_token": name,
            "unk_token": name,
        });
        files.push(("tokenizer_config.json", config));
    }
    files.into_iter().map(|(name, value)| (name, format!("{value:#}\n"))).collect()
}

/// The model. Ids are written even where there are none: those left out have a default of the
/// architecture, which is another tokenizer's.
fn config(model: &ModelSpec, dtype: DType, end_of_text: Option<u32>) -> Value {
    let dtype = if dtype == DType::F64 { "float64" } else { "float32" };
    let mut config = match model.family {
        Family::Gpt => json!({
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "vocab_size": model.vocab,
            "n_positions": model.seq_max,
            "n_embd": model.hidden,
            "n_layer": model.layers,
            "n_head": model.heads,
            "n_inner": model.ffn,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": model.norm_eps,
            "initializer_range": model.init_std,
            "resid_pdrop": model.dropout,
            "embd_pdrop": model.dropout,
            "attn_pdrop": model.dropout,
            "tie_word_embeddings": model.tied,
        }),
        Family::Llama => json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": model.vocab,
            "max_position_embeddings": model.seq_max,
            "hidden_size": model.hidden,
            "intermediate_size": model.ffn,
            "num_hidden_layers": model.layers,
            "num_attention_heads": model.heads,
            "num_key_value_heads": model.kv_heads,
            "head_dim": model.head_dim,
            "hidden_act": "silu",
            "rms_norm_eps": model.norm_eps,
            "rope_theta": model.rope_theta,
            "rope_parameters": { "rope_type": "default", "rope_theta": model.rope_theta },
            "attention_bias": false,
            "mlp_bias": false,
            "attention_dropout": model.dropout,
            "initializer_range": model.init_std,
            "tie_word_embeddings": model.tied,
        }),
    };
    if !is_expressible(model) {
        config["architectures"] = json!([OUR_GPT_CLASS]);
        config["model_type"] = OUR_GPT.into();
        config["n_kv_head"] = model.kv_heads.into();
        config["head_dim"] = model.head_dim.into();
    }
    // Releases of transformers before 4.56 know the second name of the type only.
    for (key, value) in [
        ("bos_token_id", json!(end_of_text)),
        ("eos_token_id", json!(end_of_text)),
        ("dtype", dtype.into()),
        ("torch_dtype", dtype.into()),
    ] {
        config[key] = value;
    }
    config
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
    let prefix = match model.family {
        Family::Gpt => "transformer.",
        Family::Llama => "model.",
    };
    let table = Table::within(&model, file.room());
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
