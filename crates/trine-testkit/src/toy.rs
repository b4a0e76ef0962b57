//! Tiny models and batches with every awkward property.

use trine_rng::Stream;
use trine_spec::{
    Activation, Each, Family, ModelSpec, Norm, NormAt, OrNone, Positions, QkNorm, RopeScaling,
};

/// A GPT with a vocabulary that nothing divides, tied embeddings, and five layers that neither two
/// nor four stages share evenly.
pub fn gpt() -> ModelSpec {
    ModelSpec {
        hidden: 32,
        layers: 5,
        heads: 4,
        kv_heads: 4,
        head_dim: 8,
        ffn: 64,
        vocab: 1009,
        seq_max: 16,
        tied: true,
        norm_eps: 1e-5,
        rope_theta: 1e4,
        init_std: 0.1,
        ..ModelSpec::smallest(Family::Gpt)
    }
}

/// A Llama whose KV heads are fewer than some tensor-parallel degrees.
pub fn llama(kv_heads: usize) -> ModelSpec {
    let (ffn, vocab, tied) = (48, 97, false);
    ModelSpec { kv_heads, ffn, vocab, tied, ..gpt() }.of_family(Family::Llama)
}

/// A model whose heads and features hardly any number of ranks divides. Its vocabulary is padded alike for up to four
/// ranks.
pub fn uneven(heads: usize, kv_heads: usize) -> ModelSpec {
    let usual = if kv_heads == heads { gpt() } else { llama(kv_heads) };
    ModelSpec { heads, kv_heads, layers: 2, ffn: 5 * 13, vocab: 150, ..usual }
}

/// A small model of a family, with a window that is shorter than its sequences where it has one.
pub fn of(family: Family) -> ModelSpec {
    let mut model = match family {
        Family::Gpt => gpt(),
        Family::GptNeoX => ModelSpec { tied: false, ..gpt() }.of_family(family),
        Family::Olmo2 => llama(4).of_family(family),
        Family::Llama | Family::Mistral | Family::Qwen2 | Family::Qwen3 | Family::Gemma2 => {
            llama(2).of_family(family)
        }
    };
    model.window = model.window.map(|window| OrNone::from(window.get().map(|_| 5)));
    model
}

/// Models that no family is like: between them they have every value of every trait, and lists of blocks.
pub fn mixed() -> Vec<ModelSpec> {
    let caps = ModelSpec {
        positions: Each::repeated(Positions::Rotary, [Positions::None]),
        gated: Each::repeated(true, [false]),
        parallel: Each::repeated(false, [true]),
        norm: Norm::RmsOne.into(),
        norm_at: Each::repeated(NormAt::Both, [NormAt::After, NormAt::Before]),
        qk_norm: Each::repeated(QkNorm::All, [QkNorm::Head, QkNorm::None]),
        score_cap: OrNone::Some(3.0).into(),
        score_dim: OrNone::Some(5).into(),
        logit_cap: OrNone::Some(2.0),
        embedding_scale: OrNone::Some(1.7),
        rope_scaling: RopeScaling::Yarn { factor: 4.0, fast: 4.0, slow: 1.0, original: 8.0 },
        ..llama(2)
    };
    let biased = ModelSpec {
        norm: Norm::Layer.into(),
        norm_at: NormAt::After.into(),
        qkv_bias: Each::repeated(false, [true]),
        output_bias: Each::repeated(true, [false]),
        mlp_bias: true.into(),
        activation: Each::repeated(Activation::Gelu, [Activation::Relu, Activation::GeluTanh]),
        rope_fraction: 0.5.into(),
        rope_scaling: RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 16.0 },
        parallel: true.into(),
        ..llama(1)
    };
    let plain = ModelSpec {
        positions: Positions::Learned.into(),
        activation: Activation::Silu.into(),
        qk_norm: QkNorm::All.into(),
        window: OrNone::Some(3).into(),
        kv_heads: 2,
        ..gpt()
    };
    vec![caps, biased, plain]
}

/// Token ids and targets of `samples` sequences, the same for everybody who asks. Samples 1, 6, 11, …
/// end early: in a batch of twelve, two or four data-parallel ranks then have unequal numbers of valid
/// tokens, so that a mean of the ranks' means is not the mean.
pub fn tokens(model: &ModelSpec, samples: usize, seq: usize) -> (Vec<u32>, Vec<u32>) {
    let stream = Stream::new(7, "toy tokens");
    let mut noise = vec![0.0f32; samples * (seq + 1)];
    stream.fill_normal(0, 1.0, &mut noise);
    let id = |value: f32| ((value.abs() * 1e4) as usize % model.vocab) as u32;
    let (mut inputs, mut targets) = (Vec::new(), Vec::new());
    for (sample, values) in noise.chunks_exact(seq + 1).enumerate() {
        inputs.extend(values[..seq].iter().map(|value| id(*value)));
        let valid = if sample % 5 == 1 { seq / 2 - 1 } else { seq };
        let target = |(at, value): (usize, &f32)| if at < valid { id(*value) } else { u32::MAX };
        targets.extend(values[1..].iter().enumerate().map(target));
    }
    (inputs, targets)
}
