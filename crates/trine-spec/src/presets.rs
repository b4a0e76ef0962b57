//! Named models with the layouts that suit them.

use crate::{Family, ModelSpec, SpecError};
use trine_mesh::Degrees;

/// A named model.
#[derive(Debug, Clone, PartialEq)]
pub struct Preset {
    /// What it is called on the command line.
    pub name: &'static str,
    /// One line: what it is and where its shape comes from.
    pub about: &'static str,
    /// The model.
    pub model: ModelSpec,
    /// Layouts that are known to work well, smallest first: degrees and the micro-batch size.
    pub layouts: Vec<(Degrees, usize)>,
}

/// name, about, layers, hidden, heads, sequence, layouts (dp, pp, tp, micro-batch).
type GptRow = (&'static str, &'static str, usize, usize, usize, usize, &'static [Layout]);
type Layout = (usize, usize, usize, usize);

const GPT: &[GptRow] = &[
    (
        "gpt2-124m",
        "GPT-2 small (Radford et al., 2019)",
        12,
        768,
        12,
        1024,
        &[(1, 1, 1, 8), (2, 2, 2, 4)],
    ),
    ("gpt2-355m", "GPT-2 medium", 24, 1024, 16, 1024, &[(1, 1, 1, 8), (2, 2, 2, 4)]),
    ("gpt2-774m", "GPT-2 large", 36, 1280, 20, 1024, &[(1, 1, 1, 4), (4, 1, 2, 4)]),
    ("gpt2-1.5b", "GPT-2 XL", 48, 1600, 25, 1024, &[(8, 1, 1, 4), (4, 2, 1, 4)]),
    ("gpt3-6.7b", "GPT-3 6.7B (Brown et al., 2005.14165)", 32, 4096, 32, 2048, &[(16, 1, 2, 4)]),
    ("gpt3-13b", "GPT-3 13B (40 heads of 128)", 40, 5120, 40, 2048, &[(16, 1, 4, 4)]),
    ("gpt3-175b", "GPT-3 175B", 96, 12288, 96, 2048, &[(8, 16, 8, 1)]),
    (
        "frontier-22b",
        "the 22B model of Oak Ridge's Frontier run (2312.12705)",
        48,
        6144,
        48,
        2048,
        &[(16, 4, 2, 2)],
    ),
    ("frontier-175b", "the 175B model of the Frontier run", 96, 12288, 96, 2048, &[(16, 16, 4, 1)]),
    ("frontier-1t", "the 1T model of the Frontier run", 128, 25600, 128, 2048, &[(6, 64, 8, 1)]),
];

struct LlamaRow {
    name: &'static str,
    about: &'static str,
    layers: usize,
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    ffn: usize,
    vocab: usize,
    seq_max: usize,
    rope_theta: f64,
    layouts: &'static [Layout],
}

const LLAMA: &[LlamaRow] = &[
    LlamaRow {
        name: "llama2-7b",
        about: "Llama 2 7B (2307.09288)",
        layers: 32,
        hidden: 4096,
        heads: 32,
        kv_heads: 32,
        ffn: 11008,
        vocab: 32000,
        seq_max: 4096,
        rope_theta: 1e4,
        layouts: &[(8, 1, 2, 1)],
    },
    LlamaRow {
        name: "llama2-13b",
        about: "Llama 2 13B",
        layers: 40,
        hidden: 5120,
        heads: 40,
        kv_heads: 40,
        ffn: 13824,
        vocab: 32000,
        seq_max: 4096,
        rope_theta: 1e4,
        layouts: &[(4, 2, 2, 1)],
    },
    LlamaRow {
        name: "llama2-70b",
        about: "Llama 2 70B, 8 KV heads",
        layers: 80,
        hidden: 8192,
        heads: 64,
        kv_heads: 8,
        ffn: 28672,
        vocab: 32000,
        seq_max: 4096,
        rope_theta: 1e4,
        layouts: &[(4, 4, 8, 1)],
    },
    LlamaRow {
        name: "llama3-8b",
        about: "Llama 3 8B (2407.21783), 8 KV heads",
        layers: 32,
        hidden: 4096,
        heads: 32,
        kv_heads: 8,
        ffn: 14336,
        vocab: 128256,
        seq_max: 8192,
        rope_theta: 5e5,
        layouts: &[(8, 1, 2, 1), (4, 2, 2, 1)],
    },
    LlamaRow {
        name: "llama3-70b",
        about: "Llama 3 70B",
        layers: 80,
        hidden: 8192,
        heads: 64,
        kv_heads: 8,
        ffn: 28672,
        vocab: 128256,
        seq_max: 8192,
        rope_theta: 5e5,
        layouts: &[(8, 4, 8, 1)],
    },
];

/// The default of `cargo xtask train`: small enough for two cores and five minutes.
fn rust_default() -> Preset {
    let model = ModelSpec { vocab: 4096, init_std: 0.02, ..gpt(4, 256, 4, 256) };
    Preset {
        name: "rust-default",
        about: "a small GPT on the Rust sources of the workspace's own dependencies",
        model,
        layouts: vec![layout((1, 1, 1, 8)), layout((2, 2, 2, 4))],
    }
}

fn gpt(layers: usize, hidden: usize, heads: usize, seq_max: usize) -> ModelSpec {
    ModelSpec {
        family: Family::Gpt,
        hidden,
        layers,
        heads,
        kv_heads: heads,
        head_dim: hidden / heads,
        ffn: 4 * hidden,
        vocab: 50257,
        seq_max,
        tied: true,
        norm_eps: 1e-5,
        rope_theta: 1e4,
        dropout: 0.0,
        init_std: 0.02,
    }
}

fn layout((dp, pp, tp, micro_batch): Layout) -> (Degrees, usize) {
    (Degrees { dp, pp, tp, ..Degrees::SERIAL }, micro_batch)
}

/// All presets.
pub fn all() -> Vec<Preset> {
    let gpts = GPT.iter().map(|&(name, about, layers, hidden, heads, seq, layouts)| Preset {
        name,
        about,
        model: gpt(layers, hidden, heads, seq),
        layouts: layouts.iter().copied().map(layout).collect(),
    });
    let llamas = LLAMA.iter().map(|row| Preset {
        name: row.name,
        about: row.about,
        model: ModelSpec {
            family: Family::Llama,
            kv_heads: row.kv_heads,
            ffn: row.ffn,
            vocab: row.vocab,
            tied: false,
            rope_theta: row.rope_theta,
            ..gpt(row.layers, row.hidden, row.heads, row.seq_max)
        },
        layouts: row.layouts.iter().copied().map(layout).collect(),
    });
    std::iter::once(rust_default()).chain(gpts).chain(llamas).collect()
}

/// The preset of this name.
///
/// # Errors
/// No such preset, with the most similar name.
pub fn find(name: &str) -> Result<Preset, SpecError> {
    let presets = all();
    let nearest = presets
        .iter()
        .min_by_key(|preset| edit_distance(preset.name, name))
        .expect("invariant: there are presets")
        .clone();
    if nearest.name == name {
        return Ok(nearest);
    }
    Err(SpecError::Preset { name: name.into(), nearest: nearest.name.into() })
}

/// Levenshtein distance; the names are short and this crate has no other use for a library.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substitute = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_have_their_published_sizes() {
        // GPT-2: the released checkpoints. Llama: the model cards. 175B: the Frontier log, whose
        // 174,706,360,320 counts the padded vocabulary (50688).
        let published = [
            ("gpt2-124m", 124_439_808),
            ("gpt2-355m", 354_823_168),
            ("gpt2-774m", 774_030_080),
            ("gpt2-1.5b", 1_557_611_200),
            ("llama2-7b", 6_738_415_616),
            ("llama2-70b", 68_976_648_192),
            ("llama3-8b", 8_030_261_248),
            ("llama3-70b", 70_553_706_496),
        ];
        for (name, count) in published {
            assert_eq!(find(name).unwrap().model.param_count(), count, "{name}");
        }
        let unpadded = find("frontier-175b").unwrap().model.param_count();
        let padding = (50688 - 50257) * 12288;
        assert!(unpadded + padding > 174_600_000_000, "{unpadded}");
        assert!(find("frontier-1t").unwrap().model.param_count() > 1_000_000_000_000);
    }

    #[test]
    fn presets_are_valid_and_their_layouts_fit() {
        let mut layouts = 0;
        for preset in all() {
            preset.model.check().unwrap();
            for (degrees, micro_batch) in &preset.layouts {
                preset.model.check_layout(degrees.tp, degrees.pp).unwrap();
                assert!(*micro_batch > 0);
                layouts += 1;
            }
        }
        assert!(layouts > 16, "{layouts}");
    }

    #[test]
    fn an_unknown_name_gets_the_nearest() {
        let error = find("gpt2-124").unwrap_err().to_string();
        assert!(error.contains("nearest: \"gpt2-124m\""), "{error}");
    }
}
