//! Mistral.

use super::keys::{
    ATTENTION_DROPOUT, HEADS, INIT, Key, LAYER_TYPES, ROPE, SIZES, WINDOW, activation, flag, number,
};
use super::preset::{Preset, Sizes};
use super::{Row, llama};
use crate::{Family, ModelSpec, OrNone};
use serde_json::Value;

pub(super) const ROW: Row = Row {
    kind: "mistral",
    class: "MistralForCausalLM",
    traits: |model| model.window = OrNone::Some(4096).into(),
    keys: &[SIZES, HEADS, &[ATTENTION_DROPOUT, INIT], ROPE, OWN],
    rules: &[],
    even: false,
    names: llama::NAMES,
    presets,
};

const OWN: &[Key] = &[
    activation!("hidden_act", "silu"),
    number!("rms_norm_eps", norm_eps, 1e-6),
    flag!("tie_word_embeddings", tied, false),
    WINDOW,
    // transformers takes a "mistral" that speaks of kinds of blocks for another model, so it is read, not written.
    Key { get: |_| Value::Null, ..LAYER_TYPES },
];

fn presets() -> Vec<Preset> {
    let sizes = Sizes {
        layers: 32,
        hidden: 4096,
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
        ffn: 14336,
        vocab: 32000,
        seq_max: 32768,
    };
    let first = sizes.of(Family::Mistral);
    let third =
        ModelSpec { vocab: 32768, rope_theta: 1e6, window: OrNone::NONE.into(), ..first.clone() };
    vec![
        Preset::new(
            "mistral-7b",
            "Mistral 7B v0.1 (2310.06825), a window of 4096",
            first,
            &[(8, 1, 2, 1)],
        ),
        Preset::new("mistral-7b-v0.3", "Mistral 7B v0.3, without a window", third, &[(8, 1, 2, 1)]),
    ]
}
