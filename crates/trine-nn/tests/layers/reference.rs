//! Reference numerics: a micro-batch of four is four micro-batches of one, in any order.

use crate::support::{Bench, COUNT, SEQ, accumulate, cases, document_starts, total, values};
use std::sync::Arc;
use trine_buffer::DType;
use trine_kernels::{CpuOps, Team};
use trine_nn::oracle::Case;
use trine_nn::{GradStore, Layer, Numerics, Rows};
use trine_spec::RankLayout;

const SAMPLES: usize = 4;
/// The place of the first sample in the global batch: odd, so that subtrees are cut.
const FIRST: usize = 3;

/// A layer, and what a pass has to know of it.
pub(crate) struct Subject<'a> {
    pub(crate) layer: &'a dyn Layer,
    pub(crate) layout: &'a Arc<RankLayout>,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) documents: bool,
}

impl<'a> Subject<'a> {
    fn of(case: &'a Case) -> Self {
        let Case { layout, inputs, outputs, documents, .. } = case;
        let (inputs, outputs, documents) = (*inputs, *outputs, *documents);
        Self { layer: &*case.layer, layout, inputs, outputs, documents }
    }
}

/// Output, input gradient and parameter gradients of all samples, in micro-batches of these places.
pub(crate) fn in_micro_batches(
    bench: &Bench,
    case: &Subject<'_>,
    micro_batches: &[std::ops::Range<usize>],
) -> [Vec<f64>; 3] {
    let weights = bench.weights(case.layout);
    let x = values("x", SAMPLES * SEQ * case.inputs);
    let dy = values("dy", SAMPLES * SEQ * case.outputs);
    let mut grads = GradStore::new(case.layout.clone(), bench.compute, bench.numerics);
    let (mut y, mut dx) = (vec![0.0; dy.len()], vec![0.0; x.len()]);
    for samples in micro_batches {
        let rows = Rows { samples: FIRST + samples.start..FIRST + samples.end, seq: SEQ };
        let part = |cols: usize| samples.start * SEQ * cols..samples.end * SEQ * cols;
        let (of_x, of_y) = (part(case.inputs), part(case.outputs));
        let starts = document_starts(&rows);
        let ctx = bench.context(rows.clone(), case.documents.then_some(starts.as_slice()));
        let (x, dy) = (&x[of_x.clone()], &dy[of_y.clone()]);
        let (y_part, dx_part) = accumulate(case.layer, &weights, x, dy, &ctx, &mut grads);
        y[of_y].copy_from_slice(&y_part);
        dx[of_x].copy_from_slice(&dx_part);
        for bucket in 0..case.layout.buckets.len() {
            grads.close(bucket, rows.samples.clone(), &bench.ops).unwrap();
        }
    }
    let ctx = bench.context(Rows { samples: 0..0, seq: SEQ }, None);
    [y, dx, total(&mut grads, &ctx)]
}

const ALL: std::ops::Range<usize> = 0..SAMPLES;
pub(crate) const WHOLE: [std::ops::Range<usize>; 1] = [ALL];
pub(crate) const SPLITS: [&[std::ops::Range<usize>]; 5] = [
    &[0..1, 1..2, 2..3, 3..4],
    &[3..4, 2..3, 1..2, 0..1],
    &[2..3, 0..1, 3..4, 1..2],
    &[0..2, 2..4],
    &[1..4, 0..1],
];

#[test]
fn micro_batches_of_any_size_in_any_order_give_the_same_bits() {
    let mut compared = 0;
    for compute in [DType::F32, DType::F64] {
        let bench = Bench::new(compute, Numerics::Reference);
        for case in cases(compute) {
            let whole = in_micro_batches(&bench, &Subject::of(&case), &WHOLE);
            assert!(whole.iter().flatten().any(|value| *value != 0.0));
            for split in SPLITS {
                let parts = in_micro_batches(&bench, &Subject::of(&case), split);
                assert!(parts == whole, "{} {compute} in {split:?}", case.name);
                compared += 1;
            }
        }
    }
    assert_eq!(compared, 2 * COUNT * SPLITS.len());
}

#[test]
fn threads_change_no_bit_in_either_numerics() {
    let mut compared = 0;
    for numerics in [Numerics::Fast, Numerics::Reference] {
        let one = Bench::new(DType::F32, numerics);
        let three = Bench { ops: CpuOps::new(Team::new(3)), ..Bench::new(DType::F32, numerics) };
        for case in cases(DType::F32) {
            let alone = in_micro_batches(&one, &Subject::of(&case), &WHOLE);
            let shared = in_micro_batches(&three, &Subject::of(&case), &WHOLE);
            assert!(alone == shared, "{}", case.name);
            compared += 1;
        }
    }
    assert_eq!(compared, 2 * COUNT);
}

#[test]
fn fast_and_reference_numerics_differ_by_rounding_only() {
    let fast = Bench::new(DType::F64, Numerics::Fast);
    let reference = Bench::new(DType::F64, Numerics::Reference);
    let mut compared = 0;
    for case in cases(DType::F64) {
        let a = in_micro_batches(&fast, &Subject::of(&case), &WHOLE);
        let b = in_micro_batches(&reference, &Subject::of(&case), &WHOLE);
        for (a, b) in a.iter().zip(&b) {
            assert!(crate::support::error(a, b) < 1e-13, "{}", case.name);
        }
        compared += 1;
    }
    assert_eq!(compared, COUNT);
}
