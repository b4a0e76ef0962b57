//! Named models with the layouts that suit them.

pub use crate::families::preset::Preset;

use crate::families::gpt;
use crate::{Family, ModelSpec, SpecError};

/// The default of `cargo xtask train`: small enough for two cores and five minutes.
fn rust_default() -> Preset {
    let model = ModelSpec { vocab: 4096, ..gpt::sized(4, 256, 4, 256) };
    let about = "a small GPT on the Rust sources of the workspace's own dependencies";
    Preset::new("rust-default", about, model, &[(1, 1, 1, 8), (2, 2, 2, 4)])
}

/// All presets.
pub fn all() -> Vec<Preset> {
    let of_families = Family::ALL.iter().flat_map(|family| (family.row().presets)());
    std::iter::once(rust_default()).chain(of_families).collect()
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

/// The most similar of some names.
pub(crate) fn nearest<'a>(word: &str, names: &[&'a str]) -> Option<&'a str> {
    names.iter().copied().min_by_key(|name| edit_distance(name, word))
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
        // The released checkpoints or the model cards. 175B: the Frontier log, whose
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
            ("mistral-7b", 7_241_732_096),
            ("mistral-7b-v0.3", 7_248_023_552),
            ("qwen2.5-0.5b", 494_032_768),
            ("qwen2.5-1.5b", 1_543_714_304),
            ("qwen2.5-7b", 7_615_616_512),
            ("qwen3-0.6b", 596_049_920),
            ("qwen3-1.7b", 1_720_574_976),
            ("qwen3-8b", 8_190_735_360),
            ("pythia-160m", 162_322_944),
            ("pythia-1.4b", 1_414_647_808),
            ("pythia-6.9b", 6_857_302_016),
            ("gpt-neox-20b", 20_554_567_680),
            ("olmo2-1b", 1_484_916_736),
            ("olmo2-7b", 7_298_617_344),
            ("olmo2-13b", 13_716_198_400),
            ("gemma2-2b", 2_614_341_888),
            ("gemma2-9b", 9_241_705_984),
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
