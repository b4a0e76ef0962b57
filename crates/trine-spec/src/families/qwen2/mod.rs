//! Qwen 2 and 2.5.

use super::keys::{
    ATTENTION_DROPOUT, HEADS, INIT, Key, ROPE, SIZES, WINDOWS, activation, flag, number,
};
use super::preset::{Preset, Sizes};
use super::{Row, llama};
use crate::{Family, ModelSpec};

pub(super) const ROW: Row = Row {
    kind: "qwen2",
    class: "Qwen2ForCausalLM",
    traits: |model| model.qkv_bias = true.into(),
    keys: &[SIZES, HEADS, &[ATTENTION_DROPOUT, INIT], ROPE, OWN, WINDOWS],
    rules: &[],
    even: false,
    names: llama::NAMES,
    presets,
};

const OWN: &[Key] = &[
    activation!("hidden_act", "silu"),
    number!("rms_norm_eps", norm_eps, 1e-6),
    flag!("tie_word_embeddings", tied, false),
];

fn presets() -> Vec<Preset> {
    let model = |layers, hidden, [heads, kv_heads, head_dim]: [usize; 3], ffn, vocab, tied| {
        let seq_max = 32768;
        let sizes = Sizes { layers, hidden, heads, kv_heads, head_dim, ffn, vocab, seq_max };
        ModelSpec { tied, norm_eps: 1e-6, rope_theta: 1e6, ..sizes.of(Family::Qwen2) }
    };
    vec![
        Preset::new(
            "qwen2.5-0.5b",
            "Qwen 2.5 0.5B (2412.15115)",
            model(24, 896, [14, 2, 64], 4864, 151_936, true),
            &[(8, 1, 1, 4), (4, 1, 2, 4)],
        ),
        Preset::new(
            "qwen2.5-1.5b",
            "Qwen 2.5 1.5B",
            model(28, 1536, [12, 2, 128], 8960, 151_936, true),
            &[(8, 1, 1, 2), (4, 1, 2, 4)],
        ),
        Preset::new(
            "qwen2.5-7b",
            "Qwen 2.5 7B, 4 KV heads",
            model(28, 3584, [28, 4, 128], 18944, 152_064, false),
            &[(8, 1, 2, 1)],
        ),
    ]
}
