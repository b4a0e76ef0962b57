//! Losses of a part of a number, in bf16.

use super::*;

/// The same layout in bf16, where a twentieth of a gradient must be noticed.
pub(crate) fn in_bf16() -> Vec<Mutant> {
    let of = |model| EngineConfig { compute: DType::Bf16, ..layout(model) };
    let bubbles = || EngineConfig { schedule: ScheduleKind::ZbH1.into(), ..of(toy::gpt()) };
    let again =
        || EngineConfig { recompute: true.into(), zero: ZeroStage::Zero1, ..of(toy::llama(2)) };
    let gradients = &[Gradients, Norm];
    vec![
        mutant(
            "a twentieth of all gradients is lost between replicas",
            of(toy::gpt()),
            change("dp", "gradient", |_, request| scale(&mut request.send, 0.95)),
            gradients,
            "that of",
        ),
        mutant(
            "a tenth of one replica's gradients is lost",
            again(),
            change("dp", "gradient", |group, request| {
                let factor = if group.rank() == 1 { 0.9 } else { 1.0 };
                scale(&mut request.send, factor);
            }),
            gradients,
            "that of",
        ),
        mutant(
            "a twentieth of the gradient is lost between stages",
            bubbles(),
            change("pp", "gradient for", |_, request| {
                if matches!(request.operation, Operation::Send { .. }) {
                    scale(&mut request.send, 0.95);
                }
            }),
            gradients,
            "that of",
        ),
        mutant(
            "the weight gradients of a micro-batch are left out",
            bubbles(),
            without(|action| {
                matches!(action, Action::Compute(Compute::BackwardWeight { micro_batch: 1, .. }))
            }),
            gradients,
            "that of",
        ),
    ]
}

/// The same between tensor-parallel ranks.
pub(crate) fn in_bf16_between_tensor_ranks() -> Vec<Mutant> {
    let of = |model| EngineConfig { compute: DType::Bf16, ..layout(model) };
    let again =
        || EngineConfig { recompute: true.into(), zero: ZeroStage::Zero1, ..of(toy::llama(2)) };
    vec![
        mutant(
            "a tenth of an MLP is lost between tensor ranks",
            EngineConfig { sequence_parallel: true, ..of(toy::gpt()) },
            change("tp", "down", |_, request| scale(&mut request.send, 0.9)),
            &[Gradients],
            "that of",
        ),
        mutant(
            "a tenth of the gradient of an MLP's input is lost between tensor ranks",
            again(),
            change("tp", "up", |_, request| scale(&mut request.send, 0.9)),
            &[Gradients],
            "that of",
        ),
        mutant(
            "the vocabulary's sums of exponentials are a tenth too large",
            of(toy::gpt()),
            change("tp", "head.sum", |_, request| scale(&mut request.send, 1.1)),
            &[Gradients],
            "that of",
        ),
        mutant(
            "the norm counts nothing of the second tensor-parallel rank",
            again(),
            edit(|plan| {
                for ranks in &mut plan.ranks {
                    ranks[1].params.iter_mut().for_each(|param| param.owner = false);
                }
            }),
            &[Norm],
            "instead of",
        ),
    ]
}
