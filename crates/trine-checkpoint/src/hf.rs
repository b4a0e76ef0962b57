//! Hugging Face's `config.json`, and the import of their checkpoints.

use crate::error::During;
use crate::load::load;
use crate::table::Table;
use crate::tensors::{Located, TensorFile};
use crate::{CONFIG_FILE, CheckpointError, MODEL_FILE, TokenizerFile, WEIGHTS};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use trine_buffer::{DType, SliceMut};
use trine_files::TEXT_BYTES_MAX;
use trine_spec::{Family, ModelSpec, RankLayout};

/// A GPT that GPT-2's code cannot compute, under a name that nobody takes for it.
const OUR_GPT: &str = "trine-gpt";

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
        config["architectures"] = json!(["TrineGptForCausalLM"]);
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
        let (mut kv_heads, mut head_dim) = (heads, self.head_dim(hidden, heads)?);
        if self.keys["model_type"] == OUR_GPT {
            (kv_heads, head_dim) = (self.get("n_kv_head", heads)?, self.get("head_dim", head_dim)?);
        }
        Ok(ModelSpec {
            family: Family::Gpt,
            hidden,
            layers: self.get("n_layer", 12)?,
            heads,
            kv_heads,
            head_dim,
            ffn: self.get("n_inner", hidden.saturating_mul(4))?,
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
    let bytes = trine_files::read(path, TEXT_BYTES_MAX).during("reading", path)?;
    let malformed = |why: String| CheckpointError::Malformed { path: path.into(), why };
    let keys: Value = serde_json::from_slice(&bytes).map_err(|e| malformed(e.to_string()))?;
    let config = Config { path: path.into(), keys };
    let model = match config.get("model_type", String::new())?.as_str() {
        "gpt2" | OUR_GPT => config.gpt()?,
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
