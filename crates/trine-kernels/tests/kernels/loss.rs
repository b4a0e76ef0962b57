//! Cross-entropy over a whole vocabulary, and over its parts.

use crate::support::*;
use trine_buffer::{Buf, DType, Float, Slice};
use trine_kernels::{IGNORE, LossShape, MatMut, MatRef, Ops};

/// Loss and gradient of one rank that holds `cols` columns (padded) of the vocabulary.
struct Rank<'a> {
    shape: LossShape,
    rows: usize,
    cols: usize,
    blocks: usize,
    logits: &'a Buf,
}

impl Rank<'_> {
    fn view(&self) -> MatRef<'_> {
        MatRef::new(self.logits.slice(), self.rows, self.cols)
    }

    fn max(&self, ops: &dyn Ops, acc: DType) -> Buf {
        let mut max = Buf::zeros(acc, self.rows);
        ops.ce_max(self.shape, max.slice_mut(), self.view()).unwrap();
        max
    }

    fn sum(&self, ops: &dyn Ops, max: &Buf, targets: &[u32]) -> [Buf; 2] {
        let (mut sum, mut logit) =
            (Buf::zeros(max.dtype(), self.rows), Buf::zeros(max.dtype(), self.rows));
        ops.ce_sum(
            self.shape,
            self.blocks,
            sum.slice_mut(),
            logit.slice_mut(),
            self.view(),
            max.slice(),
            Slice::new(targets),
        )
        .unwrap();
        [sum, logit]
    }

    fn grad<T: Float>(&self, ops: &dyn Ops, max: &Buf, sum: &Buf, targets: &[u32]) -> Buf {
        let mut grad = Buf::from_vec(self.logits.typed::<T>().unwrap().to_vec());
        let view = MatMut::new(grad.slice_mut(), self.rows, self.cols);
        let targets = Slice::new(targets);
        ops.ce_grad(self.shape, view, max.slice(), sum.slice(), targets, SCALE).unwrap();
        grad
    }
}

const SCALE: f64 = 0.125;

fn targets(rows: usize, vocabulary: usize) -> Vec<u32> {
    let target = |r: usize| if r % 5 == 3 { IGNORE } else { (r * 7919 % vocabulary) as u32 };
    (0..rows).map(target).collect()
}

fn whole<T: Float>(ops: &dyn Ops, rank: &Rank<'_>, targets: &[u32]) -> Vec<Buf> {
    let acc = T::DTYPE.accumulator();
    let max = rank.max(ops, acc);
    let [sum, logit] = rank.sum(ops, &max, targets);
    let mut loss = Buf::zeros(acc, rank.rows);
    let (m, s, l) = (max.slice(), sum.slice(), logit.slice());
    ops.ce_loss(loss.slice_mut(), m, s, l, Slice::new(targets)).unwrap();
    let grad = rank.grad::<T>(ops, &max, &sum, targets);
    vec![loss, grad, max, sum, logit]
}

fn loss_and_gradient<T: Float>() {
    let mut cases = 0;
    for (rows, vocabulary, cols, blocks) in
        [(1, 1, 1, 1), (7, 13, 16, 8), (33, 1009, 1016, 8), (9, 259, 260, 4), (4, 90, 128, 8)]
    {
        let logits: Vec<T> =
            values::<f64>(1, rows * cols).iter().map(|x| T::from_f64(x * 6.0)).collect();
        let logits = Buf::from_vec(logits);
        let shape = LossShape { valid_cols: vocabulary, first_col: 0, softcap: None };
        let rank = Rank { shape, rows, cols, blocks, logits: &logits };
        let targets = targets(rows, vocabulary);
        let results = everywhere(None, |ops| whole::<T>(ops, &rank, &targets));
        let wide = logits.to_f64_vec().unwrap();
        let (mut loss, mut grad) = (Vec::new(), Vec::new());
        for (row, &target) in targets.iter().enumerate() {
            let logits = &wide[row * cols..][..vocabulary];
            let total: f64 = logits.iter().map(|x| x.exp()).sum();
            let counts = target != IGNORE;
            loss.push(if counts { total.ln() - logits[target as usize] } else { 0.0 });
            for col in 0..cols {
                let softmax = logits.get(col).map_or(0.0, |x| x.exp() / total);
                let onehot = f64::from(u8::from(col as u32 == target));
                grad.push(if counts { (softmax - onehot) * SCALE } else { 0.0 });
            }
        }
        let acc = T::DTYPE.accumulator().epsilon();
        close(&results[0][0], &loss, 32.0 * acc, "loss");
        close(&results[0][1], &grad, T::DTYPE.epsilon().max(8.0 * acc), "gradient");
        cases += 1;
    }
    assert_eq!(cases, 5);
}

/// Two and four ranks with their parts of the vocabulary, combined as the collectives would, have
/// the bits of one rank: 8 blocks in all, ranks adding in a tree.
fn parts_have_the_bits_of_the_whole<T: Float>() {
    let (rows, vocabulary, padded) = (6, 1009, 1024);
    let ops = one();
    let logits = buf::<T>(1, rows * padded);
    let targets = targets(rows, vocabulary);
    let shape = LossShape { valid_cols: vocabulary, first_col: 0, softcap: None };
    let serial = Rank { shape, rows, cols: padded, blocks: 8, logits: &logits };
    let expected = whole::<T>(&ops, &serial, &targets);
    let mut cases = 0;
    for ranks in [2, 4, 8] {
        let cols = padded / ranks;
        let parts: Vec<Buf> = (0..ranks)
            .map(|rank| {
                let row =
                    |r: usize| &logits.typed::<T>().unwrap()[r * padded + rank * cols..][..cols];
                Buf::from_vec((0..rows).flat_map(|r| row(r).to_vec()).collect::<Vec<T>>())
            })
            .collect();
        let rank = |i: usize| {
            let valid_cols = cols.min(vocabulary.saturating_sub(i * cols));
            let shape = LossShape { valid_cols, first_col: i * cols, softcap: None };
            Rank { shape, rows, cols, blocks: 8 / ranks, logits: &parts[i] }
        };
        let acc = T::DTYPE.accumulator();
        let mut max = rank(0).max(&ops, acc).to_f64_vec().unwrap();
        for i in 1..ranks {
            let other = rank(i).max(&ops, acc).to_f64_vec().unwrap();
            max.iter_mut().zip(other).for_each(|(m, o)| *m = m.max(o));
        }
        let narrow = |x: &[f64]| {
            let mut narrow = Buf::zeros(acc, x.len());
            ops.cast(narrow.slice_mut(), Slice::new(x)).unwrap();
            narrow
        };
        let max = narrow(&max);
        let sums: Vec<[Buf; 2]> = (0..ranks).map(|i| rank(i).sum(&ops, &max, &targets)).collect();
        let tree = |which: usize| {
            let mut level: Vec<Buf> =
                sums.iter().map(|s| narrow(&s[which].to_f64_vec().unwrap())).collect();
            while level.len() > 1 {
                let add = |pair: &[Buf]| {
                    let mut sum = Buf::zeros(acc, rows);
                    ops.add(sum.slice_mut(), pair[0].slice(), pair[1].slice()).unwrap();
                    sum
                };
                level = level.chunks(2).map(add).collect();
            }
            level.remove(0)
        };
        let (sum, logit) = (tree(0), tree(1));
        same_bits(&max.to_f64_vec().unwrap(), &expected[2].to_f64_vec().unwrap(), "max");
        same_bits(&sum.to_f64_vec().unwrap(), &expected[3].to_f64_vec().unwrap(), "sum");
        same_bits(&logit.to_f64_vec().unwrap(), &expected[4].to_f64_vec().unwrap(), "target logit");
        let whole = expected[1].to_f64_vec().unwrap();
        for i in 0..ranks {
            let grad = rank(i).grad::<T>(&ops, &max, &sum, &targets).to_f64_vec().unwrap();
            for row in 0..rows {
                let whole = &whole[row * padded + i * cols..][..cols];
                same_bits(&grad[row * cols..][..cols], whole, "gradient");
            }
        }
        cases += 1;
    }
    assert_eq!(cases, 3);
}

mod all {
    use crate::support::for_types;
    for_types! {
        loss_and_gradient;
        parts_have_the_bits_of_the_whole;
        bounded_logits_and_their_gradient;
    }
}

#[test]
fn the_gradient_is_that_of_differences() {
    let (rows, cols) = (5, 24);
    let ops = one();
    let logits: Vec<f64> = values::<f64>(1, rows * cols).iter().map(|x| 3.0 * x).collect();
    let targets = targets(rows, 21);
    let mut cases = 0;
    for softcap in [None, Some(2.5)] {
        let run = |logits: &[f64]| {
            let mut logits = Buf::from_vec(logits.to_vec());
            if let Some(cap) = softcap {
                ops.softcap(logits.slice_mut(), cap).unwrap();
            }
            let shape = LossShape { valid_cols: 21, first_col: 0, softcap };
            whole::<f64>(&ops, &Rank { shape, rows, cols, blocks: 8, logits: &logits }, &targets)
        };
        let gradient = run(&logits)[1].to_f64_vec().unwrap();
        check_gradient("logits", &logits, &gradient, 1, |x| {
            SCALE * run(x)[0].to_f64_vec().unwrap().iter().sum::<f64>()
        });
        cases += 1;
    }
    assert_eq!(cases, 2);
}

fn bounded_logits_and_their_gradient<T: Float>() {
    let (rows, vocabulary, cols, cap) = (7, 1009, 1016, 2.5);
    let raw: Vec<T> = values::<f64>(3, rows * cols).iter().map(|x| T::from_f64(4.0 * x)).collect();
    let targets = targets(rows, vocabulary);
    let results = everywhere(None, |ops| {
        let mut logits = Buf::from_vec(raw.clone());
        ops.softcap(logits.slice_mut(), cap).unwrap();
        let shape = LossShape { valid_cols: vocabulary, first_col: 0, softcap: Some(cap) };
        let rank = Rank { shape, rows, cols, blocks: 8, logits: &logits };
        let [loss, grad, ..] = &whole::<T>(ops, &rank, &targets)[..] else {
            panic!("five results")
        };
        vec![copy_of::<T>(&logits), copy_of::<T>(grad), Buf::from_vec(loss.to_f64_vec().unwrap())]
    });
    let capped: Vec<f64> = raw.iter().map(|x| cap * (x.to_f64() / cap).tanh()).collect();
    close(&results[0][0], &capped, 2.0 * T::DTYPE.epsilon(), "softcap");
    // The gradient is that of the rounded logits, which the kernel is given.
    let given = &results[0][0];
    let mut grad = Vec::new();
    for (row, &target) in targets.iter().enumerate() {
        let logits = &given[row * cols..][..vocabulary];
        let total: f64 = logits.iter().map(|x| x.exp()).sum();
        for col in 0..cols {
            let softmax = logits.get(col).map_or(0.0, |x| x.exp() / total);
            let onehot = f64::from(u8::from(col as u32 == target));
            let slope = logits.get(col).map_or(0.0, |x| 1.0 - (x / cap) * (x / cap));
            grad.push(if target == IGNORE { 0.0 } else { (softmax - onehot) * SCALE * slope });
        }
    }
    let acc = T::DTYPE.accumulator().epsilon();
    close(&results[0][1], &grad, T::DTYPE.epsilon().max(8.0 * acc), "gradient");
}

fn copy_of<T: Float>(buf: &Buf) -> Buf {
    Buf::from_vec(buf.typed::<T>().unwrap().to_vec())
}

#[test]
fn a_bound_that_is_none_is_an_error() {
    let mut logits = Buf::zeros(DType::F32, 4);
    let error = one().softcap(logits.slice_mut(), 0.0).unwrap_err().to_string();
    assert_eq!(error, "softcap: values capped at 0, it must be a positive number");
    let (max, sum) = (Buf::zeros(DType::F32, 1), Buf::zeros(DType::F32, 1));
    let shape = LossShape { valid_cols: 4, first_col: 0, softcap: Some(f64::NAN) };
    let view = MatMut::new(logits.slice_mut(), 1, 4);
    let error = one().ce_grad(shape, view, max.slice(), sum.slice(), Slice::new(&[0u32]), 1.0);
    let error = error.unwrap_err().to_string();
    assert_eq!(error, "ce_grad: logits capped at NaN, it must be a positive number");
}

#[test]
fn large_logits_do_not_overflow() {
    let logits = Buf::from_vec(vec![3e4f32, 2.9e4, -3e4, 3e4]);
    let shape = LossShape { valid_cols: 4, first_col: 0, softcap: None };
    let rank = Rank { shape, rows: 1, cols: 4, blocks: 2, logits: &logits };
    let result = whole::<f32>(&one(), &rank, &[0]);
    close(&result[0].to_f64_vec().unwrap(), &[2f64.ln()], 1e-6, "loss");
    close(&result[1].to_f64_vec().unwrap(), &[-0.0625, 0.0, 0.0, 0.0625], 1e-6, "gradient");
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let logits = Buf::zeros(DType::F32, 12);
    let mut max = Buf::zeros(DType::F32, 3);
    let view = MatRef::new(logits.slice(), 3, 4);
    let shape = LossShape { valid_cols: 5, first_col: 0, softcap: None };
    let error = one().ce_max(shape, max.slice_mut(), view).unwrap_err().to_string();
    assert_eq!(error, "ce_max: 5 valid columns of 4");
    let shape = LossShape { valid_cols: 4, first_col: 0, softcap: None };
    let (mut sum, mut logit) = (Buf::zeros(DType::F32, 3), Buf::zeros(DType::F32, 3));
    let mut call = |blocks, targets: &[u32]| {
        let (sum, logit) = (sum.slice_mut(), logit.slice_mut());
        let error = one().ce_sum(shape, blocks, sum, logit, view, max.slice(), Slice::new(targets));
        error.map_err(|e| e.to_string())
    };
    call(4, &[0, 1, 2]).unwrap();
    assert_eq!(
        call(3, &[0, 1, 2]).unwrap_err(),
        "ce_sum: 4 columns do not split into 3 blocks (1 to 64)"
    );
    assert!(call(4, &[0, 1]).unwrap_err().contains("`targets` has 2 elements"));
}
