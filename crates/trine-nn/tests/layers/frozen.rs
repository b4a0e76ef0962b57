//! Layers whose parameters are not trained.

use crate::support::{Bench, COUNT, SEQ, accumulate, cases, document_starts, values};
use std::sync::Arc;
use trine_buffer::DType;
use trine_nn::{GradStore, Numerics, Rows};
use trine_spec::RankLayout;

/// A layout of which nothing is trained.
fn frozen(layout: &RankLayout) -> Arc<RankLayout> {
    let mut layout = layout.clone();
    layout.buckets.iter_mut().for_each(|bucket| bucket.trainable = false);
    Arc::new(layout)
}

#[test]
fn a_frozen_layer_has_the_input_gradient_of_a_trained_one_and_no_other() {
    let rows = Rows { samples: 3..6, seq: SEQ };
    let starts = document_starts(&rows);
    let (mut compared, mut with_params) = (0, 0);
    for (compute, numerics) in [
        (DType::F32, Numerics::Fast),
        (DType::F32, Numerics::Reference),
        (DType::Bf16, Numerics::Fast),
    ] {
        let bench = Bench::new(compute, numerics);
        for case in cases(compute) {
            let ctx = bench.context(rows.clone(), case.documents.then_some(starts.as_slice()));
            let weights = bench.weights(&case.layout);
            let x = values("x", rows.tokens() * case.inputs);
            let dy = values("dy", rows.tokens() * case.outputs);
            let run = |layout: &Arc<RankLayout>| {
                let mut grads = GradStore::new(layout.clone(), compute, numerics);
                let found = accumulate(&*case.layer, &weights, &x, &dy, &ctx, &mut grads);
                (found, grads.size_bytes())
            };
            let ((trained, bytes), (frozen, none)) =
                (run(&case.layout), run(&frozen(&case.layout)));
            assert!(frozen == trained, "{} {compute} {numerics:?}", case.name);
            assert!(trained.1.iter().any(|g| g.abs() > 1e-3), "{}", case.name);
            assert_eq!((bytes > 0, none), (!case.layout.params.is_empty(), 0), "{}", case.name);
            with_params += usize::from(bytes > 0);
            compared += 1;
        }
    }
    assert!(compared == 3 * COUNT && with_params >= 3 * 8, "{compared}, {with_params}");
}
