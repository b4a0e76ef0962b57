//! GPT-NeoX and Pythia.

use super::keys::{
    ATTENTION_DROPOUT, Absent, Fault, HEAD_DIM, INIT, Key, ROPE_PARAMETERS, ROPE_SCALING, SIZES,
    absent, activation, dropout, flag, number, read_rope, whole,
};
use super::preset::{Preset, Sizes};
use super::{Name, Names, Row, name};
use crate::{Activation, Family, ModelSpec, Norm};
use serde_json::Value;

pub(super) const ROW: Row = Row {
    kind: "gpt_neox",
    class: "GPTNeoXForCausalLM",
    traits,
    keys: &[SIZES, &[KV_HEADS, WIDTH, INIT], OWN],
    rules: &[absent("attn_logit_softcapping", "attention without a soft cap")],
    even: true,
    names: Names {
        prefix: "gpt_neox.",
        embedding: &[name("gpt_neox.embed_in", &["embedding.token"])],
        block: &[
            name("gpt_neox.layers.{}.input_layernorm", &["norm1"]),
            QKV,
            name("gpt_neox.layers.{}.attention.dense", &["attention.output"]),
            name("gpt_neox.layers.{}.post_attention_layernorm", &["norm2"]),
            name("gpt_neox.layers.{}.mlp.dense_h_to_4h", &["mlp.up"]),
            name("gpt_neox.layers.{}.mlp.dense_4h_to_h", &["mlp.down"]),
        ],
        head: &[
            name("gpt_neox.final_layer_norm", &["head.norm"]),
            name("embed_out", &["head.output"]),
        ],
    },
    presets,
};

/// Each head's queries, keys and values follow one another.
const QKV: Name = Name {
    by_heads: true,
    ..name(
        "gpt_neox.layers.{}.attention.query_key_value",
        &["attention.q", "attention.k", "attention.v"],
    )
};

fn traits(model: &mut ModelSpec) {
    model.norm = Norm::Layer.into();
    model.rope_fraction = 0.25.into();
    for biases in [&mut model.qkv_bias, &mut model.output_bias, &mut model.mlp_bias] {
        *biases = true.into();
    }
    model.activation = Activation::Gelu.into();
    model.gated = false.into();
    model.parallel = true.into();
}

const KV_HEADS: Key = Key {
    name: "num_key_value_heads",
    field: "kv_heads",
    what: "a whole number, at least 1",
    get: |_| Value::Null,
    set: |model, value| {
        model.kv_heads = whole(value)?;
        match model.kv_heads == model.heads {
            true => Ok(()),
            false => Err(Fault::Unsupported("as many KV heads as heads in a \"gpt_neox\"")),
        }
    },
    absent: Absent::Is(|model| model.heads.into()),
};

const WIDTH: Key = Key { get: |_| Value::Null, ..HEAD_DIM };

const OWN: &[Key] = &[
    activation!("hidden_act", "gelu"),
    number!("layer_norm_eps", norm_eps, 1e-5),
    Key {
        name: "rotary_pct",
        field: "rope_fraction",
        what: "a number",
        get: |model| (*model.rope_fraction.of(0)).into(),
        set: |model, value| {
            model.rope_fraction = value.as_f64().ok_or(Fault::Type)?.into();
            Ok(())
        },
        absent: Absent::Is(|_| 0.25.into()),
    },
    number!("rotary_emb_base", rope_theta, 1e4),
    flag!("use_parallel_residual", "parallel", true, |model| *model.parallel.of(0), |model, is| {
        model.parallel = is.into();
    }),
    flag!("attention_bias", "qkv_bias", true, |model| *model.qkv_bias.of(0), |model, has| {
        (model.qkv_bias, model.output_bias) = (has.into(), has.into());
    }),
    dropout!("hidden_dropout", residual, 0.0),
    ATTENTION_DROPOUT,
    flag!("tie_word_embeddings", tied, false),
    Key { set: read_rope, ..ROPE_SCALING },
    Key { set: read_rope, ..ROPE_PARAMETERS },
];

fn presets() -> Vec<Preset> {
    let model = |layers, hidden, heads, vocab| {
        let (kv_heads, head_dim, ffn, seq_max) = (heads, hidden / heads, 4 * hidden, 2048);
        Sizes { layers, hidden, heads, kv_heads, head_dim, ffn, vocab, seq_max }.of(Family::GptNeoX)
    };
    vec![
        Preset::new(
            "pythia-160m",
            "Pythia 160M (2304.01373)",
            model(12, 768, 12, 50304),
            &[(1, 1, 1, 8), (2, 2, 2, 4)],
        ),
        Preset::new("pythia-1.4b", "Pythia 1.4B", model(24, 2048, 16, 50304), &[(8, 1, 1, 4)]),
        Preset::new("pythia-6.9b", "Pythia 6.9B", model(32, 4096, 32, 50432), &[(8, 1, 2, 1)]),
        Preset::new(
            "gpt-neox-20b",
            "GPT-NeoX 20B (2204.06745)",
            ModelSpec { activation: Activation::GeluTanh.into(), ..model(44, 6144, 64, 50432) },
            &[(4, 4, 4, 1)],
        ),
    ]
}
