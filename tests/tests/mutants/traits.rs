//! What a rank computes, in which order.

use super::*;

/// Changes attention's traits in every block of the plan.
fn edit_attention(change: impl Fn(&mut Attention) + 'static) -> Injection {
    edit(move |plan| {
        for part in &mut plan.parts.pieces {
            let Body::Block(block) = &mut part.body else { continue };
            for branch in &mut block.branches {
                if let Inner::Attention(attention) = &mut branch.inner {
                    change(attention);
                }
            }
        }
    })
}

/// Traits of attention that the ranks have otherwise than the serial run.
pub(crate) fn in_attention() -> Vec<Mutant> {
    let of = |family| layout(toy::of(family));
    vec![
        mutant(
            "a window is one token shorter",
            of(Family::Mistral),
            edit_attention(|attention| {
                attention.window = attention.window.map(|window| window - 1)
            }),
            &[Gradients],
            "that of",
        ),
        mutant(
            "scores have no bound",
            layout(toy::mixed().swap_remove(0)),
            edit_attention(|attention| attention.cap = None),
            &[Gradients],
            "that of",
        ),
        mutant(
            "scores are divided by another root",
            of(Family::Qwen3),
            edit_attention(|attention| attention.scale *= 1.1),
            &[Gradients],
            "that of",
        ),
        mutant(
            "half of a head is turned instead of a quarter",
            of(Family::GptNeoX),
            edit(|plan| {
                plan.parts.spec.rope_fraction = 0.5.into();
                for (index, part) in plan.parts.pieces.iter_mut().enumerate().skip(1) {
                    if let Body::Block(block) = &mut part.body {
                        *block = plan.parts.spec.block(index - 1);
                    }
                }
            }),
            &[Gradients],
            "that of",
        ),
    ]
}

/// Other traits.
pub(crate) fn in_other_traits() -> Vec<Mutant> {
    let of = |family| layout(toy::of(family));
    let all = &[Gradients, Loss, Norm];
    vec![
        mutant(
            "logits have another bound",
            layout(toy::mixed().swap_remove(0)),
            edit(|plan| plan.parts.spec.logit_cap = OrNone::Some(3.0)),
            all,
            "that of",
        ),
        mutant(
            "the embedding has another factor",
            of(Family::Gemma2),
            edit(|plan| plan.parts.spec.embedding_scale = OrNone::Some(5.0)),
            all,
            "that of",
        ),
        mutant(
            "positions turn at another rate",
            of(Family::Olmo2),
            edit(|plan| plan.parts.spec.rope_theta = 5e4),
            &[Gradients],
            "that of",
        ),
        mutant(
            "norms add another number to the variance",
            of(Family::Qwen2),
            edit(|plan| plan.parts.spec.norm_eps = 1e-4),
            &[Gradients],
            "that of",
        ),
        mutant(
            "branches follow one another instead of standing side by side",
            of(Family::GptNeoX),
            edit(|plan| {
                for part in &mut plan.parts.pieces {
                    if let Body::Block(block) = &mut part.body {
                        block.parallel = false;
                    }
                }
            }),
            all,
            "that of",
        ),
        mutant(
            "sums of squares over all heads are left on their ranks",
            of(Family::Olmo2),
            skip("tp", "qk_norm"),
            &[Gradients],
            "that of",
        ),
    ]
}

/// What the update and the masks do otherwise.
pub(crate) fn in_updates_and_masks() -> Vec<Mutant> {
    let gpt = || layout(toy::gpt());
    let adam = || EngineConfig { optimizer: ADAMW, ..gpt() };
    let after = &[LossAfter];
    vec![
        mutant(
            "gradients are not clipped",
            gpt(),
            edit(|plan| plan.config.clip_norm = 1e3),
            after,
            "instead of",
        ),
        mutant(
            "weights do not decay",
            adam(),
            edit(|plan| {
                if let OptimizerConfig::AdamW { weight_decay, .. } = &mut plan.config.optimizer {
                    *weight_decay = 0.0;
                }
            }),
            after,
            "instead of",
        ),
        mutant(
            "dropout has another probability",
            EngineConfig {
                recompute: true.into(),
                ..layout(ModelSpec { dropout: 0.2.into(), ..toy::gpt() })
            },
            edit(|plan| plan.parts.spec.dropout = 0.25.into()),
            &[Gradients, Norm],
            "that of",
        ),
        mutant(
            "masks come from another seed",
            layout(ModelSpec { dropout: 0.2.into(), ..toy::llama(2) }),
            edit(|plan| plan.config.seed += 1),
            &[Gradients, Norm],
            "other initial weights",
        ),
    ]
}

/// Orders of work with several stages on a rank.
pub(crate) fn in_other_orders() -> Vec<Mutant> {
    let order = |schedule: ScheduleKind, virtual_stages| EngineConfig {
        schedule: schedule.into(),
        virtual_stages,
        ..layout(toy::gpt())
    };
    vec![
        mutant(
            "the activation of another micro-batch goes to the next stage of a loop",
            order(ScheduleKind::Interleaved, 2),
            stale_activation(),
            &[Gradients, Norm],
            "that of",
        ),
        mutant(
            "gradients are doubled between stages of a V",
            order(ScheduleKind::ZbV, 2),
            change("pp", "gradient for", |_, request| {
                if matches!(request.operation, Operation::Send { .. }) {
                    scale(&mut request.send, 2.0);
                }
            }),
            &[Gradients, Norm],
            "that of",
        ),
        mutant(
            "the weight gradients of a micro-batch are left out of a V",
            order(ScheduleKind::DualPipeV, 2),
            without(|action| {
                matches!(action, Action::Compute(Compute::BackwardWeight { micro_batch: 3, .. }))
            }),
            &[Gradients, Norm],
            "that of",
        ),
    ]
}
