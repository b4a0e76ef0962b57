//! Families of models: each sets traits, and says how others call its tensors and its sizes. One folder each, which
//! this file names twice: as a module and as a family.

mod gemma2;
pub(crate) mod gpt;
mod gpt_neox;
pub(crate) mod keys;
mod llama;
mod mistral;
mod olmo2;
pub(crate) mod preset;
mod qwen2;
mod qwen3;

use crate::ModelSpec;
use keys::{Key, Rule};
use preset::Preset;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Gives the enum of families, and each its row.
macro_rules! families {
    ($($(#[doc = $about:literal])+ $family:ident = $name:literal in $module:ident,)+) => {
        /// A family of models.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum Family {
            $($(#[doc = $about])+ #[serde(rename = $name)] $family,)+
        }

        impl Family {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$family),+];

            /// Their names in configurations.
            pub const NAMES: &[&str] = &[$($name),+];

            /// Its name in configurations.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$family => $name,)+
                }
            }

            pub(crate) fn row(self) -> &'static Row {
                match self {
                    $(Self::$family => &$module::ROW,)+
                }
            }
        }
    };
}

families! {
    /// GPT-2 and GPT-3: LayerNorm, GELU, learned positions, biases. The Frontier run's family.
    Gpt = "gpt" in gpt,
    /// Llama 1 to 3: RMSNorm, SwiGLU, rotary positions, no biases.
    Llama = "llama" in llama,
    /// Mistral: Llama with a window.
    Mistral = "mistral" in mistral,
    /// Qwen 2 and 2.5: Llama with biases of queries, keys and values.
    Qwen2 = "qwen2" in qwen2,
    /// Qwen 3: Llama with norms of each head's queries and keys.
    Qwen3 = "qwen3" in qwen3,
    /// GPT-NeoX and Pythia: LayerNorm, GELU, a part of each head turned, attention and MLP side by side.
    GptNeoX = "gpt-neox" in gpt_neox,
    /// OLMo 2: Llama with norms behind the branches, and of all queries and all keys.
    Olmo2 = "olmo2" in olmo2,
    /// Gemma 2: norms on both sides, GELU with a gate, a window in every other block, bounded scores and logits.
    Gemma2 = "gemma2" in gemma2,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What a family is.
pub(crate) struct Row {
    /// What `transformers` calls it: `model_type`.
    pub(crate) kind: &'static str,
    /// Its class there.
    pub(crate) class: &'static str,
    /// Sets what differs from the smallest Llama.
    pub(crate) traits: fn(&mut ModelSpec),
    /// Its keys in a `config.json`, in the order of reading.
    pub(crate) keys: &'static [&'static [Key]],
    /// What else may stand there.
    pub(crate) rules: &'static [Rule],
    /// Whether `transformers` refuses a width that the heads do not share evenly.
    pub(crate) even: bool,
    /// How its tensors are called.
    pub(crate) names: Names,
    /// Published models.
    pub(crate) presets: fn() -> Vec<Preset>,
}

/// How tensors are called in a file. `{}` is the number of a block.
pub(crate) struct Names {
    /// What those of the base model begin with: files may have it or not.
    pub(crate) prefix: &'static str,
    pub(crate) embedding: &'static [Name],
    pub(crate) block: &'static [Name],
    pub(crate) head: &'static [Name],
}

/// A module of others and the parameters of ours that it holds, without `.weight` and `.bias`.
pub(crate) struct Name {
    pub(crate) outside: &'static str,
    pub(crate) parts: &'static [&'static str],
    /// Its matrix is `[in, out]` (GPT-2's `Conv1D`).
    pub(crate) transposed: bool,
    /// Its parts alternate by heads.
    pub(crate) by_heads: bool,
}

/// A module that holds one of our layers.
pub(crate) const fn name(outside: &'static str, parts: &'static [&'static str]) -> Name {
    Name { outside, parts, transposed: false, by_heads: false }
}
