//! Attention against the CPU's in f64, within bounds from the roundings of each sum.

use crate::machine::{Machine, SEEDS, numbers};
use half::bf16;
use std::ops::Range;
use trine_buffer::{Buf, DType, Place};
use trine_kernels::{
    AttentionDropout, AttentionShape, CpuOps, Dropout, KernelError, MatMut, MatRef, Ops, Qkv,
    QkvMut, Team,
};

/// Half a unit in the last place of 1 in f32.
const ROUNDING: f64 = 6e-8;

#[derive(Debug, Clone, Copy)]
struct Case {
    dtype: DType,
    shape: AttentionShape,
    /// Length of each document; 0: there are none.
    documents: usize,
    dropout: f64,
    /// Elements between the rows of queries, keys and values that are not theirs.
    gap: usize,
    fused: bool,
}

const SHAPE: AttentionShape = AttentionShape {
    samples: 1,
    queries: 37,
    keys: 37,
    query_start: 0,
    key_start: 0,
    window: None,
    heads: 4,
    kv_heads: 2,
    head_dim: 8,
    scale: 0.4,
    softcap: None,
};
const CASE: Case =
    Case { dtype: DType::F32, shape: SHAPE, documents: 0, dropout: 0.0, gap: 0, fused: true };

fn cases() -> Vec<Case> {
    let whole = |head_dim: usize, seq: usize| AttentionShape {
        head_dim,
        queries: seq,
        keys: seq,
        scale: 1.0 / (head_dim as f64).sqrt(),
        ..SHAPE
    };
    let narrow = Case { dtype: DType::Bf16, ..CASE };
    // Queries at 40.. and keys at 61..: the first see none of them.
    let apart = |head_dim: usize| AttentionShape {
        queries: 75,
        query_start: 40,
        key_start: 61,
        ..whole(head_dim, 70)
    };
    let all = |shape: AttentionShape| Case {
        shape: AttentionShape { window: Some(15), softcap: Some(2.0), samples: 2, ..shape },
        documents: 23,
        dropout: 0.2,
        gap: 3,
        fused: false,
        ..CASE
    };
    vec![
        CASE,
        all(AttentionShape { heads: 3, kv_heads: 1, ..apart(5) }),
        Case { shape: AttentionShape { heads: 1, kv_heads: 1, ..whole(200, 9) }, ..CASE },
        Case { shape: whole(64, 150), ..narrow },
        Case {
            shape: AttentionShape { window: Some(40), ..whole(80, 130) },
            documents: 70,
            ..narrow
        },
        Case {
            shape: AttentionShape { softcap: Some(1.5), ..whole(96, 70) },
            dropout: 0.3,
            ..narrow
        },
        Case { gap: 8, ..all(AttentionShape { heads: 3, kv_heads: 1, ..apart(64) }) },
        Case { shape: AttentionShape { heads: 2, ..apart(128) }, fused: false, ..narrow },
        Case { dtype: DType::Bf16, ..all(whole(24, 40)) },
        // Heads with keys of their own: their gradients are written at once.
        Case { shape: AttentionShape { kv_heads: 4, ..whole(64, 70) }, ..narrow },
        Case { shape: AttentionShape { kv_heads: 4, ..apart(64) }, fused: false, ..narrow },
        Case { shape: AttentionShape { kv_heads: 4, ..whole(3, 10) }, ..CASE },
        all(AttentionShape { heads: 2, ..apart(16) }),
        // The last queries are beyond the window of every key: tiles of them see nothing.
        Case {
            shape: AttentionShape {
                queries: 105,
                query_start: 85,
                window: Some(74),
                ..whole(64, 58)
            },
            documents: 45,
            fused: false,
            ..narrow
        },
        // Rows that begin at no multiple of 16 bytes.
        Case { shape: whole(64, 20), gap: 1, ..narrow },
        Case { shape: AttentionShape { keys: 0, ..whole(64, 20) }, fused: false, ..narrow },
        Case { shape: whole(64, 0), ..narrow },
        Case { shape: AttentionShape { scale: 1.0, ..whole(0, 4) }, ..narrow },
    ]
    .into_iter()
    .map(|case| if case.gap == 8 { Case { dtype: DType::Bf16, ..case } } else { case })
    .collect()
}

/// The same numbers in f64.
fn wide(buf: &Buf) -> Buf {
    Buf::from_vec(buf.to_f64_vec().unwrap())
}

fn narrowed(dtype: DType, values: &[f64]) -> Buf {
    match dtype {
        DType::Bf16 => Buf::from_vec(values.iter().map(|&x| bf16::from_f64(x)).collect::<Vec<_>>()),
        _ => Buf::from_vec(values.iter().map(|&x| x as f32).collect::<Vec<_>>()),
    }
}

/// What a case computes on: q, k and v in columns of one matrix each for queries and keys.
struct Problem {
    case: Case,
    q: Buf,
    kv: Buf,
    q_stride: usize,
    kv_stride: usize,
    d_o: Buf,
    document_start: Option<Buf>,
    dropout: Option<AttentionDropout>,
}

impl Problem {
    fn new(case: Case) -> Self {
        let AttentionShape {
            samples, queries, keys, heads, kv_heads, head_dim, query_start, ..
        } = case.shape;
        let (q_stride, kv_stride) =
            (heads * head_dim + case.gap, 2 * kv_heads * head_dim + case.gap);
        let starts = |row: usize| {
            let position = query_start + row % queries;
            // One of them begins behind its own position: it still sees itself.
            (position / case.documents * case.documents + usize::from(row == 3) * 9) as u32
        };
        let dropout = Dropout { probability: case.dropout, key: 77, step: 3, first_sample: 5 };
        Self {
            case,
            q: numbers(case.dtype, 1, samples * queries * q_stride),
            kv: numbers(case.dtype, 2, samples * keys * kv_stride),
            q_stride,
            kv_stride,
            d_o: numbers(case.dtype, 3, samples * queries * heads * head_dim),
            document_start: (case.documents > 0)
                .then(|| Buf::from_vec((0..samples * queries).map(starts).collect::<Vec<_>>())),
            dropout: (case.dropout > 0.0).then_some(AttentionDropout { dropout, first_head: 6 }),
        }
    }

    fn q_cols(&self) -> usize {
        self.case.shape.heads * self.case.shape.head_dim
    }

    fn kv_cols(&self) -> usize {
        self.case.shape.kv_heads * self.case.shape.head_dim
    }

    /// Rows of queries and of keys.
    fn rows(&self) -> (usize, usize) {
        let AttentionShape { samples, queries, keys, .. } = self.case.shape;
        (samples * queries, samples * keys)
    }

    fn stats(&self) -> usize {
        self.rows().0 * self.case.shape.heads
    }

    /// q, k and v over buffers with this case's strides.
    fn qkv<'a>(&self, q: &'a Buf, kv: &'a Buf) -> Qkv<'a> {
        let (q_rows, kv_rows) = self.rows();
        let q =
            MatRef { data: q.slice(), rows: q_rows, cols: self.q_cols(), stride: self.q_stride };
        let kv = MatRef {
            data: kv.slice(),
            rows: kv_rows,
            cols: 2 * self.kv_cols(),
            stride: self.kv_stride,
        };
        let (k, v) = (0..self.kv_cols(), self.kv_cols()..2 * self.kv_cols());
        Qkv { q, k: kv.columns(k).unwrap(), v: kv.columns(v).unwrap() }
    }

    /// What it reads, in f64 on the host.
    fn exact(&self) -> Inputs {
        let document_start = self.document_start.as_ref().map(|starts| held(&Place::Host, starts));
        Inputs { q: wide(&self.q), kv: wide(&self.kv), document_start, d_o: wide(&self.d_o) }
    }

    /// What it reads, in a place.
    fn held(&self, place: &Place) -> Inputs {
        let document_start = self.document_start.as_ref().map(|starts| held(place, starts));
        let [q, kv, d_o] = [&self.q, &self.kv, &self.d_o].map(|buf| held(place, buf));
        Inputs { q, kv, document_start, d_o }
    }

    /// Somewhere, the output and the sums' logarithms.
    fn forward(&self, ops: &dyn Ops, inputs: &Inputs, o: &mut Buf, lse: &mut Buf) {
        let (rows, cols) = (self.rows().0, self.q_cols());
        let (out, lse) = (MatMut::new(o.slice_mut(), rows, cols), lse.slice_mut());
        let (qkv, starts) = (self.qkv(&inputs.q, &inputs.kv), inputs.document_start.as_ref());
        let starts = starts.map(Buf::slice);
        ops.attention(self.case.shape, out, lse, qkv, starts, self.dropout).unwrap();
    }

    /// Somewhere, the three gradients.
    fn backward(&self, ops: &dyn Ops, inputs: &Inputs, d: QkvMut<'_>, o: &Buf, lse: &Buf) {
        let mat = |buf| MatRef::new(Buf::slice(buf), self.rows().0, self.q_cols());
        let (qkv, starts) = (self.qkv(&inputs.q, &inputs.kv), inputs.document_start.as_ref());
        let (d_o, o, lse) = (mat(&inputs.d_o), mat(o), lse.slice());
        let starts = starts.map(Buf::slice);
        ops.attention_backward(self.case.shape, d, d_o, o, lse, qkv, starts, self.dropout).unwrap();
    }

    /// The three gradients in matrices of their own; what `fresh` makes is overwritten.
    fn separate(
        &self,
        ops: &dyn Ops,
        inputs: &Inputs,
        (o, lse): (&Buf, &Buf),
        fresh: impl Fn(usize) -> Buf,
    ) -> [Vec<f64>; 3] {
        let ((q_rows, kv_rows), (q_cols, kv_cols)) = (self.rows(), (self.q_cols(), self.kv_cols()));
        let [mut q, mut k, mut v] =
            [q_rows * q_cols, kv_rows * kv_cols, kv_rows * kv_cols].map(fresh);
        let d = QkvMut::Separate {
            q: MatMut::new(q.slice_mut(), q_rows, q_cols),
            k: MatMut::new(k.slice_mut(), kv_rows, kv_cols),
            v: MatMut::new(v.slice_mut(), kv_rows, kv_cols),
        };
        self.backward(ops, inputs, d, o, lse);
        [q, k, v].map(|part| values(&part))
    }
}

/// What a problem reads, in one place.
struct Inputs {
    q: Buf,
    kv: Buf,
    document_start: Option<Buf>,
    d_o: Buf,
}

/// A copy in a place.
fn held(place: &Place, buf: &Buf) -> Buf {
    place.hold(buf.slice().to_host().unwrap()).unwrap()
}

/// The numbers of a buffer anywhere.
fn values(buf: &Buf) -> Vec<f64> {
    buf.slice().to_host().unwrap().to_f64_vec().unwrap()
}

/// What the CPU gives in f64, and how large the terms of its sums are.
struct Expected {
    o: Vec<f64>,
    lse: Vec<f64>,
    d: [Vec<f64>; 3],
    /// Σ P · |dO| for each element of dV.
    dv_terms: Vec<f64>,
    /// The largest Σ P over the queries of a key.
    most_seen: f64,
    /// The largest |dO · v|.
    dp_max: f64,
}

impl Problem {
    /// The results, and `o` and `lse` as the backward pass gets them.
    fn expected(&self, cpu: &CpuOps) -> (Expected, Buf, Buf) {
        let mut inputs = self.exact();
        let fresh = |len| Buf::zeros(DType::F64, len);
        let (mut o, mut lse) = (fresh(self.d_o.len()), fresh(self.stats()));
        self.forward(cpu, &inputs, &mut o, &mut lse);
        let (o64, lse64) = (values(&o), values(&lse));
        let (o, lse) = (narrowed(self.case.dtype, &o64), narrowed(DType::F32, &lse64));
        let results = (&wide(&o), &wide(&lse));
        let d = self.separate(cpu, &inputs, results, fresh);
        let sizes: Vec<_> = values(&inputs.d_o).into_iter().map(f64::abs).collect();
        let ones = vec![1.0f64; sizes.len()];
        let [dv_terms, seen] = [sizes, ones].map(|d_o| {
            inputs.d_o = Buf::from_vec(d_o);
            let [_, _, dv] = self.separate(cpu, &inputs, results, fresh);
            dv
        });
        let most_seen = seen.into_iter().fold(0.0, f64::max);
        let dp_max = self.dp_max();
        (Expected { o: o64, lse: lse64, d, dv_terms, most_seen, dp_max }, o, lse)
    }

    fn dp_max(&self) -> f64 {
        let AttentionShape { samples, queries, keys, heads, kv_heads, head_dim, .. } =
            self.case.shape;
        let (d_o, kv) = (self.d_o.to_f64_vec().unwrap(), self.kv.to_f64_vec().unwrap());
        let mut max = 0.0f64;
        for sample in 0..samples {
            for (query, key, head) in (0..queries)
                .flat_map(|q| (0..keys).flat_map(move |k| (0..heads).map(move |h| (q, k, h))))
            {
                let left = ((sample * queries + query) * heads + head) * head_dim;
                let kv_head = head / (heads / kv_heads);
                let right =
                    (sample * keys + key) * self.kv_stride + self.kv_cols() + kv_head * head_dim;
                let dot: f64 = (0..head_dim).map(|i| d_o[left + i] * kv[right + i]).sum();
                max = max.max(dot.abs());
            }
        }
        max
    }
}

/// How far results may lie from the exact ones.
struct Bounds {
    /// A rounding to the compute type.
    unit: f64,
    /// Relative, of a probability: from its score, a sum over the head, and its exponential.
    p: f64,
    keys: f64,
    queries: f64,
    kept: f64,
    /// The largest gradient of a score, over its probability.
    slope: f64,
}

impl Bounds {
    fn new(problem: &Problem, expected: &Expected) -> Self {
        let Case { dtype, shape, dropout, .. } = problem.case;
        let head_dim = shape.head_dim as f64;
        let largest = head_dim * shape.scale;
        let score = (head_dim + 8.0) * ROUNDING * largest.max(1.0);
        let kept = 1.0 / (1.0 - dropout);
        let slope = 2.0 * kept * shape.scale * expected.dp_max;
        let unit = if dtype == DType::Bf16 { 1.0 / 256.0 } else { ROUNDING };
        let (keys, queries) = (shape.keys as f64, shape.queries as f64);
        Self { unit, p: 2.0 * score + 8.0 * ROUNDING, keys, queries, kept, slope }
    }

    /// A sum of terms with a size of `terms` in all, each a rounded probability with a factor, and its rounding.
    fn sum(&self, terms: f64, count: f64, result: f64) -> f64 {
        terms * (self.p + self.unit + count * ROUNDING) + self.unit * result.abs()
    }
}

fn close(what: &str, found: &[f64], expected: &[f64], bound: impl Fn(usize) -> f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let is_close = found == expected || (found - expected).abs() <= bound(i);
        assert!(is_close, "{what}: element {i} is {found}, not {expected} ± {:.1e}", bound(i));
    }
}

/// The columns of a matrix whose rows are `stride` long.
fn columns(values: &[f64], stride: usize, cols: Range<usize>) -> Vec<f64> {
    values.chunks_exact(stride.max(1)).flat_map(|row| row[cols.clone()].to_vec()).collect()
}

fn check(machine: &Machine, problem: &Problem, (expected, o, lse): &(Expected, Buf, Buf)) {
    let (ops, case) = (&machine.ops, problem.case);
    let place = ops.place();
    // What is overwritten.
    let fresh = |dtype, len| place.hold(numbers(dtype, 9, len)).unwrap();
    let (inputs, bounds) = (problem.held(place), Bounds::new(problem, expected));
    let (mut out, mut sums) = (fresh(case.dtype, o.len()), fresh(DType::F32, lse.len()));
    problem.forward(ops, &inputs, &mut out, &mut sums);
    let of_o = |i: usize| bounds.sum(bounds.kept, bounds.keys, expected.o[i]);
    close("o", &values(&out), &expected.o, of_o);
    let of_lse = |i: usize| bounds.p + (bounds.keys + 2.0 * expected.lse[i].abs()) * ROUNDING;
    close("lse", &values(&sums), &expected.lse, of_lse);

    let (o, lse) = (held(place, o), held(place, lse));
    let [dq, dk, dv] = match case.fused {
        false => problem.separate(ops, &inputs, (&o, &lse), |len| fresh(case.dtype, len)),
        true => {
            let (q_cols, kv_cols) = (problem.q_cols(), problem.kv_cols());
            let (rows, cols) = (problem.rows().0, q_cols + 2 * kv_cols);
            let mut all = fresh(case.dtype, rows * cols);
            let d = QkvMut::Fused(MatMut::new(all.slice_mut(), rows, cols));
            problem.backward(ops, &inputs, d, &o, &lse);
            let (all, k, v) = (values(&all), q_cols, q_cols + kv_cols);
            [0..k, k..v, v..cols].map(|part| columns(&all, cols, part))
        }
    };
    let slope = bounds.slope + case.shape.head_dim.pow(2) as f64 * ROUNDING;
    let of_q = |i: usize| bounds.sum(slope, bounds.keys, expected.d[0][i]);
    close("dq", &dq, &expected.d[0], of_q);
    let of_k = |i: usize| bounds.sum(slope * expected.most_seen, bounds.queries, expected.d[1][i]);
    close("dk", &dk, &expected.d[1], of_k);
    let of_v = |i: usize| bounds.sum(expected.dv_terms[i], bounds.queries, expected.d[2][i]);
    close("dv", &dv, &expected.d[2], of_v);
    machine.is_clean();
}

#[test]
fn attention_is_that_of_the_cpu() {
    let cpu = CpuOps::new(Team::new(1));
    for case in cases() {
        // Shown if the case fails.
        println!("{case:?}");
        let problem = Problem::new(case);
        let expected = problem.expected(&cpu);
        for seed in 0..SEEDS {
            check(&Machine::new(seed), &problem, &expected);
        }
    }
}

/// `o` and `lse` of the last rows of a sequence of one head, in a call over a part of it.
fn part(
    machine: &Machine,
    problem: &Problem,
    queries: Range<usize>,
    keys: Range<usize>,
) -> Vec<f64> {
    let (ops, place) = (&machine.ops, machine.ops.place());
    let inputs = problem.held(place);
    let shape = AttentionShape {
        queries: queries.len(),
        keys: keys.len(),
        query_start: queries.start,
        key_start: keys.start,
        ..problem.case.shape
    };
    let Qkv { q, k, v } = problem.qkv(&inputs.q, &inputs.kv);
    let qkv = Qkv {
        q: q.rows(queries.clone()).unwrap(),
        k: k.rows(keys.clone()).unwrap(),
        v: v.rows(keys).unwrap(),
    };
    let (rows, cols) = (queries.len(), problem.q_cols());
    let mut o = place.zeros(problem.case.dtype, rows * cols).unwrap();
    let mut lse = place.zeros(DType::F32, rows).unwrap();
    let out = MatMut::new(o.slice_mut(), rows, cols);
    ops.attention(shape, out, lse.slice_mut(), qkv, None, None).unwrap();
    machine.is_clean();
    let (o, lse, last) = (values(&o), values(&lse), rows.min(50));
    [&o[(rows - last) * cols..], &lse[rows - last..]].concat()
}

#[test]
fn a_row_has_the_bits_of_its_position() {
    let narrow = Case { dtype: DType::Bf16, ..CASE };
    let shape = |head_dim| AttentionShape {
        queries: 150,
        keys: 150,
        window: Some(40),
        heads: 1,
        kv_heads: 1,
        head_dim,
        ..SHAPE
    };
    for case in [Case { shape: shape(64), ..narrow }, Case { shape: shape(8), ..CASE }] {
        let problem = Problem::new(case);
        let machine = Machine::new(0);
        let whole = part(&machine, &problem, 0..150, 0..150);
        // All that the queries see; and a row more, which they do not.
        for first in [61, 60] {
            assert!(whole == part(&machine, &problem, 100..150, first..150), "{first}: {case:?}");
        }
    }
}

/// Logarithms of sums: of rows that have seen keys, and of some that have seen none.
fn sums(seed: u32, len: usize, unseen: impl Fn(usize) -> bool) -> Buf {
    let values = numbers(DType::F32, seed, len).to_f64_vec().unwrap();
    let value = |(i, x): (usize, f64)| if unseen(i) { f32::NEG_INFINITY } else { 4.0 * x as f32 };
    Buf::from_vec(values.into_iter().enumerate().map(value).collect::<Vec<_>>())
}

#[test]
fn merged_results_are_those_of_the_cpu() {
    let cpu = CpuOps::new(Team::new(1));
    let shape = AttentionShape { samples: 2, queries: 7, head_dim: 40, ..SHAPE };
    let (rows, cols, stats) = (14, 4 * 40, 14 * 4);
    let (lse, part_lse) = (sums(4, stats, |i| i % 3 == 0), sums(5, stats, |i| i % 4 == 0));
    for (of_o, of_part) in
        [(DType::F32, DType::F32), (DType::F32, DType::Bf16), (DType::Bf16, DType::Bf16)]
    {
        let (o, part) = (numbers(of_o, 6, rows * cols), numbers(of_part, 7, rows * (cols + 5)));
        let (mut exact_o, mut exact_lse) = (wide(&o), wide(&lse));
        let (wide_part, wide_lse) = (wide(&part), wide(&part_lse));
        let part_o = MatRef { data: wide_part.slice(), rows, cols, stride: cols + 5 };
        let out = MatMut::new(exact_o.slice_mut(), rows, cols);
        cpu.attention_merge(shape, out, exact_lse.slice_mut(), part_o, wide_lse.slice()).unwrap();
        let (exact_o, exact_lse) = (exact_o.to_f64_vec().unwrap(), exact_lse.to_f64_vec().unwrap());
        for seed in 0..SEEDS {
            let machine = Machine::new(seed);
            let place = machine.ops.place();
            let [mut o, mut lse, part, part_lse] =
                [&o, &lse, &part, &part_lse].map(|buf| held(place, buf));
            let part_o = MatRef { data: part.slice(), rows, cols, stride: cols + 5 };
            let (out, sums) = (MatMut::new(o.slice_mut(), rows, cols), lse.slice_mut());
            machine.ops.attention_merge(shape, out, sums, part_o, part_lse.slice()).unwrap();
            // Two weights of at most 1, each of a power and a quotient, and a sum.
            let unit = if of_o == DType::Bf16 { 1.0 / 256.0 } else { ROUNDING };
            let bound = |i: usize| unit * exact_o[i].abs() + 2.0 * 16.0 * ROUNDING;
            close("o", &values(&o), &exact_o, bound);
            let of_lse = |i: usize| (4.0 + 2.0 * exact_lse[i].abs()) * ROUNDING;
            close("lse", &values(&lse), &exact_lse, of_lse);
            machine.is_clean();
        }
    }
}

#[test]
fn what_no_gpu_counts_up_to_is_refused() {
    let machine = Machine::new(0);
    let ops = &machine.ops;
    let place = ops.place();
    let shape = AttentionShape { queries: 1, keys: 1, heads: 1, kv_heads: 1, ..SHAPE };
    let x = place.zeros(DType::F32, 8).unwrap();
    let (mut o, mut lse) =
        (place.zeros(DType::F32, 8).unwrap(), place.zeros(DType::F32, 1).unwrap());
    let whole = MatRef::new(x.slice(), 1, 8);
    let wide = MatRef { stride: 1 << 33, ..whole };
    let mut run = |qkv| {
        ops.attention(shape, MatMut::new(o.slice_mut(), 1, 8), lse.slice_mut(), qkv, None, None)
    };
    let error = run(Qkv { q: whole, k: whole, v: wide }).unwrap_err();
    let message = "a stride of 8589934592; a GPU's kernels take 4294967295 at most".to_owned();
    assert_eq!(error, KernelError::Dims { op: "attention", message });
    run(Qkv { q: whole, k: whole, v: whole }).unwrap();
    machine.is_clean();
}
