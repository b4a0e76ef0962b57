//! Sums, copies, conversions, activations, embedding, dropout.

use crate::support::*;
use half::bf16;
use trine_buffer::{Buf, DType, Element, Float, Slice};
use trine_kernels::{Dropout, DropoutPlace, Function, GateUpMut, KernelError, MatMut, MatRef, Ops};

const LENGTHS: [usize; 6] = [0, 1, 15, 16, 257, 40_013];

fn acc_of<T: Float>(values: Vec<f64>) -> Buf {
    let mut buf = Buf::zeros(T::DTYPE.accumulator(), values.len());
    one().cast(buf.slice_mut(), Buf::from_vec(values).slice()).unwrap();
    buf
}

fn copied<T: Element>(buf: &Buf) -> Buf {
    Buf::from_vec(buf.typed::<T>().unwrap().to_vec())
}

fn flat_sums<T: Float>() {
    let mut cases = 0;
    for len in LENGTHS {
        let (a, b) = (buf::<T>(1, len), buf::<T>(2, len));
        let (wide_a, wide_b) = (a.to_f64_vec().unwrap(), b.to_f64_vec().unwrap());
        let results = everywhere(None, |ops| {
            let mut sum = Buf::zeros(T::DTYPE, len);
            ops.add(sum.slice_mut(), a.slice(), b.slice()).unwrap();
            let mut own = copied::<T>(&b);
            ops.add_assign(own.slice_mut(), a.slice()).unwrap();
            let mut acc = acc_of::<T>(wide_b.clone());
            ops.add_assign(acc.slice_mut(), a.slice()).unwrap();
            let mut scaled = copied::<T>(&a);
            ops.scale(scaled.slice_mut(), -1.5).unwrap();
            let (stream, mut wide) = (acc_of::<T>(wide_b.clone()), acc_of::<T>(wide_b.clone()));
            ops.add(wide.slice_mut(), stream.slice(), a.slice()).unwrap();
            vec![sum, own, acc, scaled, wide]
        });
        let sum: Vec<f64> = wide_a.iter().zip(&wide_b).map(|(a, b)| a + b).collect();
        let scaled: Vec<f64> = wide_a.iter().map(|a| -1.5 * a).collect();
        let eps = T::DTYPE.epsilon();
        close(&results[0][0], &sum, eps, "add");
        same_bits(&results[0][1], &results[0][0], "add_assign");
        close(&results[0][2], &sum, T::DTYPE.accumulator().epsilon(), "add_assign to acc");
        close(&results[0][3], &scaled, eps, "scale");
        same_bits(&results[0][4], &results[0][2], "add to a wider stream");
        cases += 1;
    }
    assert_eq!(cases, LENGTHS.len());
}

fn bias_and_its_gradient<T: Float>() {
    let mut cases = 0;
    for (rows, cols, gap) in [(1, 1, 0), (7, 13, 3), (300, 101, 0), (3, 5000, 1)] {
        let stride = cols + gap;
        let (x, bias) = (buf::<T>(1, rows * stride), buf::<T>(2, cols));
        let old = values::<f64>(3, cols);
        let results = everywhere(None, |ops| {
            let mut y = copied::<T>(&x);
            let view = MatMut { data: y.slice_mut(), rows, cols, stride };
            ops.add_bias(view, bias.slice()).unwrap();
            let mut acc = acc_of::<T>(old.clone());
            let view = MatRef { data: x.slice(), rows, cols, stride };
            ops.sum_rows(acc.slice_mut(), view).unwrap();
            // In two halves: the same chain.
            let mut halves = acc_of::<T>(old.clone());
            for part in [0..rows / 2, rows / 2..rows] {
                ops.sum_rows(halves.slice_mut(), view.rows(part).unwrap()).unwrap();
            }
            vec![y, acc, halves]
        });
        let (wide, wide_bias) = (x.to_f64_vec().unwrap(), bias.to_f64_vec().unwrap());
        let mut y = wide.clone();
        let mut sum = old.clone();
        for row in 0..rows {
            for col in 0..cols {
                y[row * stride + col] += wide_bias[col];
                sum[col] += wide[row * stride + col];
            }
        }
        close(&results[0][0], &y, T::DTYPE.epsilon(), "add_bias");
        let tolerance = T::DTYPE.accumulator().epsilon() * (rows as f64).sqrt() * 4.0;
        close(&results[0][1], &sum, tolerance, "sum_rows");
        same_bits(&results[0][2], &results[0][1], "sum_rows in halves");
        cases += 1;
    }
    assert_eq!(cases, 4);
}

fn reference(function: Function, x: f64) -> f64 {
    match function {
        Function::GeluTanh => {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            0.5 * x * (1.0 + u.tanh())
        }
        // Φ by Simpson's rule from 0, on steps small enough for 1e-13.
        Function::GeluErf => {
            let n = 4000;
            let h = x / f64::from(n);
            let density = |t: f64| (-0.5 * t * t).exp() / (2.0 * std::f64::consts::PI).sqrt();
            let weight = |i: i32| match i {
                0 => 1.0,
                i if i == n => 1.0,
                i if i % 2 == 1 => 4.0,
                _ => 2.0,
            };
            let integral: f64 = (0..=n).map(|i| weight(i) * density(f64::from(i) * h)).sum();
            x * (0.5 + integral * h / 3.0)
        }
        Function::Silu => x / (1.0 + (-x).exp()),
        Function::Relu => x.max(0.0),
    }
}

/// The derivative by differences; that of ReLU has a step.
fn reference_slope(function: Function, x: f64) -> f64 {
    match function {
        Function::Relu => f64::from(u8::from(x > 0.0)),
        Function::GeluTanh | Function::GeluErf | Function::Silu => {
            (reference(function, x + 1e-5) - reference(function, x - 1e-5)) / 2e-5
        }
    }
}

fn activation_everywhere<T: Float>() {
    let mut cases = 0;
    let points: Vec<T> = (-400..=400).map(|i| T::from_f64(f64::from(i) / 40.0)).collect();
    let x = Buf::from_vec(points);
    let dy = buf::<T>(5, x.len());
    for function in Function::ALL {
        let results = everywhere(None, |ops| {
            let (mut y, mut dx) = (Buf::zeros(T::DTYPE, x.len()), Buf::zeros(T::DTYPE, x.len()));
            ops.activation(function, y.slice_mut(), x.slice()).unwrap();
            ops.activation_backward(function, dx.slice_mut(), x.slice(), dy.slice()).unwrap();
            vec![y, dx]
        });
        let wide = x.to_f64_vec().unwrap();
        let expected: Vec<f64> = wide.iter().map(|x| reference(function, *x)).collect();
        let tolerance = (4.0 * T::DTYPE.epsilon()).max(1e-13);
        close(&results[0][0], &expected, tolerance, &format!("{function:?}"));
        let slopes = wide.iter().map(|x| reference_slope(function, *x));
        let expected: Vec<f64> =
            slopes.zip(dy.to_f64_vec().unwrap()).map(|(s, dy)| dy * s).collect();
        close(&results[0][1], &expected, tolerance.max(1e-8), &format!("{function:?} backward"));
        cases += 1;
    }
    assert_eq!(cases, 4);
}

/// Gate left and up right in fused rows, as one projection gives them.
fn gated_fused_and_separate<T: Float>() {
    for function in Function::ALL {
        gated::<T>(function);
    }
}

fn gated<T: Float>(function: Function) {
    let (rows, cols) = (37, 301);
    let (all, dy) = (buf::<T>(1, rows * 2 * cols), buf::<T>(2, rows * cols));
    let view = MatRef::new(all.slice(), rows, 2 * cols);
    let (gate, up) = (view.columns(0..cols).unwrap(), view.columns(cols..2 * cols).unwrap());
    let dy_view = MatRef::new(dy.slice(), rows, cols);
    let results = everywhere(None, |ops| {
        let (mut y, mut d) = (Buf::zeros(T::DTYPE, rows * cols), buf::<T>(9, all.len()));
        ops.gated(function, MatMut::new(y.slice_mut(), rows, cols), gate, up).unwrap();
        let fused = GateUpMut::Fused(MatMut::new(d.slice_mut(), rows, 2 * cols));
        ops.gated_backward(function, fused, gate, up, dy_view).unwrap();
        let (mut dgate, mut dup) = (Buf::zeros(T::DTYPE, y.len()), Buf::zeros(T::DTYPE, y.len()));
        let separate = GateUpMut::Separate {
            gate: MatMut::new(dgate.slice_mut(), rows, cols),
            up: MatMut::new(dup.slice_mut(), rows, cols),
        };
        ops.gated_backward(function, separate, gate, up, dy_view).unwrap();
        vec![y, d, dgate, dup]
    });
    let (wide, wide_dy) = (all.to_f64_vec().unwrap(), dy.to_f64_vec().unwrap());
    let (mut y, mut d) = (Vec::new(), vec![0.0; all.len()]);
    for row in 0..rows {
        for col in 0..cols {
            let (g, u) = (wide[row * 2 * cols + col], wide[row * 2 * cols + cols + col]);
            let value = reference(function, g);
            y.push(value * u);
            let dy = wide_dy[row * cols + col];
            d[row * 2 * cols + col] = dy * u * reference_slope(function, g);
            d[row * 2 * cols + cols + col] = dy * value;
        }
    }
    let tolerance = (2.0 * T::DTYPE.epsilon()).max(1e-13);
    close(&results[0][0], &y, tolerance, &format!("gated {function:?}"));
    close(&results[0][1], &d, tolerance.max(1e-9), &format!("gated {function:?} backward"));
    for row in 0..rows {
        let fused = &results[0][1][row * 2 * cols..][..2 * cols];
        same_bits(&results[0][2][row * cols..][..cols], &fused[..cols], "gate");
        same_bits(&results[0][3][row * cols..][..cols], &fused[cols..], "up");
    }
}

fn embedding_of_a_shard<T: Float>() {
    let (table_rows, cols, first_row) = (11, 37, 5);
    let table = buf::<T>(1, table_rows * cols);
    let ids: Vec<u32> = (0..200).map(|i| (i * i + 3 * i) % 23).chain([u32::MAX]).collect();
    let dy = buf::<T>(2, ids.len() * cols);
    let old = values::<f64>(3, table.len());
    let results = everywhere(None, |ops| {
        let mut y = buf::<T>(4, ids.len() * cols);
        ops.embedding(cols, y.slice_mut(), Slice::new(&ids), table.slice(), first_row).unwrap();
        let mut d = acc_of::<T>(old.clone());
        ops.embedding_backward(cols, d.slice_mut(), Slice::new(&ids), dy.slice(), first_row)
            .unwrap();
        vec![y, d]
    });
    let (wide, wide_dy) = (table.to_f64_vec().unwrap(), dy.to_f64_vec().unwrap());
    let (mut y, mut d, mut inside) = (Vec::new(), old.clone(), 0);
    for (i, &id) in ids.iter().enumerate() {
        let row = (id as usize).wrapping_sub(first_row);
        for col in 0..cols {
            if row < table_rows {
                y.push(wide[row * cols + col]);
                d[row * cols + col] += wide_dy[i * cols + col];
                inside += 1;
            } else {
                y.push(0.0);
            }
        }
    }
    assert!(inside > 0 && inside < ids.len() * cols);
    close(&results[0][0], &y, 0.0, "embedding");
    close(&results[0][1], &d, 64.0 * T::DTYPE.accumulator().epsilon(), "embedding_backward");
}

const DROPOUT: Dropout = Dropout { probability: 0.25, key: 0xfeed_beef, step: 9, first_sample: 4 };

fn masks_of_shards<T: Float>() {
    let (samples, tokens, features) = (3, 8, 541);
    let rows = samples * tokens;
    let x = Buf::from_vec(vec![T::from_f64(1.0); rows * features]);
    let place = DropoutPlace { tokens, first_token: 0, first_feature: 0 };
    let results = everywhere(None, |ops| {
        let mut y = buf::<T>(1, rows * features);
        let view = MatMut::new(y.slice_mut(), rows, features);
        ops.dropout(DROPOUT, place, view, MatRef::new(x.slice(), rows, features)).unwrap();
        vec![y]
    });
    let whole = &results[0][0];
    let kept = T::from_f64(1.0 / 0.75).to_f64();
    assert!(whole.iter().all(|y| *y == 0.0 || *y == kept));
    let dropped = whole.iter().filter(|y| **y == 0.0).count() as f64 / whole.len() as f64;
    assert!((dropped - 0.25).abs() < 0.02, "{dropped}");
    // A shard of tokens and features of the last two samples.
    let (first_token, local_tokens, first_feature, width) = (3, 5, 130, 391);
    let mut y = Buf::zeros(T::DTYPE, 2 * local_tokens * width);
    let view = MatMut::new(y.slice_mut(), 2 * local_tokens, width);
    let place = DropoutPlace { tokens: local_tokens, first_token, first_feature };
    let dropout = Dropout { first_sample: 5, ..DROPOUT };
    one().dropout(dropout, place, view, MatRef::new(x.slice(), 2 * local_tokens, width)).unwrap();
    let mut compared = 0;
    for (i, y) in y.to_f64_vec().unwrap().iter().enumerate() {
        let (row, col) = (i / width, i % width);
        let (sample, token) = (1 + row / local_tokens, first_token + row % local_tokens);
        assert_eq!(*y, whole[(sample * tokens + token) * features + first_feature + col]);
        compared += 1;
    }
    assert_eq!(compared, 2 * 5 * 391);
    // Another sample, another mask.
    let sample = |s: usize| &whole[s * tokens * features..(s + 1) * tokens * features];
    assert_ne!(sample(0), sample(1));
}

mod all {
    use crate::support::for_types;
    for_types! {
        flat_sums;
        bias_and_its_gradient;
        activation_everywhere;
        gated_fused_and_separate;
        embedding_of_a_shard;
        masks_of_shards;
    }
}

#[test]
fn gradients_are_those_of_differences() {
    let ops = one();
    let x: Vec<f64> = values(1, 57).into_iter().map(|x: f64| 4.0 * x).collect();
    let dy = values::<f64>(2, 57);
    let mut cases = 0;
    for function in Function::ALL {
        let mut dx = Buf::zeros(DType::F64, x.len());
        ops.activation_backward(function, dx.slice_mut(), Slice::new(&x), Slice::new(&dy)).unwrap();
        check_gradient(&format!("{function:?}"), &x, &dx.to_f64_vec().unwrap(), 1, |x| {
            let mut y = Buf::zeros(DType::F64, x.len());
            ops.activation(function, y.slice_mut(), Slice::new(x)).unwrap();
            weigh(&y.to_f64_vec().unwrap(), &dy)
        });
        cases += 1;
    }
    let (rows, cols) = (3, 19);
    let all = values::<f64>(3, rows * 2 * cols);
    let halves = |function: Function, all: MatRef<'_>| {
        let (gate, up) = (all.columns(0..cols).unwrap(), all.columns(cols..2 * cols).unwrap());
        let mut y = Buf::zeros(DType::F64, rows * cols);
        ops.gated(function, MatMut::new(y.slice_mut(), rows, cols), gate, up).unwrap();
        let mut d = Buf::zeros(DType::F64, rows * 2 * cols);
        let fused = GateUpMut::Fused(MatMut::new(d.slice_mut(), rows, 2 * cols));
        let dy = MatRef::new(Slice::new(&dy), rows, cols);
        ops.gated_backward(function, fused, gate, up, dy).unwrap();
        (y.to_f64_vec().unwrap(), d.to_f64_vec().unwrap())
    };
    for function in Function::ALL {
        let (_, d) = halves(function, MatRef::new(Slice::new(&all), rows, 2 * cols));
        check_gradient(&format!("gated {function:?}"), &all, &d, 1, |x| {
            weigh(&halves(function, MatRef::new(Slice::new(x), rows, 2 * cols)).0, &dy)
        });
        cases += 1;
    }
    assert_eq!(cases, 8);
}

#[test]
fn casts_round_once_to_nearest_even() {
    fn cast<T: Float, U: Float>(x: Vec<T>, expected: Vec<U>) -> usize {
        let len = x.len();
        let x = Buf::from_vec(x);
        let results = everywhere(None, |ops| {
            let mut y = Buf::zeros(U::DTYPE, len);
            ops.cast(y.slice_mut(), x.slice()).unwrap();
            vec![y]
        });
        for (got, want) in results[0][0].iter().zip(&expected) {
            assert!(
                got.to_bits() == want.to_f64().to_bits() || got.is_nan() && want.to_f64().is_nan()
            );
        }
        len
    }
    // Of the two neighbours of x the nearer, of equally near ones the even.
    fn nearest(x: f64) -> bf16 {
        let below = bf16::from_bits(((x as f32).to_bits() >> 16) as u16);
        let around =
            [-1i32, 0, 1].map(|step| bf16::from_bits((i32::from(below.to_bits()) + step) as u16));
        let distance = |y: &bf16| ((y.to_f64() - x).abs(), y.to_bits() & 1);
        let finite = around.into_iter().filter(|y| y.is_finite());
        let best = finite.min_by(|a, b| distance(a).partial_cmp(&distance(b)).unwrap());
        if x.is_finite() && x.abs() < 3.3e38 { best.unwrap() } else { bf16::from_f64(x) }
    }
    let special = [
        1.0 + 1.0 / 256.0 + 1e-15,
        1.0 + 3.0 / 256.0 - 1e-15,
        0.0,
        -0.0,
        1.0,
        1.0 + 1.0 / 256.0,
        1.0 + 3.0 / 256.0,
        1.0 + 1.0 / 256.0 + 1e-12,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::NAN,
        1e-40,
        3.4e38,
        1e300,
    ];
    let mut wide: Vec<f64> = values::<f64>(1, 5000).iter().map(|x| x * 1e3).collect();
    wide.extend(special);
    let single: Vec<f32> = wide.iter().map(|x| *x as f32).collect();
    let half: Vec<bf16> = single.iter().map(|x| bf16::from_f32(*x)).collect();
    let mut cases = 0;
    cases += cast(wide.clone(), single.clone());
    cases += cast(wide.clone(), wide.iter().map(|x| nearest(*x)).collect::<Vec<_>>());
    cases += cast(single.clone(), half.clone());
    cases += cast(half.clone(), half.iter().map(|x| x.to_f32()).collect::<Vec<_>>());
    cases += cast(half.clone(), half.iter().map(|x| x.to_f64()).collect::<Vec<_>>());
    cases += cast(single.clone(), single.iter().map(|x| f64::from(*x)).collect::<Vec<_>>());
    assert_eq!(cases, 6 * wide.len());
    let mut ids = Buf::zeros(DType::U32, 1);
    let error = one().cast(ids.slice_mut(), Buf::zeros(DType::F32, 1).slice()).unwrap_err();
    assert!(matches!(error, KernelError::NotComputable { argument: "y", .. }));
}

#[test]
fn copies_of_columns_in_every_type() {
    fn copy<T: Element>(value: impl Fn(usize) -> T) {
        let x: Vec<T> = (0..5 * 7).map(&value).collect();
        let mut y: Vec<T> = (0..5 * 4).map(|_| value(0)).collect();
        let columns = MatRef::new(Slice::new(&x), 5, 7).columns(2..5).unwrap();
        let mut out = Buf::from_vec(std::mem::take(&mut y));
        let target = MatMut::new(out.slice_mut(), 5, 4).columns(1..4).unwrap();
        one().copy(target, columns).unwrap();
        let out = out.typed::<T>().unwrap();
        for row in 0..5 {
            assert_eq!(out[row * 4], value(0));
            assert_eq!(out[row * 4 + 1..][..3], x[row * 7 + 2..][..3]);
        }
    }
    copy(|i| i as f64);
    copy(|i| i as f32);
    copy(|i| bf16::from_f64(i as f64));
    copy(|i| half::f16::from_f64(i as f64));
    copy(|i| i as u64);
    copy(|i| i as u32);
    copy(|i| i as u8);
    let x = Buf::zeros(DType::F32, 6);
    let mut y = Buf::zeros(DType::F32, 6);
    let error = one().copy(MatMut::new(y.slice_mut(), 3, 2), MatRef::new(x.slice(), 2, 3));
    assert_eq!(error.unwrap_err().to_string(), "copy: `x` is [2, 3], it must be [3, 2]");
    assert!(MatRef::new(x.slice(), 2, 3).columns(2..4).is_err());
    assert!(MatRef::new(x.slice(), 2, 3).rows(1..3).is_err());
}

#[test]
fn bad_dropout_is_an_error() {
    let x = Buf::zeros(DType::F32, 6);
    let mut y = Buf::zeros(DType::F32, 6);
    let mut call = |probability, tokens| {
        let place = DropoutPlace { tokens, first_token: 0, first_feature: 0 };
        let dropout = Dropout { probability, ..DROPOUT };
        let view = MatMut::new(y.slice_mut(), 3, 2);
        one().dropout(dropout, place, view, MatRef::new(x.slice(), 3, 2))
    };
    call(0.0, 3).unwrap();
    assert!(call(1.0, 3).unwrap_err().to_string().contains("probability of 1"));
    assert!(call(f64::NAN, 3).is_err());
    assert!(call(0.5, 2).unwrap_err().to_string().contains("3 rows are not whole samples of 2"));
}
