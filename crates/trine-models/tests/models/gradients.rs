//! The gradient of a whole model's loss against central differences, with dropout and documents.

use crate::support::{Batch, Rank, Setup, ids};
use trine_buffer::{Act, Buf, DType};
use trine_nn::Context;
use trine_spec::{Family, ModelSpec, Recompute};
use trine_testkit::toy;

fn loss(rank: &Rank, ctx: &Context<'_>, batch: &Batch) -> f64 {
    let (losses, _) = rank.stage.forward(&rank.weights, ids(batch), ctx).unwrap();
    losses.to_f64_vec().unwrap().iter().sum::<f64>() * ctx.loss_scale
}

/// The gradients, bucket by bucket.
pub(crate) fn analytic(rank: &Rank, ctx: &Context<'_>, batch: &Batch) -> Vec<Vec<f64>> {
    let mut grads = rank.grads();
    let (_, mut states) = rank.stage.forward(&rank.weights, ids(batch), ctx).unwrap();
    let mut dy = Act::new(Buf::zeros(DType::F64, 0));
    for segment in (0..rank.stage.segments()).rev() {
        let weights = &rank.weights;
        let (dx, work) =
            rank.stage.backward_input(segment, weights, &mut states, dy, ctx, &mut grads).unwrap();
        work.run(ctx, &mut grads).unwrap();
        dy = dx;
    }
    assert!(states.is_empty());
    let buckets = 0..rank.layout.buckets.len();
    buckets.map(|bucket| grads.bucket(bucket).unwrap().to_f64_vec().unwrap()).collect()
}

fn check(model: ModelSpec, recompute: Recompute) -> usize {
    let setup = Setup { recompute, ..Setup::whole(model, DType::F64) };
    let mut rank = Rank::serial(&setup);
    let batch = Batch::new(&setup.model);
    let grads = analytic(&rank, &rank.context(&batch), &batch);
    let mut checked = 0;
    for param in rank.layout.params.clone() {
        let span = param.span();
        let of = &grads[param.bucket][span.clone()];
        let largest = of.iter().fold(0.0f64, |max, g| max.max(g.abs()));
        let name = &param.spec.name;
        assert!(largest > 1e-6 || name.ends_with("k.bias"), "{name} has no gradient");
        // The element with the largest gradient and two others.
        let top = of.iter().position(|g| g.abs() == largest).unwrap();
        for element in [top, 1, of.len() / 3] {
            let at = span.start + element;
            let mut moved = |by: f64| {
                let weights = rank.weights.bucket_mut(param.bucket).unwrap();
                weights.typed_mut::<f64>().unwrap()[at] += by;
                let value = loss(&rank, &rank.context(&batch), &batch);
                let weights = rank.weights.bucket_mut(param.bucket).unwrap();
                weights.typed_mut::<f64>().unwrap()[at] -= by;
                value
            };
            let numeric = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            let error = (of[element] - numeric).abs() / largest.max(1e-2);
            assert!(error < 1e-6, "{name}[{element}]: {} instead of {numeric}", of[element]);
            checked += 1;
        }
    }
    checked
}

#[test]
fn every_parameter_of_a_model_agrees_with_finite_differences() {
    let small = |model| ModelSpec { layers: 2, vocab: 53, dropout: 0.2.into(), ..model };
    let tied = ModelSpec { tied: true, ..toy::llama(1) };
    let mut checked = 0;
    for (model, recompute) in [
        (toy::gpt(), false),
        (toy::gpt(), true),
        (ModelSpec { tied: false, ..toy::gpt() }, false),
        (toy::llama(2), false),
        (tied, true),
    ] {
        checked += check(small(model), recompute.into());
    }
    let mut others = 0;
    for family in Family::ALL {
        others += check(small(toy::of(*family)), Recompute::None);
    }
    for model in toy::mixed() {
        others += check(ModelSpec { layers: 4, ..small(model) }, Recompute::FULL);
    }
    assert!(others > 400, "{others}");
    // Parameters: 2 + 2·16 + 2 for GPT, one more untied; 1 + 2·9 + 2 for Llama, one less tied.
    assert_eq!(checked, 3 * (36 + 36 + 37 + 21 + 20));
}
