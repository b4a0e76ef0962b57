//! The model that a Hugging Face `config.json` describes: GPT-2 or Llama. What the file asks for and the zoo does not
//! have is refused by its key.

use super::{HfError, OUR_GPT, OUR_GPT_CLASS};
use crate::{Family, ModelSpec};
use serde_json::{Value, json};

/// Of a value in a message, so many characters.
const SHOWN_CHARS_MAX: usize = 60;

/// What a key may say where it says anything, and how trine calls that. Every other value belongs to another model.
type Rule = (&'static str, Value, &'static str);

/// Of every family.
fn common_rules() -> [Rule; 9] {
    [
        ("auto_map", json!([]), "architectures without code of their own"),
        ("is_encoder_decoder", json!([false]), "decoders"),
        ("add_cross_attention", json!([false]), "attention to the own sequence"),
        ("quantization_config", json!([]), "weights that are not quantised"),
        ("pruned_heads", json!([{}]), "the same heads in every block"),
        ("num_local_experts", json!([]), "one MLP in each block"),
        ("num_experts", json!([]), "one MLP in each block"),
        ("attn_logit_softcapping", json!([]), "attention without a soft cap"),
        ("final_logit_softcapping", json!([]), "logits without a soft cap"),
    ]
}

fn gpt_rules() -> [Rule; 4] {
    let classes = json!([["GPT2LMHeadModel"], [OUR_GPT_CLASS]]);
    let activations = json!(["gelu_new", "gelu_pytorch_tanh"]);
    [
        ("architectures", classes, "GPT2LMHeadModel"),
        ("activation_function", activations, "gelu_new"),
        ("scale_attn_weights", json!([true]), "attention scaled by the head size"),
        (
            "scale_attn_by_inverse_layer_idx",
            json!([false]),
            "one scale of attention for all blocks",
        ),
    ]
}

fn llama_rules() -> [Rule; 7] {
    let plain = json!([{ "rope_type": "default" }, { "type": "default" }]);
    [
        ("architectures", json!([["LlamaForCausalLM"]]), "LlamaForCausalLM"),
        ("hidden_act", json!(["silu"]), "silu"),
        ("attention_bias", json!([false]), "attention without biases"),
        ("mlp_bias", json!([false]), "an MLP without biases"),
        ("rope_scaling", plain, "plain rotary positions"),
        ("partial_rotary_factor", json!([1, 1.0]), "rotary positions of whole heads"),
        ("use_qk_norm", json!([false]), "no norms of queries and keys"),
    ]
}

/// A `config.json` being read. A size must be there; other keys that are missing or null have the defaults of
/// `transformers`.
struct Config<'a> {
    keys: &'a Value,
}

impl Config<'_> {
    /// Refuses a key by its name.
    fn refused(&self, key: &str, has: &str) -> HfError {
        HfError::Unsupported(format!("\"{key}\" is {}; trine has {has}", shown(&self.keys[key])))
    }

    /// The value of a key, if it is there, read by `of`.
    fn read_as<T>(
        &self,
        key: &str,
        what: &str,
        of: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, HfError> {
        match &self.keys[key] {
            Value::Null => Ok(None),
            value => of(value).map(Some).ok_or_else(|| {
                HfError::Malformed(format!("\"{key}\" is {}; it must be {what}", shown(value)))
            }),
        }
    }

    fn size_if_given(&self, key: &str) -> Result<Option<usize>, HfError> {
        let whole = |value: &Value| value.as_u64().and_then(|size| usize::try_from(size).ok());
        self.read_as(key, "a whole number, at least 1", whole)
    }

    fn size(&self, key: &str) -> Result<usize, HfError> {
        self.size_if_given(key)?.ok_or_else(|| HfError::Malformed(format!("\"{key}\" is missing")))
    }

    fn number(&self, key: &str, default: f64) -> Result<f64, HfError> {
        Ok(self.read_as(key, "a number", Value::as_f64)?.unwrap_or(default))
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool, HfError> {
        Ok(self.read_as(key, "true or false", Value::as_bool)?.unwrap_or(default))
    }

    /// Refuses a model that computes something else than ours.
    fn keep(&self, rules: &[Rule]) -> Result<(), HfError> {
        let is_kept = |key: &str, allowed: &Value| {
            let value = &self.keys[key];
            value.is_null() || allowed.as_array().is_some_and(|all| all.contains(value))
        };
        match rules.iter().find(|(key, allowed, _)| !is_kept(key, allowed)) {
            None => Ok(()),
            Some((key, _, has)) => Err(self.refused(key, has)),
        }
    }

    fn model(&self) -> Result<ModelSpec, HfError> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let kind = self.read_as("model_type", "a text", text)?;
        match kind.as_deref() {
            Some("gpt2" | OUR_GPT) => self.gpt(),
            Some("llama") => self.llama(),
            Some(_) => Err(self.refused("model_type", KNOWN)),
            None => {
                Err(HfError::Malformed(format!("\"model_type\" is missing; trine has {KNOWN}")))
            }
        }
    }

    fn gpt(&self) -> Result<ModelSpec, HfError> {
        self.keep(&common_rules())?;
        self.keep(&gpt_rules())?;
        let (hidden, heads) = (self.size("n_embd")?, self.size("n_head")?);
        let kv_heads = self.size_if_given("n_kv_head")?.unwrap_or(heads);
        let head_dim = self.head_dim(("n_embd", hidden), ("n_head", heads))?;
        if self.keys["model_type"] != OUR_GPT {
            self.only_size("n_kv_head", kv_heads, heads)?;
            self.only_size("head_dim", head_dim, hidden / heads)?;
        }
        Ok(ModelSpec {
            family: Family::Gpt,
            hidden,
            layers: self.size("n_layer")?,
            heads,
            kv_heads,
            head_dim,
            ffn: self.size_if_given("n_inner")?.unwrap_or(hidden.saturating_mul(4)),
            vocab: self.size("vocab_size")?,
            seq_max: self.size("n_positions")?,
            tied: self.flag("tie_word_embeddings", true)?,
            norm_eps: self.number("layer_norm_epsilon", 1e-5)?,
            rope_theta: 1e4,
            dropout: self.one_dropout()?,
            init_std: self.number("initializer_range", 0.02)?,
        })
    }

    fn llama(&self) -> Result<ModelSpec, HfError> {
        self.keep(&common_rules())?;
        self.keep(&llama_rules())?;
        self.whole_attention()?;
        let (hidden, heads) = (self.size("hidden_size")?, self.size("num_attention_heads")?);
        Ok(ModelSpec {
            family: Family::Llama,
            hidden,
            layers: self.size("num_hidden_layers")?,
            heads,
            kv_heads: self.size_if_given("num_key_value_heads")?.unwrap_or(heads),
            head_dim: self.head_dim(("hidden_size", hidden), ("num_attention_heads", heads))?,
            ffn: self.size("intermediate_size")?,
            vocab: self.size("vocab_size")?,
            seq_max: self.size("max_position_embeddings")?,
            tied: self.flag("tie_word_embeddings", false)?,
            norm_eps: self.number("rms_norm_eps", 1e-6)?,
            rope_theta: self.rope_theta()?,
            // Theirs drops probabilities only; ours writes here what it drops everywhere.
            dropout: self.number("attention_dropout", 0.0)?,
            init_std: self.number("initializer_range", 0.02)?,
        })
    }

    /// The size of a head: given, or the width shared out over the heads.
    fn head_dim(
        &self,
        (hidden_key, hidden): (&str, usize),
        (heads_key, heads): (&str, usize),
    ) -> Result<usize, HfError> {
        if heads == 0 {
            return Err(HfError::Malformed(format!("\"{heads_key}\" is 0; it must be at least 1")));
        }
        if let Some(given) = self.size_if_given("head_dim")? {
            return Ok(given);
        }
        if !hidden.is_multiple_of(heads) {
            let why =
                format!("\"{hidden_key}\" = {hidden} is no multiple of \"{heads_key}\" = {heads}");
            return Err(HfError::Malformed(why));
        }
        Ok(hidden / heads)
    }

    /// Refuses a size that the architecture does not have, unless it says what follows anyway.
    fn only_size(&self, key: &str, found: usize, follows: usize) -> Result<(), HfError> {
        match found == follows {
            true => Ok(()),
            false => Err(self.refused(key, &format!("{follows} of them in a \"gpt2\""))),
        }
    }

    /// The one dropout of our GPT.
    fn one_dropout(&self) -> Result<f64, HfError> {
        let own = self.number("resid_pdrop", 0.1)?;
        for key in ["embd_pdrop", "attn_pdrop"] {
            let other = self.number(key, 0.1)?;
            if other != own {
                let why = format!(
                    "\"{key}\" is {other} and \"resid_pdrop\" {own}; trine has one dropout for all"
                );
                return Err(HfError::Unsupported(why));
            }
        }
        Ok(own)
    }

    /// Refuses attention that sees a part of the sequence only.
    fn whole_attention(&self) -> Result<(), HfError> {
        let has = "attention to the whole sequence";
        if self.flag("use_sliding_window", true)? && !self.keys["sliding_window"].is_null() {
            return Err(self.refused("sliding_window", has));
        }
        let kinds = self.keys["layer_types"].as_array();
        let is_whole = |kinds: &Vec<Value>| kinds.iter().all(|kind| kind == "full_attention");
        if self.keys["layer_types"].is_null() || kinds.is_some_and(is_whole) {
            return Ok(());
        }
        Err(self.refused("layer_types", has))
    }

    /// The base of rotary positions. Since version 5, `transformers` keeps what belongs to them in one object.
    fn rope_theta(&self) -> Result<f64, HfError> {
        let theta = self.number("rope_theta", 1e4)?;
        let rope = Config { keys: &self.keys["rope_parameters"] };
        let Some(keys) = rope.keys.as_object() else {
            return match rope.keys.is_null() {
                true => Ok(theta),
                false => Err(self.refused("rope_parameters", "plain rotary positions")),
            };
        };
        rope.keep(&[
            ("rope_type", json!(["default"]), "plain rotary positions"),
            ("type", json!(["default"]), "plain rotary positions"),
            ("partial_rotary_factor", json!([1, 1.0]), "rotary positions of whole heads"),
        ])?;
        let known = ["rope_type", "type", "partial_rotary_factor", "rope_theta"];
        match keys.keys().find(|key| !known.contains(&key.as_str()) && !rope.keys[*key].is_null()) {
            Some(other) => Err(rope.refused(other, "plain rotary positions")),
            None => rope.number("rope_theta", theta),
        }
    }
}

/// For messages.
const KNOWN: &str = "gpt2 (GPT2LMHeadModel) and llama (LlamaForCausalLM)";

/// A value as JSON, its beginning if it is long.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// The model that a `config.json` describes: GPT-2 or Llama.
///
/// # Errors
/// No object, a size that is missing, another kind of model, or one with an option that trine lacks.
pub fn model_from_config(config: &Value) -> Result<ModelSpec, HfError> {
    if !config.is_object() {
        return Err(HfError::Malformed("it holds no JSON object".into()));
    }
    let model = Config { keys: config }.model()?;
    model.check().map_err(|error| HfError::Unsupported(error.to_string()))?;
    Ok(model)
}
