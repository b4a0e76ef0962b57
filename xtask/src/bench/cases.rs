//! The cases of `cargo xtask bench torch`, with what trine is to reach in them.

use clap::ValueEnum;
use serde::Serialize;

use super::contest::Score;
use super::shape::{CHAR, GPT2, Isa, LLAMA, Model, Shape};
use super::stats::Quartiles;

/// One row of the table.
#[derive(Debug, PartialEq)]
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) shape: Shape,
    pub(super) targets: &'static [Target],
}

/// A ratio to reach: trine's tokens per second over those of PyTorch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Target {
    /// What both sides may use for it.
    pub(super) isa: Isa,
    pub(super) at_least: f64,
    pub(super) of: Of,
}

/// Whom a target is stated against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    /// The better of eager and compiled, as PyTorch comes.
    Better,
    One(Variant),
}

/// How PyTorch is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Variant {
    Eager,
    Compiled,
    /// glibc's malloc is told to keep memory: as it comes, it gives large tensors back to the system and takes them
    /// anew in every step.
    EagerMalloc,
    CompiledMalloc,
}

impl Variant {
    pub(super) const ALL: [Self; 4] =
        [Self::Eager, Self::Compiled, Self::EagerMalloc, Self::CompiledMalloc];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Eager => "eager",
            Self::Compiled => "compiled",
            Self::EagerMalloc => "eager, malloc tuned",
            Self::CompiledMalloc => "compiled, malloc tuned",
        }
    }

    pub(super) fn is_compiled(self) -> bool {
        matches!(self, Self::Compiled | Self::CompiledMalloc)
    }

    /// Environment variables.
    pub(super) fn env(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Eager | Self::Compiled => &[],
            Self::EagerMalloc | Self::CompiledMalloc => &[
                ("MALLOC_MMAP_THRESHOLD_", "1073741824"),
                ("MALLOC_TRIM_THRESHOLD_", "4294967296"),
                ("MALLOC_TOP_PAD_", "67108864"),
            ],
        }
    }
}

const fn case(
    name: &'static str,
    (model, batch, seq, precision): (Model, usize, usize, &'static str),
    targets: &'static [Target],
) -> Case {
    Case { name, shape: Shape { model, batch, seq, precision }, targets }
}

const fn target(at_least: f64, of: Of) -> Target {
    Target { isa: Isa::Best, at_least, of }
}

const EAGER: Of = Of::One(Variant::Eager);
const EAGER_MALLOC: Of = Of::One(Variant::EagerMalloc);
const TWICE: Target = target(2.0, Of::Better);
const AVX2: Target = Target { isa: Isa::Avx2, at_least: 1.0, of: Of::Better };

pub(super) static CASES: &[Case] = &[
    case(
        "gpt2-2x256-bf16",
        (GPT2, 2, 256, "bf16"),
        &[target(1.6, Of::Better), target(1.4, EAGER_MALLOC)],
    ),
    case("gpt2-8x256-bf16", (GPT2, 8, 256, "bf16"), &[target(1.3, Of::Better)]),
    case("gpt2-2x1024-bf16", (GPT2, 2, 1024, "bf16"), &[target(2.0, EAGER)]),
    case("char-12x256-bf16", (CHAR, 12, 256, "bf16"), &[target(1.55, Of::Better)]),
    case("llama-4x512-bf16", (LLAMA, 4, 512, "bf16"), &[target(1.4, Of::Better)]),
    case("gpt2-2x256-f32", (GPT2, 2, 256, "f32"), &[TWICE, AVX2]),
    case("gpt2-8x256-f32", (GPT2, 8, 256, "f32"), &[TWICE]),
    case("gpt2-2x1024-f32", (GPT2, 2, 1024, "f32"), &[TWICE]),
    case("char-12x256-f32", (CHAR, 12, 256, "f32"), &[TWICE]),
    case("llama-4x512-f32", (LLAMA, 4, 512, "f32"), &[TWICE]),
];

/// What to run: the cases of these names, or all; each with the instruction set asked for, or with every one that a
/// target of it is stated for.
pub(super) fn plan(names: &[String], isa: Option<Isa>) -> Vec<(&'static Case, Isa)> {
    let is_asked_for = |case: &&Case| names.is_empty() || names.iter().any(|n| n == case.name);
    let runs = CASES.iter().filter(is_asked_for).flat_map(|case| {
        let is_stated = |isa: &Isa| case.targets.iter().any(|target| target.isa == *isa);
        let isas = match isa {
            Some(isa) => vec![isa],
            None => Isa::value_variants().iter().copied().filter(is_stated).collect(),
        };
        isas.into_iter().map(move |isa| (case, isa))
    });
    runs.collect()
}

/// What became of a target.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Verdict {
    pub(super) at_least: f64,
    /// Whom the target names.
    pub(super) of: String,
    /// Whom it came down to: the one trine gained least on.
    pub(super) against: Option<&'static str>,
    pub(super) ratio: Option<Quartiles>,
    /// By the median; `None` if nobody ran that it could be measured against.
    pub(super) reached: Option<bool>,
    /// Those it names that failed.
    pub(super) failed: Vec<&'static str>,
}

impl Target {
    /// Compares the first score, trine's, with those that the target names.
    pub(super) fn judge(&self, scores: &[Score]) -> Verdict {
        let (named, of): (&[Variant], _) = match &self.of {
            Of::Better => {
                (&[Variant::Eager, Variant::Compiled], "the better of eager and compiled")
            }
            Of::One(variant) => (std::slice::from_ref(variant), variant.name()),
        };
        let named = scores.iter().filter(|score| named.iter().any(|v| v.name() == score.name));
        let trine = scores.first();
        let ratios = named.clone().filter_map(|score| {
            trine.and_then(|trine| trine.ratio_to(score)).map(|ratio| (score.name, ratio))
        });
        let least = ratios.min_by(|(_, a), (_, b)| a.median.total_cmp(&b.median));
        Verdict {
            at_least: self.at_least,
            of: of.to_owned(),
            against: least.map(|(name, _)| name),
            ratio: least.map(|(_, ratio)| ratio),
            reached: least.map(|(_, ratio)| ratio.median >= self.at_least),
            failed: named.filter(|score| score.failed.is_some()).map(|score| score.name).collect(),
        }
    }
}

impl Verdict {
    /// As the end of a line.
    pub(super) fn text(&self) -> String {
        let target = format!("≥ {:.2} × {}", self.at_least, self.of);
        let mut text = match (self.reached, self.ratio, self.against) {
            (Some(reached), Some(ratio), Some(against)) => {
                let word = if reached { "reached" } else { "missed" };
                format!("{word}: {:.3} × {against}; target {target}", ratio.median)
            }
            _ => format!("not measured; target {target}"),
        };
        if !self.failed.is_empty() {
            text += &format!(" (failed: {})", self.failed.join("; "));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::super::shape::Source;
    use super::*;
    use crate::workspace::Workspace;
    use std::collections::BTreeSet;

    /// The numbers of `model` in the table of the PyTorch script, in its order.
    fn peer_shape(script: &str, model: &str) -> Vec<usize> {
        let row =
            script.lines().find_map(|line| line.trim().strip_prefix(&format!("\"{model}\": (")));
        let row = row.unwrap_or_else(|| panic!("torch_step.py has no model {model}"));
        row.split(',').map_while(|number| number.trim().parse().ok()).collect()
    }

    #[test]
    fn every_model_exists_on_both_sides_in_the_same_shape() {
        let root = Workspace::load().unwrap().root;
        let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
        let script = read("benches/peers/torch_step.py");
        let presets = read("crates/trine-spec/src/presets.rs");
        let mut files = 0;
        for model in [GPT2, CHAR, LLAMA] {
            let peer = peer_shape(&script, model.name);
            assert_eq!(peer.len(), 7, "{}", model.name);
            let path = match model.source {
                Source::Preset(name) => {
                    assert!(presets.contains(&format!("\"{name}\",")), "no preset {name}");
                    continue;
                }
                Source::File(path) => path,
            };
            files += 1;
            let config: toml::Table = read(path).parse().unwrap();
            assert_eq!(config["name"].as_str(), Some(model.name), "{path}");
            let number = |key: &str| Some(config["model"].get(key)?.as_integer()? as usize);
            let (hidden, heads) = (number("hidden").unwrap(), number("heads").unwrap());
            // What the file leaves to the preset keeps the preset's proportions.
            let ours = [
                number("vocab").unwrap(),
                number("layers").unwrap(),
                hidden,
                heads,
                number("kv_heads").unwrap_or(heads),
                number("ffn").unwrap_or(4 * hidden),
                number("seq_max").unwrap_or(1024),
            ];
            assert_eq!(peer, ours, "{path}");
        }
        assert_eq!(files, 2);
    }

    #[test]
    fn every_case_can_be_run() {
        let names: BTreeSet<_> = CASES.iter().map(|case| case.name).collect();
        assert_eq!((CASES.len(), names.len()), (10, 10));
        for Case { name, shape, targets } in CASES {
            assert!(["bf16", "f32"].contains(&shape.precision), "{name}");
            assert!([GPT2, CHAR, LLAMA].contains(&shape.model) && shape.seq <= 1024, "{name}");
            assert!(name.contains(&format!("-{}x{}-", shape.batch, shape.seq)), "{name}");
            assert!(name.ends_with(shape.precision), "{name}");
            assert!(targets.iter().all(|target| target.at_least >= 1.0), "{name}");
            assert!(!targets.is_empty(), "{name}");
        }
    }

    fn planned(names: &[&str], isa: Option<Isa>) -> Vec<(&'static str, Isa)> {
        let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        plan(&names, isa).into_iter().map(|(case, isa)| (case.name, isa)).collect()
    }

    #[test]
    fn all_targets_are_measured_unless_an_instruction_set_is_asked_for() {
        let name = "gpt2-2x256-f32";
        let measured: usize = plan(&[], None)
            .iter()
            .map(|(case, isa)| case.targets.iter().filter(|target| target.isa == *isa).count())
            .sum();
        assert_eq!(measured, CASES.iter().flat_map(|case| case.targets).count());
        assert_eq!(planned(&[name], None), [(name, Isa::Best), (name, Isa::Avx2)]);
        assert_eq!(planned(&[name], Some(Isa::Avx512Bf16)), [(name, Isa::Avx512Bf16)]);
        assert_eq!(planned(&[], Some(Isa::Avx2)).len(), CASES.len());
    }

    fn score(name: &'static str, tokens_per_s: f64) -> Score {
        Score { name, isa: None, tokens_per_s: vec![tokens_per_s; 3], failed: None }
    }

    #[test]
    fn the_better_peer_decides() {
        let scores = [score("trine", 300.0), score("eager", 100.0), score("compiled", 200.0)];
        let verdict = target(1.6, Of::Better).judge(&scores);
        assert_eq!((verdict.against, verdict.reached), (Some("compiled"), Some(false)));
        assert_eq!(
            verdict.text(),
            "missed: 1.500 × compiled; target ≥ 1.60 × the better of eager and compiled"
        );
        let verdict = target(3.0, EAGER).judge(&scores);
        assert_eq!((verdict.against, verdict.reached), (Some("eager"), Some(true)));
    }

    #[test]
    fn a_failed_peer_is_named() {
        let mut scores = [score("trine", 300.0), score("eager", 100.0), score("compiled", 200.0)];
        scores[2].failed = Some("no C++ compiler".to_owned());
        let verdict = target(1.6, Of::Better).judge(&scores);
        assert_eq!((verdict.against, verdict.reached), (Some("eager"), Some(true)));
        assert!(verdict.text().ends_with("(failed: compiled)"), "{}", verdict.text());

        scores[0].failed = Some("hung".to_owned());
        let verdict = target(1.6, EAGER).judge(&scores);
        assert_eq!(verdict.reached, None);
        assert_eq!(verdict.text(), "not measured; target ≥ 1.60 × eager");
    }
}
