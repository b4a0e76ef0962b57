//! What no model and no layout of one may be, with the nearest that may.

use crate::{CANONICAL_BLOCKS, ModelSpec, OrNone, Positions, SpecError};

/// Blocks of the deepest model.
const LAYERS_MAX: usize = 1 << 14;

/// The largest width, or number of anything else, in a model.
const SIZE_MAX: usize = 1 << 22;

/// The most numbers in the matrices of a model: the bytes of its state, over all replicas, are counted in 64 bits.
pub(crate) const PARAMETERS_MAX: u128 = 1 << 42;

impl ModelSpec {
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
        for rate in self.dropout.each() {
            if !(0.0..1.0).contains(&rate) {
                let nearest = if rate >= 1.0 { 0.99 } else { 0.0 };
                return Err(field_error("dropout", rate, "must be 0 or more and below 1", nearest));
            }
        }
        self.check_traits()?;
        let given = |field, number: OrNone<f64>, nearest| Some((field, number.get()?, nearest));
        let always = [
            ("norm_eps", self.norm_eps, 1e-5),
            ("rope_theta", self.rope_theta, 10000.0),
            ("init_std", self.init_std, 0.02),
        ];
        let caps = self.score_cap.values().iter().map(|cap| given("score_cap", *cap, 50.0));
        let some = caps.chain([
            given("logit_cap", self.logit_cap, 30.0),
            given("embedding_scale", self.embedding_scale, 1.0),
        ]);
        for (field, value, nearest) in always.into_iter().chain(some.flatten()) {
            // Most are computed with in f32, where a number may be infinite or vanish.
            if !(value as f32 > 0.0 && (value as f32).is_finite()) {
                // With an exponent where that is shorter.
                let value = format!("{value:?}");
                return Err(field_error(field, value, "must be a positive number of f32", nearest));
            }
        }
        Ok(())
    }

    /// Checks what the traits are, one by one and beside one another.
    fn check_traits(&self) -> Result<(), SpecError> {
        self.check_lists()?;
        for window in self.window.values() {
            if window.get() == Some(0) {
                return Err(field_error("window", 0, "a token sees itself at least", 1));
            }
        }
        for dim in self.score_dim.values() {
            if dim.get() == Some(0) {
                return Err(field_error("score_dim", 0, "must be at least 1", self.head_dim));
            }
        }
        let learned = |at: &&Positions| **at == Positions::Learned;
        let learned = self.positions.values().iter().filter(learned).count();
        if learned != 0 && learned != self.positions.values().len() {
            let rule = "learned positions are the embedding's: all blocks have them or none";
            return Err(field_error("positions", "\"learned\" beside others", rule, "\"learned\""));
        }
        for fraction in self.rope_fraction.values() {
            if !(*fraction > 0.0 && *fraction <= 1.0) {
                let rule = "must be above 0, and at most 1";
                return Err(field_error("rope_fraction", fraction, rule, 1.0));
            }
        }
        if let Some(rule) = self.rope_scaling.fault() {
            let scaling = format!("\"{}\"", self.rope_scaling);
            return Err(field_error("rope_scaling", scaling, rule, "\"none\""));
        }
        self.check_turned()
    }

    /// Checks that rotary positions turn pairs.
    fn check_turned(&self) -> Result<(), SpecError> {
        for block in 0..self.layers {
            if *self.positions.of(block) != Positions::Rotary {
                continue;
            }
            let (fraction, turned) = (*self.rope_fraction.of(block), self.turned(block));
            if turned >= 2 && turned.is_multiple_of(2) {
                continue;
            }
            if fraction == 1.0 {
                let rule = "rotary positions need an even head size";
                return Err(field_error("head_dim", self.head_dim, rule, self.head_dim + 1));
            }
            let even = (turned - turned % 2).max(2).min(self.head_dim) as f64;
            let rule = format!(
                "turns {turned} of the {} elements of a head, and rotary positions turn pairs",
                self.head_dim
            );
            let nearest = even / self.head_dim as f64;
            return Err(field_error("rope_fraction", fraction, &rule, nearest));
        }
        Ok(())
    }

    /// Checks that there is a block for each value of a list.
    fn check_lists(&self) -> Result<(), SpecError> {
        for (field, values) in self.lists() {
            if values > self.layers {
                let rule =
                    format!("a list is repeated over the blocks, and layers = {}", self.layers);
                let found = format!("a list of {values}");
                let nearest = format!("a list of {}", self.layers);
                return Err(field_error(field, found, &rule, nearest));
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
        let gates = (0..self.layers).filter(|block| *self.gated.of(*block)).count();
        let inner = ffn * (2 * layers + gates as u128);
        let positions = if self.learned_positions() { seq_max } else { 0 };
        let ends = vocab * if self.tied { 1 } else { 2 } + positions;
        hidden * (layers * attention + inner + ends)
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
        let Self { heads, kv_heads, head_dim, ffn, .. } = *self;
        if !(1..=heads).contains(&tp) {
            return Some(format!("every rank needs a query head and the model has {heads}"));
        }
        if tp > ffn {
            return Some(format!("every rank needs a feature of the MLP and ffn = {ffn}"));
        }
        if tp <= kv_heads {
            return None;
        }
        if !tp.is_multiple_of(kv_heads) {
            return Some(format!("tp above the {kv_heads} KV heads must be a multiple of them"));
        }
        let (replicas, group) = (tp / kv_heads, heads / kv_heads);
        // The only KV head has all query heads, and any range of them will do.
        if kv_heads > 1 && !group.is_multiple_of(replicas) {
            return Some(format!(
                "each KV head is shared by {replicas} ranks, which must divide its {group} query heads"
            ));
        }
        let shared = replicas > head_dim;
        shared.then(|| format!("{replicas} ranks cannot share a KV head of {head_dim} elements"))
    }

    /// Checks what reference numerics need: every split dimension in [`CANONICAL_BLOCKS`] equal
    /// blocks, and a degree that gives every rank as many of them.
    ///
    /// # Errors
    /// The dimension that is not divisible, with the nearest size that is; a degree at which a rank's
    /// heads do not end where a block does, with the nearest that will do.
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
        let fits = |degree: usize| blocks.is_multiple_of(degree) && self.divides_evenly(degree);
        if fits(tp) {
            return Ok(());
        }
        let rule = if blocks.is_multiple_of(tp) {
            let (heads, kv_heads) = (self.heads, self.kv_heads);
            format!(
                "{rule}, so every rank needs as many heads, and {tp} ranks do not divide {heads} \
                 heads of {kv_heads} KV heads"
            )
        } else {
            format!("{rule}, so tp must divide {blocks}")
        };
        let possible = (1..=blocks).filter(|d| fits(*d) && self.tp_obstacle(*d).is_none());
        let nearest = possible.min_by_key(|degree| degree.abs_diff(tp)).unwrap_or(1);
        let nearest = format!("tp {nearest}");
        Err(SpecError::Layout { axis: "tp", degree: tp, rule, nearest })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Each, Family, presets};

    #[test]
    fn impossible_models_and_layouts_name_the_nearest_valid_value() {
        let mut model = presets::find("llama3-8b").unwrap().model;
        model.kv_heads = 5;
        let text = model.check().unwrap_err().to_string();
        assert!(text.contains("kv_heads = 5") && text.contains("nearest valid value: 4"), "{text}");
        let model = presets::find("gpt2-124m").unwrap().model;
        let text = model.check_layout(13, 1).unwrap_err().to_string();
        assert!(text.contains("the model has 12; nearest valid: tp 12"), "{text}");
        let text = model.check_layout(1, 13).unwrap_err().to_string();
        assert!(text.contains("pp 13") && text.contains("pp 12"), "{text}");
        assert!(model.check_reference(3).unwrap_err().to_string().contains("tp 2"));
        assert!(model.check_reference(4).is_ok());
    }

    #[test]
    fn tensor_degrees_need_heads_for_every_rank_and_reference_numerics_as_many() {
        let of = |heads, kv_heads, head_dim, ffn| ModelSpec {
            heads,
            kv_heads,
            head_dim,
            ffn,
            ..presets::find("gpt2-124m").unwrap().model
        };
        let fits = |model: &ModelSpec| -> Vec<usize> {
            (0..=40).filter(|tp| model.check_layout(*tp, 1).is_ok()).collect()
        };
        assert_eq!(fits(&of(25, 25, 64, 6400)), (1..=25).collect::<Vec<_>>());
        assert_eq!(fits(&of(25, 25, 64, 7)), (1..=7).collect::<Vec<_>>());
        // Whole KV heads; then as many ranks for each, which divide its query heads.
        assert_eq!(fits(&of(36, 3, 16, 65)), [1, 2, 3, 6, 9, 12, 18, 36]);
        // The only KV head has any range of query heads.
        assert_eq!(fits(&of(5, 1, 8, 65)), [1, 2, 3, 4, 5]);
        assert_eq!(fits(&of(5, 1, 3, 65)), [1, 2, 3]);
        for (model, tp, says) in [
            (
                of(36, 3, 16, 65),
                4,
                "above the 3 KV heads must be a multiple of them; nearest valid: tp 3 or tp 6",
            ),
            (
                of(30, 3, 8, 65),
                9,
                "shared by 3 ranks, which must divide its 10 query heads; nearest valid: tp 6 or tp 15",
            ),
            (of(25, 25, 64, 7), 8, "a feature of the MLP and ffn = 7; nearest valid: tp 7"),
            (
                of(5, 1, 3, 65),
                4,
                "4 ranks cannot share a KV head of 3 elements; nearest valid: tp 3",
            ),
            (of(5, 5, 8, 65), 0, "needs a query head and the model has 5; nearest valid: tp 1"),
        ] {
            let text = model.check_layout(tp, 1).unwrap_err().to_string();
            assert!(text.ends_with(says), "{text}");
        }
        for (model, tp, says) in [
            (
                of(25, 25, 64, 6400),
                2,
                "2 ranks do not divide 25 heads of 25 KV heads; nearest valid: tp 1",
            ),
            (
                of(12, 6, 8, 64),
                4,
                "4 ranks do not divide 12 heads of 6 KV heads; nearest valid: tp 2",
            ),
            (
                of(6, 1, 8, 64),
                8,
                "8 ranks do not divide 6 heads of 1 KV heads; nearest valid: tp 2",
            ),
            (of(12, 4, 8, 64), 3, "so tp must divide 8; nearest valid: tp 2"),
        ] {
            let text = model.check_reference(tp).unwrap_err().to_string();
            assert!(text.ends_with(says), "{text}");
        }
        assert!(of(8, 2, 8, 64).check_reference(4).is_ok());
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
    fn traits_that_cannot_be_name_the_nearest_that_can() {
        let refused = |change: &dyn Fn(&mut ModelSpec)| {
            let mut model = ModelSpec { layers: 2, ..ModelSpec::smallest(Family::Llama) };
            model.head_dim = 8;
            change(&mut model);
            model.check().unwrap_err().to_string()
        };
        let list = Each::repeated(true, [false, true]);
        let mixed = Each::repeated(Positions::Learned, [Positions::Rotary]);
        for (said, text) in [
            (
                "model.window = 0: a token sees itself",
                refused(&|m| m.window = OrNone::Some(0).into()),
            ),
            ("nearest valid value: 0.25", refused(&|m| m.rope_fraction = 0.4.into())),
            ("turns 0 of the 8 elements", refused(&|m| m.rope_fraction = 0.1.into())),
            ("model.rope_fraction = 1.5: must be", refused(&|m| m.rope_fraction = 1.5.into())),
            ("an even head size; nearest valid value: 8", refused(&|m| m.head_dim = 7)),
            ("model.score_dim = 0", refused(&|m| m.score_dim = OrNone::Some(0).into())),
            ("model.score_cap = -1", refused(&|m| m.score_cap = OrNone::Some(-1.0).into())),
            ("model.logit_cap = 0.0", refused(&|m| m.logit_cap = OrNone::Some(0.0))),
            ("model.gated = a list of 3", refused(&|m| m.gated = list.clone())),
            ("all blocks have them or none", refused(&|m| m.positions = mixed.clone())),
            (
                "model.dropout = 1: must be 0 or more and below 1; nearest valid value: 0.99",
                refused(&|m| m.dropout.attention = 1.0),
            ),
            ("below 1; nearest valid value: 0", refused(&|m| m.dropout.embedding = -0.1)),
        ] {
            assert!(text.contains(said), "{text}");
        }
    }
}
