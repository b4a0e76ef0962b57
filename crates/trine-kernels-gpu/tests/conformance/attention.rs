//! Attention against the CPU's in f64, within bounds from the roundings of each sum.

use crate::machine::{Machine, SEEDS, downloaded, numbers, uploaded};
use half::bf16;
use std::ops::Range;
use trine_buffer::{Buf, DType, Slice};
use trine_gpu::{Memory, Span};
use trine_kernels::{
    AttentionDropout, AttentionShape, CpuOps, Dropout, MatMut, MatRef, Ops, Qkv, QkvMut, Team,
};
use trine_kernels_gpu::{Gradients, Inputs, Rows, RowsMut};

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

    fn starts(&self) -> Option<Slice<'_>> {
        self.document_start.as_ref().map(Buf::slice)
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
    fn forward(&self, cpu: &CpuOps) -> (Buf, Buf) {
        let (rows, cols) = (self.rows().0, self.q_cols());
        let mut o = Buf::zeros(DType::F64, rows * cols);
        let mut lse = Buf::zeros(DType::F64, self.stats());
        let (q, kv) = (wide(&self.q), wide(&self.kv));
        let out = MatMut::new(o.slice_mut(), rows, cols);
        let (shape, qkv) = (self.case.shape, self.qkv(&q, &kv));
        cpu.attention(shape, out, lse.slice_mut(), qkv, self.starts(), self.dropout).unwrap();
        (o, lse)
    }

    fn backward(&self, cpu: &CpuOps, d_o: &Buf, o: &Buf, lse: &Buf) -> [Vec<f64>; 3] {
        let ((q_rows, kv_rows), (q_cols, kv_cols)) = (self.rows(), (self.q_cols(), self.kv_cols()));
        let mut d = [q_rows * q_cols, kv_rows * kv_cols, kv_rows * kv_cols]
            .map(|len| Buf::zeros(DType::F64, len));
        let [dq, dk, dv] = &mut d;
        let separate = QkvMut::Separate {
            q: MatMut::new(dq.slice_mut(), q_rows, q_cols),
            k: MatMut::new(dk.slice_mut(), kv_rows, kv_cols),
            v: MatMut::new(dv.slice_mut(), kv_rows, kv_cols),
        };
        let (q, kv) = (wide(&self.q), wide(&self.kv));
        let mat = |buf| MatRef::new(Buf::slice(buf), q_rows, q_cols);
        cpu.attention_backward(
            self.case.shape,
            separate,
            mat(d_o),
            mat(o),
            lse.slice(),
            self.qkv(&q, &kv),
            self.starts(),
            self.dropout,
        )
        .unwrap();
        d.map(|part| part.to_f64_vec().unwrap())
    }

    /// The results, and `o` and `lse` as the backward pass gets them.
    fn expected(&self, cpu: &CpuOps) -> (Expected, Buf, Buf) {
        let (o64, lse64) = self.forward(cpu);
        let (o64, lse64) = (o64.to_f64_vec().unwrap(), lse64.to_f64_vec().unwrap());
        let (o, lse) = (narrowed(self.case.dtype, &o64), narrowed(DType::F32, &lse64));
        let (o_in, lse_in, d_o) = (wide(&o), wide(&lse), wide(&self.d_o));
        let d = self.backward(cpu, &d_o, &o_in, &lse_in);
        let sizes =
            Buf::from_vec(d_o.to_f64_vec().unwrap().into_iter().map(f64::abs).collect::<Vec<_>>());
        let ones = Buf::from_vec(vec![1.0f64; d_o.len()]);
        let [_, _, dv_terms] = self.backward(cpu, &sizes, &o_in, &lse_in);
        let [_, _, seen] = self.backward(cpu, &ones, &o_in, &lse_in);
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

/// A problem on a device.
struct OnDevice {
    q: Memory,
    kv: Memory,
    document_start: Option<Memory>,
}

impl OnDevice {
    fn inputs(&self, problem: &Problem) -> Inputs<'_> {
        let bytes = problem.case.dtype.bytes();
        let all = self.kv.bytes();
        let v = (problem.kv_cols() * bytes).min(all)..all;
        Inputs {
            dtype: problem.case.dtype,
            shape: problem.case.shape,
            q: Rows { span: self.q.span(), stride: problem.q_stride },
            k: Rows { span: self.kv.span(), stride: problem.kv_stride },
            v: Rows { span: self.kv.span().range(v).unwrap(), stride: problem.kv_stride },
            document_start: self.document_start.as_ref().map(Memory::span),
            dropout: problem.dropout,
        }
    }
}

/// Downloaded numbers in f64.
fn numbers_of(machine: &Machine, dtype: DType, memory: &Memory) -> Vec<f64> {
    let bytes = downloaded(machine.ops.stream(), memory);
    let narrow = |x: &[u8]| bf16::from_ne_bytes([x[0], x[1]]).to_f64();
    let single = |x: &[u8]| f64::from(f32::from_ne_bytes([x[0], x[1], x[2], x[3]]));
    match dtype {
        DType::Bf16 => bytes.chunks_exact(2).map(narrow).collect(),
        _ => bytes.chunks_exact(4).map(single).collect(),
    }
}

/// The columns of a matrix whose rows are `stride` long.
fn columns(values: &[f64], stride: usize, cols: Range<usize>) -> Vec<f64> {
    values.chunks_exact(stride.max(1)).flat_map(|row| row[cols.clone()].to_vec()).collect()
}

fn check(machine: &Machine, problem: &Problem, (expected, o, lse): &(Expected, Buf, Buf)) {
    let (ops, stream) = (&machine.ops, machine.ops.stream());
    let case = problem.case;
    let bytes = case.dtype.bytes();
    let device = OnDevice {
        q: uploaded(stream, "q", &problem.q),
        kv: uploaded(stream, "kv", &problem.kv),
        document_start: problem.document_start.as_ref().map(|s| uploaded(stream, "documents", s)),
    };
    let inputs = device.inputs(problem);
    let bounds = Bounds::new(problem, expected);
    let q_cols = problem.q_cols();

    let mut out = stream.alloc("o", o.len() * bytes).unwrap();
    let mut sums = stream.alloc("lse", lse.len() * 4).unwrap();
    let rows = RowsMut { span: out.span_mut(), stride: q_cols };
    ops.attention(&inputs, rows, sums.span_mut()).unwrap();
    let found = numbers_of(machine, case.dtype, &out);
    close("o", &found, &expected.o, |i| bounds.sum(bounds.kept, bounds.keys, expected.o[i]));
    let found = numbers_of(machine, DType::F32, &sums);
    let of_lse = |i: usize| bounds.p + (bounds.keys + 2.0 * expected.lse[i].abs()) * ROUNDING;
    close("lse", &found, &expected.lse, of_lse);

    let (d_o, o, lse) = (
        uploaded(stream, "d_o", &problem.d_o),
        uploaded(stream, "o", o),
        uploaded(stream, "lse", lse),
    );
    let row = |memory| Rows { span: Memory::span(memory), stride: q_cols };
    let [dq, dk, dv] = gradients(machine, problem, &inputs, row(&d_o), row(&o), lse.span());
    let slope = bounds.slope + case.shape.head_dim.pow(2) as f64 * ROUNDING;
    let of_q = |i: usize| bounds.sum(slope, bounds.keys, expected.d[0][i]);
    close("dq", &dq, &expected.d[0], of_q);
    let of_k = |i: usize| bounds.sum(slope * expected.most_seen, bounds.queries, expected.d[1][i]);
    close("dk", &dk, &expected.d[1], of_k);
    let of_v = |i: usize| bounds.sum(expected.dv_terms[i], bounds.queries, expected.d[2][i]);
    close("dv", &dv, &expected.d[2], of_v);
    machine.is_clean();
}

/// The three gradients, in columns of one matrix or apart.
fn gradients(
    machine: &Machine,
    problem: &Problem,
    inputs: &Inputs<'_>,
    d_o: Rows<'_>,
    o: Rows<'_>,
    lse: Span<'_>,
) -> [Vec<f64>; 3] {
    let (ops, stream) = (&machine.ops, machine.ops.stream());
    let Case { dtype, fused, .. } = problem.case;
    let ((q_rows, kv_rows), (q_cols, kv_cols)) =
        (problem.rows(), (problem.q_cols(), problem.kv_cols()));
    if fused {
        let stride = q_cols + 2 * kv_cols;
        let mut all = stream.alloc("d", q_rows * stride * dtype.bytes()).unwrap();
        let rows = RowsMut { span: all.span_mut(), stride };
        ops.attention_backward(inputs, Gradients::Fused(rows), d_o, o, lse).unwrap();
        let all = numbers_of(machine, dtype, &all);
        let (k, v) = (q_cols, q_cols + kv_cols);
        return [0..k, k..v, v..stride].map(|cols| columns(&all, stride, cols));
    }
    let mut d = [(q_rows, q_cols), (kv_rows, kv_cols), (kv_rows, kv_cols)]
        .map(|(rows, cols)| stream.alloc("d", rows * cols * dtype.bytes()).unwrap());
    let [q, k, v] = &mut d;
    let rows = |memory, stride| RowsMut { span: Memory::span_mut(memory), stride };
    let separate =
        Gradients::Separate { q: rows(q, q_cols), k: rows(k, kv_cols), v: rows(v, kv_cols) };
    ops.attention_backward(inputs, separate, d_o, o, lse).unwrap();
    d.map(|part| numbers_of(machine, dtype, &part))
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

/// The rows from `first` on.
fn tail(rows: Rows<'_>, first: usize, bytes: usize) -> Rows<'_> {
    let range = first * rows.stride * bytes..rows.span.bytes();
    Rows { span: rows.span.range(range).unwrap(), ..rows }
}

/// The bits of `o` and `lse` of some rows of a sequence, in a call over a part of it.
fn part(
    machine: &Machine,
    problem: &Problem,
    queries: Range<usize>,
    keys: Range<usize>,
) -> Vec<u8> {
    let (ops, stream) = (&machine.ops, machine.ops.stream());
    let bytes = problem.case.dtype.bytes();
    let device = OnDevice {
        q: uploaded(stream, "q", &problem.q),
        kv: uploaded(stream, "kv", &problem.kv),
        document_start: None,
    };
    let whole = device.inputs(problem);
    let shape = AttentionShape {
        queries: queries.len(),
        keys: keys.len(),
        query_start: queries.start,
        key_start: keys.start,
        ..whole.shape
    };
    let inputs = Inputs {
        shape,
        q: tail(whole.q, queries.start, bytes),
        k: tail(whole.k, keys.start, bytes),
        v: tail(whole.v, keys.start, bytes),
        ..whole
    };
    let mut o = stream.alloc("o", queries.len() * problem.q_cols() * bytes).unwrap();
    let mut lse = stream.alloc("lse", queries.len() * shape.heads * 4).unwrap();
    let rows = RowsMut { span: o.span_mut(), stride: problem.q_cols() };
    ops.attention(&inputs, rows, lse.span_mut()).unwrap();
    let (o, lse) = (downloaded(stream, &o), downloaded(stream, &lse));
    machine.is_clean();
    // One head: its last rows lie side by side.
    let rows = queries.len().min(50);
    let (o_from, lse_from) = (o.len() - o.len() / queries.len() * rows, lse.len() - 4 * rows);
    [&o[o_from..], &lse[lse_from..]].concat()
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
            let stream = machine.ops.stream();
            let (mut o, mut lse) = (uploaded(stream, "o", &o), uploaded(stream, "lse", &lse));
            let (part, part_lse) = (uploaded(stream, "p", &part), uploaded(stream, "s", &part_lse));
            let out = (RowsMut { span: o.span_mut(), stride: cols }, of_o);
            let part = (Rows { span: part.span(), stride: cols + 5 }, of_part);
            machine.ops.attention_merge(shape, out, lse.span_mut(), part, part_lse.span()).unwrap();
            // Two weights of at most 1, each of a power and a quotient, and a sum.
            let unit = if of_o == DType::Bf16 { 1.0 / 256.0 } else { ROUNDING };
            let bound = |i: usize| unit * exact_o[i].abs() + 2.0 * 16.0 * ROUNDING;
            close("o", &numbers_of(&machine, of_o, &o), &exact_o, bound);
            let of_lse = |i: usize| (4.0 + 2.0 * exact_lse[i].abs()) * ROUNDING;
            close("lse", &numbers_of(&machine, DType::F32, &lse), &exact_lse, of_lse);
            machine.is_clean();
        }
    }
}
