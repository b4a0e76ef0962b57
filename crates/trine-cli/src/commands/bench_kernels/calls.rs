//! The kernels of `trine bench kernels`, each with arrays of its own, to be called again and again.

use super::cases::{HEAD_DIM, VOCAB};
use trine_buffer::{Buf, DType};
use trine_kernels::{
    AdamW, AttentionShape, CpuOps, Dropout, DropoutPlace, Function, GateUpMut, KernelError,
    LossShape, MatMut, MatRef, NormShape, Ops, Product, Qkv, QkvMut, RopeShape, Sgd,
    rope_frequencies, rope_table,
};

/// Elements that are made one by one; longer arrays repeat them. Prime, so that rows differ.
const PATTERN: usize = 65_521;

/// Prime, and as many tokens as GPT-2 has: multiples of a smaller prime reach each of them once.
const TOKENS: usize = 50_257;

/// What bounds a call, and how much of it there is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Work {
    /// Floating-point operations, two for each multiply-add.
    Flops(f64),
    /// Bytes that must be read plus bytes that must be written, each once.
    Bytes(f64),
}

/// A kernel with everything that it works on.
pub(super) struct Prepared<'a> {
    pub(super) work: Work,
    pub(super) call: Box<dyn FnMut() -> Done + 'a>,
}

type Done = Result<(), KernelError>;
type Made<'a> = Result<Prepared<'a>, KernelError>;

impl<'a> Prepared<'a> {
    fn flops(flops: f64, call: impl FnMut() -> Done + 'a) -> Made<'a> {
        Ok(Self { work: Work::Flops(flops), call: Box::new(call) })
    }

    fn bytes(bytes: usize, call: impl FnMut() -> Done + 'a) -> Made<'a> {
        Ok(Self { work: Work::Bytes(bytes as f64), call: Box::new(call) })
    }
}

/// Bytes of arrays that are read or written, and twice those of arrays that are updated.
fn traffic(once: &[&Buf], updated: &[&Buf]) -> usize {
    let bytes = |bufs: &[&Buf]| bufs.iter().map(|buf| buf.size_bytes()).sum::<usize>();
    bytes(once) + 2 * bytes(updated)
}

/// The kernels and the type that they compute in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bench<'a> {
    pub(super) ops: &'a CpuOps,
    pub(super) dtype: DType,
}

impl Bench<'_> {
    /// The type of sums, gradients of weights and statistics.
    fn acc(self) -> DType {
        self.dtype.accumulator()
    }

    /// Values between −1 and 1.
    fn of(self, dtype: DType, len: usize) -> Result<Buf, KernelError> {
        let value = |i: usize| (i.wrapping_mul(0x9e37_79b9) >> 8 & 0xffff) as f32 / 32768.0 - 1.0;
        let exact = Buf::from_vec((0..PATTERN.min(len)).map(value).collect());
        let mut pattern = Buf::zeros(dtype, exact.len());
        self.ops.cast(pattern.slice_mut(), exact.slice())?;
        let mut all = Buf::zeros(dtype, len);
        for start in (0..len).step_by(PATTERN) {
            let here = PATTERN.min(len - start);
            let to = all.slice_mut().range(start..start + here)?;
            to.copy_from(pattern.slice().range(0..here)?)?;
        }
        Ok(all)
    }

    /// Values of the compute type.
    fn values(self, len: usize) -> Result<Buf, KernelError> {
        self.of(self.dtype, len)
    }

    /// Values of the type of sums.
    fn sums(self, len: usize) -> Result<Buf, KernelError> {
        self.of(self.acc(), len)
    }

    /// A place for results of the compute type.
    fn zeros(self, len: usize) -> Buf {
        Buf::zeros(self.dtype, len)
    }
}

/// Different tokens, spread over the vocabulary.
fn ids(len: usize) -> Buf {
    Buf::from_vec((0..len).map(|i| (i * 7919 % TOKENS) as u32).collect())
}

/// Gradients of weights are added to those of earlier micro-batches.
pub(super) fn accumulates(product: Product) -> bool {
    match product {
        Product::Nt | Product::Nn => false,
        Product::Tn => true,
    }
}

pub(super) fn matmul(
    bench: Bench<'_>,
    product: Product,
    tokens: usize,
    inputs: usize,
    outputs: usize,
) -> Made<'_> {
    let (x, w, y) = ([tokens, inputs], [outputs, inputs], [tokens, outputs]);
    let (a_shape, b_shape, c_shape) = match product {
        Product::Nt => (x, w, y),
        Product::Nn => (y, w, x),
        Product::Tn => (y, x, w),
    };
    let len = |[rows, cols]: [usize; 2]| rows * cols;
    let (a, b) = (bench.values(len(a_shape))?, bench.values(len(b_shape))?);
    let accumulate = accumulates(product);
    let c_dtype = if accumulate { bench.acc() } else { bench.dtype };
    let mut c = Buf::zeros(c_dtype, len(c_shape));
    Prepared::flops(2.0 * (tokens * inputs * outputs) as f64, move || {
        let a = MatRef::new(a.slice(), a_shape[0], a_shape[1]);
        let b = MatRef::new(b.slice(), b_shape[0], b_shape[1]);
        let c = MatMut::new(c.slice_mut(), c_shape[0], c_shape[1]);
        bench.ops.matmul(product, accumulate, a, b, c)
    })
}

/// Query, key and value as they lie in one matrix, and what goes with them.
struct Attention {
    shape: AttentionShape,
    qkv: Buf,
    o: Buf,
    lse: Buf,
}

impl Attention {
    fn new(bench: Bench<'_>, shape: AttentionShape) -> Result<Self, KernelError> {
        let rows = shape.samples * shape.queries;
        let cols = (shape.heads + 2 * shape.kv_heads) * shape.head_dim;
        let o = bench.zeros(rows * shape.heads * shape.head_dim);
        let lse = Buf::zeros(bench.acc(), rows * shape.heads);
        Ok(Self { shape, qkv: bench.values(rows * cols)?, o, lse })
    }

    /// Rows of all samples, and columns of queries and of keys.
    fn dims(&self) -> (usize, usize, usize) {
        let AttentionShape { samples, queries, heads, kv_heads, head_dim, .. } = self.shape;
        (samples * queries, heads * head_dim, kv_heads * head_dim)
    }

    fn forward(&mut self, ops: &CpuOps) -> Done {
        let (rows, q, kv) = self.dims();
        let qkv = Qkv::fused(MatRef::new(self.qkv.slice(), rows, q + 2 * kv), q, kv)?;
        let o = MatMut::new(self.o.slice_mut(), rows, q);
        ops.attention(self.shape, o, self.lse.slice_mut(), qkv, None, None)
    }

    fn backward(&self, ops: &CpuOps, d: &mut Buf, d_o: &Buf) -> Done {
        let (rows, q, kv) = self.dims();
        let qkv = Qkv::fused(MatRef::new(self.qkv.slice(), rows, q + 2 * kv), q, kv)?;
        let d = QkvMut::Fused(MatMut::new(d.slice_mut(), rows, q + 2 * kv));
        let d_o = MatRef::new(d_o.slice(), rows, q);
        let o = MatRef::new(self.o.slice(), rows, q);
        ops.attention_backward(self.shape, d, d_o, o, self.lse.slice(), qkv, None, None)
    }
}

pub(super) fn attention(bench: Bench<'_>, shape: AttentionShape) -> Made<'_> {
    let mut attention = Attention::new(bench, shape)?;
    Prepared::flops(shape.flops(), move || attention.forward(bench.ops))
}

pub(super) fn attention_backward(bench: Bench<'_>, shape: AttentionShape) -> Made<'_> {
    let mut attention = Attention::new(bench, shape)?;
    attention.forward(bench.ops)?;
    let d_o = bench.values(attention.o.len())?;
    let mut d = bench.zeros(attention.qkv.len());
    Prepared::flops(shape.backward_flops(), move || attention.backward(bench.ops, &mut d, &d_o))
}

const EPS: f64 = 1e-5;

pub(super) fn layer_norm(bench: Bench<'_>, rows: usize, cols: usize) -> Made<'_> {
    let shape = NormShape { rows, cols, eps: EPS };
    let (x, gamma, beta) = (bench.values(rows * cols)?, bench.values(cols)?, bench.values(cols)?);
    let (mut y, mut stats) = (bench.zeros(rows * cols), bench.sums(2 * rows)?);
    Prepared::bytes(traffic(&[&x, &gamma, &beta, &y, &stats], &[]), move || {
        let (y, stats) = (y.slice_mut(), stats.slice_mut());
        bench.ops.layer_norm(shape, y, stats, x.slice(), gamma.slice(), beta.slice())
    })
}

/// As in a block: the gradient is added to that of the residual stream.
pub(super) fn layer_norm_backward(bench: Bench<'_>, rows: usize, cols: usize) -> Made<'_> {
    let shape = NormShape { rows, cols, eps: EPS };
    let (x, dy) = (bench.values(rows * cols)?, bench.values(rows * cols)?);
    let (gamma, stats) = (bench.values(cols)?, bench.sums(2 * rows)?);
    let mut dx = bench.zeros(rows * cols);
    let (mut dgamma, mut dbeta) = (bench.sums(cols)?, bench.sums(cols)?);
    let bytes = traffic(&[&x, &dy, &gamma, &stats], &[&dx, &dgamma, &dbeta]);
    Prepared::bytes(bytes, move || {
        let (dx, dgamma, dbeta) = (dx.slice_mut(), dgamma.slice_mut(), dbeta.slice_mut());
        let (x, stats, gamma, dy) = (x.slice(), stats.slice(), gamma.slice(), dy.slice());
        bench.ops.layer_norm_backward(shape, dx, true, dgamma, dbeta, x, stats, gamma, dy)
    })
}

pub(super) fn rms_norm(bench: Bench<'_>, rows: usize, cols: usize) -> Made<'_> {
    let shape = NormShape { rows, cols, eps: EPS };
    let (x, gamma) = (bench.values(rows * cols)?, bench.values(cols)?);
    let (mut y, mut rstd) = (bench.zeros(rows * cols), bench.sums(rows)?);
    Prepared::bytes(traffic(&[&x, &gamma, &y, &rstd], &[]), move || {
        bench.ops.rms_norm(shape, y.slice_mut(), rstd.slice_mut(), x.slice(), gamma.slice())
    })
}

/// As `layer_norm_backward`.
pub(super) fn rms_norm_backward(bench: Bench<'_>, rows: usize, cols: usize) -> Made<'_> {
    let shape = NormShape { rows, cols, eps: EPS };
    let (x, dy) = (bench.values(rows * cols)?, bench.values(rows * cols)?);
    let (gamma, rstd) = (bench.values(cols)?, bench.sums(rows)?);
    let (mut dx, mut dgamma) = (bench.zeros(rows * cols), bench.sums(cols)?);
    let bytes = traffic(&[&x, &dy, &gamma, &rstd], &[&dx, &dgamma]);
    Prepared::bytes(bytes, move || {
        let (dx, dgamma) = (dx.slice_mut(), dgamma.slice_mut());
        let (x, rstd, gamma, dy) = (x.slice(), rstd.slice(), gamma.slice(), dy.slice());
        bench.ops.rms_norm_backward(shape, dx, true, dgamma, x, rstd, gamma, dy)
    })
}

pub(super) fn gelu(bench: Bench<'_>, rows: usize, cols: usize) -> Made<'_> {
    let (x, mut y) = (bench.values(rows * cols)?, bench.zeros(rows * cols));
    Prepared::bytes(traffic(&[&x, &y], &[]), move || {
        bench.ops.activation(Function::GeluTanh, y.slice_mut(), x.slice())
    })
}

pub(super) fn gelu_backward(bench: Bench<'_>, rows: usize, cols: usize) -> Made<'_> {
    let (x, dy) = (bench.values(rows * cols)?, bench.values(rows * cols)?);
    let mut dx = bench.zeros(rows * cols);
    Prepared::bytes(traffic(&[&x, &dy, &dx], &[]), move || {
        bench.ops.activation_backward(Function::GeluTanh, dx.slice_mut(), x.slice(), dy.slice())
    })
}

/// Gate and linear half of one matrix, as a fused linear layer writes them.
fn gate_and_up(
    both: &Buf,
    rows: usize,
    cols: usize,
) -> Result<(MatRef<'_>, MatRef<'_>), KernelError> {
    let both = MatRef::new(both.slice(), rows, 2 * cols);
    Ok((both.columns(0..cols)?, both.columns(cols..2 * cols)?))
}

pub(super) fn swiglu(bench: Bench<'_>, rows: usize, cols: usize) -> Made<'_> {
    let (both, mut y) = (bench.values(rows * 2 * cols)?, bench.zeros(rows * cols));
    Prepared::bytes(traffic(&[&both, &y], &[]), move || {
        let (gate, up) = gate_and_up(&both, rows, cols)?;
        bench.ops.gated(Function::Silu, MatMut::new(y.slice_mut(), rows, cols), gate, up)
    })
}

pub(super) fn swiglu_backward(bench: Bench<'_>, rows: usize, cols: usize) -> Made<'_> {
    let (both, dy) = (bench.values(rows * 2 * cols)?, bench.values(rows * cols)?);
    let mut d = bench.zeros(rows * 2 * cols);
    Prepared::bytes(traffic(&[&both, &dy, &d], &[]), move || {
        let (gate, up) = gate_and_up(&both, rows, cols)?;
        let d = GateUpMut::Fused(MatMut::new(d.slice_mut(), rows, 2 * cols));
        bench.ops.gated_backward(Function::Silu, d, gate, up, MatRef::new(dy.slice(), rows, cols))
    })
}

pub(super) fn rope(bench: Bench<'_>, rows: usize, cols: usize) -> Made<'_> {
    let (head_dim, seq) = (HEAD_DIM, rows.min(1024));
    let shape = RopeShape { heads: cols / head_dim, head_dim, turned: head_dim, seq, start: 0 };
    let table = rope_table(bench.acc(), &rope_frequencies(1e4, head_dim), 1.0, seq)?;
    let mut x = bench.values(rows * cols)?;
    Prepared::bytes(traffic(&[&table], &[&x]), move || {
        bench.ops.rope(shape, false, MatMut::new(x.slice_mut(), rows, cols), table.slice())
    })
}

pub(super) fn add_bias(bench: Bench<'_>, rows: usize, cols: usize) -> Made<'_> {
    let (mut y, bias) = (bench.values(rows * cols)?, bench.values(cols)?);
    Prepared::bytes(traffic(&[&bias], &[&y]), move || {
        bench.ops.add_bias(MatMut::new(y.slice_mut(), rows, cols), bias.slice())
    })
}

pub(super) fn sum_rows(bench: Bench<'_>, rows: usize, cols: usize) -> Made<'_> {
    let (x, mut acc) = (bench.values(rows * cols)?, bench.sums(cols)?);
    Prepared::bytes(traffic(&[&x], &[&acc]), move || {
        bench.ops.sum_rows(acc.slice_mut(), MatRef::new(x.slice(), rows, cols))
    })
}

pub(super) fn add(bench: Bench<'_>, rows: usize, cols: usize) -> Made<'_> {
    let (a, b) = (bench.values(rows * cols)?, bench.values(rows * cols)?);
    let mut y = bench.zeros(rows * cols);
    Prepared::bytes(traffic(&[&a, &b, &y], &[]), move || {
        bench.ops.add(y.slice_mut(), a.slice(), b.slice())
    })
}

pub(super) fn add_assign(bench: Bench<'_>, rows: usize, cols: usize) -> Made<'_> {
    let (mut y, a) = (bench.values(rows * cols)?, bench.values(rows * cols)?);
    Prepared::bytes(traffic(&[&a], &[&y]), move || bench.ops.add_assign(y.slice_mut(), a.slice()))
}

/// By one: another factor would lead to infinity or to subnormal numbers, which are slow.
pub(super) fn scale(bench: Bench<'_>, rows: usize, cols: usize) -> Made<'_> {
    let mut y = bench.values(rows * cols)?;
    Prepared::bytes(traffic(&[], &[&y]), move || bench.ops.scale(y.slice_mut(), 1.0))
}

pub(super) fn softcap(bench: Bench<'_>, rows: usize, cols: usize) -> Made<'_> {
    let mut y = bench.values(rows * cols)?;
    Prepared::bytes(traffic(&[], &[&y]), move || bench.ops.softcap(y.slice_mut(), 30.0))
}

pub(super) fn copy(bench: Bench<'_>, rows: usize, cols: usize) -> Made<'_> {
    let (x, mut y) = (bench.values(rows * cols)?, bench.zeros(rows * cols));
    Prepared::bytes(traffic(&[&x, &y], &[]), move || {
        let y = MatMut::new(y.slice_mut(), rows, cols);
        bench.ops.copy(y, MatRef::new(x.slice(), rows, cols))
    })
}

pub(super) fn dropout(bench: Bench<'_>, rows: usize, cols: usize) -> Made<'_> {
    let dropout = Dropout { probability: 0.1, key: 1, step: 0, first_sample: 0 };
    let place = DropoutPlace { tokens: rows.min(1024), first_token: 0, first_feature: 0 };
    let (x, mut y) = (bench.values(rows * cols)?, bench.zeros(rows * cols));
    Prepared::bytes(traffic(&[&x, &y], &[]), move || {
        let y = MatMut::new(y.slice_mut(), rows, cols);
        bench.ops.dropout(dropout, place, y, MatRef::new(x.slice(), rows, cols))
    })
}

/// Of the table, only the rows of the tokens count.
pub(super) fn embedding(bench: Bench<'_>, rows: usize, cols: usize) -> Made<'_> {
    let (ids, table) = (ids(rows), bench.values(VOCAB * cols)?);
    let mut y = bench.zeros(rows * cols);
    Prepared::bytes(traffic(&[&ids], &[&y]), move || {
        bench.ops.embedding(cols, y.slice_mut(), ids.slice(), table.slice(), 0)
    })
}

/// As `embedding`.
pub(super) fn embedding_backward(bench: Bench<'_>, rows: usize, cols: usize) -> Made<'_> {
    let (ids, dy) = (ids(rows), bench.values(rows * cols)?);
    let mut dtable = Buf::zeros(bench.acc(), VOCAB * cols);
    let bytes = traffic(&[&ids, &dy], &[]) + 2 * rows * cols * bench.acc().bytes();
    Prepared::bytes(bytes, move || {
        bench.ops.embedding_backward(cols, dtable.slice_mut(), ids.slice(), dy.slice(), 0)
    })
}

/// Blocks of the sum of exponentials, as in the loss of a whole vocabulary.
const LOSS_BLOCKS: usize = 8;

/// Logits, targets, and the three numbers of a row that the loss works with.
struct Loss {
    rows: usize,
    cols: usize,
    shape: LossShape,
    logits: Buf,
    targets: Buf,
    max: Buf,
    sum_exp: Buf,
    target_logit: Buf,
}

impl Loss {
    /// With the sums of these logits.
    fn new(bench: Bench<'_>, rows: usize, cols: usize) -> Result<Self, KernelError> {
        let zeros = || Buf::zeros(bench.acc(), rows);
        let mut loss = Self {
            rows,
            cols,
            shape: LossShape { valid_cols: TOKENS.min(cols), first_col: 0, softcap: None },
            logits: bench.values(rows * cols)?,
            targets: ids(rows),
            max: zeros(),
            sum_exp: zeros(),
            target_logit: zeros(),
        };
        loss.max(bench.ops)?;
        loss.sum(bench.ops)?;
        Ok(loss)
    }

    fn max(&mut self, ops: &CpuOps) -> Done {
        let logits = MatRef::new(self.logits.slice(), self.rows, self.cols);
        ops.ce_max(self.shape, self.max.slice_mut(), logits)
    }

    fn sum(&mut self, ops: &CpuOps) -> Done {
        let logits = MatRef::new(self.logits.slice(), self.rows, self.cols);
        let (sum_exp, target_logit) = (self.sum_exp.slice_mut(), self.target_logit.slice_mut());
        let (max, targets) = (self.max.slice(), self.targets.slice());
        ops.ce_sum(self.shape, LOSS_BLOCKS, sum_exp, target_logit, logits, max, targets)
    }

    fn grad(&mut self, ops: &CpuOps) -> Done {
        let logits = MatMut::new(self.logits.slice_mut(), self.rows, self.cols);
        let (max, sum_exp) = (self.max.slice(), self.sum_exp.slice());
        ops.ce_grad(self.shape, logits, max, sum_exp, self.targets.slice(), 1.0)
    }
}

pub(super) fn ce_max(bench: Bench<'_>, rows: usize, cols: usize) -> Made<'_> {
    let mut loss = Loss::new(bench, rows, cols)?;
    let bytes = traffic(&[&loss.logits, &loss.max], &[]);
    Prepared::bytes(bytes, move || loss.max(bench.ops))
}

pub(super) fn ce_sum(bench: Bench<'_>, rows: usize, cols: usize) -> Made<'_> {
    let mut loss = Loss::new(bench, rows, cols)?;
    let results = [&loss.sum_exp, &loss.target_logit];
    let bytes = traffic(&[&loss.logits, &loss.max, &loss.targets], &[]) + traffic(&results, &[]);
    Prepared::bytes(bytes, move || loss.sum(bench.ops))
}

/// In place: from the second call on, the logits are the gradient before. Softmax does not mind.
pub(super) fn ce_grad(bench: Bench<'_>, rows: usize, cols: usize) -> Made<'_> {
    let mut loss = Loss::new(bench, rows, cols)?;
    let bytes = traffic(&[&loss.max, &loss.sum_exp, &loss.targets], &[&loss.logits]);
    Prepared::bytes(bytes, move || loss.grad(bench.ops))
}

/// From the type of sums, as new weights are published.
pub(super) fn cast(bench: Bench<'_>, rows: usize, cols: usize) -> Made<'_> {
    let (x, mut y) = (bench.sums(rows * cols)?, bench.zeros(rows * cols));
    Prepared::bytes(traffic(&[&x, &y], &[]), move || bench.ops.cast(y.slice_mut(), x.slice()))
}

/// Weights in the compute type beside those of the optimizer, where the two types differ.
fn compute_copy(bench: Bench<'_>, len: usize) -> Option<Buf> {
    (bench.dtype != bench.acc()).then(|| bench.zeros(len))
}

pub(super) fn adamw(bench: Bench<'_>, rows: usize, cols: usize) -> Made<'_> {
    let len = rows * cols;
    let constants = AdamW {
        lr: 1e-3,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
        bias_correction1: 0.1,
        bias_correction2: 0.05,
        grad_scale: 1.0,
    };
    let (mut w, grad) = (bench.sums(len)?, bench.sums(len)?);
    let (mut m, mut v) = (Buf::zeros(bench.acc(), len), Buf::zeros(bench.acc(), len));
    let mut compute = compute_copy(bench, len);
    let once: Vec<_> = compute.iter().chain([&grad]).collect();
    Prepared::bytes(traffic(&once, &[&w, &m, &v]), move || {
        let compute = compute.as_mut().map(Buf::slice_mut);
        let (w, m, v) = (w.slice_mut(), m.slice_mut(), v.slice_mut());
        bench.ops.adamw(constants, w, m, v, grad.slice(), compute)
    })
}

pub(super) fn sgd(bench: Bench<'_>, rows: usize, cols: usize) -> Made<'_> {
    let len = rows * cols;
    let constants = Sgd { lr: 1e-3, momentum: 0.9, weight_decay: 0.1, grad_scale: 1.0 };
    let (mut w, grad) = (bench.sums(len)?, bench.sums(len)?);
    let mut velocity = Buf::zeros(bench.acc(), len);
    let mut compute = compute_copy(bench, len);
    let once: Vec<_> = compute.iter().chain([&grad]).collect();
    Prepared::bytes(traffic(&once, &[&w, &velocity]), move || {
        let compute = compute.as_mut().map(Buf::slice_mut);
        bench.ops.sgd(constants, w.slice_mut(), Some(velocity.slice_mut()), grad.slice(), compute)
    })
}

pub(super) fn sum_squares(bench: Bench<'_>, rows: usize, cols: usize) -> Made<'_> {
    let x = bench.sums(rows * cols)?;
    let mut sum = Buf::zeros(DType::F64, 1);
    Prepared::bytes(traffic(&[&x], &[]), move || bench.ops.sum_squares(sum.slice_mut(), x.slice()))
}

pub(super) fn row_sums(bench: Bench<'_>, rows: usize, cols: usize) -> Made<'_> {
    let x = bench.sums(rows * cols)?;
    let mut sums = Buf::zeros(DType::F64, rows);
    Prepared::bytes(traffic(&[&x], &[&sums]), move || {
        bench.ops.row_sums(sums.slice_mut(), MatRef::new(x.slice(), rows, cols))
    })
}

pub(super) fn first_non_finite(bench: Bench<'_>, rows: usize, cols: usize) -> Made<'_> {
    let x = bench.sums(rows * cols)?;
    Prepared::bytes(traffic(&[&x], &[]), move || bench.ops.first_non_finite(x.slice()).map(drop))
}
