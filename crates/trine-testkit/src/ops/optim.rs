//! Updates and what watches over them: the bits of the CPU.

use super::{Bound, Case, Rows, TYPES, case, floats, numbers, of_floats};
use trine_buffer::{Buf, DType};
use trine_kernels::{AdamW, KernelError, Sgd};

const ADAMW: AdamW = AdamW {
    lr: 0.01,
    beta1: 0.9,
    beta2: 0.95,
    eps: 1e-8,
    weight_decay: 0.1,
    bias_correction1: 0.271,
    bias_correction2: 0.142_625,
    grad_scale: 0.7,
};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for len in [0, 1, 777] {
        for compute in [None, Some(DType::F32), Some(DType::Bf16)] {
            updates(&mut cases, len, compute);
        }
    }
    for dtype in TYPES {
        for len in [0, 1, 4096, 3 * 4096 + 777] {
            let acc = [(Buf::from_vec(vec![3.0f64]), Bound::Bits)];
            let x = [numbers(dtype, 1, len)];
            cases.push(case("sum_squares", format!("{len} {dtype}"), acc, x, |ops, [acc, x]| {
                ops.sum_squares(acc.slice_mut(), x.slice())
            }));
        }
        for bad in [vec![], vec![0], vec![700, 41], vec![699]] {
            watched(&mut cases, dtype, &bad);
        }
    }
    for at in [Rows::new(3, 300, 4), Rows::new(0, 3, 0)] {
        let sums = [(Buf::from_vec(vec![7.0f64; at.rows]), Bound::Bits)];
        let x = [numbers(DType::F32, 1, at.len())];
        cases.push(case("row_sums", format!("{at:?}"), sums, x, move |ops, [sums, x]| {
            ops.row_sums(sums.slice_mut(), at.of(x))
        }));
    }
    cases
}

fn updates(cases: &mut Vec<Case>, len: usize, compute: Option<DType>) {
    let what = format!("{len} to {compute:?}");
    let f32 = |seed| (numbers(DType::F32, seed, len), Bound::Bits);
    // The second moment is not below 0.
    let square = Buf::from_vec(floats(3, len).map(|x| x * x).collect());
    // Without a second place this buffer stays as it is.
    let copy = (numbers(compute.unwrap_or(DType::F32), 4, len), Bound::Bits);
    let written = [f32(1), f32(2), (square, Bound::Bits), copy];
    let grad = || [numbers(DType::F32, 5, len)];
    cases.push(case("adamw", &*what, written, grad(), move |ops, [w, m, v, copy, grad]| {
        let copy = compute.map(|_| copy.slice_mut());
        ops.adamw(ADAMW, w.slice_mut(), m.slice_mut(), v.slice_mut(), grad.slice(), copy)
    }));
    for momentum in [0.0, 0.9] {
        let copy = (numbers(compute.unwrap_or(DType::F32), 4, len), Bound::Bits);
        let sgd = Sgd { lr: 0.1, momentum, weight_decay: 0.01, grad_scale: 0.7 };
        let what = format!("{what}, momentum {momentum}");
        cases.push(case(
            "sgd",
            what,
            [f32(1), f32(2), copy],
            grad(),
            move |ops, [w, v, copy, grad]| {
                let (v, copy) =
                    ((momentum > 0.0).then(|| v.slice_mut()), compute.map(|_| copy.slice_mut()));
                ops.sgd(sgd, w.slice_mut(), v, grad.slice(), copy)
            },
        ));
    }
}

/// Finds the first of some places, and writes it down.
fn watched(cases: &mut Vec<Case>, dtype: DType, bad: &[usize]) {
    let mut values: Vec<f32> = floats(1, 701).collect();
    for (at, &place) in bad.iter().enumerate() {
        values[place] = [f32::INFINITY, f32::NAN][at];
    }
    let x = of_floats(dtype, values);
    let expected = bad.iter().min().copied();
    let what = format!("{bad:?} {dtype}");
    cases.push(case("first_non_finite", what, [], [x], move |ops, [x]| {
        let found = ops.first_non_finite(x.slice())?;
        let message = || format!("{found:?} is found instead of {expected:?}");
        let wrong = || KernelError::Dims { op: "first_non_finite", message: message() };
        if found == expected { Ok(()) } else { Err(wrong()) }
    }));
}
