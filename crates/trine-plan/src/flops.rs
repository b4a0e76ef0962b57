//! Floating-point operations of a step, by convention.

use crate::again::Again;
use crate::{Layout, Model, Recompute};

/// How attention's operations are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Convention {
    /// Every query with every key, as Narayanan et al. (2104.04473), Korthikanti et al. and NeMo count.
    FullAttention,
    /// The causal half, as Megatron since 2025 and trine's own throughput count.
    CausalHalf,
}

/// Operations of one optimizer step over all devices.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Flops {
    /// What the model needs: forward and twice that for backward.
    pub model: f64,
    /// With what is computed again: what the hardware does.
    pub hardware: f64,
}

/// Counts a step: [`flops_per_token`] of all its tokens.
pub fn flops(model: &Model, layout: &Layout, convention: Convention) -> Flops {
    let tokens = layout.global_batch as f64 * layout.seq as f64;
    let each = flops_per_token(model, layout.recompute, layout.seq, convention);
    Flops { model: each.model * tokens, hardware: each.hardware * tokens }
}

/// Counts a token of a sequence of `seq`: forward 2L(2hq + 2hq·g/a + (2 or 3) hf) + 4Lsq + 2hV; three times that for
/// the model, without the weight gradients of what is frozen; the blocks four times with recompute of whole blocks,
/// attention four times with selective recompute. Of tensors by name, the products that make them count again.
pub fn flops_per_token(
    model: &Model,
    recompute: Recompute,
    seq: usize,
    convention: Convention,
) -> Flops {
    let spec = &model.spec;
    let (h, f) = (spec.hidden as f64, spec.ffn as f64);
    let (q, kv) = (spec.q_dim() as f64, spec.kv_dim() as f64);
    let layers = spec.layers as f64;
    let mlp = h * f * spec.mlp_matrices();
    let products = 2.0 * layers * (2.0 * h * q + 2.0 * h * kv + mlp);
    let half = if convention == Convention::CausalHalf { 0.5 } else { 1.0 };
    let seen = spec.seen_of_all(seq);
    let attention = 4.0 * layers * seq as f64 * q * half * seen;
    let logits = 2.0 * h * spec.vocab as f64;
    // Of the columns of attention and of the MLP, and of their rows, so many each.
    let products_of = |columns: [f64; 2], rows: [f64; 2]| {
        let of_attention = columns[0] * h * (q + 2.0 * kv) + rows[0] * q * h;
        let of_mlp = columns[1] * h * f * (1.0 + spec.gates()) + rows[1] * f * h;
        2.0 * layers * (of_attention + of_mlp)
    };
    let again = match recompute {
        Recompute::None => 0.0,
        Recompute::Selective => attention,
        Recompute::SelectiveOps => 2.0 * layers * (h * kv + q * h + h * f),
        Recompute::Tensors(list) => {
            let Again { columns, inner, rows, .. } = model.again(list);
            products_of(columns, rows) + inner[0] * attention
        }
        Recompute::Full { .. } => (products + attention) * recompute.whole_blocks(layers) / layers,
    };
    let frozen = |shares: [f64; 2]| shares.map(|trained| 1.0 - trained);
    let trained = model.trained.products;
    let frozen_head = if model.trained.has_output() { 0.0 } else { logits };
    let left_out = products_of(frozen(trained.columns), frozen(trained.rows)) + frozen_head;
    let needed = 3.0 * (products + attention + logits) - left_out;
    Flops { model: needed, hardware: needed + again }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Attention, Precision};
    use trine_mesh::Degrees;
    use trine_schedule::ScheduleKind;
    use trine_spec::presets;

    fn layout(recompute: Recompute) -> Layout {
        Layout {
            degrees: Degrees { dp: 1, pp: 16, tp: 4, ..Degrees::SERIAL },
            virtual_stages: 1,
            pipeline: ScheduleKind::OneFOneB,
            micro_batch: 1,
            global_batch: 640,
            seq: 2048,
            sequence_parallel: false,
            recompute,
            attention: Attention::Flash2,
            zero: 1,
            precision: Precision::F16,
        }
    }

    #[test]
    fn conventions_are_those_of_the_papers() {
        let mut spec = presets::find("frontier-175b").unwrap().model;
        spec.vocab = 50688;
        let model = Model::new(&spec).unwrap();
        let (b, s, l, h, v) = (640.0, 2048.0, 96.0, 12288.0, 50688.0);
        // Narayanan et al. (2104.04473), equation 3; Korthikanti et al. (2205.05198), equation 7.
        let hardware = 96.0 * b * s * l * h * h * (1.0 + s / (6.0 * h) + v / (16.0 * l * h));
        let counted =
            flops(&model, &layout(Recompute::Full { every: 1 }), Convention::FullAttention);
        assert!((counted.hardware / hardware - 1.0).abs() < 1e-12);
        let needed = 72.0 * b * s * l * h * h * (1.0 + s / (6.0 * h) + v / (12.0 * l * h));
        assert!((counted.model / needed - 1.0).abs() < 1e-12);
        // The causal half is what trine-spec counts.
        let half = flops(&model, &layout(Recompute::None), Convention::CausalHalf);
        assert!((half.model / (spec.flops_per_token(2048) * b * s) - 1.0).abs() < 1e-12);
        assert_eq!(half.model, half.hardware);
        // 175B at 36.14 % of 64 × 191.5 TFLOPS: 424.4 s.
        assert!((counted.hardware / (64.0 * 191.5e12 * 0.3614) / 424.386 - 1.0).abs() < 1e-3);
    }

    /// A product of what is frozen has no weight gradient: it counts two thirds.
    #[test]
    fn what_is_frozen_has_no_weight_gradients() {
        let spec = presets::find("gpt2-124m").unwrap().model;
        let count = |frozen: &[&str]| {
            let mut model = Model::new(&spec).unwrap();
            let frozen: Vec<_> =
                frozen.iter().map(|text| trine_spec::Pattern::new(*text)).collect();
            model.freeze(&frozen).unwrap();
            flops_per_token(&model, Recompute::None, 1024, Convention::CausalHalf).model
        };
        let (h, f, layers) = (spec.hidden as f64, spec.ffn as f64, spec.layers as f64);
        let all = count(&[]);
        assert!((all / spec.flops_per_token(1024) - 1.0).abs() < 1e-12);
        let near = |found: f64, expected: f64| {
            assert!((found / expected - 1.0).abs() < 1e-12, "{found} {expected}");
        };
        near(all - count(&["block.*.mlp.*"]), 2.0 * layers * 2.0 * h * f);
        near(all - count(&["block.0.*", "block.1.*"]), 2.0 * 2.0 * (4.0 * h * h + 2.0 * h * f));
        // The head is the token embedding.
        near(all - count(&["embedding.token"]), 2.0 * h * spec.vocab as f64);
    }
}
