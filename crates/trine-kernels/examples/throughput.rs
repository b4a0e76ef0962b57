//! Rates of the matrix products and of attention on this machine, in GFLOP/s.
//!
//! `cargo run --release -p trine-kernels --example throughput`

#![expect(clippy::print_stdout, reason = "the report")]

use std::time::{Duration, Instant};
use trine_buffer::{Buf, DType, Float};
use trine_kernels::{
    AttentionShape, CpuOps, KernelError, MatMut, MatRef, Ops, Product, Qkv, QkvMut, Team,
};

/// How long one number is measured.
const MEASURE: Duration = Duration::from_millis(120);

/// The best of many calls, in seconds: on a shared machine the median measures the neighbours.
fn seconds(mut call: impl FnMut() -> Result<(), KernelError>) -> Result<f64, KernelError> {
    call()?;
    let (begin, mut best) = (Instant::now(), f64::INFINITY);
    while begin.elapsed() < MEASURE {
        let start = Instant::now();
        call()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}

/// Values between −1 and 1.
fn values<T: Float>(len: usize) -> Buf {
    let value = |i: usize| (i.wrapping_mul(0x9e37_79b9) >> 8 & 0xffff) as f64 / 32768.0 - 1.0;
    Buf::from_vec((0..len).map(|i| T::from_f64(value(i))).collect())
}

fn product<T: Float>(
    ops: &CpuOps,
    product: Product,
    m: usize,
    n: usize,
    k: usize,
) -> Result<f64, KernelError> {
    let (a, b) = (values::<T>(m * k), values::<T>(n * k));
    // Weight gradients are f32 and accumulate; activations are of the compute type.
    let accumulate = product == Product::Tn;
    let mut c = Buf::zeros(if accumulate { DType::F32 } else { T::DTYPE }, m * n);
    let (a_shape, b_shape) = match product {
        Product::Nt => ((m, k), (n, k)),
        Product::Nn => ((m, k), (k, n)),
        Product::Tn => ((k, m), (k, n)),
    };
    let time = seconds(|| {
        let a = MatRef::new(a.slice(), a_shape.0, a_shape.1);
        let b = MatRef::new(b.slice(), b_shape.0, b_shape.1);
        ops.matmul(product, accumulate, a, b, MatMut::new(c.slice_mut(), m, n))
    })?;
    Ok(2.0 * (m * n * k) as f64 / time / 1e9)
}

fn products(ops: &CpuOps) -> Result<(), KernelError> {
    println!("  tokens   in   out |  f32: y   dx   dw | bf16: y   dx   dw");
    let shapes = [
        (512, 256, 1024),
        (2048, 256, 768),
        (2048, 256, 4096),
        (512, 768, 768),
        (512, 768, 3072),
        (2048, 1024, 1024),
        (512, 768, 50304),
        (128, 128, 384),
    ];
    for (tokens, inputs, outputs) in shapes {
        print!("  {tokens:6} {inputs:4} {outputs:5} |");
        let calls = [
            (Product::Nt, tokens, outputs, inputs),
            (Product::Nn, tokens, inputs, outputs),
            (Product::Tn, outputs, inputs, tokens),
        ];
        for (form, m, n, k) in calls {
            print!(" {:6.0}", product::<f32>(ops, form, m, n, k)?);
        }
        print!(" |");
        for (form, m, n, k) in calls {
            print!(" {:6.0}", product::<half::bf16>(ops, form, m, n, k)?);
        }
        println!();
    }
    Ok(())
}

/// Milliseconds of attention forward and backward, and the rate that the visible half of the scores
/// stands for (4 products of `head_dim` forward and 10 backward for each pair of query and key).
fn attention<T: Float>(
    ops: &CpuOps,
    samples: usize,
    seq: usize,
    heads: usize,
    head_dim: usize,
) -> Result<(), KernelError> {
    let scale = 1.0 / (head_dim as f64).sqrt();
    let shape = AttentionShape {
        samples,
        queries: seq,
        keys: seq,
        heads,
        kv_heads: heads,
        head_dim,
        scale,
    };
    let (rows, cols) = (samples * seq, heads * head_dim);
    let (qkv, d_o) = (values::<T>(rows * 3 * cols), values::<T>(rows * cols));
    let (mut o, mut d) = (Buf::zeros(T::DTYPE, rows * cols), Buf::zeros(T::DTYPE, qkv.len()));
    let mut lse = Buf::zeros(T::DTYPE.accumulator(), rows * heads);
    let views = Qkv::fused(MatRef::new(qkv.slice(), rows, 3 * cols), cols, cols)?;
    let forward = seconds(|| {
        let o = MatMut::new(o.slice_mut(), rows, cols);
        ops.attention(shape, o, lse.slice_mut(), views, None, None)
    })?;
    let backward = seconds(|| {
        let d = QkvMut::Fused(MatMut::new(d.slice_mut(), rows, 3 * cols));
        let (d_o, o) = (MatRef::new(d_o.slice(), rows, cols), MatRef::new(o.slice(), rows, cols));
        ops.attention_backward(shape, d, d_o, o, lse.slice(), views, None, None)
    })?;
    let flops = (samples * heads * seq * (seq + 1) / 2 * head_dim) as f64 / 1e9;
    println!(
        "  {:>4} {samples:3} x {seq:4}, {heads:2} heads of {head_dim:3} | {:7.2} ms {:4.0} | {:7.2} ms {:4.0}",
        T::DTYPE.to_string(),
        forward * 1e3,
        4.0 * flops / forward,
        backward * 1e3,
        10.0 * flops / backward,
    );
    Ok(())
}

fn attentions(ops: &CpuOps) -> Result<(), KernelError> {
    println!("  attention                      | forward         | backward");
    for (samples, seq, heads, head_dim) in
        [(16, 128, 4, 64), (4, 256, 12, 64), (4, 1024, 12, 64), (2, 512, 8, 128)]
    {
        attention::<f32>(ops, samples, seq, heads, head_dim)?;
        attention::<half::bf16>(ops, samples, seq, heads, head_dim)?;
    }
    Ok(())
}

fn main() -> Result<(), KernelError> {
    for threads in [1, 2] {
        let ops = CpuOps::new(Team::new(threads));
        println!("{} thread(s), {}", ops.threads(), ops.isa().name());
        products(&ops)?;
        attentions(&ops)?;
    }
    Ok(())
}
