//! The stores: what is away cannot be used, work left for later gives the same bits, and every shard
//! starts from its slice of the global tensor.

use crate::support::{Bench, COUNT, SEQ, buf, cases, document_starts, layout, total, values};
use std::sync::Arc;
use trine_buffer::{Act, Buf, DType};
use trine_kernels::Function;
use trine_nn::{
    Activation, GradStore, Layer, NnError, Numerics, ParamId, ParamStore, Rows, TakenGrads,
    WeightWork, initial_weights,
};
use trine_spec::{Degrees, RankLayout, RankRequest, StagePieces};
use trine_testkit::assemble::{Shards, assemble};
use trine_testkit::toy;

fn two() -> Arc<RankLayout> {
    layout(&[("w", &[12, 8]), ("b", &[12])])
}

#[test]
fn weights_that_are_away_are_errors_until_they_are_back() {
    let bench = Bench::new(DType::F32, Numerics::Fast);
    let layout = two();
    let id = ParamId::find(&layout, &["w"]).unwrap();
    let mut weights = bench.weights(&layout);
    let before = weights.lease(&id).unwrap().slice().typed::<f32>().unwrap().to_vec();
    assert_eq!((before.len(), weights.size_bytes()), (96, 108 * 4));
    let bucket = weights.take(0).unwrap();
    assert_eq!(weights.size_bytes(), 0);
    let away = |error: NnError| {
        assert_eq!(error.to_string(), "weights of bucket 0 are in flight and cannot be used");
    };
    away(weights.lease(&id).unwrap_err());
    away(weights.take(0).unwrap_err());
    away(weights.bucket(0).unwrap_err());
    away(weights.bucket_mut(0).unwrap_err());
    away(weights.load(0, bucket.slice(), &bench.ops).unwrap_err());
    let case = cases(DType::F32).remove(0);
    let x = Act::new(buf(DType::F32, &values("x", SEQ * 8)));
    let ctx = bench.context(Rows { samples: 0..1, seq: SEQ }, None);
    away(case.layer.forward(&weights, x, &ctx).unwrap_err());
    for wrong in [Buf::zeros(DType::F32, 107), Buf::zeros(DType::Bf16, 108)] {
        let error = weights.restore(0, wrong).unwrap_err().to_string();
        assert_eq!(error, "weights of bucket 0 must be 108 elements of f32");
    }
    weights.restore(0, bucket).unwrap();
    assert_eq!(weights.lease(&id).unwrap().slice().typed::<f32>().unwrap(), before);
}

#[test]
fn gradients_that_are_away_are_errors_until_they_are_back() {
    let bench = Bench::new(DType::F32, Numerics::Fast);
    let rows = Rows { samples: 0..1, seq: SEQ };
    for numerics in [Numerics::Fast, Numerics::Reference] {
        let (layout, rows) = (two(), rows.clone());
        let id = ParamId::find(&layout, &["b"]).unwrap();
        // Gradients of bf16 weights are sums in f32.
        let mut grads = GradStore::new(layout, DType::Bf16, numerics);
        assert_eq!(grads.dtype(), DType::F32);
        let taken = grads.take(0, &bench.ops).unwrap();
        assert!(matches!(
            (numerics, taken),
            (Numerics::Fast, TakenGrads::Sum(_)) | (Numerics::Reference, TakenGrads::Nodes(_))
        ));
        let away = |error: NnError| {
            assert_eq!(error.to_string(), "gradients of bucket 0 are in flight and cannot be used");
        };
        away(grads.add(&id, &rows, |_, _| panic!("nothing to add to")).unwrap_err());
        away(grads.take(0, &bench.ops).unwrap_err());
        away(grads.close(0, 0..1, &bench.ops).unwrap_err());
        away(grads.bucket(0).unwrap_err());
        away(grads.bucket_mut(0).unwrap_err());
        away(grads.clear().unwrap_err());
        let wrong = Buf::zeros(DType::Bf16, 108);
        let error = grads.restore(0, wrong).unwrap_err().to_string();
        assert_eq!(error, "gradients of bucket 0 must be 108 elements of f32");
        let sum = Buf::from_vec((0..108).map(|i| i as f32).collect::<Vec<_>>());
        grads.restore(0, sum).unwrap();
        assert_eq!(grads.bucket(0).unwrap().typed::<f32>().unwrap()[id.span()][0], 96.0);
        grads.clear().unwrap();
        assert_eq!(grads.size_bytes(), if numerics == Numerics::Fast { 432 } else { 0 });
    }
}

/// Sets or adds `value` everywhere in a gradient; says which of the two it was told.
fn put(grads: &mut GradStore, id: &ParamId, value: f32) -> bool {
    let (rows, mut told) = (Rows { samples: 0..1, seq: SEQ }, None);
    let write = |_, sum: trine_buffer::SliceMut<'_>, accumulate| {
        told = Some(accumulate);
        for sum in sum.typed::<f32>()? {
            *sum = if accumulate { *sum + value } else { value };
        }
        Ok(())
    };
    grads.add_or_set(id, &rows, write).unwrap();
    told.expect("called once")
}

#[test]
fn a_step_overwrites_what_the_one_before_has_left() {
    let layout = two();
    let [w, b, both] =
        [&["w"][..], &["b"], &["w", "b"]].map(|names| ParamId::find(&layout, names).unwrap());
    let mut grads = GradStore::new(layout, DType::F32, Numerics::Fast);
    let values = |grads: &GradStore| grads.bucket(0).unwrap().typed::<f32>().unwrap().to_vec();
    // Zeros are there to be added to.
    assert!(put(&mut grads, &both, 5.0));
    grads.clear().unwrap();
    assert!(grads.bucket(0).is_err(), "half of a step is no gradient");
    assert!(!put(&mut grads, &w, 1.0) && put(&mut grads, &w, 2.0));
    assert!(grads.bucket(0).is_err());
    // A sum over rows adds, so what is old is cleared before.
    let add = |_, sum: trine_buffer::SliceMut<'_>| {
        sum.typed::<f32>()?.iter_mut().for_each(|sum| *sum += 7.0);
        Ok(())
    };
    grads.add(&b, &Rows { samples: 0..1, seq: SEQ }, add).unwrap();
    assert_eq!(values(&grads), [vec![3.0; 96], vec![7.0; 12]].concat());
    grads.clear().unwrap();
    // One of two neighbours has been written: the other must not keep its old values.
    assert!(!put(&mut grads, &b, 1.0) && put(&mut grads, &both, 2.0));
    assert_eq!(values(&grads), [vec![2.0; 96], vec![3.0; 12]].concat());
    grads.clear().unwrap();
    put(&mut grads, &b, 4.0);
    let completed = grads.bucket_mut(0).unwrap().typed::<f32>().unwrap().to_vec();
    assert_eq!(completed, [vec![0.0; 96], vec![4.0; 12]].concat(), "w got nothing");
}

#[test]
fn a_tree_of_samples_is_no_sum_before_it_is_finished() {
    let bench = Bench::new(DType::F32, Numerics::Reference);
    let layout = two();
    let id = ParamId::find(&layout, &["w", "b"]).unwrap();
    let mut grads = GradStore::new(layout, DType::F32, Numerics::Reference);
    let rows = Rows { samples: 4..7, seq: 2 };
    let mut seen = Vec::new();
    grads
        .add(&id, &rows, |rows, sum| {
            seen.push(rows);
            sum.typed::<f32>()?.fill(1.0);
            Ok(())
        })
        .unwrap();
    assert_eq!(seen, [0..2, 2..4, 4..6], "sample by sample");
    assert_eq!(grads.size_bytes(), 3 * 108 * 4);
    assert!(grads.bucket(0).is_err() && grads.bucket_mut(0).is_err());
    grads.close(0, rows.samples.clone(), &bench.ops).unwrap();
    assert_eq!(grads.size_bytes(), 2 * 108 * 4, "samples 4 and 5 are one subtree");
    let ctx = bench.context(rows, None);
    assert_eq!(total(&mut grads, &ctx), vec![3.0; 108]);
}

#[test]
fn work_left_for_later_gives_the_bits_of_work_done_at_once() {
    let mut compared = 0;
    for (compute, numerics) in [
        (DType::F32, Numerics::Fast),
        (DType::F32, Numerics::Reference),
        (DType::Bf16, Numerics::Fast),
    ] {
        let bench = Bench::new(compute, numerics);
        for case in cases(compute) {
            let weights = bench.weights(&case.layout);
            let gradients = |defer: bool| {
                let mut grads = GradStore::new(case.layout.clone(), compute, numerics);
                let mut later: Vec<(Rows, WeightWork)> = Vec::new();
                for first in [0, 2, 4] {
                    let rows = Rows { samples: first..first + 2, seq: SEQ };
                    let starts = document_starts(&rows);
                    let starts = case.documents.then_some(starts.as_slice());
                    let ctx = bench.context(rows.clone(), starts);
                    let seed = format!("micro-batch {first}");
                    let x = values(&seed, rows.tokens() * case.inputs);
                    let x = Act::new(buf(compute, &x));
                    let (_, saved) = case.layer.forward(&weights, x, &ctx).unwrap();
                    let dy = Act::new(buf(compute, &values("dy", rows.tokens() * case.outputs)));
                    let (_, work) =
                        case.layer.backward_input(&weights, saved, dy, &ctx, &mut grads).unwrap();
                    if defer {
                        later.push((rows, work));
                    } else {
                        work.run(&ctx, &mut grads).unwrap();
                    }
                }
                for (rows, work) in later {
                    let ctx = bench.context(rows, None);
                    work.run(&ctx, &mut grads).unwrap();
                }
                let ctx = bench.context(Rows { samples: 0..0, seq: SEQ }, None);
                total(&mut grads, &ctx)
            };
            assert!(gradients(true) == gradients(false), "{} {compute}", case.name);
            compared += 1;
        }
    }
    assert_eq!(compared, 3 * COUNT);
}

#[test]
fn weight_work_holds_exactly_input_and_output_gradient() {
    let bench = Bench::new(DType::F32, Numerics::Fast);
    let case = cases(DType::F32).remove(0);
    let weights = bench.weights(&case.layout);
    let rows = Rows { samples: 0..2, seq: SEQ };
    let ctx = bench.context(rows.clone(), None);
    let mut grads = GradStore::new(case.layout.clone(), DType::F32, Numerics::Fast);
    let x = Act::new(buf(DType::F32, &values("x", rows.tokens() * 8)));
    let (_, saved) = case.layer.forward(&weights, x, &ctx).unwrap();
    assert_eq!(saved.bytes(), rows.tokens() * 8 * 4);
    let dy = Act::new(buf(DType::F32, &values("dy", rows.tokens() * 12)));
    let (_, work) = case.layer.backward_input(&weights, saved, dy, &ctx, &mut grads).unwrap();
    assert_eq!(work.bytes(), rows.tokens() * (8 + 12) * 4);
    let sums = grads.bucket(0).unwrap().to_f64_vec().unwrap();
    assert!(sums[..96].iter().all(|g| *g == 0.0), "weights wait for W");
    assert!(sums[96..].iter().all(|g| *g != 0.0), "biases are done in B");
    // No weights are needed: they may be away when the work runs.
    drop(weights);
    work.run(&ctx, &mut grads).unwrap();
    assert!(grads.bucket(0).unwrap().to_f64_vec().unwrap()[..96].iter().all(|g| *g != 0.0));
}

#[test]
fn wrong_shapes_states_and_names_are_errors() {
    let bench = Bench::new(DType::F32, Numerics::Fast);
    let ctx = bench.context(Rows { samples: 0..1, seq: 2 }, None);
    let layout = two();
    let weights = bench.weights(&layout);
    let mut grads = GradStore::new(layout.clone(), DType::F32, Numerics::Fast);
    let act = |len| Act::new(Buf::zeros(DType::F32, len));
    let gelu = Activation { function: Function::GeluTanh, gated: false, cols: 4 };
    let error = gelu.forward(&weights, act(7), &ctx).unwrap_err().to_string();
    assert_eq!(error, "activation: input has 7 elements, expected 8");
    let saved = cases(DType::F32).remove(4).layer.forward(
        &bench.weights(&crate::support::layout(&[("gain", &[6]), ("bias", &[6])])),
        act(12),
        &ctx,
    );
    let (_, saved) = saved.unwrap();
    let error = gelu.backward_input(&weights, saved, act(8), &ctx, &mut grads).unwrap_err();
    assert!(error.to_string().contains("(2, 0) activations"), "{error}");
    let error = ParamId::find(&layout, &["v"]).unwrap_err().to_string();
    assert_eq!(error, "this stage holds no parameter \"v\"");
    let error = ParamId::find(&layout, &["b", "w"]).unwrap_err().to_string();
    assert_eq!(error, "parameters b, w are not neighbours in one bucket");
    let error = initial_weights(&layout, 0, 1, DType::Bf16).unwrap_err().to_string();
    assert_eq!(error, "master weights are f32 or f64, not bf16");
}

#[test]
fn every_shard_starts_from_its_slice_of_the_global_weights() {
    let mut compared = 0;
    for model in [toy::gpt(), toy::llama(2), toy::llama(1)] {
        let global = |tp: usize, tied_apart: bool, bucket_elements: usize| {
            let parts = model.parts(tp).unwrap();
            let stages = [StagePieces::whole(&parts)];
            let shards = |tp_index| {
                let layout = RankLayout::new(&RankRequest {
                    degrees: Degrees { tp, ..Degrees::SERIAL },
                    tp_index,
                    tied_apart,
                    bucket_elements,
                    ..RankRequest::serial(&parts, &stages)
                })
                .unwrap();
                let all = 0..layout.buckets.len();
                let initial = |bucket| initial_weights(&layout, bucket, 11, DType::F32).unwrap();
                let buckets: Vec<_> =
                    all.map(|bucket| initial(bucket).to_f64_vec().unwrap()).collect();
                let valid = buckets.iter().map(|bucket| 0..bucket.len()).collect();
                Shards { layout, buckets, valid }
            };
            assemble(&(0..tp).map(shards).collect::<Vec<_>>()).unwrap()
        };
        let serial = global(1, false, 1 << 20);
        for tp in [1, 2, 4] {
            for tied_apart in [false, true] {
                for bucket_elements in [1, 10_000] {
                    assert!(global(tp, tied_apart, bucket_elements) == serial);
                    compared += 1;
                }
            }
        }
        let embedding = &serial["embedding.token"];
        let (real, padding) = embedding.split_at(model.vocab * model.hidden);
        assert!(real.iter().all(|w| *w != 0.0) && padding.iter().all(|w| *w == 0.0));
        let mean_square = real.iter().map(|w| w * w).sum::<f64>() / real.len() as f64;
        assert!((mean_square.sqrt() / model.init_std - 1.0).abs() < 0.05);
    }
    assert_eq!(compared, 3 * 3 * 2 * 2);
}

#[test]
fn weights_load_from_masters_in_the_compute_type() {
    let bench = Bench::new(DType::Bf16, Numerics::Fast);
    let layout = two();
    let mut weights = ParamStore::zeros(layout.clone(), DType::Bf16);
    let master = initial_weights(&layout, 0, 1, DType::F32).unwrap();
    weights.load(0, master.slice(), &bench.ops).unwrap();
    let rounded: Vec<f64> = master
        .typed::<f32>()
        .unwrap()
        .iter()
        .map(|w| {
            f64::from(f32::from_bits((w.to_bits() + 0x7fff + (w.to_bits() >> 16 & 1)) & !0xffff))
        })
        .collect();
    assert_eq!(weights.bucket(0).unwrap().to_f64_vec().unwrap(), rounded);
    let short = Buf::zeros(DType::F32, 3);
    assert!(weights.load(0, short.slice(), &bench.ops).is_err());
}
