//! Attention over parts of sequences, within windows and documents, with bounded scores, against a
//! serial reference; parts put together.

use crate::support::*;
use std::ops::Range;
use trine_buffer::{Buf, DType, Float, Slice};
use trine_kernels::{AttentionDropout, AttentionShape, Dropout, MatMut, MatRef, Ops, Qkv, QkvMut};
use trine_rng::Stream;

/// Sizes and options of a call.
#[derive(Debug, Clone)]
struct Case {
    shape: AttentionShape,
    documents: bool,
    dropout: bool,
}

const WHOLE: AttentionShape = AttentionShape {
    samples: 1,
    queries: 1,
    keys: 1,
    query_start: 0,
    key_start: 0,
    window: None,
    heads: 1,
    kv_heads: 1,
    head_dim: 8,
    scale: 0.5,
    softcap: None,
};

const DROPOUT: AttentionDropout = AttentionDropout {
    dropout: Dropout { probability: 0.3, key: 0x1234_5678_9abc, step: 5, first_sample: 3 },
    first_head: 2,
};

/// Queries, keys, values and the gradient of the outputs.
struct Inputs {
    q: Buf,
    k: Buf,
    v: Buf,
    d_o: Buf,
}

/// Output, lse, and the gradients of queries, keys and values.
type Results<T> = [T; 5];
const NAMES: Results<&str> = ["o", "lse", "dq", "dk", "dv"];

impl Case {
    fn q_cols(&self) -> usize {
        self.shape.heads * self.shape.head_dim
    }

    fn kv_cols(&self) -> usize {
        self.shape.kv_heads * self.shape.head_dim
    }

    /// Rows of queries and of keys.
    fn rows(&self) -> (usize, usize) {
        (self.shape.samples * self.shape.queries, self.shape.samples * self.shape.keys)
    }

    fn inputs<T: Float>(&self) -> Inputs {
        let (q_rows, kv_rows) = self.rows();
        let (q, kv) = (q_rows * self.q_cols(), kv_rows * self.kv_cols());
        Inputs { q: buf::<T>(1, q), k: buf::<T>(2, kv), v: buf::<T>(3, kv), d_o: buf::<T>(4, q) }
    }

    /// Documents of 23 positions, in odd samples of 9.
    fn starts(&self) -> Option<Vec<u32>> {
        let AttentionShape { samples, queries, query_start, .. } = self.shape;
        let start = |row: usize| {
            let (position, long) = (query_start + row % queries, [23, 9][row / queries % 2]);
            (position / long * long) as u32
        };
        self.documents.then(|| (0..samples * queries).map(start).collect())
    }

    fn dropout(&self) -> Option<AttentionDropout> {
        self.dropout.then_some(DROPOUT)
    }

    fn factor(&self, sample: usize, head: usize, query: usize, key: usize) -> f64 {
        let Some(AttentionDropout { dropout, first_head }) = self.dropout() else { return 1.0 };
        let element =
            (first_head + head) as u64 * (1 << 48) + query as u64 * (1 << 24) + key as u64;
        let sample = dropout.first_sample + sample as u32;
        let word = Stream::from_key(dropout.key).keep(dropout.step, sample, element);
        let dropped = f64::from(word) < (dropout.probability * 2f64.powi(32)).round();
        if dropped { 0.0 } else { 1.0 / (1.0 - dropout.probability) }
    }

    /// The keys that a query row sees.
    fn seen(&self, starts: Option<&[u32]>, row: usize) -> Vec<usize> {
        let AttentionShape { queries, keys, query_start, key_start, window, .. } = self.shape;
        let own = query_start + row % queries;
        let start = starts.map_or(0, |starts| starts[row] as usize);
        let sees = |key: &usize| {
            let position = key_start + key;
            let near = window.is_none_or(|window| own.saturating_sub(position) < window);
            position <= own && position >= start && near
        };
        (0..keys).filter(sees).collect()
    }

    /// The textbook, one row after the other, with its gradients written out.
    fn reference(&self, inputs: &Inputs) -> Results<Vec<f64>> {
        let AttentionShape { samples, queries, keys, heads, kv_heads, head_dim, .. } = self.shape;
        let (q_cols, kv_cols, (q_rows, kv_rows)) = (self.q_cols(), self.kv_cols(), self.rows());
        let [q, k, v, d_o] =
            [&inputs.q, &inputs.k, &inputs.v, &inputs.d_o].map(|buf| buf.to_f64_vec().unwrap());
        let starts = self.starts();
        let (mut o, mut lse) = (vec![0.0; q.len()], vec![f64::NEG_INFINITY; q_rows * heads]);
        let (mut dq, mut dk, mut dv) =
            (vec![0.0; q.len()], vec![0.0; kv_rows * kv_cols], vec![0.0; kv_rows * kv_cols]);
        for (sample, query, head) in (0..samples)
            .flat_map(|s| (0..queries).flat_map(move |q| (0..heads).map(move |h| (s, q, h))))
        {
            let row = sample * queries + query;
            let seen = self.seen(starts.as_deref(), row);
            if seen.is_empty() {
                continue;
            }
            let own = row * q_cols + head * head_dim..row * q_cols + (head + 1) * head_dim;
            let kv = |key: usize| {
                let first = (sample * keys + key) * kv_cols + head / (heads / kv_heads) * head_dim;
                first..first + head_dim
            };
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            let add = |sum: &mut [f64], factor: f64, x: &[f64]| {
                sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += factor * x);
            };
            // Scores and their derivatives by the product of query and key.
            let score = |key: &usize| {
                let score = dot(&q[own.clone()], &k[kv(*key)]) * self.shape.scale;
                let Some(cap) = self.shape.softcap else { return (score, self.shape.scale) };
                let t = (score / cap).tanh();
                (cap * t, (1.0 - t * t) * self.shape.scale)
            };
            let scores: Vec<(f64, f64)> = seen.iter().map(score).collect();
            let max = scores.iter().map(|s| s.0).fold(f64::NEG_INFINITY, f64::max);
            let sum = max + scores.iter().map(|s| (s.0 - max).exp()).sum::<f64>().ln();
            lse[(sample * heads + head) * queries + query] = sum;
            let (at, from) = (self.shape.query_start + query, self.shape.key_start);
            let factor = |key: usize| self.factor(sample, head, at, from + key);
            for (key, (score, _)) in seen.iter().zip(&scores) {
                add(&mut o[own.clone()], (score - sum).exp() * factor(*key), &v[kv(*key)]);
            }
            let delta = dot(&d_o[own.clone()], &o[own.clone()]);
            for (key, (score, slope)) in seen.iter().zip(&scores) {
                let (p, factor) = ((score - sum).exp(), factor(*key));
                let dp = dot(&d_o[own.clone()], &v[kv(*key)]) * factor;
                let ds = p * (dp - delta) * slope;
                add(&mut dq[own.clone()], ds, &k[kv(*key)]);
                add(&mut dk[kv(*key)], ds, &q[own.clone()]);
                add(&mut dv[kv(*key)], p * factor, &d_o[own.clone()]);
            }
        }
        [o, lse, dq, dk, dv]
    }

    fn views<'a>(&self, inputs: &'a Inputs) -> Qkv<'a> {
        let (q_rows, kv_rows) = self.rows();
        Qkv {
            q: MatRef::new(inputs.q.slice(), q_rows, self.q_cols()),
            k: MatRef::new(inputs.k.slice(), kv_rows, self.kv_cols()),
            v: MatRef::new(inputs.v.slice(), kv_rows, self.kv_cols()),
        }
    }

    /// Output and lse.
    fn forward<T: Float>(&self, ops: &dyn Ops, inputs: &Inputs) -> (Buf, Buf) {
        let (rows, cols) = (self.rows().0, self.q_cols());
        let (mut o, mut lse) = (buf::<T>(5, rows * cols), stats::<T>(rows * self.shape.heads));
        let o_view = MatMut::new(o.slice_mut(), rows, cols);
        let (starts, qkv) = (self.starts(), self.views(inputs));
        let starts = starts.as_deref().map(Slice::new);
        ops.attention(self.shape, o_view, lse.slice_mut(), qkv, starts, self.dropout()).unwrap();
        (o, lse)
    }

    /// The gradients of queries, keys and values, with `o` and `lse` of whole rows.
    fn backward<T: Float>(&self, ops: &dyn Ops, inputs: &Inputs, o: &Buf, lse: &Buf) -> [Buf; 3] {
        let ((q_rows, kv_rows), q_cols, kv_cols) = (self.rows(), self.q_cols(), self.kv_cols());
        // What they hold before does not matter.
        let mut dq = buf::<T>(6, q_rows * q_cols);
        let [mut dk, mut dv] = [7, 8].map(|seed| buf::<T>(seed, kv_rows * kv_cols));
        let d = QkvMut::Separate {
            q: MatMut::new(dq.slice_mut(), q_rows, q_cols),
            k: MatMut::new(dk.slice_mut(), kv_rows, kv_cols),
            v: MatMut::new(dv.slice_mut(), kv_rows, kv_cols),
        };
        let [d_o, o] = [&inputs.d_o, o].map(|x| MatRef::new(x.slice(), q_rows, q_cols));
        let (starts, qkv) = (self.starts(), self.views(inputs));
        let starts = starts.as_deref().map(Slice::new);
        ops.attention_backward(self.shape, d, d_o, o, lse.slice(), qkv, starts, self.dropout())
            .unwrap();
        [dq, dk, dv]
    }

    fn run<T: Float>(&self, ops: &dyn Ops, inputs: &Inputs) -> Results<Buf> {
        let (o, lse) = self.forward::<T>(ops, inputs);
        let [dq, dk, dv] = self.backward::<T>(ops, inputs, &o, &lse);
        [o, lse, dq, dk, dv]
    }

    /// Some of the queries, and some of the keys, with their rows. Of one sample.
    fn part<T: Float>(
        &self,
        inputs: &Inputs,
        queries: Range<usize>,
        keys: Range<usize>,
    ) -> (Self, Inputs) {
        let shape = AttentionShape {
            queries: queries.len(),
            keys: keys.len(),
            query_start: self.shape.query_start + queries.start,
            key_start: self.shape.key_start + keys.start,
            ..self.shape
        };
        let cut = |x: &Buf, rows: &Range<usize>, cols: usize| {
            Buf::from_vec(x.typed::<T>().unwrap()[rows.start * cols..rows.end * cols].to_vec())
        };
        let inputs = Inputs {
            q: cut(&inputs.q, &queries, self.q_cols()),
            k: cut(&inputs.k, &keys, self.kv_cols()),
            v: cut(&inputs.v, &keys, self.kv_cols()),
            d_o: cut(&inputs.d_o, &queries, self.q_cols()),
        };
        (Self { shape, ..self.clone() }, inputs)
    }
}

/// Statistics, which have the type of sums.
fn stats<T: Float>(len: usize) -> Buf {
    let mut stats = Buf::zeros(T::DTYPE.accumulator(), len);
    one().cast(stats.slice_mut(), buf::<f64>(9, len).slice()).unwrap();
    stats
}

/// As [`close`], but infinities must be the same ones.
fn close_or_infinite(actual: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    let finite = |(a, e): (&f64, &f64)| if e.is_infinite() && a == e { 0.0 } else { *a };
    let actual: Vec<f64> = actual.iter().zip(expected).map(finite).collect();
    let expected: Vec<f64> =
        expected.iter().map(|e| if e.is_infinite() { 0.0 } else { *e }).collect();
    close(&actual, &expected, tolerance, what);
}

/// Sizes and places: whole sequences, one query, rows that see nothing, keys that nobody sees, keys
/// across several blocks that begin inside one, no keys, no queries.
fn places() -> Vec<AttentionShape> {
    let place = |[queries, query_start]: [usize; 2], [keys, key_start]: [usize; 2]| {
        AttentionShape { queries, query_start, keys, key_start, ..WHOLE }
    };
    vec![
        place([1, 0], [1, 0]),
        AttentionShape { heads: 2, ..place([1, 299], [300, 0]) },
        AttentionShape { samples: 2, heads: 4, kv_heads: 2, ..place([70, 0], [70, 0]) },
        AttentionShape { heads: 3, head_dim: 20, ..place([65, 330], [130, 200]) },
        AttentionShape { samples: 2, heads: 2, ..place([40, 20], [50, 45]) },
        AttentionShape { heads: 2, kv_heads: 2, head_dim: 16, ..place([33, 500], [40, 100]) },
        AttentionShape { heads: 2, head_dim: 5, ..place([129, 384], [290, 250]) },
        place([10, 5], [20, 40]),
        place([20, 5], [0, 5]),
        place([0, 5], [20, 5]),
    ]
}

const WINDOWS: [Option<usize>; 5] = [None, Some(1), Some(37), Some(400), Some(usize::MAX)];
/// Below most of the scores.
const SOFTCAPS: [Option<f64>; 2] = [None, Some(0.3)];
const BOTH: [bool; 2] = [false, true];

/// Every combination of place and options.
fn every_case() -> Vec<Case> {
    let mut cases = Vec::new();
    for place in places() {
        for window in WINDOWS {
            for softcap in SOFTCAPS {
                for (documents, dropout) in BOTH.into_iter().flat_map(|d| BOTH.map(|p| (d, p))) {
                    let shape = AttentionShape { window, softcap, ..place };
                    cases.push(Case { shape, documents, dropout });
                }
            }
        }
    }
    cases
}

/// Machine epsilons between the kernel and the reference: probabilities, outputs and the gradients of
/// scores are rounded once each, sums of up to 290 of them average that out.
const ROUNDINGS: f64 = 8.0;

fn every_combination_is_the_reference<T: Float>() {
    let (mut compared, mut unseen) = (0, 0);
    for (index, case) in every_case().iter().enumerate() {
        let inputs = case.inputs::<T>();
        let expected = case.reference(&inputs);
        // Instruction sets take turns: emulated multiply-adds are slow.
        let results = if index % 7 == 0 {
            everywhere(Some(T::DTYPE), |ops| case.run::<T>(ops, &inputs).into())
        } else {
            vec![
                case.run::<T>(&one(), &inputs)
                    .iter()
                    .map(|buf| buf.to_f64_vec().unwrap())
                    .collect(),
            ]
        };
        for result in results {
            for ((name, actual), expected) in NAMES.iter().zip(&result).zip(&expected) {
                let what = format!("{name} of {case:?}");
                close_or_infinite(actual, expected, ROUNDINGS * T::DTYPE.epsilon(), &what);
                compared += 1;
            }
            unseen += nothing_seen_is_exact(case, &result);
        }
    }
    assert!(compared >= 5 * 400, "{compared}");
    assert!(unseen > 1000, "{unseen}");
}

/// What has no pair of query and key is 0, not nearly 0. Counts such rows.
fn nothing_seen_is_exact(case: &Case, result: &[Vec<f64>]) -> usize {
    let (starts, (q_rows, kv_rows)) = (case.starts(), case.rows());
    let seen: Vec<_> = (0..q_rows).map(|row| case.seen(starts.as_deref(), row)).collect();
    let zeros = |x: &[f64], row: usize, cols: usize| {
        assert!(x[row * cols..(row + 1) * cols].iter().all(|x| *x == 0.0), "{row} of {case:?}");
    };
    let blind: Vec<usize> = (0..q_rows).filter(|row| seen[*row].is_empty()).collect();
    for row in &blind {
        zeros(&result[0], *row, case.q_cols());
        zeros(&result[2], *row, case.q_cols());
    }
    let AttentionShape { queries, keys, .. } = case.shape;
    let hidden = |row: &usize| {
        let sample = row / keys;
        !(sample * queries..(sample + 1) * queries).any(|query| seen[query].contains(&(row % keys)))
    };
    let hidden: Vec<usize> = (0..kv_rows).filter(hidden).collect();
    for row in &hidden {
        zeros(&result[3], *row, case.kv_cols());
        zeros(&result[4], *row, case.kv_cols());
    }
    blind.len() + hidden.len()
}

/// Whoever ignores an option, forward or backward, is farther off than the tolerance of f32.
#[test]
fn every_option_changes_the_output_and_every_gradient() {
    let shape = AttentionShape {
        queries: 60,
        query_start: 130,
        keys: 90,
        key_start: 100,
        window: Some(37),
        heads: 2,
        softcap: Some(0.3),
        ..WHOLE
    };
    let all = Case { shape, documents: true, dropout: true };
    let with = |change: &dyn Fn(&mut Case)| {
        let mut case = all.clone();
        change(&mut case);
        case
    };
    let changes = [
        with(&|case| case.shape.query_start += 1),
        with(&|case| case.shape.key_start += 1),
        with(&|case| (case.shape.query_start, case.shape.key_start) = (30, 0)),
        with(&|case| case.documents = false),
        with(&|case| case.dropout = false),
        with(&|case| case.shape.softcap = None),
        // Documents of 23 hide what a window of 37 hides.
        with(&|case| case.shape.window = Some(12)),
    ];
    let inputs = all.inputs::<f64>();
    let expected = all.reference(&inputs);
    for change in changes {
        for (which, (other, expected)) in
            change.reference(&inputs).iter().zip(&expected).enumerate()
        {
            let apart = |(a, b): (&f64, &f64)| (a - b).abs() > 1e-2 * (1.0 + b.abs());
            // The sum of exponentials is before dropout.
            let unchanged = NAMES[which] == "lse" && !change.dropout;
            let differs = other.iter().zip(expected).any(apart);
            assert_eq!(differs, !unchanged, "{} of {change:?}", NAMES[which]);
        }
    }
}

#[test]
fn gradients_with_every_option_are_those_of_differences() {
    let shape = AttentionShape {
        queries: 9,
        query_start: 258,
        keys: 14,
        key_start: 250,
        window: Some(6),
        heads: 4,
        kv_heads: 2,
        head_dim: 3,
        softcap: Some(0.3),
        ..WHOLE
    };
    let mut checked = 0;
    for (documents, dropout) in [(false, false), (true, true)] {
        let case = Case { shape, documents, dropout };
        let inputs = case.inputs::<f64>();
        let (ops, weights) = (one(), inputs.d_o.to_f64_vec().unwrap());
        let [_, _, dq, dk, dv] = case.run::<f64>(&ops, &inputs);
        let of = [(&inputs.q, dq), (&inputs.k, dk), (&inputs.v, dv)];
        for (which, (x, gradient)) in of.into_iter().enumerate() {
            let loss = |moved: &[f64]| {
                let mut all = case.inputs::<f64>();
                let place = [&mut all.q, &mut all.k, &mut all.v].into_iter().nth(which).unwrap();
                *place = Buf::from_vec(moved.to_vec());
                weigh(&case.forward::<f64>(&ops, &all).0.to_f64_vec().unwrap(), &weights)
            };
            let gradient = gradient.to_f64_vec().unwrap();
            check_gradient(
                &format!("{which} of {case:?}"),
                &x.to_f64_vec().unwrap(),
                &gradient,
                1,
                loss,
            );
            checked += 1;
        }
    }
    assert_eq!(checked, 6);
}

/// Merges the results over parts of the keys, which `bounds` separate, from the one of nothing on.
/// Sums are kept in `kept`.
fn merged<T: Float>(
    ops: &dyn Ops,
    case: &Case,
    inputs: &Inputs,
    bounds: &[usize],
    kept: DType,
) -> (Buf, Buf) {
    let AttentionShape { queries, heads, .. } = case.shape;
    let mut o = Buf::zeros(kept, queries * case.q_cols());
    let mut lse = Buf::zeros(T::DTYPE.accumulator(), queries * heads);
    let nothing = vec![f64::NEG_INFINITY; queries * heads];
    ops.cast(lse.slice_mut(), Slice::new(&nothing)).unwrap();
    for keys in bounds.windows(2) {
        let (part, inputs) = case.part::<T>(inputs, 0..queries, keys[0]..keys[1]);
        let (part_o, part_lse) = part.forward::<T>(ops, &inputs);
        merge(ops, case, (&mut o, &mut lse), (&part_o, &part_lse));
    }
    let mut rounded = Buf::zeros(T::DTYPE, o.len());
    ops.cast(rounded.slice_mut(), o.slice()).unwrap();
    (rounded, lse)
}

fn merge(ops: &dyn Ops, case: &Case, (o, lse): (&mut Buf, &mut Buf), part: (&Buf, &Buf)) {
    let (rows, cols) = (case.rows().0, case.q_cols());
    let o = MatMut::new(o.slice_mut(), rows, cols);
    let part_o = MatRef::new(part.0.slice(), rows, cols);
    ops.attention_merge(case.shape, o, lse.slice_mut(), part_o, part.1.slice()).unwrap();
}

/// Sequences that are split over ranks, from position 100 on.
fn split_cases() -> Vec<Case> {
    let (queries, keys) = (300, 300);
    let shape = AttentionShape {
        queries,
        keys,
        query_start: 100,
        key_start: 100,
        heads: 4,
        kv_heads: 2,
        ..WHOLE
    };
    let case = |window, softcap, documents, dropout| Case {
        shape: AttentionShape { window, softcap, ..shape },
        documents,
        dropout,
    };
    vec![
        case(None, None, false, false),
        case(Some(37), None, true, false),
        case(None, Some(0.3), false, true),
        case(Some(150), Some(0.3), true, true),
    ]
}

/// As ring attention has it (arXiv 2310.01889): each part of the queries meets each part of the keys,
/// and each pair gives its share of the gradients.
fn put_together<T: Float>() {
    let mut compared = 0;
    let splits: [&[usize]; 6] = [
        &[0, 300],
        &[0, 1, 300],
        &[0, 100, 100, 300],
        &[0, 156, 300],
        &[0, 100, 200, 300],
        &[0, 0, 299, 300],
    ];
    for (case, bounds) in split_cases().iter().flat_map(|c| splits.map(|bounds| (c, bounds))) {
        let (ops, inputs) = (one(), case.inputs::<T>());
        let expected = case.reference(&inputs);
        let AttentionShape { queries, heads, .. } = case.shape;
        let (q_cols, kv_cols) = (case.q_cols(), case.kv_cols());
        let kept = [T::DTYPE, T::DTYPE.accumulator()][compared % 2];
        let mut result = expected.each_ref().map(|x| vec![0.0; x.len()]);
        let add = |sum: &mut [f64], first: usize, share: &Buf| {
            let share = share.to_f64_vec().unwrap();
            sum[first..][..share.len()].iter_mut().zip(share).for_each(|(sum, x)| *sum += x);
        };
        for rows in bounds.windows(2).map(|rows| rows[0]..rows[1]) {
            let (own, own_inputs) = case.part::<T>(&inputs, rows.clone(), 0..queries);
            let (o, lse) = merged::<T>(&ops, &own, &own_inputs, bounds, kept);
            add(&mut result[0], rows.start * q_cols, &o);
            for (head, lse) in lse.to_f64_vec().unwrap().chunks(rows.len().max(1)).enumerate() {
                result[1][head * queries + rows.start..][..lse.len()].copy_from_slice(lse);
            }
            assert!(rows.is_empty() || lse.len() == heads * rows.len());
            for keys in bounds.windows(2).map(|keys| keys[0]..keys[1]) {
                let (part, inputs) = own.part::<T>(&own_inputs, 0..rows.len(), keys.clone());
                let [dq, dk, dv] = part.backward::<T>(&ops, &inputs, &o, &lse);
                add(&mut result[2], rows.start * q_cols, &dq);
                add(&mut result[3], keys.start * kv_cols, &dk);
                add(&mut result[4], keys.start * kv_cols, &dv);
            }
        }
        // Each part is as far off as a whole call, and each merge rounds its result again.
        let tolerance = (ROUNDINGS + bounds.len() as f64) * T::DTYPE.epsilon();
        for ((name, actual), expected) in NAMES.iter().zip(&result).zip(&expected) {
            close(actual, expected, tolerance, &format!("{name} of {bounds:?} of {case:?}"));
        }
        compared += 1;
    }
    assert_eq!(compared, 24);
}

fn merged_either_way<T: Float>() {
    let case = &split_cases()[1];
    let (inputs, rows) = (case.inputs::<T>(), case.rows().0 * case.shape.heads);
    let over = |keys| {
        let (part, inputs) = case.part::<T>(&inputs, 0..case.shape.queries, keys);
        part.forward::<T>(&one(), &inputs)
    };
    let copy = |x: &Buf| {
        let mut copy = Buf::zeros(x.dtype(), x.len());
        one().cast(copy.slice_mut(), x.slice()).unwrap();
        copy
    };
    let (left, right) = (over(0..120), over(120..300));
    let both = |ops: &dyn Ops, a: &(Buf, Buf), b: &(Buf, Buf)| {
        let (mut o, mut lse) = (copy(&a.0), copy(&a.1));
        merge(ops, case, (&mut o, &mut lse), (&b.0, &b.1));
        vec![o, lse]
    };
    let one_way = everywhere(None, |ops| both(ops, &left, &right)).remove(0);
    let other_way = both(&one(), &right, &left);
    for (one, other) in one_way.iter().zip(&other_way) {
        same_bits(one, &other.to_f64_vec().unwrap(), "either way");
    }
    // Some rows of both parts are those of nothing already.
    let minus_infinity = f64::NEG_INFINITY;
    let blind =
        |x: &(Buf, Buf)| x.1.to_f64_vec().unwrap().iter().filter(|x| **x == minus_infinity).count();
    assert!(blind(&left) > 0 && blind(&right) > 0);
    let mut lse = stats::<T>(rows);
    one().cast(lse.slice_mut(), Slice::new(&vec![minus_infinity; rows])).unwrap();
    let nothing = (Buf::zeros(T::DTYPE, left.0.len()), lse);
    for (a, b, expected) in
        [(&nothing, &left, &left), (&right, &nothing, &right), (&nothing, &nothing, &nothing)]
    {
        let result = both(&one(), a, b);
        same_bits(&result[0].to_f64_vec().unwrap(), &expected.0.to_f64_vec().unwrap(), "o");
        same_bits(&result[1].to_f64_vec().unwrap(), &expected.1.to_f64_vec().unwrap(), "lse");
    }
}

/// A call that has every key that its rows see gives the bits of a call that has all keys. Some of the
/// rows see keys of two blocks.
fn bits_of_the_whole<T: Float>() {
    let shape = AttentionShape { queries: 600, keys: 600, window: Some(40), ..WHOLE };
    let softcap = Some(0.3);
    let mut compared = 0;
    for (shape, dropout) in [(shape, false), (AttentionShape { softcap, ..shape }, true)] {
        let case = Case { shape, documents: false, dropout };
        let inputs = case.inputs::<T>();
        // Chains of multiply-adds may begin at any key, groups of them at multiples of 32.
        let chains = T::DTYPE != DType::Bf16;
        let any_start = chains.then(|| (of_chains(1), 451..560));
        for (ops, keys) in [(one(), 448..560), (one(), 256..600)].into_iter().chain(any_start) {
            let whole = case.run::<T>(&ops, &inputs).map(|x| x.to_f64_vec().unwrap());
            let (part, part_inputs) = case.part::<T>(&inputs, 490..560, keys.clone());
            let result = part.run::<T>(&ops, &part_inputs).map(|x| x.to_f64_vec().unwrap());
            let rows = 490 * case.q_cols()..560 * case.q_cols();
            same_bits(&result[0], &whole[0][rows.clone()], &format!("o of {keys:?}"));
            same_bits(&result[1], &whole[1][490..560], &format!("lse of {keys:?}"));
            same_bits(&result[2], &whole[2][rows], &format!("dq of {keys:?}"));
            compared += 1;
        }
    }
    assert!(compared >= 4);
}

#[test]
fn parts_put_together_are_the_whole() {
    put_together::<f64>();
    put_together::<f32>();
    put_together::<half::bf16>();
}

#[test]
fn merging_has_one_order_and_nothing_changes_nothing() {
    merged_either_way::<f64>();
    merged_either_way::<f32>();
    merged_either_way::<half::bf16>();
}

#[test]
fn rows_with_all_that_they_see_have_the_bits_of_the_whole() {
    bits_of_the_whole::<f64>();
    bits_of_the_whole::<f32>();
    bits_of_the_whole::<half::bf16>();
}

mod all {
    use crate::support::for_types;
    for_types! { every_combination_is_the_reference; }
}

#[test]
fn impossible_options_are_errors() {
    let shape = AttentionShape { queries: 2, keys: 3, head_dim: 4, ..WHOLE };
    let message = |shape: AttentionShape, dropout: bool| {
        let case = Case { shape, documents: false, dropout };
        let inputs = case.inputs::<f32>();
        let (mut o, mut lse) = (Buf::zeros(DType::F32, 8), Buf::zeros(DType::F32, 2));
        let o = MatMut::new(o.slice_mut(), 2, 4);
        let qkv = case.views(&inputs);
        let done = one().attention(shape, o, lse.slice_mut(), qkv, None, case.dropout());
        done.err().map(|error| error.to_string()).unwrap_or_default()
    };
    assert_eq!(message(shape, true), "");
    let text = message(AttentionShape { window: Some(0), ..shape }, false);
    assert_eq!(text, "attention: a window of 0 positions, a query sees at least its own (1)");
    for cap in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let text = message(AttentionShape { softcap: Some(cap), ..shape }, false);
        let expected = format!("attention: scores capped at {cap}, it must be a positive number");
        assert_eq!(text, expected);
    }
    let far = AttentionShape { query_start: (1 << 24) - 1, ..shape };
    assert_eq!(message(far, false), "");
    let expected = "attention: a query at position 16777216; with dropout the last possible one is \
                    16777215";
    assert_eq!(message(far, true), expected);
    let far = AttentionShape { key_start: usize::MAX, ..shape };
    assert!(message(far, false).ends_with("the last possible one is 4294967295"));

    let case = Case { shape, documents: false, dropout: false };
    let inputs = case.inputs::<f32>();
    let (o, lse) = case.forward::<f32>(&one(), &inputs);
    let mut d = Buf::zeros(DType::F32, 2 * 12);
    let [d_o, o] = [&inputs.d_o, &o].map(|x| MatRef::new(x.slice(), 2, 4));
    let d = QkvMut::Fused(MatMut::new(d.slice_mut(), 2, 12));
    let views = case.views(&inputs);
    let error = one().attention_backward(shape, d, d_o, o, lse.slice(), views, None, None);
    let text = error.unwrap_err().to_string();
    assert_eq!(text, "attention_backward: fused gradients of 2 queries and 3 keys");
    let mut wrong = Buf::zeros(DType::F32, 3);
    let mut o = Buf::zeros(DType::F32, 8);
    let o = MatMut::new(o.slice_mut(), 2, 4);
    let part = MatRef::new(inputs.d_o.slice(), 2, 4);
    let error = one().attention_merge(shape, o, wrong.slice_mut(), part, lse.slice());
    assert!(error.unwrap_err().to_string().contains("`lse` has 3 elements"));
}
