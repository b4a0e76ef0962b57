//! Tiny models and batches with every awkward property.

use trine_rng::Stream;
use trine_spec::{Family, ModelSpec};

/// A GPT with a vocabulary that nothing divides, tied embeddings, and five layers that neither two
/// nor four stages share evenly.
pub fn gpt() -> ModelSpec {
    ModelSpec {
        family: Family::Gpt,
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
        dropout: 0.0,
        init_std: 0.1,
    }
}

/// A Llama whose KV heads are fewer than some tensor-parallel degrees.
pub fn llama(kv_heads: usize) -> ModelSpec {
    let (family, ffn, vocab, tied) = (Family::Llama, 48, 97, false);
    ModelSpec { family, kv_heads, ffn, vocab, tied, ..gpt() }
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
