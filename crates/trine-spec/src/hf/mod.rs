//! How Hugging Face names and lays out the tensors of each family, and describes a model.
//!
//! Checkpoints are written under these names, so that `transformers` opens them as they are.

mod read;
mod write;

pub use read::model_from_config;
pub use write::config;

use crate::families::Name;
use crate::{ModelSpec, ParamSpec, Piece};
use serde_json::json;
use std::collections::BTreeSet;

/// Why a `config.json` gives no model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HfError {
    /// It is no description of a model.
    #[error("{0}")]
    Malformed(String),
    /// It asks for what the zoo does not have.
    #[error("{0}")]
    Unsupported(String),
}

/// A key of every safetensors file that is no tensor's.
pub(crate) const METADATA: &str = "__metadata__";

/// A model that no architecture of `transformers` computes, under a name that nobody takes for one: the file holds
/// trine's description under the same name.
const OURS: &str = "trine";

/// Its architecture.
const OUR_CLASS: &str = "TrineForCausalLM";

/// The same of a GPT in older releases.
const OLD_GPT: &str = "trine-gpt";

/// A model with pieces of somebody's own, which nobody else can compute.
const OWN_PIECES: &str = "trine-own-pieces";

/// Whether `transformers` has an architecture that computes the model: whether the description of its family says all
/// of it. Dropout is no part of that: it belongs to training.
pub fn is_expressible(model: &ModelSpec) -> bool {
    obstacles(model).is_empty()
}

/// What of the model the description of its family cannot say, as keys of a configuration.
pub fn obstacles(model: &ModelSpec) -> Vec<String> {
    let Ok(read) = read::model_from_config(&write::of_family(model)) else {
        return vec!["model.head_dim".into()];
    };
    let is_same = |block| read.block(block) == model.block(block);
    let is_turned = (0..model.layers).any(|block| model.turned(block) > 0);
    let (ours, theirs) = (json!(model), json!(read));
    let differs = |key: &&str| ours[*key] != theirs[*key];
    // Two lists may say the same of every block.
    let are_same = (0..model.layers).all(is_same);
    let of_blocks = match are_same && read.learned_positions() == model.learned_positions() {
        true => vec!["logit_cap", "embedding_scale"],
        false => model.traits().into_iter().map(|(name, _)| name).collect(),
    };
    let sizes = ["kv_heads", "head_dim", "tied", "norm_eps", "init_std"];
    let said = sizes.into_iter().chain(is_turned.then_some("rope_theta")).chain(of_blocks);
    let is_uneven = model.family.row().even && !model.hidden.is_multiple_of(model.heads);
    let lacks = is_uneven.then_some("heads").into_iter().chain(said.filter(differs));
    lacks.map(|key| format!("model.{key}")).collect()
}

/// What the names of the base model's tensors begin with: files may have it or not.
pub fn prefix(model: &ModelSpec) -> &'static str {
    model.family.row().names.prefix
}

/// A Hugging Face tensor and the trine parameters that it is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HfTensor {
    /// Its name in the safetensors file.
    pub name: String,
    /// trine's parameters, concatenated along the output dimension.
    pub parts: Vec<String>,
    /// Stored as `[in, out]` (GPT-2's `Conv1D`) instead of `[out, in]`.
    pub transposed: bool,
    /// In how many pieces each part is cut: piece 0 of every part, then piece 1 of every part (GPT-NeoX: heads).
    pub pieces: usize,
}

impl HfTensor {
    /// A parameter of a piece that others do not have: stored as it is, under trine's name.
    pub fn of(name: &str) -> Self {
        Self { name: name.into(), parts: vec![name.into()], transposed: false, pieces: 1 }
    }
}

/// The Hugging Face tensors of one piece. A tied output layer has none. A parameter that the family has no name for is
/// stored under trine's.
pub fn tensors(model: &ModelSpec, piece: Piece) -> Vec<HfTensor> {
    let names = &model.family.row().names;
    let (names, block) = match piece {
        Piece::Embedding => (names.embedding, None),
        Piece::Block(index) => (names.block, Some(index)),
        Piece::Head => (names.head, None),
    };
    let params = model.params(piece, 1);
    let own = params.iter().filter(|param| param.tied_to.is_none());
    let mut left: BTreeSet<&str> = own.map(|param| param.name.as_str()).collect();
    let mut tensors = Vec::new();
    for name in names {
        for kind in ["weight", "bias"] {
            let tensor = named(model, name, block, kind);
            if tensor.parts.iter().all(|part| left.contains(part.as_str())) {
                tensor.parts.iter().for_each(|part| {
                    left.remove(part.as_str());
                });
                tensors.push(tensor);
            }
        }
    }
    let in_order = |param: &&ParamSpec| left.contains(param.name.as_str());
    tensors.extend(params.iter().filter(in_order).map(|param| HfTensor::of(&param.name)));
    tensors
}

/// The tensor of this kind of a module.
fn named(model: &ModelSpec, name: &Name, block: Option<usize>, kind: &str) -> HfTensor {
    let number = block.map(|index| index.to_string()).unwrap_or_default();
    let part = |part: &&str| match block {
        Some(index) => format!("block.{index}.{part}.{kind}"),
        // Tables have no bias.
        None if part.starts_with("embedding.") && kind == "weight" => (*part).into(),
        None => format!("{part}.{kind}"),
    };
    HfTensor {
        name: format!("{}.{kind}", name.outside.replace("{}", &number)),
        parts: name.parts.iter().map(part).collect(),
        transposed: name.transposed && kind == "weight",
        pieces: if name.by_heads && model.kv_heads == model.heads { model.heads } else { 1 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Each, Family, OrNone, Positions, presets};

    #[test]
    fn every_parameter_has_exactly_one_place_in_a_hugging_face_file() {
        for preset in presets::all() {
            let (model, name) = (preset.model, preset.name);
            let mut named = BTreeSet::new();
            for part in
                model.pieces().flat_map(|piece| tensors(&model, piece)).flat_map(|t| t.parts)
            {
                assert!(named.insert(part.clone()), "{part} twice");
            }
            let params = model.pieces().flat_map(|piece| model.params(piece, 1));
            let own: BTreeSet<String> =
                params.filter(|param| param.tied_to.is_none()).map(|param| param.name).collect();
            assert_eq!(named, own, "{name}");
        }
    }

    #[test]
    fn a_preset_is_expressible_and_read_as_it_was_written() {
        for preset in presets::all() {
            assert!(is_expressible(&preset.model), "{}", preset.name);
            let tensors = preset.model.pieces().flat_map(|piece| tensors(&preset.model, piece));
            for tensor in tensors {
                assert_ne!(tensor.parts[0], tensor.name, "{}", preset.name);
            }
        }
    }

    fn smallest(family: Family) -> ModelSpec {
        ModelSpec { layers: 2, hidden: 24, heads: 3, head_dim: 8, ..ModelSpec::smallest(family) }
            .of_family(family)
    }

    #[test]
    fn what_others_would_compute_otherwise_is_an_obstacle() {
        for family in Family::ALL {
            let model = ModelSpec { kv_heads: 3, rope_fraction: 1.0.into(), ..smallest(*family) };
            assert_eq!(obstacles(&model), [""; 0], "{family}");
            let half = ModelSpec { rope_fraction: 0.5.into(), ..model.clone() };
            // GPT turns nothing, and GPT-NeoX says which part.
            let says = matches!(family, Family::Gpt | Family::GptNeoX);
            let expected: &[&str] = if says { &[] } else { &["model.rope_fraction"] };
            assert_eq!(obstacles(&half), expected, "{family}");
            let positions = Positions::None.into();
            let without = obstacles(&ModelSpec { positions, ..model.clone() });
            assert!(without.contains(&"model.positions".into()), "{family}: {without:?}");
            let (heads, kv_heads) = (5, 5);
            let uneven = obstacles(&ModelSpec { heads, kv_heads, ..model });
            assert_eq!(uneven.is_empty(), !family.row().even, "{family}: {uneven:?}");
        }
    }

    #[test]
    fn parts_of_heads_are_read_where_others_turn_them() {
        let read = |family, key: &str, value| {
            let mut config = write::of_family(&smallest(family));
            for rope in ["rope_theta", "rope_parameters", "rotary_emb_base"] {
                config.as_object_mut().unwrap().remove(rope);
            }
            config[key] = value;
            model_from_config(&config)
        };
        let part = json!({ "rope_theta": 25000.0, "partial_rotary_factor": 0.5 });
        let neox = read(Family::GptNeoX, "rope_parameters", part.clone()).unwrap();
        assert_eq!((*neox.rope_fraction.of(0), neox.rope_theta), (0.5, 25000.0));
        let neox = read(Family::GptNeoX, "rotary_emb_base", json!(25000.0)).unwrap();
        assert_eq!((*neox.rope_fraction.of(0), neox.rope_theta), (0.25, 25000.0));
        let said = read(Family::Llama, "rope_parameters", part).unwrap_err().to_string();
        assert!(
            said.contains(
                "\"partial_rotary_factor\" is 0.5; trine has rotary positions of whole heads"
            ),
            "{said}"
        );
    }

    #[test]
    fn a_mistral_has_one_window_for_all_blocks() {
        let (some, none) = (OrNone::Some(3), OrNone::NONE);
        let smallest = ModelSpec { layers: 2, ..ModelSpec::smallest(Family::Mistral) };
        for (window, expected) in
            [(some.into(), true), (none.into(), true), (Each::repeated(some, [none]), false)]
        {
            let model = ModelSpec { window, ..smallest.clone() };
            assert!(write::of_family(&model)["layer_types"].is_null());
            assert_eq!(is_expressible(&model), expected, "{:?}", model.window);
        }
    }
}
