//! Llama 1 to 3.

use super::keys::{
    ATTENTION_BIAS, ATTENTION_DROPOUT, HEADS, INIT, Key, ROPE, Rule, SIZES, absent, activation,
    flag, number,
};
use super::preset::{Preset, Sizes};
use super::{Name, Names, Row, name};
use crate::{Family, ModelSpec};
use serde_json::json;

pub(super) const ROW: Row = Row {
    kind: "llama",
    class: "LlamaForCausalLM",
    traits: |_| {},
    keys: &[SIZES, HEADS, &[ATTENTION_DROPOUT, INIT], ROPE, OWN],
    rules: RULES,
    even: true,
    names: NAMES,
    presets,
};

/// The modules of Llama and most of its descendants, in forward order.
pub(super) const NAMES: Names = Names {
    prefix: "model.",
    embedding: &[name("model.embed_tokens", &["embedding.token"])],
    block: BLOCK,
    head: &[name("model.norm", &["head.norm"]), name("lm_head", &["head.output"])],
};

const BLOCK: &[Name] = &[
    name("model.layers.{}.input_layernorm", &["norm1"]),
    name("model.layers.{}.self_attn.q_proj", &["attention.q"]),
    name("model.layers.{}.self_attn.k_proj", &["attention.k"]),
    name("model.layers.{}.self_attn.v_proj", &["attention.v"]),
    name("model.layers.{}.self_attn.q_norm", &["attention.q_norm"]),
    name("model.layers.{}.self_attn.k_norm", &["attention.k_norm"]),
    name("model.layers.{}.self_attn.o_proj", &["attention.output"]),
    name("model.layers.{}.post_attention_layernorm", &["norm2"]),
    name("model.layers.{}.mlp.gate_proj", &["mlp.gate"]),
    name("model.layers.{}.mlp.up_proj", &["mlp.up"]),
    name("model.layers.{}.mlp.down_proj", &["mlp.down"]),
];

const OWN: &[Key] = &[
    activation!("hidden_act", "silu"),
    number!("rms_norm_eps", norm_eps, 1e-6),
    ATTENTION_BIAS,
    flag!("mlp_bias", "mlp_bias", false, |model| *model.mlp_bias.of(0), |model, has| {
        model.mlp_bias = has.into();
    }),
    flag!("tie_word_embeddings", tied, false),
];

/// What a Llama of others may not have.
pub(super) const RULES: &[Rule] = &[
    absent("attn_logit_softcapping", "attention without a soft cap"),
    absent("final_logit_softcapping", "logits without a soft cap"),
    Rule {
        name: "sliding_window",
        allows: |_, file| *file.get("use_sliding_window").unwrap_or(&json!(true)) == json!(false),
        has: "attention to the whole sequence in a \"llama\"",
    },
    Rule {
        name: "layer_types",
        allows: |kinds, _| {
            kinds.as_array().is_some_and(|kinds| kinds.iter().all(|kind| kind == "full_attention"))
        },
        has: "attention to the whole sequence in a \"llama\"",
    },
    Rule {
        name: "partial_rotary_factor",
        allows: |value, _| value.as_f64() == Some(1.0),
        has: "rotary positions of whole heads in a \"llama\"",
    },
    Rule {
        name: "use_qk_norm",
        allows: |value, _| *value == json!(false),
        has: "no norms of queries and keys in a \"llama\"",
    },
];

fn presets() -> Vec<Preset> {
    let llama = |sizes: Sizes, rope_theta| ModelSpec { rope_theta, ..sizes.of(Family::Llama) };
    let two = |layers, hidden, heads, kv_heads, ffn| {
        llama(
            Sizes {
                layers,
                hidden,
                heads,
                kv_heads,
                head_dim: 128,
                ffn,
                vocab: 32000,
                seq_max: 4096,
            },
            1e4,
        )
    };
    let three = |layers, hidden, heads, ffn| {
        let (kv_heads, head_dim) = (8, 128);
        llama(
            Sizes { layers, hidden, heads, kv_heads, head_dim, ffn, vocab: 128_256, seq_max: 8192 },
            5e5,
        )
    };
    vec![
        Preset::new(
            "llama2-7b",
            "Llama 2 7B (2307.09288)",
            two(32, 4096, 32, 32, 11008),
            &[(8, 1, 2, 1)],
        ),
        Preset::new("llama2-13b", "Llama 2 13B", two(40, 5120, 40, 40, 13824), &[(4, 2, 2, 1)]),
        Preset::new(
            "llama2-70b",
            "Llama 2 70B, 8 KV heads",
            two(80, 8192, 64, 8, 28672),
            &[(4, 4, 8, 1)],
        ),
        Preset::new(
            "llama3-8b",
            "Llama 3 8B (2407.21783), 8 KV heads",
            three(32, 4096, 32, 14336),
            &[(8, 1, 2, 1), (4, 2, 2, 1)],
        ),
        Preset::new("llama3-70b", "Llama 3 70B", three(80, 8192, 64, 28672), &[(8, 4, 8, 1)]),
    ]
}
