//! How Hugging Face names and lays out the tensors of each family, and describes a model.
//!
//! Checkpoints are written under these names, so that `transformers` opens them as they are.

mod read;
mod write;

pub use read::model_from_config;
pub use write::config;

use crate::{Family, ModelSpec, Piece};

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

/// A GPT that GPT-2's code cannot compute, under a name that nobody takes for it.
const OUR_GPT: &str = "trine-gpt";

/// Its architecture.
const OUR_GPT_CLASS: &str = "TrineGptForCausalLM";

/// A model with pieces of somebody's own, which nobody else can compute.
const OWN_PIECES: &str = "trine-own-pieces";

/// Whether `transformers` has an architecture that computes the model: its GPT-2 has no grouped
/// heads, and cuts them from the width. A model that it cannot compute is saved under a name of its own.
pub fn is_expressible(model: &ModelSpec) -> bool {
    match model.family {
        Family::Gpt => model.kv_heads == model.heads && model.q_dim() == model.hidden,
        Family::Llama => true,
    }
}

/// What the names of the base model's tensors begin with: files may have it or not.
pub fn prefix(model: &ModelSpec) -> &'static str {
    match model.family {
        Family::Gpt => "transformer.",
        Family::Llama => "model.",
    }
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
}

impl HfTensor {
    /// A parameter of a piece that others do not have: stored as it is, under trine's name.
    pub fn of(name: &str) -> Self {
        tensor(name.into(), &[name.into()], false)
    }
}

/// The Hugging Face tensors of one piece. A tied output layer has none.
pub fn tensors(model: &ModelSpec, piece: Piece) -> Vec<HfTensor> {
    let mut tensors = match model.family {
        Family::Gpt => gpt(piece),
        Family::Llama => llama(piece),
    };
    if model.tied {
        tensors.retain(|tensor| tensor.name != "lm_head.weight");
    }
    tensors
}

fn tensor(name: String, parts: &[String], transposed: bool) -> HfTensor {
    HfTensor { name, parts: parts.to_vec(), transposed }
}

fn gpt(piece: Piece) -> Vec<HfTensor> {
    let plain = |hf: &str, own: &str| tensor(hf.into(), &[own.into()], false);
    match piece {
        Piece::Embedding => vec![
            plain("transformer.wte.weight", "embedding.token"),
            plain("transformer.wpe.weight", "embedding.position"),
        ],
        Piece::Head => vec![
            plain("transformer.ln_f.weight", "head.norm.weight"),
            plain("transformer.ln_f.bias", "head.norm.bias"),
            plain("lm_head.weight", "head.output.weight"),
        ],
        Piece::Block(index) => {
            let rows: [(&str, &[&str]); 6] = [
                ("ln_1", &["norm1"]),
                ("attn.c_attn", &["attention.q", "attention.k", "attention.v"]),
                ("attn.c_proj", &["attention.output"]),
                ("ln_2", &["norm2"]),
                ("mlp.c_fc", &["mlp.up"]),
                ("mlp.c_proj", &["mlp.down"]),
            ];
            let mut tensors = Vec::new();
            for (hf, own) in rows {
                for kind in ["weight", "bias"] {
                    let parts: Vec<String> =
                        own.iter().map(|own| format!("block.{index}.{own}.{kind}")).collect();
                    let transposed = kind == "weight" && hf.contains(".c_");
                    tensors.push(tensor(
                        format!("transformer.h.{index}.{hf}.{kind}"),
                        &parts,
                        transposed,
                    ));
                }
            }
            tensors
        }
    }
}

fn llama(piece: Piece) -> Vec<HfTensor> {
    let plain = |hf: String, own: String| tensor(hf, &[own], false);
    match piece {
        Piece::Embedding => {
            vec![plain("model.embed_tokens.weight".into(), "embedding.token".into())]
        }
        Piece::Head => vec![
            plain("model.norm.weight".into(), "head.norm.weight".into()),
            plain("lm_head.weight".into(), "head.output.weight".into()),
        ],
        Piece::Block(index) => [
            ("input_layernorm", "norm1"),
            ("self_attn.q_proj", "attention.q"),
            ("self_attn.k_proj", "attention.k"),
            ("self_attn.v_proj", "attention.v"),
            ("self_attn.o_proj", "attention.output"),
            ("post_attention_layernorm", "norm2"),
            ("mlp.gate_proj", "mlp.gate"),
            ("mlp.up_proj", "mlp.up"),
            ("mlp.down_proj", "mlp.down"),
        ]
        .iter()
        .map(|(hf, own)| {
            plain(
                format!("model.layers.{index}.{hf}.weight"),
                format!("block.{index}.{own}.weight"),
            )
        })
        .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presets;
    use std::collections::BTreeSet;

    #[test]
    fn every_parameter_has_exactly_one_place_in_a_hugging_face_file() {
        for name in ["gpt2-124m", "llama2-7b", "frontier-22b"] {
            let model = presets::find(name).unwrap().model;
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
}
