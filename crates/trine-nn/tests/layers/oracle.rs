//! Every layer against candle's autograd of the same function, composed of candle's plain
//! differentiable operations only.

use crate::support::{Bench, COUNT, SEQ, cases, document_starts, pass, values};
use trine_buffer::DType;
use trine_nn::oracle::{Agreement, held};
use trine_nn::{Numerics, Rows};

#[test]
fn every_layer_agrees_with_candles_autograd() {
    let rows = Rows { samples: 3..6, seq: SEQ };
    let starts = document_starts(&rows);
    let mut compared = 0;
    for (compute, bound) in [(DType::F64, 1e-12), (DType::F32, 2e-5)] {
        let bench = Bench::new(compute, Numerics::Fast);
        for case in cases(compute) {
            let ctx = bench.context(rows.clone(), case.documents.then_some(starts.as_slice()));
            let weights = bench.weights(&case.layout);
            let x = values("x", rows.tokens() * case.inputs);
            let dy = values("dy", rows.tokens() * case.outputs);
            let exact = case.by_autograd(&rows, &held(&weights).unwrap(), &x, &dy).unwrap();
            assert!(exact.dx.iter().any(|g| g.abs() > 1e-3), "{}", case.name);
            let own = pass(&*case.layer, &weights, &x, &dy, &ctx);
            let in_candle = case.in_candle(&rows, compute).unwrap();
            let adapted = pass(&in_candle, &weights, &x, &dy, &ctx);
            for (which, got) in [("own", own), ("candle layer", adapted)] {
                let found = Agreement::new(case.name, &got, &exact);
                assert!(found.error_max() < bound, "{compute}, {which}: {found:?}");
                compared += 1;
            }
        }
    }
    assert_eq!(compared, 2 * 2 * COUNT);
}

#[test]
fn what_is_not_a_number_or_of_another_length_is_no_agreement() {
    let exact = [1.0, -2.0];
    assert_eq!(trine_nn::oracle::error(&[1.0, -1.0], &exact), 0.5);
    assert!(trine_nn::oracle::error(&[f64::NAN, -2.0], &exact).is_nan());
    assert_eq!(trine_nn::oracle::error(&[1.0], &exact), f64::INFINITY);
}
