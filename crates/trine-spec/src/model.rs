//! The shape of a model.

use crate::{
    Activation, Dropouts, Each, Family, Inner, Listed, Norm, NormAt, OrNone, Positions, QkNorm,
    RopeScaling, VOCAB_MULTIPLE,
};
use serde::{Deserialize, Serialize};

/// Gives the struct of a model, and how it is read: a trait that is not given is the family's.
macro_rules! model {
    (
        sizes { $($(#[doc = $size_doc:literal])+ $size:ident: $size_type:ty,)+ }
        traits { $($(#[doc = $trait_doc:literal])+ $trait:ident: $trait_type:ty,)+ }
    ) => {
        /// A decoder-only transformer: a list of blocks between an embedding and a head. The traits of its blocks are
        /// values for all of them, or lists that are repeated over them ([`Each`]).
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(from = "Given")]
        pub struct ModelSpec {
            /// What it is called by others: names of its tensors, and the traits that are not given.
            pub family: Family,
            $($(#[doc = $size_doc])+ pub $size: $size_type,)+
            $($(#[doc = $trait_doc])+ pub $trait: $trait_type,)+
        }

        #[derive(Deserialize)]
        #[serde(deny_unknown_fields, rename = "model")]
        struct Given {
            family: Family,
            $($size: $size_type,)+
            $($trait: Option<$trait_type>,)+
        }

        impl From<Given> for ModelSpec {
            fn from(given: Given) -> Self {
                let mut model = Self::smallest(given.family);
                $(model.$size = given.$size;)+
                (given.family.row().traits)(&mut model);
                $(if let Some(value) = given.$trait {
                    model.$trait = value;
                })+
                model
            }
        }

        impl ModelSpec {
            /// Its traits by name, each as it stands in a file.
            pub fn traits(&self) -> Vec<(&'static str, String)> {
                vec![$((stringify!($trait), serde_json::json!(self.$trait).to_string())),+]
            }

            /// How many values the list of each has: one where it is the same for all blocks.
            pub(crate) fn lists(&self) -> Vec<(&'static str, usize)> {
                vec![$((stringify!($trait), self.$trait.values_listed())),+]
            }

            /// Those that its family does not have, with its values.
            pub fn own_traits(&self) -> Vec<(&'static str, String)> {
                let usual = self.clone().of_family(self.family).traits();
                let own = self.traits().into_iter().zip(usual).filter(|(own, usual)| own != usual);
                own.map(|(own, _)| own).collect()
            }

            /// The model with the traits that a family has at its sizes.
            #[must_use]
            pub fn of_family(self, family: Family) -> Self {
                let mut model = self.with_traits_of(Self::smallest(family));
                model.family = family;
                (family.row().traits)(&mut model);
                model
            }

            /// The model with the traits of another.
            pub(crate) fn with_traits_of(mut self, other: Self) -> Self {
                $(self.$trait = other.$trait;)+
                self
            }
        }
    };
}

model! {
    sizes {
        /// Width of the residual stream.
        hidden: usize,
        /// Number of blocks.
        layers: usize,
        /// Query heads.
        heads: usize,
        /// Key and value heads; each serves `heads / kv_heads` query heads.
        kv_heads: usize,
        /// Elements of one head.
        head_dim: usize,
        /// Width inside the MLP.
        ffn: usize,
        /// Entries of the vocabulary, before padding.
        vocab: usize,
        /// Longest sequence (the size of learned positions).
        seq_max: usize,
        /// Whether the output layer is the token embedding.
        tied: bool,
        /// Added to the variance in norms.
        norm_eps: f64,
        /// Base of the rotary frequencies.
        rope_theta: f64,
        /// Dropout probabilities.
        dropout: Dropouts,
        /// Standard deviation of the initial weights (residual projections: divided by √(2·layers)).
        init_std: f64,
    }
    traits {
        /// The norms' kind; the head's is the last block's.
        norm: Each<Norm>,
        /// Where a branch has norms.
        norm_at: Each<NormAt>,
        /// How attention knows of positions.
        positions: Each<Positions>,
        /// The part of each head that rotary positions turn.
        rope_fraction: Each<f64>,
        /// How rotary frequencies are stretched.
        rope_scaling: RopeScaling,
        /// Whether queries, keys and values have biases.
        qkv_bias: Each<bool>,
        /// Whether attention's output layer has one.
        output_bias: Each<bool>,
        /// Whether the layers of the MLP have them.
        mlp_bias: Each<bool>,
        /// Norms of queries and keys.
        qk_norm: Each<QkNorm>,
        /// The MLP's function.
        activation: Each<Activation>,
        /// Whether the function of a gate is multiplied by the rest (Shazeer, 2002.05202).
        gated: Each<bool>,
        /// Whether attention and MLP read the same stream, and both are added to it.
        parallel: Each<bool>,
        /// How many tokens each one attends to: itself and those directly before.
        window: Each<OrNone<usize>>,
        /// Scores are divided by the root of this; `none`: of the head size.
        score_dim: Each<OrNone<usize>>,
        /// The bound of scores, `cap · tanh(score / cap)`.
        score_cap: Each<OrNone<f64>>,
        /// That of logits.
        logit_cap: OrNone<f64>,
        /// By what the embedded tokens are multiplied.
        embedding_scale: OrNone<f64>,
    }
}

impl ModelSpec {
    /// The names of all families.
    pub const FAMILIES: &[&str] = Family::NAMES;

    /// The smallest model of a family, with the constants that most have: what one of other sizes is made from.
    pub fn smallest(family: Family) -> Self {
        let mut model = Self {
            family,
            hidden: 2,
            layers: 1,
            heads: 1,
            kv_heads: 1,
            head_dim: 2,
            ffn: 8,
            vocab: 1,
            seq_max: 1,
            tied: false,
            norm_eps: 1e-5,
            rope_theta: 1e4,
            dropout: Dropouts::NONE,
            init_std: 0.02,
            norm: Norm::Rms.into(),
            norm_at: NormAt::Before.into(),
            positions: Positions::Rotary.into(),
            rope_fraction: 1.0.into(),
            rope_scaling: RopeScaling::None,
            qkv_bias: false.into(),
            output_bias: false.into(),
            mlp_bias: false.into(),
            qk_norm: QkNorm::None.into(),
            activation: Activation::Silu.into(),
            gated: true.into(),
            parallel: false.into(),
            window: OrNone::NONE.into(),
            score_dim: OrNone::NONE.into(),
            score_cap: OrNone::NONE.into(),
            logit_cap: OrNone::NONE,
            embedding_scale: OrNone::NONE,
        };
        (family.row().traits)(&mut model);
        model
    }

    /// The smallest Llama (a gated MLP) or GPT: for who knows no more of a model than that.
    pub fn usual(gated: bool) -> Self {
        let model = Self::smallest(if gated { Family::Llama } else { Family::Gpt });
        Self { tied: !gated, ..model }
    }

    /// The kind of the head's norm.
    pub fn head_norm(&self) -> Norm {
        *self.norm.of(self.layers.saturating_sub(1))
    }

    /// Whether positions are learned.
    pub fn learned_positions(&self) -> bool {
        *self.positions.of(0) == Positions::Learned
    }

    /// Width of all query heads.
    pub fn q_dim(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key (or value) heads.
    pub fn kv_dim(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Elements of a head of block `block` that rotary positions turn.
    pub fn turned(&self, block: usize) -> usize {
        match self.positions.of(block) {
            Positions::Rotary => (self.rope_fraction.of(block) * self.head_dim as f64) as usize,
            Positions::Learned | Positions::None => 0,
        }
    }

    /// The share of blocks whose MLP has a gate.
    pub fn gates(&self) -> f64 {
        self.gated.mean(self.layers, |gated| f64::from(u8::from(*gated)))
    }

    /// Matrices of `ffn` features in the MLP of each block, on average: 2, or 3 with a gate.
    pub fn mlp_matrices(&self) -> f64 {
        2.0 + self.gates()
    }

    /// Keys that a query of a sequence of `seq` tokens sees on average, in block `block`.
    pub fn keys_seen(&self, block: usize, seq: usize) -> f64 {
        seen(self.window.of(block).get(), seq as f64)
    }

    /// Those of all blocks, beside those that they would see without windows.
    pub fn seen_of_all(&self, seq: usize) -> f64 {
        let seq = seq as f64;
        self.window.mean(self.layers, |window| seen(window.get(), seq) / (seq / 2.0))
    }

    /// Stored vocabulary: padded so that `tp` ranks can split it. The same for every `tp` that
    /// divides [`VOCAB_MULTIPLE`].
    pub fn vocab_stored(&self, tp: usize) -> usize {
        self.vocab.next_multiple_of(lcm(VOCAB_MULTIPLE, tp.max(1)))
    }

    /// Number of unique, unpadded parameters.
    pub fn param_count(&self) -> u64 {
        self.pieces()
            .flat_map(|piece| self.params(piece, 1))
            .filter(|param| param.tied_to.is_none())
            .map(|param| param.unpadded_len() as u64)
            .sum()
    }

    /// Model FLOPs of one token's forward and backward pass in a sequence of `seq` tokens: 6 per
    /// weight of every matrix product (2 forward, 4 backward) and the products of attention with the keys that a
    /// query sees. Recompute is not counted (that would be hardware FLOPs).
    pub fn flops_per_token(&self, seq: usize) -> f64 {
        let blocks = self.layers as f64 * self.mean_block_flops_per_token(seq);
        blocks + self.head_flops_per_token()
    }

    /// Those of a block, on average.
    pub(crate) fn mean_block_flops_per_token(&self, seq: usize) -> f64 {
        let (q, kv) = (self.q_dim() as f64, self.kv_dim() as f64);
        let wide = 2.0 * q + 2.0 * kv + self.mlp_matrices() * self.ffn as f64;
        let seen = seq as f64 / 2.0 * self.seen_of_all(seq);
        6.0 * self.hidden as f64 * wide + 12.0 * q * seen
    }

    /// Those of block `block`.
    pub(crate) fn block_flops_per_token(&self, block: usize, seq: usize) -> f64 {
        let branches = self.block(block).branches;
        let weights: usize =
            branches.iter().map(|branch| branch.matrix_elements(self.hidden)).sum();
        let inner = branches.iter().map(|branch| match branch.inner {
            // q·kᵀ and p·v: 2 products of the visible keys, 2 FLOPs each, 3 × with the backward.
            Inner::Attention(_) => branch.row.width as f64 * self.keys_seen(block, seq) * 12.0,
            Inner::Mlp { .. } => 0.0,
        });
        (6 * weights) as f64 + inner.sum::<f64>()
    }

    /// Those of the output layer.
    pub(crate) fn head_flops_per_token(&self) -> f64 {
        (6 * self.vocab * self.hidden) as f64
    }
}

/// Keys that a query of so long a sequence sees on average.
fn seen(window: Option<usize>, seq: f64) -> f64 {
    match window.map(|window| window as f64) {
        // The first ones see fewer.
        Some(window) if window < seq => window - window * window / (2.0 * seq),
        Some(_) | None => seq / 2.0,
    }
}

fn lcm(a: usize, b: usize) -> usize {
    let (mut x, mut y) = (a, b);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    a / x * b
}

#[cfg(test)]
mod tests {
    use crate::presets;

    #[test]
    fn the_vocabulary_is_padded_alike_for_every_power_of_two() {
        let mut model = presets::find("gpt2-124m").unwrap().model;
        model.vocab = 1009;
        for tp in [1, 2, 4, 8] {
            assert_eq!(model.vocab_stored(tp), 1024);
        }
        assert_eq!(model.vocab_stored(3), 1152);
    }

    #[test]
    fn model_flops_are_six_per_weight_and_the_causal_half_of_attention() {
        let model = presets::find("gpt2-124m").unwrap().model;
        let weights = 12.0 * (12.0 * 768.0 * 768.0) + 50257.0 * 768.0;
        let scores = 12.0 * 768.0 * 1024.0 * 6.0;
        assert_eq!(model.flops_per_token(1024), 6.0 * weights + scores);
    }
}
