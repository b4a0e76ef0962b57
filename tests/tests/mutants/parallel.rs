//! What ranks do for one another: operations, placement and the schedule.

use super::*;

/// What the ranks tell each other of a step: the losses of the samples of the batch, then parts of the norm.
const FIGURES: &str = "figures of a step";
const BATCH: usize = 12;

/// Operations between the ranks that share a layer.
pub(crate) fn in_tensor_parallelism() -> Vec<Mutant> {
    let gpt = || layout(toy::gpt());
    vec![
        mutant(
            "a tensor-parallel all-reduce is dropped in forward",
            gpt(),
            skip("tp", "down"),
            &[Run],
            "replicas of",
        ),
        mutant(
            "a tensor-parallel all-reduce is dropped in backward",
            gpt(),
            skip("tp", "up"),
            &[Run],
            "replicas of",
        ),
        mutant(
            "the vocabulary's sums of exponentials are not added up",
            gpt(),
            skip("tp", "head.sum"),
            &[Gradients, Loss, Norm, LossAfter],
            "that of",
        ),
        mutant(
            "the gradients of a shared KV head are not added up",
            layout(toy::llama(1)),
            skip("kv", "attention"),
            &[Run],
            "replicas of",
        ),
        mutant(
            "norm gradients of split rows are not added up",
            EngineConfig { sequence_parallel: true, ..gpt() },
            skip("tp", "norm1"),
            &[Run],
            "replicas of",
        ),
    ]
}

/// Operations between stages.
pub(crate) fn in_the_pipeline() -> Vec<Mutant> {
    let gpt = || layout(toy::gpt());
    vec![
        mutant(
            "the two copies of the tied embedding keep their own gradients",
            gpt(),
            skip("tied", "tied gradient"),
            &[Run],
            "replicas of",
        ),
        mutant(
            "the activation of another micro-batch is sent",
            gpt(),
            stale_activation(),
            &[Gradients, Loss, Norm, LossAfter],
            "that of",
        ),
        mutant(
            "gradients are doubled between stages",
            gpt(),
            change("pp", "gradient for", |_, request| {
                if matches!(request.operation, Operation::Send { .. }) {
                    scale(&mut request.send, 2.0);
                }
            }),
            &[Gradients, Norm, LossAfter],
            "that of",
        ),
    ]
}

/// Operations between replicas, and over all ranks.
pub(crate) fn in_data_parallelism() -> Vec<Mutant> {
    let gpt = || layout(toy::gpt());
    let zero1 = || EngineConfig { zero: ZeroStage::Zero1, ..gpt() };
    vec![
        mutant(
            "the data-parallel reduction of gradients is dropped",
            gpt(),
            skip("dp", "gradient"),
            &[Run],
            "replicas of",
        ),
        mutant(
            "the data-parallel reduction of gradients is dropped under ZeRO-1",
            zero1(),
            skip("dp", "gradient"),
            &[Gradients, Norm, LossAfter],
            "that of",
        ),
        mutant(
            "gradients are averaged over data-parallel ranks and not summed",
            gpt(),
            change("dp", "gradient", |_, request| {
                request.operation = Operation::AllReduce(ReduceOp::Mean);
            }),
            &[Gradients, Norm],
            "that of",
        ),
        mutant(
            "gradients are scaled by the size of the world",
            gpt(),
            change("dp", "gradient", |_, request| scale(&mut request.send, 8.0)),
            &[Gradients, Norm],
            "that of",
        ),
        mutant(
            "valid tokens are not counted over all ranks",
            gpt(),
            mean_of_means(),
            &[Run],
            "ranks disagree about loss",
        ),
        mutant(
            "what ranks tell each other of a step is not added up",
            gpt(),
            skip("world", FIGURES),
            &[Run],
            "replicas of",
        ),
        mutant(
            "a rank's part of the norm is left out",
            gpt(),
            change("world", FIGURES, |group, request| {
                let figures = request.send.as_mut().unwrap().typed_mut::<f64>().unwrap();
                if group.world_rank() == 1 {
                    figures[BATCH..].fill(0.0);
                }
            }),
            &[Norm, LossAfter],
            "instead of 2.87900",
        ),
        mutant(
            "updated weights are not gathered under ZeRO-1",
            zero1(),
            skip("dp", "weights"),
            &[Run],
            "replicas of",
        ),
    ]
}

/// Decisions about what a rank holds and counts.
pub(crate) fn in_the_placement() -> Vec<Mutant> {
    let gpt = || layout(toy::gpt());
    vec![
        mutant(
            "the embedding's vocabulary range is shifted",
            gpt(),
            shift("embedding.token"),
            &[Run],
            "replicas of",
        ),
        mutant(
            "the output layer's vocabulary range is shifted",
            layout(toy::llama(2)),
            shift("head.output.weight"),
            &[Run],
            "no rank holds it",
        ),
        mutant(
            "the norm counts replicas twice",
            gpt(),
            edit(|plan| {
                let params = plan.ranks.iter_mut().flatten().flat_map(|layout| &mut layout.params);
                params.filter(|p| p.spec.tied_to.is_none()).for_each(|param| param.owner = true);
            }),
            &[Norm, LossAfter],
            "instead of",
        ),
        mutant(
            "the norm counts nothing of the second tensor-parallel rank",
            gpt(),
            edit(|plan| {
                for ranks in &mut plan.ranks {
                    ranks[1].params.iter_mut().for_each(|param| param.owner = false);
                }
            }),
            &[Norm, LossAfter],
            "instead of",
        ),
        mutant(
            "a bucket's gradient is summed over nothing",
            gpt(),
            edit_bucket(|bucket| bucket.summed = AxisSet::EMPTY),
            &[Run],
            "another rank",
        ),
        mutant(
            "a bucket's gradient is summed over the wrong axis",
            gpt(),
            edit_bucket(|bucket| bucket.summed = AxisSet::TP),
            &[Run],
            "replicas of",
        ),
        mutant(
            "a bucket divides its state over an axis that it is not summed over",
            gpt(),
            edit_bucket(|bucket| bucket.shared.states = AxisSet::PP),
            &[Run],
            "divides its states over pp, and its gradient is summed over dp",
        ),
    ]
}

/// Ranges of a rank that begin one too early, where heads and features do not divide.
pub(crate) fn in_unequal_shares() -> Vec<Mutant> {
    vec![
        mutant(
            "the query heads of a rank begin a row too early",
            layout(toy::uneven(5, 5)),
            shift("block.1.attention.q.weight"),
            &[Run],
            "no rank holds it",
        ),
        mutant(
            "the features of a rank begin one too early",
            layout(toy::uneven(6, 3)),
            shift("block.1.mlp.up.weight"),
            &[Run],
            "no rank holds it",
        ),
    ]
}

/// Actions that are left out.
pub(crate) fn in_the_schedule() -> Vec<Mutant> {
    let gpt = || layout(toy::gpt());
    let posts =
        |action: &Action| matches!(action, Action::Sync(Reduction::ReduceGrad { segment: 0, .. }));
    let awaits =
        |action: &Action| matches!(action, Action::Sync(Reduction::AwaitGrad { segment: 0, .. }));
    vec![
        mutant("a reduction is not posted", gpt(), without(posts), &[Run], "were not posted"),
        mutant(
            "a reduction is neither posted nor awaited",
            gpt(),
            without(move |action| posts(action) || awaits(action)),
            &[Run],
            "replicas of",
        ),
        mutant(
            "the sum of tied gradients is left out of the schedule",
            gpt(),
            without(|action| matches!(action, Action::Sync(Reduction::ReduceTied { .. }))),
            &[Run],
            "replicas of",
        ),
        mutant(
            "the weight gradients of a micro-batch are left out",
            gpt(),
            without(|action| {
                matches!(action, Action::Compute(Compute::BackwardWeight { micro_batch: 2, .. }))
            }),
            &[Gradients, Norm, LossAfter],
            "that of",
        ),
    ]
}
