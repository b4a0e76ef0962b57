//! Gemma 2.

use super::keys::{
    ATTENTION_BIAS, ATTENTION_DROPOUT, Absent, Fault, HEADS, INIT, Key, LAYER_TYPES, ROPE, SIZES,
    WINDOW, activation, cap, flag, number, whole,
};
use super::preset::{Preset, Sizes};
use super::{Names, Row, llama, name};
use crate::{Activation, Each, Family, ModelSpec, Norm, NormAt, OrNone};
use serde_json::Value;

pub(super) const ROW: Row = Row {
    kind: "gemma2",
    class: "Gemma2ForCausalLM",
    traits,
    keys: &[SIZES, HEADS, &[ATTENTION_DROPOUT, INIT], ROPE, OWN],
    rules: &[],
    even: true,
    names: Names {
        block: &[
            name("model.layers.{}.input_layernorm", &["norm1"]),
            name("model.layers.{}.self_attn.q_proj", &["attention.q"]),
            name("model.layers.{}.self_attn.k_proj", &["attention.k"]),
            name("model.layers.{}.self_attn.v_proj", &["attention.v"]),
            name("model.layers.{}.self_attn.o_proj", &["attention.output"]),
            name("model.layers.{}.post_attention_layernorm", &["norm1_after"]),
            name("model.layers.{}.pre_feedforward_layernorm", &["norm2"]),
            name("model.layers.{}.mlp.gate_proj", &["mlp.gate"]),
            name("model.layers.{}.mlp.up_proj", &["mlp.up"]),
            name("model.layers.{}.mlp.down_proj", &["mlp.down"]),
            name("model.layers.{}.post_feedforward_layernorm", &["norm2_after"]),
        ],
        ..llama::NAMES
    },
    presets,
};

fn traits(model: &mut ModelSpec) {
    model.norm = Norm::RmsOne.into();
    model.norm_at = NormAt::Both.into();
    model.activation = Activation::GeluTanh.into();
    model.window = Each::repeated(OrNone::Some(4096), [OrNone::NONE]);
    model.score_cap = OrNone::Some(50.0).into();
    model.logit_cap = OrNone::Some(30.0);
    model.embedding_scale = OrNone::Some((model.hidden as f64).sqrt());
}

const OWN: &[Key] = &[
    activation!("hidden_activation", "gelu_pytorch_tanh"),
    number!("rms_norm_eps", norm_eps, 1e-6),
    ATTENTION_BIAS,
    flag!("tie_word_embeddings", tied, true),
    Key { set: every_other, ..WINDOW },
    LAYER_TYPES,
    Key {
        name: "query_pre_attn_scalar",
        field: "score_dim",
        what: "a whole number, at least 1",
        get: |model| model.score_dim.of(0).get().unwrap_or(model.head_dim).into(),
        set: |model, value| {
            let dim = whole(value)?;
            model.score_dim = OrNone::from((dim != model.head_dim).then_some(dim)).into();
            // Here every size has been read: the embedding is multiplied by the root of the width.
            model.embedding_scale = OrNone::Some((model.hidden as f64).sqrt());
            Ok(())
        },
        absent: Absent::Is(|_| 256.into()),
    },
    cap!("attn_logit_softcapping", score_cap, |model| *model.score_cap.of(0), |model, cap| {
        model.score_cap = cap.into();
    }),
    cap!("final_logit_softcapping", logit_cap, |model| model.logit_cap, |model, cap| model
        .logit_cap =
        cap),
];

/// A window in every other block, from the first on.
fn every_other(model: &mut ModelSpec, value: &Value) -> Result<(), Fault> {
    (WINDOW.set)(model, value)?;
    let window = *model.window.of(0);
    let windows = (0..model.layers).map(|block| if block % 2 == 0 { window } else { OrNone::NONE });
    model.window = Each::listed(windows.collect()).unwrap_or(window.into());
    Ok(())
}

fn presets() -> Vec<Preset> {
    let model = |layers, hidden, heads, kv_heads, ffn| {
        let (head_dim, vocab, seq_max) = (256, 256_000, 8192);
        let sizes = Sizes { layers, hidden, heads, kv_heads, head_dim, ffn, vocab, seq_max };
        ModelSpec { tied: true, norm_eps: 1e-6, ..sizes.of(Family::Gemma2) }
    };
    vec![
        Preset::new(
            "gemma2-2b",
            "Gemma 2 2B (2408.00118)",
            model(26, 2304, 8, 4, 9216),
            &[(8, 1, 1, 1), (4, 1, 2, 1)],
        ),
        Preset::new("gemma2-9b", "Gemma 2 9B", model(42, 3584, 16, 8, 14336), &[(8, 1, 4, 1)]),
    ]
}
