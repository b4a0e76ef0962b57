//! A model as `transformers` describes it.

use super::{OUR_GPT, OUR_GPT_CLASS, OWN_PIECES, is_expressible};
use crate::{Family, ModelParts};
use serde_json::{Value, json};

/// The model as `transformers` describes it, with weights of type `dtype` in their words. Ids are written even where
/// there are none: those left out have a default of the architecture, which is another tokenizer's.
pub fn config(parts: &ModelParts, dtype: &str, end_of_text: Option<u32>) -> Value {
    let model = &parts.spec;
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
    if parts.own().next().is_some() {
        config["architectures"] = json!([OWN_PIECES]);
        config["model_type"] = OWN_PIECES.into();
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
