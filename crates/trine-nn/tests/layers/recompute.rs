//! Recompute is the plain layer bit for bit, and keeps the input alone.

use crate::support::{Bench, COUNT, SEQ, buf, cases, document_starts, pass, values};
use trine_buffer::{Act, DType};
use trine_nn::oracle::Case;
use trine_nn::{Context, GradStore, Layer, Mode, NnError, Numerics, ParamStore, Recompute, Rows};
use trine_nn::{Saved, WeightWork};

/// A boxed layer, so that the list of cases can be wrapped.
#[derive(Debug)]
struct Boxed(Box<dyn Layer>);

impl Layer for Boxed {
    fn forward(&self, w: &ParamStore, x: Act, ctx: &Context<'_>) -> Result<(Act, Saved), NnError> {
        self.0.forward(w, x, ctx)
    }

    fn backward_input(
        &self,
        w: &ParamStore,
        saved: Saved,
        dy: Act,
        ctx: &Context<'_>,
        grads: &mut GradStore,
    ) -> Result<(Act, WeightWork), NnError> {
        self.0.backward_input(w, saved, dy, ctx, grads)
    }
}

#[test]
fn recompute_equals_plain_bit_for_bit() {
    let rows = Rows { samples: 3..6, seq: SEQ };
    let starts = document_starts(&rows);
    let mut compared = 0;
    for (compute, numerics) in [
        (DType::F32, Numerics::Fast),
        (DType::F32, Numerics::Reference),
        (DType::Bf16, Numerics::Fast),
    ] {
        let bench = Bench::new(compute, numerics);
        for (plain, again) in cases(compute).into_iter().zip(cases(compute)) {
            let Case { name, layout, inputs, outputs, documents, layer, .. } = plain;
            let ctx = bench.context(rows.clone(), documents.then_some(starts.as_slice()));
            let weights = bench.weights(&layout);
            let x = values("x", rows.tokens() * inputs);
            let dy = values("dy", rows.tokens() * outputs);
            let recomputed = Recompute(Boxed(again.layer));
            let expected = pass(&*layer, &weights, &x, &dy, &ctx);
            assert!(expected == pass(&recomputed, &weights, &x, &dy, &ctx), "{name} {compute}");

            let x = Act::new(buf(compute, &x));
            let (_, saved) = recomputed.forward(&weights, x.clone(), &ctx).unwrap();
            assert_eq!(saved.bytes(), x.size_bytes(), "{name}");
            let eval = Context { mode: Mode::Eval, ..ctx };
            let (_, saved) = recomputed.forward(&weights, x, &eval).unwrap();
            assert_eq!(saved.bytes(), 0, "{name}");
            compared += 1;
        }
    }
    assert_eq!(compared, 3 * COUNT);
}
