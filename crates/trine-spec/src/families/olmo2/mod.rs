//! OLMo 2.

use super::keys::{
    ATTENTION_BIAS, ATTENTION_DROPOUT, HEADS, INIT, Key, ROPE, SIZES, activation, flag, number,
};
use super::preset::{Preset, Sizes};
use super::{Names, Row, llama, name};
use crate::{Family, ModelSpec, NormAt, QkNorm};

pub(super) const ROW: Row = Row {
    kind: "olmo2",
    class: "Olmo2ForCausalLM",
    traits: |model| {
        model.norm_at = NormAt::After.into();
        model.qk_norm = QkNorm::All.into();
    },
    keys: &[SIZES, HEADS, &[ATTENTION_DROPOUT, INIT], ROPE, OWN],
    rules: &[],
    even: false,
    names: Names {
        block: &[
            name("model.layers.{}.self_attn.q_proj", &["attention.q"]),
            name("model.layers.{}.self_attn.k_proj", &["attention.k"]),
            name("model.layers.{}.self_attn.v_proj", &["attention.v"]),
            name("model.layers.{}.self_attn.q_norm", &["attention.q_norm"]),
            name("model.layers.{}.self_attn.k_norm", &["attention.k_norm"]),
            name("model.layers.{}.self_attn.o_proj", &["attention.output"]),
            name("model.layers.{}.post_attention_layernorm", &["norm1_after"]),
            name("model.layers.{}.mlp.gate_proj", &["mlp.gate"]),
            name("model.layers.{}.mlp.up_proj", &["mlp.up"]),
            name("model.layers.{}.mlp.down_proj", &["mlp.down"]),
            name("model.layers.{}.post_feedforward_layernorm", &["norm2_after"]),
        ],
        ..llama::NAMES
    },
    presets,
};

const OWN: &[Key] = &[
    activation!("hidden_act", "silu"),
    number!("rms_norm_eps", norm_eps, 1e-5),
    ATTENTION_BIAS,
    flag!("tie_word_embeddings", tied, false),
];

fn presets() -> Vec<Preset> {
    let model = |layers, hidden, heads, head_dim, ffn| {
        let (kv_heads, vocab, seq_max) = (heads, 100_352, 4096);
        let sizes = Sizes { layers, hidden, heads, kv_heads, head_dim, ffn, vocab, seq_max };
        ModelSpec { norm_eps: 1e-6, rope_theta: 5e5, ..sizes.of(Family::Olmo2) }
    };
    vec![
        Preset::new(
            "olmo2-1b",
            "OLMo 2 1B (2501.00656)",
            model(16, 2048, 16, 128, 8192),
            &[(8, 1, 1, 2), (4, 1, 2, 4)],
        ),
        Preset::new("olmo2-7b", "OLMo 2 7B", model(32, 4096, 32, 128, 11008), &[(8, 1, 2, 1)]),
        Preset::new("olmo2-13b", "OLMo 2 13B", model(40, 5120, 40, 128, 13824), &[(4, 2, 2, 1)]),
    ]
}
