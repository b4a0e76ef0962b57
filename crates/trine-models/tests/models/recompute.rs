//! What is dropped and computed again has the bits of what is kept, whatever it is.

use crate::gradients::analytic;
use crate::support::{Batch, Rank, Setup};
use trine_buffer::DType;
use trine_comm::threads;
use trine_nn::NnError;
use trine_spec::{Family, ModelSpec, Recompute};
use trine_testkit::toy;

/// The gradients of all ranks, and the most bytes that they held.
fn run(setup: &Setup, tp: usize) -> Vec<(Vec<Vec<f64>>, usize)> {
    threads::run(tp, &Default::default(), |comm| {
        let rank = Rank::new(setup, comm)?;
        let batch = Batch::new(&setup.model);
        let grads = analytic(&rank, &rank.context(&batch), &batch);
        Ok::<_, NnError>((grads, rank.pool.stats().bytes_in_use_max))
    })
    .unwrap()
}

#[test]
fn every_way_to_compute_again_has_the_bits_of_keeping() {
    let names: [&[&str]; 9] = [
        &["norms", "mlp.activation", "attention.qkv"],
        &["norms"],
        &["*.input"],
        &["head.input", "attention.log_sum", "head.logits"],
        &["attention.*"],
        &["mlp.up", "mlp.activation"],
        &["attention.core", "*.stats"],
        &["head.*"],
        &["*"],
    ];
    let named = names.map(|names| Recompute::tensors(names.iter().copied()));
    let blocks = [Recompute::FULL, Recompute::Blocks { every: 2 }];
    let ways: Vec<Recompute> = named.into_iter().chain(blocks).collect();
    let models: Vec<ModelSpec> = [toy::gpt(), toy::llama(2)]
        .into_iter()
        .chain(Family::ALL.iter().map(|family| toy::of(*family)))
        .chain(toy::mixed())
        .map(|model| ModelSpec { layers: 3, vocab: 53, dropout: 0.2.into(), ..model })
        .collect();
    let (mut compared, mut less) = (0, 0);
    for model in &models {
        for (compute, tp, sequence_parallel) in
            [(DType::F32, 1, false), (DType::Bf16, 2, true), (DType::Bf16, 2, false)]
        {
            let setup = Setup { sequence_parallel, ..Setup::whole(model.clone(), compute) };
            let kept = run(&setup, tp);
            for recompute in &ways {
                let setup = Setup { recompute: recompute.clone(), ..setup.clone() };
                for (again, kept) in run(&setup, tp).iter().zip(&kept) {
                    assert!(again.0 == kept.0, "{recompute} {compute} tp {tp}: {model:?}");
                    less += usize::from(again.1 < kept.1);
                }
                compared += 1;
            }
        }
    }
    assert_eq!(compared, models.len() * 3 * ways.len());
    // Most ways need less at the worst moment; some only move it.
    assert!(less > compared / 2, "{less} of {compared}");
}
