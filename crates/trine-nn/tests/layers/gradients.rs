//! Finite differences.

use crate::support::{Bench, COUNT, SEQ, cases, document_starts, values};
use trine_buffer::{Act, DType};
use trine_kernels::Function;
use trine_nn::{
    Activation, Context, GradStore, Layer, NnError, Numerics, ParamStore, Rows, Saved, WeightWork,
    gradcheck,
};

#[test]
fn every_layer_agrees_with_finite_differences() {
    let bench = Bench::new(DType::F64, Numerics::Fast);
    let rows = Rows { samples: 3..5, seq: SEQ };
    let starts = document_starts(&rows);
    let mut checked = 0;
    for case in cases(DType::F64) {
        let ctx = bench.context(rows.clone(), case.documents.then_some(starts.as_slice()));
        let x = values("x", rows.tokens() * case.inputs);
        let mut weights = bench.weights(&case.layout);
        let report = gradcheck::check(&*case.layer, &mut weights, &x, &ctx).unwrap();
        assert!(report.error_max < 1e-6, "{}: {report:?}", case.name);
        assert_eq!(report.compared, x.len() + case.layout.elements(), "{}", case.name);
        assert!(report.gradient_max > 1e-2, "{}: {report:?}", case.name);
        checked += 1;
    }
    assert_eq!(checked, COUNT);
}

/// GELU whose gradient is off by ten millionths.
#[derive(Debug)]
struct Off(Activation);

impl Layer for Off {
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
        let (dx, work) = self.0.backward_input(w, saved, dy, ctx, grads)?;
        let mut dx = dx.into_buf(ctx.pool)?;
        ctx.ops.scale(dx.slice_mut(), 1.0 + 1e-5)?;
        Ok((Act::new(dx), work))
    }
}

#[test]
fn the_checker_sees_a_gradient_that_is_off_by_ten_millionths() {
    let bench = Bench::new(DType::F64, Numerics::Fast);
    let ctx = bench.context(Rows { samples: 0..1, seq: SEQ }, None);
    let mut weights = bench.weights(&crate::support::layout(&[]));
    let layer = Off(Activation { function: Function::GeluTanh, gated: false, cols: 6 });
    let x = values("x", 6 * SEQ);
    let report = gradcheck::check(&layer, &mut weights, &x, &ctx).unwrap();
    assert!((5e-6..2e-5).contains(&report.error_max), "{report:?}");
}
