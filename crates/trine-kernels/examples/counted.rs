//! One call of one kernel, for `cargo xtask counts`, which counts its instructions under valgrind.
//!
//! `cargo run --release -p trine-kernels --example counted [CASE]`; without a case it lists them.
//! Everything is fixed: sizes, values, one thread, AVX2 (valgrind knows nothing richer).

#![expect(clippy::print_stdout, reason = "the list of cases")]

use half::bf16;
use std::process::ExitCode;
use trine_buffer::{Buf, DType, Float, Slice};
use trine_kernels::{
    AdamW, AttentionShape, CpuOps, Function, Isa, KernelError, LossShape, MatMut, MatRef,
    NormShape, Ops, Product, Qkv, QkvMut, Team,
};

type Done = Result<(), KernelError>;

/// A name, under which `counts.toml` has the number, and what makes the call.
type Case = (&'static str, fn(&CpuOps) -> Done);

const CASES: &[Case] = &[
    ("matmul-nt-f32", |ops| matmul::<f32>(ops, Product::Nt)),
    ("matmul-nn-f32", |ops| matmul::<f32>(ops, Product::Nn)),
    ("matmul-tn-f32", |ops| matmul::<f32>(ops, Product::Tn)),
    ("matmul-nt-bf16", |ops| matmul::<bf16>(ops, Product::Nt)),
    ("matmul-nn-bf16", |ops| matmul::<bf16>(ops, Product::Nn)),
    ("matmul-tn-bf16", |ops| matmul::<bf16>(ops, Product::Tn)),
    ("attention-f32", |ops| attention::<f32>(ops, ATTENTION)),
    ("attention-bf16", |ops| attention::<bf16>(ops, ATTENTION)),
    ("attention-backward-f32", |ops| attention_backward::<f32>(ops, ATTENTION)),
    ("attention-backward-bf16", |ops| attention_backward::<bf16>(ops, ATTENTION)),
    ("attention-window-f32", |ops| attention::<f32>(ops, WINDOW)),
    ("attention-window-backward-f32", |ops| attention_backward::<f32>(ops, WINDOW)),
    ("layer-norm-f32", layer_norm::<f32>),
    ("layer-norm-bf16", layer_norm::<bf16>),
    ("layer-norm-backward-f32", layer_norm_backward::<f32>),
    ("layer-norm-backward-bf16", layer_norm_backward::<bf16>),
    ("gelu-f32", gelu::<f32>),
    ("gelu-bf16", gelu::<bf16>),
    ("gelu-backward-f32", gelu_backward::<f32>),
    ("gelu-backward-bf16", gelu_backward::<bf16>),
    ("cross-entropy-f32", cross_entropy::<f32>),
    ("cross-entropy-bf16", cross_entropy::<bf16>),
    ("embedding-f32", embedding::<f32>),
    ("embedding-bf16", embedding::<bf16>),
    ("embedding-backward-f32", embedding_backward::<f32>),
    ("embedding-backward-bf16", embedding_backward::<bf16>),
    ("cast-f32-bf16", cast::<f32, bf16>),
    ("cast-bf16-f32", cast::<bf16, f32>),
    ("adamw", adamw),
    ("sum-squares", sum_squares),
];

/// Elements of the flat cases.
const FLAT: usize = 16 * 1024;

fn main() -> ExitCode {
    let Some(name) = std::env::args().nth(1) else {
        CASES.iter().for_each(|(name, _)| println!("{name}"));
        return ExitCode::SUCCESS;
    };
    let Some((_, run)) = CASES.iter().find(|(case, _)| *case == name) else {
        println!("there is no case `{name}`; without an argument they are listed");
        return ExitCode::FAILURE;
    };
    let done = CpuOps::with_isa(Team::new(1), Isa::Avx2).and_then(|ops| run(&ops));
    if let Err(error) = done {
        println!("{name}: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Makes the call twice: the first finds the processor's features and grows the working memory,
/// the second is counted.
fn twice(mut call: impl FnMut() -> Done) -> Done {
    call()?;
    counted_call(&mut call)
}

/// What happens in here is counted; `cargo xtask counts` knows the name.
#[inline(never)]
fn counted_call(call: &mut dyn FnMut() -> Done) -> Done {
    // Something is left to do after the call, so that it cannot become a jump out of here.
    std::hint::black_box(call())
}

/// Values between −1 and 1.
fn values<T: Float>(len: usize) -> Buf {
    let value = |i: usize| (i.wrapping_mul(0x9e37_79b9) >> 8 & 0xffff) as f64 / 32768.0 - 1.0;
    Buf::from_vec((0..len).map(|i| T::from_f64(value(i))).collect())
}

/// Zeros of the type that gradients of weights and statistics have.
fn sums<T: Float>(len: usize) -> Buf {
    Buf::zeros(T::DTYPE.accumulator(), len)
}

/// Ids below `limit`.
fn ids(len: usize, limit: usize) -> Vec<u32> {
    (0..len).map(|i| (i * 37 % limit) as u32).collect()
}

fn matmul<T: Float>(ops: &CpuOps, product: Product) -> Done {
    let (m, n, k) = (96, 256, 192);
    let (a, b) = (values::<T>(m * k), values::<T>(n * k));
    // Weight gradients accumulate; activations are of the compute type.
    let accumulate = product == Product::Tn;
    let mut c = if accumulate { sums::<T>(m * n) } else { Buf::zeros(T::DTYPE, m * n) };
    let (a_shape, b_shape) = match product {
        Product::Nt => ((m, k), (n, k)),
        Product::Nn => ((m, k), (k, n)),
        Product::Tn => ((k, m), (k, n)),
    };
    twice(|| {
        let a = MatRef::new(a.slice(), a_shape.0, a_shape.1);
        let b = MatRef::new(b.slice(), b_shape.0, b_shape.1);
        ops.matmul(product, accumulate, a, b, MatMut::new(c.slice_mut(), m, n))
    })
}

const ATTENTION: AttentionShape = AttentionShape {
    samples: 1,
    queries: 160,
    keys: 160,
    query_start: 0,
    key_start: 0,
    window: None,
    heads: 2,
    kv_heads: 2,
    head_dim: 64,
    scale: 0.125,
    softcap: None,
};
/// Work that grows with the tokens times the window, not with their square.
const WINDOW: AttentionShape =
    AttentionShape { queries: 1024, keys: 1024, window: Some(64), ..ATTENTION };

/// Rows of one matrix of queries, keys and values, and columns of each.
fn sizes(shape: AttentionShape) -> (usize, usize) {
    (shape.samples * shape.queries, shape.heads * shape.head_dim)
}

fn attention<T: Float>(ops: &CpuOps, shape: AttentionShape) -> Done {
    let (rows, cols) = sizes(shape);
    let qkv = values::<T>(rows * 3 * cols);
    let views = Qkv::fused(MatRef::new(qkv.slice(), rows, 3 * cols), cols, cols)?;
    let (mut o, mut lse) = (Buf::zeros(T::DTYPE, rows * cols), sums::<T>(rows * shape.heads));
    twice(|| {
        let o = MatMut::new(o.slice_mut(), rows, cols);
        ops.attention(shape, o, lse.slice_mut(), views, None, None)
    })
}

fn attention_backward<T: Float>(ops: &CpuOps, shape: AttentionShape) -> Done {
    let (rows, cols) = sizes(shape);
    let (qkv, d_o) = (values::<T>(rows * 3 * cols), values::<T>(rows * cols));
    let views = Qkv::fused(MatRef::new(qkv.slice(), rows, 3 * cols), cols, cols)?;
    let (mut o, mut lse) = (Buf::zeros(T::DTYPE, rows * cols), sums::<T>(rows * shape.heads));
    let mut d = Buf::zeros(T::DTYPE, rows * 3 * cols);
    let o_view = MatMut::new(o.slice_mut(), rows, cols);
    ops.attention(shape, o_view, lse.slice_mut(), views, None, None)?;
    twice(|| {
        let d = QkvMut::Fused(MatMut::new(d.slice_mut(), rows, 3 * cols));
        let (d_o, o) = (MatRef::new(d_o.slice(), rows, cols), MatRef::new(o.slice(), rows, cols));
        ops.attention_backward(shape, d, d_o, o, lse.slice(), views, None, None)
    })
}

const NORM: NormShape = NormShape { rows: 32, cols: 768, eps: 1e-5 };

fn layer_norm<T: Float>(ops: &CpuOps) -> Done {
    let len = NORM.rows * NORM.cols;
    let (x, gamma, beta) = (values::<T>(len), values::<T>(NORM.cols), values::<T>(NORM.cols));
    let (mut y, mut stats) = (Buf::zeros(T::DTYPE, len), sums::<T>(2 * NORM.rows));
    twice(|| {
        let (y, stats) = (y.slice_mut(), stats.slice_mut());
        ops.layer_norm(NORM, y, stats, x.slice(), gamma.slice(), beta.slice())
    })
}

fn layer_norm_backward<T: Float>(ops: &CpuOps) -> Done {
    let len = NORM.rows * NORM.cols;
    let (x, gamma, dy) = (values::<T>(len), values::<T>(NORM.cols), values::<T>(len));
    let (mut y, mut stats) = (Buf::zeros(T::DTYPE, len), sums::<T>(2 * NORM.rows));
    let (mut dgamma, mut dbeta) = (sums::<T>(NORM.cols), sums::<T>(NORM.cols));
    let mut dx = Buf::zeros(T::DTYPE, len);
    let beta = gamma.slice();
    ops.layer_norm(NORM, y.slice_mut(), stats.slice_mut(), x.slice(), gamma.slice(), beta)?;
    twice(|| {
        let (dgamma, dbeta) = (dgamma.slice_mut(), dbeta.slice_mut());
        let (x, stats, gamma, dy) = (x.slice(), stats.slice(), gamma.slice(), dy.slice());
        ops.layer_norm_backward(NORM, dx.slice_mut(), true, dgamma, dbeta, x, stats, gamma, dy)
    })
}

fn gelu<T: Float>(ops: &CpuOps) -> Done {
    let (x, mut y) = (values::<T>(FLAT), Buf::zeros(T::DTYPE, FLAT));
    twice(|| ops.activation(Function::GeluTanh, y.slice_mut(), x.slice()))
}

fn gelu_backward<T: Float>(ops: &CpuOps) -> Done {
    let (x, dy, mut dx) = (values::<T>(FLAT), values::<T>(FLAT), Buf::zeros(T::DTYPE, FLAT));
    twice(|| ops.activation_backward(Function::GeluTanh, dx.slice_mut(), x.slice(), dy.slice()))
}

/// Loss and gradient of a whole vocabulary.
fn cross_entropy<T: Float>(ops: &CpuOps) -> Done {
    let (rows, cols) = (8, 4096);
    let (targets, mut logits) = (ids(rows, cols), values::<T>(rows * cols));
    let (mut max, mut sum_exp) = (sums::<T>(rows), sums::<T>(rows));
    let (mut target_logit, mut loss) = (sums::<T>(rows), sums::<T>(rows));
    let shape = LossShape { valid_cols: cols, first_col: 0, softcap: None };
    twice(|| {
        let targets = Slice::new(&targets);
        let view = MatRef::new(logits.slice(), rows, cols);
        ops.ce_max(shape, max.slice_mut(), view)?;
        let (sum, target) = (sum_exp.slice_mut(), target_logit.slice_mut());
        ops.ce_sum(shape, 8, sum, target, view, max.slice(), targets)?;
        let (max, sum, target) = (max.slice(), sum_exp.slice(), target_logit.slice());
        ops.ce_loss(loss.slice_mut(), max, sum, target, targets)?;
        let view = MatMut::new(logits.slice_mut(), rows, cols);
        ops.ce_grad(shape, view, max, sum, targets, 1.0 / rows as f64)
    })
}

fn embedding<T: Float>(ops: &CpuOps) -> Done {
    let (tokens, vocabulary, cols) = (64, 96, 256);
    let (ids, table) = (ids(tokens, vocabulary), values::<T>(vocabulary * cols));
    let mut y = Buf::zeros(T::DTYPE, tokens * cols);
    twice(|| ops.embedding(cols, y.slice_mut(), Slice::new(&ids), table.slice(), 0))
}

fn embedding_backward<T: Float>(ops: &CpuOps) -> Done {
    let (tokens, vocabulary, cols) = (64, 96, 256);
    let (ids, dy) = (ids(tokens, vocabulary), values::<T>(tokens * cols));
    let mut dtable = sums::<T>(vocabulary * cols);
    twice(|| ops.embedding_backward(cols, dtable.slice_mut(), Slice::new(&ids), dy.slice(), 0))
}

fn cast<X: Float, Y: Float>(ops: &CpuOps) -> Done {
    let (x, mut y) = (values::<X>(FLAT), Buf::zeros(Y::DTYPE, FLAT));
    twice(|| ops.cast(y.slice_mut(), x.slice()))
}

fn adamw(ops: &CpuOps) -> Done {
    let constants = AdamW {
        lr: 1e-3,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
        bias_correction1: 0.1,
        bias_correction2: 0.05,
        grad_scale: 0.5,
    };
    let (mut weights, grad) = (values::<f32>(FLAT), values::<f32>(FLAT));
    let (mut m, mut v) = (sums::<f32>(FLAT), sums::<f32>(FLAT));
    let mut compute = Buf::zeros(DType::Bf16, FLAT);
    twice(|| {
        let (weights, m, v) = (weights.slice_mut(), m.slice_mut(), v.slice_mut());
        ops.adamw(constants, weights, m, v, grad.slice(), Some(compute.slice_mut()))
    })
}

fn sum_squares(ops: &CpuOps) -> Done {
    let x = values::<f32>(FLAT);
    let mut sum = Buf::zeros(DType::F64, 1);
    twice(|| ops.sum_squares(sum.slice_mut(), x.slice()))
}
