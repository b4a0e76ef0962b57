//! Layers written in candle: exact in reference numerics, and never a silent zero.

use crate::reference::{SPLITS, Subject, WHOLE, in_micro_batches};
use crate::support::{Bench, SEQ, buf, layout, total, values};
use candle_core::{CpuStorage, CustomOp1, Device, Layout, Shape, Tensor};
use std::sync::Arc;
use trine_buffer::{Act, DType, Slice};
use trine_nn::candle_layer::CandleLayer;
use trine_nn::{GradStore, Layer, NnError, Numerics, ParamId, ParamStore, Rows, gradcheck};
use trine_spec::RankLayout;

/// The cube, as an operation that can have a backward or not.
struct Cube;

impl CustomOp1 for Cube {
    fn name(&self) -> &'static str {
        "cube"
    }

    fn cpu_fwd(
        &self,
        storage: &CpuStorage,
        layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let values = storage.as_slice::<f64>()?.iter().map(|v| v * v * v).collect();
        Ok((CpuStorage::F64(values), layout.shape().clone()))
    }
}

type Body = fn(&Tensor, &[Tensor]) -> candle_core::Result<Tensor>;

fn scaled(layout: &Arc<RankLayout>, body: Body) -> CandleLayer {
    let gain = ParamId::find(layout, &["gain"]).unwrap();
    CandleLayer::new(4, 4, vec![(gain, vec![4])], body)
}

fn backward(layer: &CandleLayer, layout: &Arc<RankLayout>) -> Result<Vec<f64>, NnError> {
    let bench = Bench::new(DType::F64, Numerics::Fast);
    let weights = bench.weights(layout);
    let ctx = bench.context(Rows { samples: 0..2, seq: SEQ }, None);
    let mut grads = GradStore::new(layout.clone(), DType::F64, Numerics::Fast);
    let x = Act::new(buf(DType::F64, &values("x", 8 * SEQ)));
    let (_, saved) = layer.forward(&weights, x, &ctx)?;
    let dy = Act::new(buf(DType::F64, &values("dy", 8 * SEQ)));
    let (dx, work) = layer.backward_input(&weights, saved, dy, &ctx, &mut grads)?;
    work.run(&ctx, &mut grads)?;
    Ok(dx.to_f64_vec().unwrap())
}

#[test]
fn an_operation_without_a_gradient_is_an_error_and_not_zeros() {
    let layout = layout(&[("gain", &[4])]);
    let cut: Body = |x, w| x.apply_op1_no_bwd(&Cube)?.broadcast_mul(&w[0]);
    let error = backward(&scaled(&layout, cut), &layout).unwrap_err().to_string();
    assert!(error.contains("operations with a backward pass"), "{error}");
    let all_cut: Body = |x, w| x.broadcast_mul(&w[0])?.apply_op1_no_bwd(&Cube);
    let error = backward(&scaled(&layout, all_cut), &layout).unwrap_err().to_string();
    assert!(error.contains("operations with a backward pass"), "{error}");
    let unsupported: Body = |x, w| x.broadcast_mul(&w[0])?.apply_op1(Cube);
    let error = backward(&scaled(&layout, unsupported), &layout).unwrap_err().to_string();
    assert!(error.contains("cube"), "{error}");
    let works: Body = |x, w| x.powf(3.0)?.broadcast_mul(&w[0]);
    assert!(backward(&scaled(&layout, works), &layout).unwrap().iter().all(|g| *g != 0.0));
}

#[test]
fn the_checker_finds_a_gradient_that_is_lost_on_one_of_two_ways() {
    // The input has a gradient through the sum, so nothing is missing; only the numbers tell.
    let layout = layout(&[("gain", &[4])]);
    let half: Body = |x, w| (x + x.apply_op1_no_bwd(&Cube)?)?.broadcast_mul(&w[0]);
    let bench = Bench::new(DType::F64, Numerics::Fast);
    let ctx = bench.context(Rows { samples: 0..2, seq: SEQ }, None);
    let (layer, mut weights) = (scaled(&layout, half), bench.weights(&layout));
    let x = values("x", 8 * SEQ);
    let report = gradcheck::check(&layer, &mut weights, &x, &ctx).unwrap();
    assert!(report.error_max > 0.1, "{report:?}");
}

/// A small attention-free mixer: tokens of a sample see each other, samples do not.
fn mixer() -> (CandleLayer, Arc<RankLayout>) {
    let layout = layout(&[("mix", &[SEQ, SEQ]), ("w", &[40, 24])]);
    let find = |name| ParamId::find(&layout, &[name]).unwrap();
    let params = vec![(find("mix"), vec![SEQ, SEQ]), (find("w"), vec![40, 24])];
    let layer = CandleLayer::new(24, 40, params, |x, w| {
        let mixed = w[0].broadcast_left(x.dim(0)?)?.matmul(x)?;
        mixed.broadcast_matmul(&w[1].t()?)?.tanh()
    });
    (layer, layout)
}

#[test]
fn reference_numerics_are_bit_equal_for_any_micro_batches() {
    let mut compared = 0;
    for compute in [DType::F32, DType::F64] {
        let (bench, (layer, layout)) = (Bench::new(compute, Numerics::Reference), mixer());
        let (inputs, outputs, documents) = (24, 40, false);
        let subject = Subject { layer: &layer, layout: &layout, inputs, outputs, documents };
        let whole = in_micro_batches(&bench, &subject, &WHOLE);
        assert!(whole.iter().flatten().any(|value| *value != 0.0));
        for split in SPLITS {
            let parts = in_micro_batches(&bench, &subject, split);
            for (what, (part, whole)) in
                ["output", "dx", "grads"].iter().zip(parts.iter().zip(&whole))
            {
                assert!(part == whole, "{what} {compute} in {split:?}");
            }
            compared += 1;
        }
    }
    assert_eq!(compared, 2 * SPLITS.len());
}

#[test]
fn the_adapter_in_f64_agrees_with_finite_differences() {
    let (bench, (layer, layout)) = (Bench::new(DType::F64, Numerics::Fast), mixer());
    let rows = Rows { samples: 0..2, seq: SEQ };
    let ctx = bench.context(rows.clone(), None);
    let mut weights = bench.weights(&layout);
    let x: Vec<f64> = values("x", rows.tokens() * 24).iter().map(|v| v * 0.1).collect();
    let report = gradcheck::check(&layer, &mut weights, &x, &ctx).unwrap();
    assert!(report.error_max < 1e-6 && report.gradient_max > 1e-2, "{report:?}");
    assert_eq!(report.compared, x.len() + SEQ * SEQ + 40 * 24);
}

#[test]
fn a_tensor_that_the_closure_keeps_stays_whole() {
    let bench = Bench::new(DType::F64, Numerics::Reference);
    let positions = Tensor::ones((1, SEQ, 4), candle_core::DType::F64, &Device::Cpu).unwrap();
    let layer = CandleLayer::new(4, 4, vec![], move |_, _| Ok(positions.clone()));
    let ctx = bench.context(Rows { samples: 0..2, seq: SEQ }, None);
    let weights = bench.weights(&layout(&[]));
    for _ in 0..2 {
        let x = Act::new(buf(DType::F64, &values("x", 8 * SEQ)));
        let (y, _) = layer.forward(&weights, x, &ctx).unwrap();
        assert_eq!(y.to_f64_vec().unwrap(), vec![1.0; 8 * SEQ]);
    }
}

#[test]
fn a_closure_that_returns_another_shape_is_an_error() {
    let layout = layout(&[("gain", &[4])]);
    let narrow: Body = |x, w| x.broadcast_mul(&w[0])?.narrow(2, 0, 3);
    let error = backward(&scaled(&layout, narrow), &layout).unwrap_err().to_string();
    assert!(error.contains("candle layer: output has 30 elements, expected 40"), "{error}");
}

/// Output, input gradient and weight gradients of the mixer in a stream of f32.
fn in_an_f32_stream(bench: &Bench, weights: &ParamStore) -> [Vec<f64>; 3] {
    let (layer, layout) = mixer();
    let ctx = bench.context(Rows { samples: 0..3, seq: SEQ }, None);
    assert_eq!(ctx.stream(), DType::F32);
    let mut grads = GradStore::new(layout, bench.compute, bench.numerics);
    let x = Act::new(buf(DType::F32, &values("x", 3 * SEQ * 24)));
    let (y, saved) = layer.forward(weights, x, &ctx).unwrap();
    let dy = Act::new(buf(DType::F32, &values("dy", 3 * SEQ * 40)));
    let (dx, work) = layer.backward_input(weights, saved, dy, &ctx, &mut grads).unwrap();
    work.run(&ctx, &mut grads).unwrap();
    assert_eq!([y.dtype(), dx.dtype(), grads.dtype()], [DType::F32; 3]);
    [y.to_f64_vec().unwrap(), dx.to_f64_vec().unwrap(), total(&mut grads, &ctx)]
}

#[test]
fn weights_in_bf16_beside_a_stream_in_f32_count_as_the_f32_numbers_that_they_are() {
    for numerics in [Numerics::Fast, Numerics::Reference] {
        let layout = mixer().1;
        let half = Bench::new(DType::Bf16, numerics);
        let rounded = half.weights(&layout);
        let single = Bench::new(DType::F32, numerics);
        let mut exact = single.weights(&layout);
        let unrounded = exact.bucket(0).unwrap().to_f64_vec().unwrap();
        let held = rounded.bucket(0).unwrap().to_f64_vec().unwrap();
        assert_ne!(held, unrounded, "rounding changes these weights");
        exact.load(0, Slice::new(&held), &single.ops).unwrap();
        let got = in_an_f32_stream(&half, &rounded);
        assert_eq!(got, in_an_f32_stream(&single, &exact), "{numerics:?}");
        // Neither output nor gradients went through bf16 on their way.
        for values in got {
            assert_ne!(buf(DType::Bf16, &values).to_f64_vec().unwrap(), values, "{numerics:?}");
        }
    }
}
