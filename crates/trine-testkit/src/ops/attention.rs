//! Attention against the CPU's in f64, within bounds from the roundings of each sum.

use super::{ROUNDING, close, floats, numbers, of_floats, text, values};
use std::ops::Range;
use trine_buffer::{Buf, DType, Place};
use trine_kernels::{
    AttentionDropout, AttentionShape, CpuOps, Dropout, KernelError, MatMut, MatRef, Ops, Qkv,
    QkvMut,
};

/// A call of attention and one of its backward pass.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// Of queries, keys, values and results.
    pub dtype: DType,
    /// Samples, positions, heads.
    pub shape: AttentionShape,
    /// Length of each document; 0: there are none.
    pub documents: usize,
    /// The probability of a zero.
    pub dropout: f64,
    /// Elements between the rows of queries, keys and values that are not theirs.
    pub gap: usize,
    /// Whether the gradients lie in one matrix.
    pub fused: bool,
}

/// The methods that [`Problem::check`] and [`check_merge`] call.
pub const METHODS: [&str; 3] = ["attention", "attention_backward", "attention_merge"];

/// A few heads of a few elements.
pub const SHAPE: AttentionShape = AttentionShape {
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
/// [`SHAPE`] in f32.
pub const CASE: Case =
    Case { dtype: DType::F32, shape: SHAPE, documents: 0, dropout: 0.0, gap: 0, fused: true };

/// Calls with every option, of both kernels.
pub fn cases() -> Vec<Case> {
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
fn wide(buf: &Buf) -> Result<Buf, KernelError> {
    Ok(Buf::from_vec(values(buf)?))
}

fn narrowed(dtype: DType, values: &[f64]) -> Buf {
    of_floats(dtype, values.iter().map(|&x| x as f32).collect())
}

/// What a case computes on: q, k and v in columns of one matrix each for queries and keys.
#[derive(Debug)]
pub struct Problem {
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
    /// The numbers of a case.
    pub fn new(case: Case) -> Self {
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

    /// Elements of all queries of a position.
    pub fn q_cols(&self) -> usize {
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
    ///
    /// # Errors
    /// If the buffers are not [`Inputs`] of this problem.
    pub fn qkv<'a>(&self, q: &'a Buf, kv: &'a Buf) -> Result<Qkv<'a>, KernelError> {
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
        Ok(Qkv { q, k: kv.columns(k)?, v: kv.columns(v)? })
    }

    /// What it reads, in f64 on the host.
    fn exact(&self) -> Result<Inputs, KernelError> {
        let exact = self.held(&Place::Host)?;
        let [q, kv, d_o] = [&self.q, &self.kv, &self.d_o].map(wide);
        Ok(Inputs { q: q?, kv: kv?, d_o: d_o?, ..exact })
    }

    /// What it reads, in a place.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn held(&self, place: &Place) -> Result<Inputs, KernelError> {
        let starts = self.document_start.as_ref();
        let document_start = starts.map(|starts| held(place, starts)).transpose()?;
        let [q, kv, d_o] = [&self.q, &self.kv, &self.d_o].map(|buf| held(place, buf));
        Ok(Inputs { q: q?, kv: kv?, document_start, d_o: d_o? })
    }

    /// Somewhere, the output and the sums' logarithms.
    fn forward(
        &self,
        ops: &dyn Ops,
        inputs: &Inputs,
        o: &mut Buf,
        lse: &mut Buf,
    ) -> Result<(), KernelError> {
        let (rows, cols) = (self.rows().0, self.q_cols());
        let (out, lse) = (MatMut::new(o.slice_mut(), rows, cols), lse.slice_mut());
        let (qkv, starts) = (self.qkv(&inputs.q, &inputs.kv)?, inputs.document_start.as_ref());
        let starts = starts.map(Buf::slice);
        ops.attention(self.case.shape, out, lse, qkv, starts, self.dropout)
    }

    /// Somewhere, the three gradients.
    fn backward(
        &self,
        ops: &dyn Ops,
        inputs: &Inputs,
        d: QkvMut<'_>,
        (o, lse): (&Buf, &Buf),
    ) -> Result<(), KernelError> {
        let mat = |buf| MatRef::new(Buf::slice(buf), self.rows().0, self.q_cols());
        let (qkv, starts) = (self.qkv(&inputs.q, &inputs.kv)?, inputs.document_start.as_ref());
        let (d_o, o, lse) = (mat(&inputs.d_o), mat(o), lse.slice());
        let starts = starts.map(Buf::slice);
        ops.attention_backward(self.case.shape, d, d_o, o, lse, qkv, starts, self.dropout)
    }

    /// The three gradients in matrices of their own; what `fresh` makes is overwritten.
    fn separate(
        &self,
        ops: &dyn Ops,
        inputs: &Inputs,
        results: (&Buf, &Buf),
        fresh: impl Fn(usize) -> Result<Buf, KernelError>,
    ) -> Result<[Vec<f64>; 3], KernelError> {
        let ((q_rows, kv_rows), (q_cols, kv_cols)) = (self.rows(), (self.q_cols(), self.kv_cols()));
        let mut q = fresh(q_rows * q_cols)?;
        let (mut k, mut v) = (fresh(kv_rows * kv_cols)?, fresh(kv_rows * kv_cols)?);
        let d = QkvMut::Separate {
            q: MatMut::new(q.slice_mut(), q_rows, q_cols),
            k: MatMut::new(k.slice_mut(), kv_rows, kv_cols),
            v: MatMut::new(v.slice_mut(), kv_rows, kv_cols),
        };
        self.backward(ops, inputs, d, results)?;
        Ok([values(&q)?, values(&k)?, values(&v)?])
    }
}

/// What a problem reads, in one place.
#[derive(Debug)]
pub struct Inputs {
    /// Queries.
    pub q: Buf,
    /// Keys and values.
    pub kv: Buf,
    document_start: Option<Buf>,
    d_o: Buf,
}

/// A copy in a place.
fn held(place: &Place, buf: &Buf) -> Result<Buf, KernelError> {
    Ok(place.hold(buf.slice().to_host()?)?)
}

/// What the CPU gives in f64, and how large the terms of its sums are.
#[derive(Debug)]
pub struct Expected {
    o: Vec<f64>,
    lse: Vec<f64>,
    /// `o` and `lse` as the backward pass gets them.
    results: [Buf; 2],
    d: [Vec<f64>; 3],
    /// Σ P · |dO| for each element of dV.
    dv_terms: Vec<f64>,
    /// The largest Σ P over the queries of a key.
    most_seen: f64,
    /// The largest |dO · v|.
    dp_max: f64,
}

impl Problem {
    /// The results of the CPU in f64.
    ///
    /// # Errors
    /// If there is no memory for them.
    pub fn expected(&self, cpu: &CpuOps) -> Result<Expected, KernelError> {
        let mut inputs = self.exact()?;
        let fresh = |len| Ok(Buf::zeros(DType::F64, len));
        let (mut o, mut lse) = (fresh(self.d_o.len())?, fresh(self.stats())?);
        self.forward(cpu, &inputs, &mut o, &mut lse)?;
        let (o64, lse64) = (values(&o)?, values(&lse)?);
        let results = [narrowed(self.case.dtype, &o64), narrowed(DType::F32, &lse64)];
        let (o, lse) = (wide(&results[0])?, wide(&results[1])?);
        let d = self.separate(cpu, &inputs, (&o, &lse), fresh)?;
        let sizes: Vec<_> = values(&inputs.d_o)?.into_iter().map(f64::abs).collect();
        let ones = vec![1.0f64; sizes.len()];
        let mut gradient_of_v = |d_o| {
            inputs.d_o = Buf::from_vec(d_o);
            let [_, _, dv] = self.separate(cpu, &inputs, (&o, &lse), fresh)?;
            Ok::<_, KernelError>(dv)
        };
        let (dv_terms, seen) = (gradient_of_v(sizes)?, gradient_of_v(ones)?);
        let most_seen = seen.into_iter().fold(0.0, f64::max);
        let dp_max = self.dp_max()?;
        Ok(Expected { o: o64, lse: lse64, results, d, dv_terms, most_seen, dp_max })
    }

    fn dp_max(&self) -> Result<f64, KernelError> {
        let AttentionShape { samples, queries, keys, heads, kv_heads, head_dim, .. } =
            self.case.shape;
        let (d_o, kv) = (values(&self.d_o)?, values(&self.kv)?);
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
        Ok(max)
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

/// The columns of a matrix whose rows are `stride` long.
fn columns(values: &[f64], stride: usize, cols: Range<usize>) -> Vec<f64> {
    values.chunks_exact(stride.max(1)).flat_map(|row| row[cols.clone()].to_vec()).collect()
}

impl Problem {
    /// Holds a device's results against those of the CPU.
    ///
    /// # Errors
    /// What the device returns, or the first element that is too far off.
    pub fn check(&self, ops: &dyn Ops, expected: &Expected) -> Result<(), String> {
        let named = |what: String| format!("{:?}: {what}", self.case);
        self.check_forward(ops, expected).map_err(named)?;
        self.check_backward(ops, expected).map_err(named)
    }

    fn check_forward(&self, ops: &dyn Ops, expected: &Expected) -> Result<(), String> {
        let (bounds, [o, lse]) = (Bounds::new(self, expected), &expected.results);
        let inputs = self.held(ops.place()).map_err(text)?;
        let mut out = overwritten(ops, self.case.dtype, o.len()).map_err(text)?;
        let mut sums = overwritten(ops, DType::F32, lse.len()).map_err(text)?;
        self.forward(ops, &inputs, &mut out, &mut sums).map_err(text)?;
        let of_o = |i: usize| bounds.sum(bounds.kept, bounds.keys, expected.o[i]);
        near("o", &values(&out).map_err(text)?, &expected.o, of_o)?;
        let of_lse = |i: usize| bounds.p + (bounds.keys + 2.0 * expected.lse[i].abs()) * ROUNDING;
        near("lse", &values(&sums).map_err(text)?, &expected.lse, of_lse)
    }

    fn check_backward(&self, ops: &dyn Ops, expected: &Expected) -> Result<(), String> {
        let (bounds, shape) = (Bounds::new(self, expected), self.case.shape);
        let [dq, dk, dv] = self.gradients(ops, expected).map_err(text)?;
        let slope = bounds.slope + shape.head_dim.pow(2) as f64 * ROUNDING;
        let of_q = |i: usize| bounds.sum(slope, bounds.keys, expected.d[0][i]);
        near("dq", &dq, &expected.d[0], of_q)?;
        let of_k =
            |i: usize| bounds.sum(slope * expected.most_seen, bounds.queries, expected.d[1][i]);
        near("dk", &dk, &expected.d[1], of_k)?;
        let of_v = |i: usize| bounds.sum(expected.dv_terms[i], bounds.queries, expected.d[2][i]);
        near("dv", &dv, &expected.d[2], of_v)
    }

    fn gradients(&self, ops: &dyn Ops, expected: &Expected) -> Result<[Vec<f64>; 3], KernelError> {
        let (place, dtype) = (ops.place(), self.case.dtype);
        let inputs = self.held(place)?;
        let (o, lse) = (held(place, &expected.results[0])?, held(place, &expected.results[1])?);
        if !self.case.fused {
            let fresh = |len| overwritten(ops, dtype, len);
            return self.separate(ops, &inputs, (&o, &lse), fresh);
        }
        let (q_cols, kv_cols) = (self.q_cols(), self.kv_cols());
        let (rows, cols) = (self.rows().0, q_cols + 2 * kv_cols);
        let mut all = overwritten(ops, dtype, rows * cols)?;
        let d = QkvMut::Fused(MatMut::new(all.slice_mut(), rows, cols));
        self.backward(ops, &inputs, d, (&o, &lse))?;
        let (all, k, v) = (values(&all)?, q_cols, q_cols + kv_cols);
        Ok([0..k, k..v, v..cols].map(|part| columns(&all, cols, part)))
    }
}

/// Numbers in the place of a device, nothing of which may be left.
fn overwritten(ops: &dyn Ops, dtype: DType, len: usize) -> Result<Buf, KernelError> {
    Ok(ops.place().hold(numbers(dtype, 9, len))?)
}

fn near(
    what: &str,
    found: &[f64],
    expected: &[f64],
    bound: impl Fn(usize) -> f64,
) -> Result<(), String> {
    close(found, expected, bound).map_err(|error| format!("{what}: {error}"))
}

/// Logarithms of sums: of rows that have seen keys, and of some that have seen none.
fn sums(seed: u32, len: usize, unseen: impl Fn(usize) -> bool) -> Buf {
    let value = |(i, x): (usize, f32)| if unseen(i) { f32::NEG_INFINITY } else { 4.0 * x };
    Buf::from_vec(floats(seed, len).enumerate().map(value).collect::<Vec<_>>())
}

/// Holds the results of two parts of the keys, merged on a device, against those of the CPU in f64.
///
/// # Errors
/// What the device returns, or the first element that is too far off.
pub fn check_merge(ops: &dyn Ops, cpu: &CpuOps) -> Result<(), String> {
    for types in [(DType::F32, DType::F32), (DType::F32, DType::Bf16), (DType::Bf16, DType::Bf16)] {
        let (exact_o, exact_lse) = merged(cpu, types, true).map_err(text)?;
        let (o, lse) = merged(ops, types, false).map_err(text)?;
        // Weights that add up to 1, each of a power and a quotient, and a sum.
        let unit = if types.0 == DType::Bf16 { 1.0 / 256.0 } else { ROUNDING };
        let of_o = |i: usize| unit * exact_o[i].abs() + 2.0 * 16.0 * ROUNDING;
        near("merged o", &o, &exact_o, of_o)?;
        let of_lse = |i: usize| (4.0 + 2.0 * exact_lse[i].abs()) * ROUNDING;
        near("merged lse", &lse, &exact_lse, of_lse)?;
    }
    Ok(())
}

/// `o` and `lse` of two parts.
fn merged(
    ops: &dyn Ops,
    (of_o, of_part): (DType, DType),
    exact: bool,
) -> Result<(Vec<f64>, Vec<f64>), KernelError> {
    let shape = AttentionShape { samples: 2, queries: 7, head_dim: 40, ..SHAPE };
    let (rows, cols, stats) = (14, 4 * 40, 14 * 4);
    let bufs = [
        numbers(of_o, 6, rows * cols),
        sums(4, stats, |i| i % 3 == 0),
        numbers(of_part, 7, rows * (cols + 5)),
        sums(5, stats, |i| i % 4 == 0),
    ];
    let there = |buf: Buf| if exact { wide(&buf) } else { held(ops.place(), &buf) };
    let [o, lse, part, part_lse] = bufs.map(there);
    let (mut o, mut lse, part, part_lse) = (o?, lse?, part?, part_lse?);
    let part = MatRef { data: part.slice(), rows, cols, stride: cols + 5 };
    let out = MatMut::new(o.slice_mut(), rows, cols);
    ops.attention_merge(shape, out, lse.slice_mut(), part, part_lse.slice())?;
    Ok((values(&o)?, values(&lse)?))
}
