//! GPT-2 and GPT-3, and the models of the Frontier run.

use super::keys::{
    Absent, Fault, HEAD_DIM, INIT, Key, Rule, absent, activation, activation_name, dropout, flag,
    number, size, whole,
};
use super::preset::{Layout, Preset, Sizes};
use super::{Name, Names, Row, name};
use crate::{Activation, Family, ModelSpec, Norm, Positions};
use serde_json::{Value, json};

pub(super) const ROW: Row = Row {
    kind: "gpt2",
    class: "GPT2LMHeadModel",
    traits,
    keys: &[KEYS],
    rules: RULES,
    even: true,
    names: Names {
        prefix: "transformer.",
        embedding: &[
            name("transformer.wte", &["embedding.token"]),
            name("transformer.wpe", &["embedding.position"]),
        ],
        block: &[
            name("transformer.h.{}.ln_1", &["norm1"]),
            conv("transformer.h.{}.attn.c_attn", &["attention.q", "attention.k", "attention.v"]),
            conv("transformer.h.{}.attn.c_proj", &["attention.output"]),
            name("transformer.h.{}.ln_2", &["norm2"]),
            conv("transformer.h.{}.mlp.c_fc", &["mlp.up"]),
            conv("transformer.h.{}.mlp.c_proj", &["mlp.down"]),
        ],
        head: &[name("transformer.ln_f", &["head.norm"]), name("lm_head", &["head.output"])],
    },
    presets,
};

const fn conv(outside: &'static str, parts: &'static [&'static str]) -> Name {
    Name { transposed: true, ..name(outside, parts) }
}

fn traits(model: &mut ModelSpec) {
    model.norm = Norm::Layer.into();
    model.positions = Positions::Learned.into();
    for biases in [&mut model.qkv_bias, &mut model.output_bias, &mut model.mlp_bias] {
        *biases = true.into();
    }
    model.activation = Activation::GeluTanh.into();
    model.gated = false.into();
}

const KEYS: &[Key] = &[
    size!("vocab_size", vocab),
    size!("n_positions", seq_max),
    size!("n_embd", hidden),
    size!("n_layer", layers),
    size!("n_head", heads),
    size!("n_inner", ffn, Absent::Is(|model| model.hidden.saturating_mul(4).into())),
    Key {
        name: "n_kv_head",
        field: "kv_heads",
        what: "a whole number, at least 1",
        get: |_| Value::Null,
        set: |model, value| {
            model.kv_heads = whole(value)?;
            follows(model.kv_heads == model.heads)
        },
        absent: Absent::Is(|model| model.heads.into()),
    },
    Key {
        get: |_| Value::Null,
        set: |model, value| {
            model.head_dim = whole(value)?;
            follows(model.heads == 0 || model.q_dim() == model.hidden)
        },
        ..HEAD_DIM
    },
    Key {
        get: |model| match *model.activation.of(0) {
            Activation::GeluTanh => "gelu_new".into(),
            other => activation_name(other).into(),
        },
        ..activation!("activation_function", "gelu_new")
    },
    number!("layer_norm_epsilon", norm_eps, 1e-5),
    INIT,
    dropout!("resid_pdrop", residual, 0.1),
    dropout!("embd_pdrop", embedding, 0.1),
    dropout!("attn_pdrop", attention, 0.1),
    flag!("tie_word_embeddings", tied, true),
];

/// GPT-2 shares its width out over as many KV heads as heads.
fn follows(is_so: bool) -> Result<(), Fault> {
    match is_so {
        true => Ok(()),
        false => Err(Fault::Unsupported("what follows from the width and the heads of a \"gpt2\"")),
    }
}

const RULES: &[Rule] = &[
    absent("attn_logit_softcapping", "attention without a soft cap"),
    absent("final_logit_softcapping", "logits without a soft cap"),
    Rule {
        name: "scale_attn_weights",
        allows: |value, _| *value == json!(true),
        has: "attention scaled by the head size",
    },
    Rule {
        name: "scale_attn_by_inverse_layer_idx",
        allows: |value, _| *value == json!(false),
        has: "one scale of attention for all blocks",
    },
];

/// Name, about, layers, hidden, heads, sequence, layouts.
type Shape = (&'static str, &'static str, usize, usize, usize, usize, &'static [Layout]);

#[rustfmt::skip]
const SHAPES: &[Shape] = &[
    ("gpt2-124m", "GPT-2 small (Radford et al., 2019)", 12, 768, 12, 1024, &[(1, 1, 1, 8), (2, 2, 2, 4)]),
    ("gpt2-355m", "GPT-2 medium", 24, 1024, 16, 1024, &[(1, 1, 1, 8), (2, 2, 2, 4)]),
    ("gpt2-774m", "GPT-2 large", 36, 1280, 20, 1024, &[(1, 1, 1, 4), (4, 1, 2, 4)]),
    ("gpt2-1.5b", "GPT-2 XL", 48, 1600, 25, 1024, &[(8, 1, 1, 4), (2, 2, 2, 4), (4, 2, 1, 4)]),
    ("gpt3-6.7b", "GPT-3 6.7B (Brown et al., 2005.14165)", 32, 4096, 32, 2048, &[(16, 1, 2, 4)]),
    ("gpt3-13b", "GPT-3 13B (40 heads of 128)", 40, 5120, 40, 2048, &[(16, 1, 4, 4)]),
    ("gpt3-175b", "GPT-3 175B", 96, 12288, 96, 2048, &[(8, 16, 8, 1)]),
    ("frontier-22b", "the 22B model of Oak Ridge's Frontier run (2312.12705)", 48, 6144, 48, 2048, &[(16, 4, 2, 2)]),
    ("frontier-175b", "the 175B model of the Frontier run", 96, 12288, 96, 2048, &[(16, 16, 4, 1)]),
    ("frontier-1t", "the 1T model of the Frontier run", 128, 25600, 128, 2048, &[(6, 64, 8, 1)]),
];

/// The model of these layers, width, heads and sequence.
pub(crate) fn sized(layers: usize, hidden: usize, heads: usize, seq_max: usize) -> ModelSpec {
    let (kv_heads, head_dim, ffn, vocab) = (heads, hidden / heads, 4 * hidden, 50257);
    let sizes = Sizes { layers, hidden, heads, kv_heads, head_dim, ffn, vocab, seq_max };
    ModelSpec { tied: true, ..sizes.of(Family::Gpt) }
}

fn presets() -> Vec<Preset> {
    let preset = |&(name, about, layers, hidden, heads, seq, layouts): &Shape| {
        Preset::new(name, about, sized(layers, hidden, heads, seq), layouts)
    };
    SHAPES.iter().map(preset).collect()
}
