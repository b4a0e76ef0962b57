//! Activations come from the pool and go back to it.

use crate::support::{Bench, COUNT, SEQ, buf, cases, document_starts, values};
use trine_buffer::{Act, DType};
use trine_nn::{GradStore, Numerics, Rows};

#[test]
fn every_layer_gives_back_what_it_took() {
    let rows = Rows { samples: 3..5, seq: SEQ };
    let starts = document_starts(&rows);
    let mut checked = 0;
    for numerics in [Numerics::Fast, Numerics::Reference] {
        for case in cases(DType::F32) {
            let bench = Bench::new(DType::F32, numerics);
            let ctx = bench.context(rows.clone(), case.documents.then_some(starts.as_slice()));
            let weights = bench.weights(&case.layout);
            let mut grads = GradStore::new(case.layout.clone(), DType::F32, numerics);
            let x = values("x", rows.tokens() * case.inputs);
            let dy = values("dy", rows.tokens() * case.outputs);
            let mut allocations = 0;
            for round in 0..3 {
                let x = Act::new(buf(DType::F32, &x));
                let (y, saved) = case.layer.forward(&weights, x, &ctx).unwrap();
                drop(y);
                let dy = Act::new(buf(DType::F32, &dy));
                let (dx, work) =
                    case.layer.backward_input(&weights, saved, dy, &ctx, &mut grads).unwrap();
                drop(dx);
                work.run(&ctx, &mut grads).unwrap();
                let stats = bench.pool.stats();
                assert_eq!(stats.bytes_in_use, 0, "{} round {round}", case.name);
                assert!(stats.bytes_in_use_max > 0, "{} used the pool", case.name);
                if round > 0 {
                    assert_eq!(stats.allocations, allocations, "{} allocates anew", case.name);
                }
                allocations = stats.allocations;
            }
            checked += 1;
        }
    }
    assert_eq!(checked, 2 * COUNT);
}
