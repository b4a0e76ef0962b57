//! What kernels reach: measured on whatever they run on, by its own clock.

use crate::failure::Failure;
use std::sync::Arc;
use std::time::{Duration, Instant};
use trine_buffer::{Buf, DType, Place};
use trine_comm::{Communicator, ReduceOp, threads};
use trine_kernels::{
    AttentionShape, Function, KernelError, MatMut, MatRef, NormShape, Ops, Product, Qkv,
};
use trine_plan::{Level, Link};
use trine_trainer::TrainError;

/// How long each kernel is measured.
const BUDGET: Duration = Duration::from_millis(50);

/// Measurements of a kernel at least; the one in the middle counts, because a run has no best cases.
const TIMES_MIN: usize = 3;

/// Calls of a kernel that does next to nothing, of which a device is timed.
const SMALL_CALLS: usize = 64;

/// Bytes of a reduction whose time is waiting.
const SMALL_BYTES: usize = 4;

/// Turns of a reduction.
const ALL_REDUCES: usize = 21;

/// What is computed for a measurement.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    /// Rows and columns of a product that is neither small nor large.
    pub(super) product: usize,
    /// Tokens of the one sequence of attention, and its heads.
    pub(super) attention: [usize; 2],
    /// Rows and columns of element-wise kernels.
    pub(super) rows: [usize; 2],
}

/// Elements of a head.
pub(super) const HEAD_DIM: usize = 64;

/// What kernels reach with all that a rank has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rates {
    /// FLOP/s of a product.
    pub(super) product: f64,
    /// FLOP/s of causal attention.
    pub(super) attention: f64,
    /// Bytes/s of a norm and an activation, each byte once.
    pub(super) element_wise: f64,
    /// Seconds of a call with next to no work.
    pub(super) call_s: f64,
}

impl Rates {
    pub(super) fn measure(ops: &dyn Ops, dtype: DType, sizes: Sizes) -> Result<Self, KernelError> {
        let ones = |len: usize| values(ops, dtype, len);
        let [rows, cols] = sizes.rows;
        let (x, gamma, beta) = (ones(rows * cols)?, ones(cols)?, ones(cols)?);
        let mut y = ops.place().zeros(dtype, rows * cols)?;
        let mut stats = ops.place().zeros(dtype.accumulator(), 2 * rows)?;
        let mut norm = |rows: usize, cols: usize| {
            let shape = NormShape { rows, cols, eps: 1e-5 };
            let to = y.slice_mut().range(0..rows * cols)?;
            let (x, gamma) = (x.slice().range(0..rows * cols)?, gamma.slice().range(0..cols)?);
            let stats = stats.slice_mut().range(0..2 * rows)?;
            ops.layer_norm(shape, to, stats, x, gamma, beta.slice().range(0..cols)?)
        };
        let place = ops.place();
        let large = seconds(place, 1, || norm(rows, cols))?;
        let small = seconds(place, SMALL_CALLS, || norm(1, 16))?;
        let gelu =
            seconds(place, 1, || ops.activation(Function::GeluTanh, y.slice_mut(), x.slice()))?;
        let bytes = 2.0 * (x.size_bytes() + y.size_bytes()) as f64;
        let [tokens, heads] = sizes.attention;
        let pairs = (tokens * tokens * heads * HEAD_DIM) as f64;
        Ok(Self {
            product: product(ops, dtype, sizes.product)?,
            // Two products of half of the scores.
            attention: 2.0 * pairs / attention_s(ops, dtype, sizes.attention)?,
            element_wise: bytes / (large + gelu),
            call_s: small,
        })
    }
}

/// FLOP/s of a product of two square matrices.
pub(super) fn product(ops: &dyn Ops, dtype: DType, size: usize) -> Result<f64, KernelError> {
    let n = size;
    let (a, b) = (values(ops, dtype, n * n)?, values(ops, dtype, n * n)?);
    let mut c = ops.place().zeros(dtype, n * n)?;
    let seconds = seconds(ops.place(), 1, || {
        let (a, b) = (MatRef::new(a.slice(), n, n), MatRef::new(b.slice(), n, n));
        ops.matmul(Product::Nt, false, a, b, MatMut::new(c.slice_mut(), n, n))
    })?;
    Ok(2.0 * (n as f64).powi(3) / seconds)
}

/// Bytes/s of a copy, read and written, of so many elements of f32.
pub(super) fn copy(ops: &dyn Ops, len: usize) -> Result<f64, KernelError> {
    let from = values(ops, DType::F32, len)?;
    let mut to = ops.place().zeros(DType::F32, len)?;
    let seconds = seconds(ops.place(), 1, || Ok(to.slice_mut().copy_from(from.slice())?))?;
    Ok(2.0 * from.size_bytes() as f64 / seconds)
}

fn attention_s(
    ops: &dyn Ops,
    dtype: DType,
    [tokens, heads]: [usize; 2],
) -> Result<f64, KernelError> {
    let features = heads * HEAD_DIM;
    let shape = AttentionShape {
        samples: 1,
        queries: tokens,
        keys: tokens,
        query_start: 0,
        key_start: 0,
        window: None,
        heads,
        kv_heads: heads,
        head_dim: HEAD_DIM,
        scale: 1.0 / (HEAD_DIM as f64).sqrt(),
        softcap: None,
    };
    let qkv = values(ops, dtype, tokens * 3 * features)?;
    let mut o = ops.place().zeros(dtype, tokens * features)?;
    let mut log_sum = ops.place().zeros(dtype.accumulator(), tokens * heads)?;
    seconds(ops.place(), 1, || {
        let all = MatRef::new(qkv.slice(), tokens, 3 * features);
        let qkv = Qkv::fused(all, features, features)?;
        let o = MatMut::new(o.slice_mut(), tokens, features);
        ops.attention(shape, o, log_sum.slice_mut(), qkv, None, None)
    })
}

/// Numbers between 0 and 1.
fn values(ops: &dyn Ops, dtype: DType, len: usize) -> Result<Buf, KernelError> {
    let exact = Buf::from_vec((0..len).map(|i| (i % 251) as f32 / 251.0).collect());
    let exact = ops.place().hold(exact)?;
    let mut values = ops.place().zeros(dtype, len)?;
    ops.cast(values.slice_mut(), exact.slice())?;
    Ok(values)
}

/// Seconds of a call of which so many follow each other. One before them does not count: it finds cold caches and
/// memory that is not mapped yet.
pub(super) fn seconds(
    place: &Place,
    calls: usize,
    mut call: impl FnMut() -> Result<(), KernelError>,
) -> Result<f64, KernelError> {
    call()?;
    let began = Instant::now();
    let mut times = Vec::new();
    while times.len() < TIMES_MIN || began.elapsed() < BUDGET {
        let start = place.stamp()?;
        (0..calls).try_for_each(|_| call())?;
        times.push(place.stamp()?.seconds_since(&start)? / calls as f64);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

/// Bandwidth and latency between ranks that are threads: what an all-reduce of the planner's rings would need to take
/// as long. The time of `large_bytes` is transfer. `join` gives a rank what it talks through and where its buffers lie.
pub(super) fn reductions(
    ranks: usize,
    large_bytes: usize,
    options: &threads::WorldOptions,
    join: impl Fn(Arc<dyn Communicator>) -> Result<(Arc<dyn Communicator>, Place), TrainError> + Sync,
) -> Result<Level, Failure> {
    let times = threads::run(ranks, options, |host| {
        let (comm, place) = join(host)?;
        let [large, small] =
            [large_bytes, SMALL_BYTES].map(|bytes| all_reduce_s(&*comm, &place, bytes));
        Ok::<_, TrainError>([large?, small?])
    });
    let times = times.map_err(|error| Failure::Run(anyhow::anyhow!("{error}")))?;
    let [large, small] = times[0];
    let hops = (ranks - 1) as f64;
    let moved = 2.0 * hops / ranks as f64 * large_bytes as f64;
    Ok(Level {
        name: String::new(),
        devices: ranks,
        // A machine too noisy to tell the two apart has the bandwidth of the whole.
        bandwidth: moved / if large > small { large - small } else { large },
        latency: small / (2.0 * hops),
        contention: 1.0,
        link: Link::Inside,
    })
}

fn all_reduce_s(comm: &dyn Communicator, place: &Place, bytes: usize) -> Result<f64, TrainError> {
    let mut buf = place.zeros(DType::F32, bytes / size_of::<f32>())?;
    comm.barrier("begin")?;
    let mut times = Vec::new();
    // A number of turns that all ranks know.
    for _ in 0..ALL_REDUCES {
        let began = place.stamp()?;
        buf = comm.all_reduce(buf, ReduceOp::Sum, "measure")?;
        times.push(place.stamp()?.seconds_since(&began)?);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}
