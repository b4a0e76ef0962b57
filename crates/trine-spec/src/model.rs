//! The shape of a model.

use crate::{CANONICAL_BLOCKS, Inner, SpecError, VOCAB_MULTIPLE};
use serde::{Deserialize, Serialize};
use trine_mesh::shard;

/// The model family: which norms, activation, positions and biases a block has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// GPT-2 and GPT-3: LayerNorm, GELU, learned positions, biases. The Frontier run's family.
    Gpt,
    /// Llama 2 and 3: RMSNorm, SwiGLU, rotary positions, no biases.
    Llama,
}

/// A normalisation layer's kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Norm {
    /// Mean and variance, with gain and bias (Ba et al., 1607.06450).
    Layer,
    /// Root mean square, with gain (Zhang & Sennrich, 1910.07467).
    Rms,
}

/// A decoder-only transformer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// GPT or Llama.
    pub family: Family,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Elements of one head.
    pub head_dim: usize,
    /// Width inside the MLP.
    pub ffn: usize,
    /// Entries of the vocabulary, before padding.
    pub vocab: usize,
    /// Longest sequence (the size of learned positions).
    pub seq_max: usize,
    /// Whether the output layer is the token embedding.
    pub tied: bool,
    /// Added to the variance in norms.
    pub norm_eps: f64,
    /// Base of the rotary frequencies (Llama).
    pub rope_theta: f64,
    /// Dropout probability on embeddings, attention probabilities and residual branches.
    pub dropout: f64,
    /// Standard deviation of the initial weights (residual projections: divided by √(2·layers)).
    pub init_std: f64,
}

/// Blocks of the deepest model.
const LAYERS_MAX: usize = 1 << 14;

/// The largest width, or number of anything else, in a model.
const SIZE_MAX: usize = 1 << 22;

/// The most numbers in the matrices of a model: the bytes of its state, over all replicas, are counted in 64 bits.
pub(crate) const PARAMETERS_MAX: u128 = 1 << 42;

impl ModelSpec {
    /// The smallest Llama (a gated MLP) or GPT, with the constants that most have: what a model of other sizes is
    /// made from.
    pub fn usual(gated: bool) -> Self {
        Self {
            family: if gated { Family::Llama } else { Family::Gpt },
            hidden: 2,
            layers: 1,
            heads: 1,
            kv_heads: 1,
            head_dim: 2,
            ffn: 8,
            vocab: 1,
            seq_max: 1,
            tied: !gated,
            norm_eps: 1e-5,
            rope_theta: 1e4,
            dropout: 0.0,
            init_std: 0.02,
        }
    }

    /// The norm of this family.
    pub fn norm(&self) -> Norm {
        match self.family {
            Family::Gpt => Norm::Layer,
            Family::Llama => Norm::Rms,
        }
    }

    /// Whether linear layers have biases.
    pub fn biases(&self) -> bool {
        self.family == Family::Gpt
    }

    /// Whether positions are learned (else rotary).
    pub fn learned_positions(&self) -> bool {
        self.family == Family::Gpt
    }

    /// Whether the MLP is gated.
    pub fn gated(&self) -> bool {
        self.family == Family::Llama
    }

    /// Width of all query heads.
    pub fn q_dim(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key (or value) heads.
    pub fn kv_dim(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Stored vocabulary: padded so that `tp` ranks can split it. The same for every `tp` that
    /// divides [`VOCAB_MULTIPLE`].
    pub fn vocab_stored(&self, tp: usize) -> usize {
        self.vocab.next_multiple_of(lcm(VOCAB_MULTIPLE, tp.max(1)))
    }

    /// Checks the model by itself.
    ///
    /// # Errors
    /// The first field that breaks a rule, with a value that would do.
    pub fn check(&self) -> Result<(), SpecError> {
        let sizes = [
            ("hidden", self.hidden),
            ("layers", self.layers),
            ("heads", self.heads),
            ("kv_heads", self.kv_heads),
            ("head_dim", self.head_dim),
            ("ffn", self.ffn),
            ("vocab", self.vocab),
            ("seq_max", self.seq_max),
        ];
        for (field, value) in sizes {
            if value == 0 {
                return Err(field_error(field, 0, "must be at least 1", 1));
            }
            let max = if field == "layers" { LAYERS_MAX } else { SIZE_MAX };
            if value > max {
                return Err(field_error(field, value, &format!("must be at most {max}"), max));
            }
        }
        self.check_parameters()?;
        if !self.heads.is_multiple_of(self.kv_heads) {
            let rule = format!("must divide heads = {}", self.heads);
            let nearest = nearest_divisor(self.heads, self.kv_heads);
            return Err(field_error("kv_heads", self.kv_heads, &rule, nearest));
        }
        if self.family == Family::Llama && !self.head_dim.is_multiple_of(2) {
            let rule = "rotary positions need an even head size";
            return Err(field_error("head_dim", self.head_dim, rule, self.head_dim + 1));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(field_error("dropout", self.dropout, "must be in 0.0..1.0", 0.0));
        }
        for (field, value, nearest) in [
            ("norm_eps", self.norm_eps, 1e-5),
            ("rope_theta", self.rope_theta, 10000.0),
            ("init_std", self.init_std, 0.02),
        ] {
            // Most are computed with in f32, where a number may be infinite or vanish.
            if !(value as f32 > 0.0 && (value as f32).is_finite()) {
                // With an exponent where that is shorter.
                let value = format!("{value:?}");
                return Err(field_error(field, value, "must be a positive number of f32", nearest));
            }
        }
        Ok(())
    }

    /// Refuses a model whose parameters could not be counted; its sizes by themselves are checked.
    fn check_parameters(&self) -> Result<(), SpecError> {
        let all = self.matrix_elements();
        if all <= PARAMETERS_MAX {
            return Ok(());
        }
        let rule = format!("gives {:.1e} parameters, and a model has at most 2⁴²", all as f64);
        // The power of two that all would fit with, as they grow at least as fast as either.
        let nearest = |value: usize| {
            let most = value as u128 * PARAMETERS_MAX / all;
            most.checked_ilog2().map(|power| 1_u128 << power)
        };
        match nearest(self.hidden) {
            Some(hidden) => Err(field_error("hidden", self.hidden, &rule, hidden)),
            None => {
                let nearest = nearest(self.head_dim).unwrap_or(1);
                Err(field_error("head_dim", self.head_dim, &rule, nearest))
            }
        }
    }

    /// Elements of all matrices.
    fn matrix_elements(&self) -> u128 {
        let [hidden, layers, heads, kv_heads, head_dim, ffn, vocab, seq_max] = self.wide_sizes();
        let attention = 2 * head_dim * (heads + kv_heads);
        let inner = ffn * if self.gated() { 3 } else { 2 };
        let positions = if self.learned_positions() { seq_max } else { 0 };
        let ends = vocab * if self.tied { 1 } else { 2 } + positions;
        hidden * (layers * (attention + inner) + ends)
    }

    /// About how many numbers the forward pass of a token leaves for the backward pass, on all ranks together.
    pub fn numbers_per_token(&self) -> u128 {
        let [hidden, layers, heads, kv_heads, head_dim, ffn, vocab, _] = self.wide_sizes();
        layers * (6 * hidden + 2 * head_dim * (heads + kv_heads) + 3 * ffn) + 2 * vocab
    }

    /// Its sizes, for products that 64 bits may not hold.
    fn wide_sizes(&self) -> [u128; 8] {
        let Self { hidden, layers, heads, kv_heads, head_dim, ffn, vocab, seq_max, .. } = *self;
        [hidden, layers, heads, kv_heads, head_dim, ffn, vocab, seq_max].map(|size| size as u128)
    }

    /// Checks that `tp` ranks can share each layer and that `pp` stages each get a layer.
    ///
    /// # Errors
    /// What does not fit, why, and the nearest degrees that do.
    pub fn check_layout(&self, tp: usize, pp: usize) -> Result<(), SpecError> {
        let fits = |degree: usize| self.tp_obstacle(degree).is_none();
        if let Some(rule) = self.tp_obstacle(tp) {
            let below = (1..tp).rev().find(|d| fits(*d));
            let above = (tp + 1..=self.heads).find(|d| fits(*d));
            let all: Vec<String> =
                below.into_iter().chain(above).map(|d| format!("tp {d}")).collect();
            let nearest = all.join(" or ");
            return Err(SpecError::Layout { axis: "tp", degree: tp, rule, nearest });
        }
        if pp > self.layers {
            let rule = format!("every stage needs a layer and the model has {}", self.layers);
            let nearest = format!("pp {}", self.layers);
            return Err(SpecError::Layout { axis: "pp", degree: pp, rule, nearest });
        }
        Ok(())
    }

    /// Why `tp` ranks cannot share a layer, if they cannot.
    fn tp_obstacle(&self, tp: usize) -> Option<String> {
        if !self.heads.is_multiple_of(tp) {
            return Some(format!("tp must divide the {} query heads", self.heads));
        }
        if shard(self.kv_dim(), self.kv_heads, tp, 0).is_err() {
            return Some(format!("tp and the {} KV heads must divide one another", self.kv_heads));
        }
        let replicas = (tp / self.kv_heads).max(1);
        if !self.head_dim.is_multiple_of(replicas) {
            return Some(format!(
                "each KV head is shared by {replicas} ranks, which must divide the head size {}",
                self.head_dim
            ));
        }
        if !self.ffn.is_multiple_of(tp) {
            return Some(format!("tp must divide ffn = {}", self.ffn));
        }
        None
    }

    /// Checks what reference numerics need: every split dimension in [`CANONICAL_BLOCKS`] equal
    /// blocks, and a degree that divides them.
    ///
    /// # Errors
    /// The dimension that is not divisible, with the nearest size that is.
    pub fn check_reference(&self, tp: usize) -> Result<(), SpecError> {
        let blocks = CANONICAL_BLOCKS;
        let rule = format!("reference numerics sum over {blocks} equal blocks");
        for (field, value) in [("heads × head_dim", self.q_dim()), ("ffn", self.ffn)] {
            if !value.is_multiple_of(blocks) {
                return Err(field_error(field, value, &rule, value.next_multiple_of(blocks)));
            }
        }
        if !self.kv_dim().is_multiple_of(blocks) {
            let nearest = self.kv_dim().next_multiple_of(blocks);
            return Err(field_error("kv_heads × head_dim", self.kv_dim(), &rule, nearest));
        }
        if !blocks.is_multiple_of(tp) {
            let nearest = format!("tp {}", nearest_divisor(blocks, tp));
            let rule = format!("{rule}, so tp must divide {blocks}");
            return Err(SpecError::Layout { axis: "tp", degree: tp, rule, nearest });
        }
        Ok(())
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
    /// weight of every matrix product (2 forward, 4 backward) and the causal half of the attention
    /// products. Recompute is not counted (that would be hardware FLOPs).
    pub fn flops_per_token(&self, seq: usize) -> f64 {
        self.layers as f64 * self.block_flops_per_token(seq) + self.head_flops_per_token()
    }

    /// Those of one block.
    pub(crate) fn block_flops_per_token(&self, seq: usize) -> f64 {
        let branches = self.branches();
        let weights: usize =
            branches.iter().map(|branch| branch.matrix_elements(self.hidden)).sum();
        let inner = branches.iter().map(|branch| match branch.inner {
            // q·kᵀ and p·v: 2 products of seq/2 visible keys, 2 FLOPs each, 3 × with the backward.
            Inner::Attention => branch.row.width as f64 * seq as f64 * 6.0,
            Inner::Gelu | Inner::SwiGlu => 0.0,
        });
        (6 * weights) as f64 + inner.sum::<f64>()
    }

    /// Those of the output layer.
    pub(crate) fn head_flops_per_token(&self) -> f64 {
        (6 * self.vocab * self.hidden) as f64
    }
}

fn field_error(
    field: &'static str,
    value: impl ToString,
    rule: &str,
    nearest: impl ToString,
) -> SpecError {
    SpecError::Field {
        field,
        value: value.to_string(),
        rule: rule.into(),
        nearest: nearest.to_string(),
    }
}

fn nearest_divisor(of: usize, to: usize) -> usize {
    (1..=of)
        .filter(|d| of.is_multiple_of(*d))
        .min_by_key(|d| d.abs_diff(to))
        .expect("invariant: 1 divides everything")
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
    fn impossible_models_and_layouts_name_the_nearest_valid_value() {
        let mut model = presets::find("llama3-8b").unwrap().model;
        model.kv_heads = 5;
        let text = model.check().unwrap_err().to_string();
        assert!(text.contains("kv_heads = 5") && text.contains("nearest valid value: 4"), "{text}");
        let model = presets::find("gpt2-124m").unwrap().model;
        let text = model.check_layout(5, 1).unwrap_err().to_string();
        assert!(text.contains("tp 4 or tp 6"), "{text}");
        let text = model.check_layout(1, 13).unwrap_err().to_string();
        assert!(text.contains("pp 13") && text.contains("pp 12"), "{text}");
        assert!(model.check_reference(3).unwrap_err().to_string().contains("tp 2"));
        assert!(model.check_reference(4).is_ok());
    }

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
    fn models_that_cannot_be_counted_are_refused_with_the_nearest_that_can() {
        let mut model = presets::find("llama3-8b").unwrap().model;
        (model.hidden, model.ffn, model.layers) = (1 << 22, 1 << 22, 1 << 14);
        let text = model.check().unwrap_err().to_string();
        assert!(text.contains("parameters, and a model has at most 2⁴²"), "{text}");
        model.hidden = text.rsplit(' ').next().unwrap().parse().unwrap();
        model.check().unwrap();
        (model.hidden, model.ffn, model.layers) = (1, 1, 1);
        (model.heads, model.kv_heads, model.head_dim) = (1 << 22, 1 << 22, 1 << 22);
        let text = model.check().unwrap_err().to_string();
        assert!(text.contains("head_dim = 4194304"), "{text}");
        model.head_dim = text.rsplit(' ').next().unwrap().parse().unwrap();
        model.check().unwrap();
        assert!(model.param_count() <= 1 << 42);
    }

    #[test]
    fn model_flops_are_six_per_weight_and_the_causal_half_of_attention() {
        let model = presets::find("gpt2-124m").unwrap().model;
        let weights = 12.0 * (12.0 * 768.0 * 768.0) + 50257.0 * 768.0;
        let scores = 12.0 * 768.0 * 1024.0 * 6.0;
        assert_eq!(model.flops_per_token(1024), 6.0 * weights + scores);
    }
}
