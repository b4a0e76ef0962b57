//! Qwen 3 (the dense models).

use super::keys::{
    ATTENTION_BIAS, ATTENTION_DROPOUT, HEADS, INIT, Key, ROPE, SIZES, WINDOWS, activation, flag,
    number,
};
use super::preset::{Preset, Sizes};
use super::{Row, llama};
use crate::{Family, ModelSpec, QkNorm};

pub(super) const ROW: Row = Row {
    kind: "qwen3",
    class: "Qwen3ForCausalLM",
    traits: |model| model.qk_norm = QkNorm::Head.into(),
    keys: &[SIZES, HEADS, &[ATTENTION_DROPOUT, INIT], ROPE, OWN, WINDOWS],
    rules: &[],
    even: false,
    names: llama::NAMES,
    presets,
};

const OWN: &[Key] = &[
    activation!("hidden_act", "silu"),
    number!("rms_norm_eps", norm_eps, 1e-6),
    ATTENTION_BIAS,
    flag!("tie_word_embeddings", tied, false),
];

fn presets() -> Vec<Preset> {
    let model = |layers, hidden, heads, ffn, tied| {
        let (kv_heads, head_dim, vocab, seq_max) = (8, 128, 151_936, 40960);
        let sizes = Sizes { layers, hidden, heads, kv_heads, head_dim, ffn, vocab, seq_max };
        ModelSpec { tied, norm_eps: 1e-6, rope_theta: 1e6, ..sizes.of(Family::Qwen3) }
    };
    vec![
        Preset::new(
            "qwen3-0.6b",
            "Qwen 3 0.6B (2505.09388), 16 heads of 128 beside a width of 1024",
            model(28, 1024, 16, 3072, true),
            &[(8, 1, 1, 4), (4, 1, 2, 4)],
        ),
        Preset::new("qwen3-1.7b", "Qwen 3 1.7B", model(28, 2048, 16, 6144, true), &[(8, 1, 1, 2)]),
        Preset::new("qwen3-8b", "Qwen 3 8B", model(36, 4096, 32, 12288, false), &[(8, 1, 2, 1)]),
    ]
}
