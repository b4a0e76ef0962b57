//! Hugging Face's `config.json`, and the import of their checkpoints.

use crate::error::During;
use crate::load::load;
use crate::table::Table;
use crate::tensors::{Located, TensorFile};
use crate::{CONFIG_FILE, CheckpointError, MODEL_FILE, WEIGHTS};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use trine_buffer::{DType, SliceMut};
use trine_spec::{Family, ModelSpec, StageLayout};

/// What `transformers` needs to open the weights.
pub(crate) fn config_json(model: &ModelSpec, dtype: DType) -> String {
    let dtype = if dtype == DType::F64 { "float64" } else { "float32" };
    let config = match model.family {
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
            "torch_dtype": dtype,
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
            "attention_bias": false,
            "mlp_bias": false,
            "attention_dropout": model.dropout,
            "initializer_range": model.init_std,
            "tie_word_embeddings": model.tied,
            "torch_dtype": dtype,
        }),
    };
    format!("{config:#}\n")
}

/// A `config.json` being read. Keys that are missing or null have the defaults of `transformers`,
/// which leaves them out when it saves.
struct Config {
    path: PathBuf,
    keys: Value,
}

impl Config {
    fn get<T: DeserializeOwned>(&self, key: &str, default: T) -> Result<T, CheckpointError> {
        match &self.keys[key] {
            Value::Null => Ok(default),
            value => serde_json::from_value(value.clone())
                .map_err(|error| self.wrong(format!("\"{key}\": {error}"))),
        }
    }

    /// Refuses a model that computes something else than ours.
    fn only(&self, key: &str, wanted: &[&str], default: &str) -> Result<(), CheckpointError> {
        let found: String = self.get(key, default.into())?;
        if wanted.contains(&found.as_str()) {
            return Ok(());
        }
        Err(self.wrong(format!("\"{key}\" is \"{found}\"; supported: {}", wanted.join(", "))))
    }

    fn not(&self, key: &str) -> Result<(), CheckpointError> {
        if self.get(key, false)? {
            return Err(self.wrong(format!("\"{key}\" is true; supported: false")));
        }
        Ok(())
    }

    fn wrong(&self, why: String) -> CheckpointError {
        CheckpointError::Malformed { path: self.path.clone(), why }
    }

    fn gpt(&self) -> Result<ModelSpec, CheckpointError> {
        self.only("activation_function", &["gelu_new", "gelu_pytorch_tanh"], "gelu_new")?;
        self.not("scale_attn_by_inverse_layer_idx")?;
        if !self.get("scale_attn_weights", true)? {
            return Err(self.wrong("\"scale_attn_weights\" is false; supported: true".into()));
        }
        let (hidden, heads) = (self.get("n_embd", 768)?, self.get("n_head", 12)?);
        Ok(ModelSpec {
            family: Family::Gpt,
            hidden,
            layers: self.get("n_layer", 12)?,
            heads,
            kv_heads: heads,
            head_dim: self.head_dim(hidden, heads)?,
            ffn: self.get("n_inner", 4 * hidden)?,
            vocab: self.get("vocab_size", 50257)?,
            seq_max: self.get("n_positions", 1024)?,
            tied: self.get("tie_word_embeddings", true)?,
            norm_eps: self.get("layer_norm_epsilon", 1e-5)?,
            rope_theta: 1e4,
            dropout: self.get("resid_pdrop", 0.1)?,
            init_std: self.get("initializer_range", 0.02)?,
        })
    }

    fn llama(&self) -> Result<ModelSpec, CheckpointError> {
        self.only("hidden_act", &["silu"], "silu")?;
        self.not("attention_bias")?;
        self.not("mlp_bias")?;
        if !self.keys["rope_scaling"].is_null() {
            let why = "\"rope_scaling\" is set; supported: plain rotary positions";
            return Err(self.wrong(why.into()));
        }
        // Since version 5, transformers keeps what belongs to rotary positions in one object.
        let rope = Self { path: self.path.clone(), keys: self.keys["rope_parameters"].clone() };
        rope.only("rope_type", &["default"], "default")?;
        let theta = self.get("rope_theta", 1e4)?;
        let (hidden, heads) =
            (self.get("hidden_size", 4096)?, self.get("num_attention_heads", 32)?);
        Ok(ModelSpec {
            family: Family::Llama,
            hidden,
            layers: self.get("num_hidden_layers", 32)?,
            heads,
            kv_heads: self.get("num_key_value_heads", heads)?,
            head_dim: self.get("head_dim", self.head_dim(hidden, heads)?)?,
            ffn: self.get("intermediate_size", 11008)?,
            vocab: self.get("vocab_size", 32000)?,
            seq_max: self.get("max_position_embeddings", 2048)?,
            tied: self.get("tie_word_embeddings", false)?,
            norm_eps: self.get("rms_norm_eps", 1e-6)?,
            rope_theta: rope.get("rope_theta", theta)?,
            dropout: self.get("attention_dropout", 0.0)?,
            init_std: self.get("initializer_range", 0.02)?,
        })
    }

    fn head_dim(&self, hidden: usize, heads: usize) -> Result<usize, CheckpointError> {
        hidden.checked_div(heads).ok_or_else(|| self.wrong("the model has 0 heads".into()))
    }
}

/// The model that a `config.json` describes: GPT-2 or Llama.
///
/// # Errors
/// A file that cannot be read, another kind of model, or one with an option that trine lacks.
pub fn model_from_config(path: &Path) -> Result<ModelSpec, CheckpointError> {
    let bytes = fs::read(path).during("reading", path)?;
    let malformed = |why: String| CheckpointError::Malformed { path: path.into(), why };
    let keys: Value = serde_json::from_slice(&bytes).map_err(|e| malformed(e.to_string()))?;
    let config = Config { path: path.into(), keys };
    let model = match config.get("model_type", String::new())?.as_str() {
        "gpt2" => config.gpt()?,
        "llama" => config.llama()?,
        other => {
            let why = format!("\"model_type\" is \"{other}\"; supported: gpt2, llama");
            return Err(malformed(why));
        }
    };
    model.check().map_err(|error| malformed(error.to_string()))?;
    Ok(model)
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
    let table = Table::new(&model);
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
        layout: &StageLayout,
        bucket: usize,
        out: SliceMut<'_>,
    ) -> Result<(), CheckpointError> {
        load(&self.located, &self.table, WEIGHTS, layout, bucket, out)
    }
}
