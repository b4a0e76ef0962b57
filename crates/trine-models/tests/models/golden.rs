//! Logits and losses against the plain implementation.

use crate::plain::Plain;
use crate::support::{Batch, Rank, SAMPLES, SEQ, Setup, TOKENS, ids};
use trine_buffer::DType;
use trine_nn::{Context, Mode};
use trine_spec::{Family, ModelSpec};
use trine_testkit::{relative_error, toy};

/// The logits of a micro-batch in plain loops, token after token.
fn expected(rank: &Rank, batch: &Batch) -> Vec<Vec<f64>> {
    let weights = rank.named_weights();
    let plain = Plain { model: &rank.setup.model, weights: &weights };
    let sample = |i: usize| {
        let tokens = i * SEQ..(i + 1) * SEQ;
        plain.logits(&batch.ids[tokens.clone()], &batch.starts[tokens])
    };
    (0..SAMPLES.len()).flat_map(sample).collect()
}

fn models() -> Vec<ModelSpec> {
    let families = Family::ALL.iter().map(|family| toy::of(*family));
    [toy::llama(4), toy::llama(1)].into_iter().chain(families).chain(toy::mixed()).collect()
}

#[test]
fn logits_and_losses_are_those_of_a_plain_implementation() {
    let mut compared = 0;
    for model in models() {
        for (compute, bound) in [(DType::F64, 1e-13), (DType::F32, 2e-6), (DType::Bf16, 3e-2)] {
            let rank = Rank::serial(&Setup::whole(model.clone(), compute));
            let batch = Batch::new(&model);
            let exact = expected(&rank, &batch);
            let ctx = rank.context(&batch);
            let eval = Context { mode: Mode::Eval, ..ctx.clone() };
            let logits = rank.stage.logits(&rank.weights, ids(&batch), &eval).unwrap();
            let logits = logits.to_f64_vec().unwrap();
            let stored = logits.len() / TOKENS;
            let real = logits.chunks(stored).flat_map(|row| row[..model.vocab].to_vec());
            let flat: Vec<f64> = exact.iter().flatten().copied().collect();
            let error = relative_error(&real.collect::<Vec<_>>(), &flat);
            assert!(error < bound, "{model:?} {compute}: logits off by {error:e}");

            let (losses, states) = rank.stage.forward(&rank.weights, ids(&batch), &ctx).unwrap();
            assert_eq!(states.len(), model.layers + 2);
            let loss = |(row, target): (&Vec<f64>, &u32)| match target {
                &u32::MAX => 0.0,
                target => {
                    row.iter().map(|logit| logit.exp()).sum::<f64>().ln() - row[*target as usize]
                }
            };
            let exact: Vec<f64> = exact.iter().zip(&batch.targets).map(loss).collect();
            assert!(exact.contains(&0.0), "some tokens have nothing to predict");
            let error = relative_error(&losses.to_f64_vec().unwrap(), &exact);
            assert!(error < bound, "{model:?} {compute}: losses off by {error:e}");
            compared += 1;
        }
    }
    assert_eq!(compared, models().len() * 3);
}

#[test]
fn the_plain_implementation_is_sensitive_to_every_parameter() {
    let mut checked = 0;
    for model in [toy::gpt(), toy::llama(2)] {
        let rank = Rank::serial(&Setup::whole(model.clone(), DType::F64));
        let batch = Batch::new(&model);
        let mut weights = rank.named_weights();
        let exact = expected(&rank, &batch)[SEQ + 2].clone();
        for name in weights.keys().cloned().collect::<Vec<_>>() {
            // A key bias shifts all scores of a query alike.
            if name.ends_with("k.bias") {
                continue;
            }
            let before = weights[&name].clone();
            let changed = before.iter().enumerate().map(|(i, w)| w + 0.1 * (i % 3) as f64);
            weights.insert(name.clone(), changed.collect());
            let plain = Plain { model: &model, weights: &weights };
            let got = plain.logits(&batch.ids[SEQ..], &batch.starts[SEQ..]);
            assert!(relative_error(&got[2], &exact) > 1e-4, "{name}");
            weights.insert(name, before);
            checked += 1;
        }
    }
    assert!(checked > 100, "{checked} parameters");
}
