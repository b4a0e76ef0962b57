//! Optimizer steps and watchers.

use crate::support::*;
use trine_buffer::{Buf, DType, Float, Slice, SliceMut};
use trine_kernels::{AdamW, KernelError, MatRef, Ops, Sgd};

const LENGTHS: [usize; 5] = [0, 1, 1023, 4097, 50_001];

const ADAMW: AdamW = AdamW {
    lr: 0.02,
    beta1: 0.9,
    beta2: 0.95,
    eps: 1e-8,
    weight_decay: 0.1,
    bias_correction1: 1.0 - 0.9 * 0.9 * 0.9,
    bias_correction2: 1.0 - 0.95 * 0.95 * 0.95,
    grad_scale: 0.5,
};

/// Positive values, as second moments are.
fn squares(seed: u64, len: usize) -> Vec<f64> {
    values::<f64>(seed, len).iter().map(|x| x * x).collect()
}

fn acc(dtype: DType, values: &[f64]) -> Buf {
    let mut buf = Buf::zeros(dtype, values.len());
    one().cast(buf.slice_mut(), Buf::from_vec(values.to_vec()).slice()).unwrap();
    buf
}

/// `T` is the type of the compute copy.
fn adamw_step<T: Float>() {
    let dtype = T::DTYPE.accumulator();
    let mut cases = 0;
    for len in LENGTHS {
        let (w, m) = (values::<f64>(1, len), values::<f64>(2, len));
        let (v, g) = (squares(3, len), values::<f64>(4, len));
        let results = everywhere(None, |ops| {
            let (mut wb, mut mb, mut vb) = (acc(dtype, &w), acc(dtype, &m), acc(dtype, &v));
            let (mut compute, grad) = (Buf::zeros(T::DTYPE, len), acc(dtype, &g));
            let (wv, mv, vv) = (wb.slice_mut(), mb.slice_mut(), vb.slice_mut());
            ops.adamw(ADAMW, wv, mv, vv, grad.slice(), Some(compute.slice_mut())).unwrap();
            // Without a copy, and in two calls: the same numbers.
            let (mut again, mut m2, mut v2) = (acc(dtype, &w), acc(dtype, &m), acc(dtype, &v));
            for part in [0..len / 3, len / 3..len] {
                let [w, m, v] = [&mut again, &mut m2, &mut v2]
                    .map(|b| b.slice_mut().range(part.clone()).unwrap());
                let grad = grad.slice().range(part.clone()).unwrap();
                ops.adamw(ADAMW, w, m, v, grad, None).unwrap();
            }
            vec![wb, mb, vb, compute, again]
        });
        let (mut want_w, mut want_m, mut want_v) = (Vec::new(), Vec::new(), Vec::new());
        for i in 0..len {
            let g = g[i] * ADAMW.grad_scale;
            let m = ADAMW.beta1 * m[i] + (1.0 - ADAMW.beta1) * g;
            let v = ADAMW.beta2 * v[i] + (1.0 - ADAMW.beta2) * g * g;
            let root = (v / ADAMW.bias_correction2).sqrt() + ADAMW.eps;
            let decayed = w[i] * (1.0 - ADAMW.lr * ADAMW.weight_decay);
            want_w.push(decayed - ADAMW.lr * (m / ADAMW.bias_correction1) / root);
            want_m.push(m);
            want_v.push(v);
        }
        let result = &results[0];
        let eps = 8.0 * dtype.epsilon();
        close(&result[0], &want_w, eps * 64.0, "weights");
        close(&result[1], &want_m, eps, "m");
        close(&result[2], &want_v, eps, "v");
        let mut copy = Buf::zeros(T::DTYPE, len);
        one().cast(copy.slice_mut(), Buf::from_vec(result[0].clone()).slice()).unwrap();
        same_bits(&result[3], &copy.to_f64_vec().unwrap(), "compute copy");
        same_bits(&result[4], &result[0], "in two calls");
        cases += 1;
    }
    assert_eq!(cases, LENGTHS.len());
}

fn sgd_step<T: Float>() {
    let dtype = T::DTYPE.accumulator();
    let sgd = Sgd { lr: 0.1, momentum: 0.9, weight_decay: 0.01, grad_scale: 2.0 };
    let mut cases = 0;
    for len in LENGTHS {
        let (w, v, g) = (values::<f64>(1, len), values::<f64>(2, len), values::<f64>(3, len));
        let results = everywhere(None, |ops| {
            let (mut wb, mut vb, grad) = (acc(dtype, &w), acc(dtype, &v), acc(dtype, &g));
            let mut compute = Buf::zeros(T::DTYPE, len);
            let (wv, vv) = (wb.slice_mut(), Some(vb.slice_mut()));
            ops.sgd(sgd, wv, vv, grad.slice(), Some(compute.slice_mut())).unwrap();
            let mut plain = acc(dtype, &w);
            let no_momentum = Sgd { momentum: 0.0, ..sgd };
            ops.sgd(no_momentum, plain.slice_mut(), None, grad.slice(), None).unwrap();
            vec![wb, vb, compute, plain]
        });
        let velocity = |i: usize| sgd.momentum * v[i] + 2.0 * g[i] + 0.01 * w[i];
        let want_v: Vec<f64> = (0..len).map(velocity).collect();
        let want_w: Vec<f64> = (0..len).map(|i| w[i] - 0.1 * want_v[i]).collect();
        let plain: Vec<f64> = (0..len).map(|i| w[i] - 0.1 * (2.0 * g[i] + 0.01 * w[i])).collect();
        let eps = 8.0 * dtype.epsilon();
        close(&results[0][0], &want_w, eps, "weights");
        close(&results[0][1], &want_v, eps, "velocity");
        close(&results[0][2], &want_w, eps + T::DTYPE.epsilon(), "compute copy");
        close(&results[0][3], &plain, eps, "without momentum");
        cases += 1;
    }
    assert_eq!(cases, LENGTHS.len());
}

fn watchers<T: Float>() {
    let mut cases = 0;
    for len in LENGTHS {
        let x = buf::<T>(1, len);
        let wide = x.to_f64_vec().unwrap();
        let results = everywhere(None, |ops| {
            let mut sum = Buf::from_vec(vec![3.0]);
            ops.sum_squares(sum.slice_mut(), x.slice()).unwrap();
            assert_eq!(ops.first_non_finite(x.slice()).unwrap(), None);
            vec![sum]
        });
        let sum: f64 = wide.iter().map(|x| x * x).sum();
        close(&results[0][0], &[3.0 + sum], 1e-13, "sum of squares");
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            for at in [0, len / 2, len.saturating_sub(1)].into_iter().filter(|at| *at < len) {
                let mut values = values::<T>(1, len);
                values[len - 1] = T::from_f64(bad);
                values[at] = T::from_f64(bad);
                let values = Buf::from_vec(values);
                let expected = Buf::from_vec(vec![at as u32]);
                let found = everywhere(None, |ops| {
                    let found = ops.first_non_finite(values.slice()).unwrap();
                    vec![Buf::from_vec(vec![found.unwrap() as u32])]
                });
                same_bits(&found[0][0], &expected.to_f64_vec().unwrap(), "first");
                cases += 1;
            }
        }
    }
    assert_eq!(cases, 4 * 9);
}

mod all {
    use crate::support::for_types;
    for_types! {
        adamw_step;
        sgd_step;
        watchers;
    }
}

/// Ranges cut at powers of two of blocks have subtrees of the whole.
#[test]
fn sums_of_squares_of_aligned_halves_add_up_to_the_bits_of_the_whole() {
    let x = buf::<f32>(1, 4096 * 16 + 777);
    let ops = one();
    let sum = |from: usize, to: usize| {
        let mut sum = [0.0];
        let part = x.slice().range(from..to).unwrap();
        ops.sum_squares(SliceMut::F64(&mut sum), part).unwrap();
        sum[0]
    };
    let half = 4096 * 16;
    assert_eq!(sum(0, half) + sum(half, x.len()), sum(0, x.len()));
    assert_eq!(sum(0, half / 2) + sum(half / 2, half), sum(0, half));
}

/// The losses of samples, each the sum of its tokens' in f64.
#[test]
fn sums_of_rows_are_taken_in_f64_in_the_order_of_the_columns() {
    let (rows, cols, stride) = (3, 5, 7);
    let x = [1e8f32, 1.0, -1e8, 0.5, 3.0, 9.0, 9.0].repeat(rows);
    let mut sums = [7.0; 3];
    let mat = MatRef { data: Slice::F32(&x), rows, cols, stride };
    one().row_sums(SliceMut::F64(&mut sums), mat).unwrap();
    assert_eq!(sums, [4.5; 3]);
    let short = one().row_sums(SliceMut::F64(&mut sums[..2]), mat).unwrap_err();
    assert!(short.to_string().contains("`sums` has 2 elements"), "{short}");
    let narrow = [half::bf16::ONE; 3];
    let narrow = MatRef::new(Slice::Bf16(&narrow), 3, 1);
    assert!(one().row_sums(SliceMut::F64(&mut sums), narrow).is_err());
}

#[test]
fn contradictions_are_errors() {
    let ops = one();
    let mut w = Buf::zeros(DType::F32, 3);
    let sgd = Sgd { lr: 0.1, momentum: 0.9, weight_decay: 0.0, grad_scale: 1.0 };
    let grad = Buf::zeros(DType::F32, 3);
    let text = ops.sgd(sgd, w.slice_mut(), None, grad.slice(), None).unwrap_err().to_string();
    assert_eq!(text, "sgd: momentum 0.9 needs a velocity");
    let (mut m, mut v) = (Buf::zeros(DType::F32, 3), Buf::zeros(DType::F32, 4));
    let (ws, ms, vs) = (w.slice_mut(), m.slice_mut(), v.slice_mut());
    let text = ops.adamw(ADAMW, ws, ms, vs, grad.slice(), None).unwrap_err().to_string();
    assert_eq!(text, "adamw: `v` has 4 elements, weights needs 3");
    let mut half = Buf::zeros(DType::Bf16, 3);
    let error = ops.sgd(sgd, half.slice_mut(), Some(m.slice_mut()), grad.slice(), None);
    assert!(matches!(error, Err(KernelError::Type { argument: "weights", .. })));
}
