//! This machine as a cluster of cores: measured in about a second, or read from a file.

use crate::failure::Failure;
use crate::memory;
use std::path::Path;
use std::time::{Duration, Instant};
use trine_buffer::{Buf, DType};
use trine_comm::{CommError, ReduceOp, threads};
use trine_kernels::{
    AttentionShape, CpuOps, Function, KernelError, MatMut, MatRef, NormShape, Ops, Product, Qkv,
    Team, Times, ceiling,
};
use trine_plan::{Cluster, Device, DeviceConstants, Level, Link, clusters, find_cluster};
use trine_trainer::Machine;

/// What it is called, on the command line and in files.
pub(crate) const THIS_MACHINE: &str = "this-machine";

/// How long each kernel is measured.
const BUDGET: Duration = Duration::from_millis(50);

/// Bytes of the arrays that show the rate of memory: several times most last caches.
const MEMORY_BYTES: usize = 128 << 20;

/// What a measurement takes at most, with the stacks of its threads.
const MEASURING_BYTES: u64 = 4 * MEMORY_BYTES as u64;

/// A product that is neither small nor large: tokens, inputs and outputs.
const PRODUCT: usize = 512;

/// Tokens of the one sequence of attention, its heads, and their width.
const ATTENTION: [usize; 3] = [512, 8, 64];

/// Rows and columns of element-wise kernels: within a last cache, as between two products.
const ROWS: [usize; 2] = [512, 2048];

/// Bytes of a reduction whose time is transfer, and of one whose time is waiting.
const REDUCED_BYTES: [usize; 2] = [4 << 20, 4];

/// Ranks of a reduction at most: it is the machine that is measured, not a crowd.
const RANKS_MAX: usize = 8;

/// The machine that `path` describes, or this one, measured now; kernels in `compute`.
pub(crate) fn find(path: Option<&Path>, compute: DType) -> Result<Machine, Failure> {
    match path {
        Some(path) => {
            let cluster = read(path)?;
            let source = format!("{}: {}", path.display(), cluster.about);
            Ok(Machine { cluster, source })
        }
        None => {
            let began = Instant::now();
            let cluster = measure(compute)?;
            let took = began.elapsed().as_secs_f64();
            let source = format!("measured in {compute} at the start, {took:.1} s");
            Ok(Machine { cluster, source })
        }
    }
}

/// The cluster called [`THIS_MACHINE`] of a file.
pub(crate) fn read(path: &Path) -> Result<Cluster, Failure> {
    let at = path.display();
    let text = trine_files::read_text(path, trine_files::TEXT_BYTES_MAX).map_err(|error| {
        Failure::usage(format!(
            "{at}: cannot read the machine: {error}; `trine plan --measure --out {at}` writes it"
        ))
    })?;
    let all = clusters(&[&text]).map_err(|error| Failure::usage(format!("{at}: {error}")))?;
    let found = find_cluster(&all, THIS_MACHINE);
    Ok(found.map_err(|error| Failure::usage(format!("{at}: {error}")))?.clone())
}

/// Measures peak, bandwidth, what kernels reach of both, and reductions between ranks that are threads.
///
/// # Errors
/// A type that kernels do not compute in, or a system that does not tell how much memory there is.
pub(crate) fn measure(compute: DType) -> Result<Cluster, Failure> {
    let limits = memory::limits();
    if let Some(limit) = limits.iter().find(|limit| limit.bytes < MEASURING_BYTES) {
        return Err(Failure::Run(anyhow::anyhow!(
            "to measure this machine takes up to {} MB of memory, and {} MB may be used ({})",
            MEASURING_BYTES / 1_000_000,
            limit.bytes / 1_000_000,
            limit.by
        )));
    }
    let cores = cores();
    let ops = CpuOps::new(Team::new(cores));
    let failed = |error: KernelError| Failure::Run(error.into());
    let peak = |dtype| ceiling::multiply_add_gflop_per_s(ops.team(), ops.isa(), dtype);
    let [peak_bf16, peak_f32] =
        [peak(DType::Bf16).map_err(failed)? * 1e9, peak(DType::F32).map_err(failed)? * 1e9];
    let copy = ceiling::copy_gb_per_s(ops.team(), ops.isa(), MEMORY_BYTES).map_err(failed)? * 1e9;
    let own_peak = if compute == DType::F32 { peak_f32 } else { peak_bf16 };
    let rates = Rates::measure(&ops, compute).map_err(failed)?;
    let memory_bytes = memory::total_bytes().ok_or_else(|| {
        Failure::Run(anyhow::anyhow!("this system does not tell how much memory there is"))
    })?;
    let link = reductions(cores.clamp(2, RANKS_MAX))?;
    let each = 1.0 / cores as f64;
    let device = Device {
        name: format!("{THIS_MACHINE} core"),
        source: format!(
            "measured: peaks are multiply-adds in registers ({}), bandwidth is copying",
            ops.isa().name()
        ),
        constants: String::new(),
        peak_bf16: peak_bf16 * each,
        peak_fp8: 0.0,
        peak_f32: peak_f32 * each,
        memory_bytes: memory_bytes / cores as u64,
        bandwidth: copy * each,
        units: 1.0,
        reached: Some(DeviceConstants {
            gemm_efficiency: rates.product / own_peak,
            wave_tail: 0.0,
            inner_half: 0.0,
            fp8_efficiency: 1.0,
            // Narrow heads are slower in the planner by this root.
            flash_efficiency: rates.attention / peak_bf16 * (128.0 / ATTENTION[2] as f64).sqrt(),
            flash_half: 0.0,
            bandwidth_efficiency: rates.element_wise / copy,
            kernel_gap: rates.call_s,
            inside_efficiency: 1.0,
            between_efficiency: 1.0,
            // What moves bytes between ranks is the cores that compute.
            interference: 1.0,
            straggling: 0.0,
        }),
    };
    Ok(Cluster {
        name: THIS_MACHINE.into(),
        about: format!("{cores} cores, {}, shares of kernels in {compute}", ops.isa().name()),
        device,
        sources: vec![],
        levels: vec![Level { name: "memory".into(), devices: cores, ..link }],
        dollars_per_device_hour: 0.0,
    })
}

/// What kernels reach with all cores.
#[derive(Debug, Clone, Copy)]
struct Rates {
    /// FLOP/s of a product.
    product: f64,
    /// FLOP/s of causal attention.
    attention: f64,
    /// Bytes/s of a norm and an activation, each byte once.
    element_wise: f64,
    /// Seconds of a call with next to no work.
    call_s: f64,
}

impl Rates {
    fn measure(ops: &CpuOps, dtype: DType) -> Result<Self, KernelError> {
        let ones = |len: usize| values(ops, dtype, len);
        let n = PRODUCT;
        let (a, b, mut c) = (ones(n * n)?, ones(n * n)?, Buf::zeros(dtype, n * n));
        let product = seconds(|| {
            let (a, b) = (MatRef::new(a.slice(), n, n), MatRef::new(b.slice(), n, n));
            ops.matmul(Product::Nt, false, a, b, MatMut::new(c.slice_mut(), n, n))
        })?;
        let [rows, cols] = ROWS;
        let (x, gamma, beta) = (ones(rows * cols)?, ones(cols)?, ones(cols)?);
        let mut y = Buf::zeros(dtype, rows * cols);
        let mut stats = Buf::zeros(dtype.accumulator(), 2 * rows);
        let mut norm = |rows: usize, cols: usize| {
            let shape = NormShape { rows, cols, eps: 1e-5 };
            let to = y.slice_mut().range(0..rows * cols)?;
            let (x, gamma) = (x.slice().range(0..rows * cols)?, gamma.slice().range(0..cols)?);
            let stats = stats.slice_mut().range(0..2 * rows)?;
            ops.layer_norm(shape, to, stats, x, gamma, beta.slice().range(0..cols)?)
        };
        let (large, small) = (seconds(|| norm(rows, cols))?, seconds(|| norm(1, 16))?);
        let gelu = seconds(|| ops.activation(Function::GeluTanh, y.slice_mut(), x.slice()))?;
        let bytes = 2.0 * (x.size_bytes() + y.size_bytes()) as f64;
        let [tokens, heads, width] = ATTENTION;
        Ok(Self {
            product: 2.0 * (n * n * n) as f64 / product,
            // Two products of half of the scores.
            attention: 2.0 * (tokens * tokens * heads * width) as f64 / attention_s(ops, dtype)?,
            element_wise: bytes / (large + gelu),
            call_s: small,
        })
    }
}

fn attention_s(ops: &CpuOps, dtype: DType) -> Result<f64, KernelError> {
    let [tokens, heads, width] = ATTENTION;
    let features = heads * width;
    let shape = AttentionShape {
        samples: 1,
        queries: tokens,
        keys: tokens,
        query_start: 0,
        key_start: 0,
        window: None,
        heads,
        kv_heads: heads,
        head_dim: width,
        scale: 1.0 / (width as f64).sqrt(),
        softcap: None,
    };
    let qkv = values(ops, dtype, tokens * 3 * features)?;
    let mut o = Buf::zeros(dtype, tokens * features);
    let mut log_sum = Buf::zeros(dtype.accumulator(), tokens * heads);
    seconds(|| {
        let all = MatRef::new(qkv.slice(), tokens, 3 * features);
        let qkv = Qkv::fused(all, features, features)?;
        let o = MatMut::new(o.slice_mut(), tokens, features);
        ops.attention(shape, o, log_sum.slice_mut(), qkv, None, None)
    })
}

/// Numbers between 0 and 1.
fn values(ops: &CpuOps, dtype: DType, len: usize) -> Result<Buf, KernelError> {
    let exact = Buf::from_vec((0..len).map(|i| (i % 251) as f32 / 251.0).collect());
    let mut values = Buf::zeros(dtype, len);
    ops.cast(values.slice_mut(), exact.slice())?;
    Ok(values)
}

/// Seconds of a call: the median, because a run has no best cases.
fn seconds(mut call: impl FnMut() -> Result<(), KernelError>) -> Result<f64, KernelError> {
    Ok(Times::of(BUDGET, 3, &mut call)?.median.as_secs_f64())
}

/// Bandwidth and latency between ranks that are threads: what an all-reduce of the planner's rings would need to take
/// as long.
fn reductions(ranks: usize) -> Result<Level, Failure> {
    let [large, small] = REDUCED_BYTES.map(|bytes| all_reduce_s(ranks, bytes));
    let (large, small) = (large?, small?);
    let hops = (ranks - 1) as f64;
    let moved = 2.0 * hops / ranks as f64 * REDUCED_BYTES[0] as f64;
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

fn all_reduce_s(ranks: usize, bytes: usize) -> Result<f64, Failure> {
    let times = threads::run(ranks, &Default::default(), |comm| {
        let mut buf = Buf::zeros(DType::F32, bytes / size_of::<f32>());
        comm.barrier("begin")?;
        let mut times = Vec::new();
        // A number of turns that all ranks know.
        for _ in 0..ALL_REDUCES {
            let began = Instant::now();
            buf = comm.all_reduce(buf, ReduceOp::Sum, "measure")?;
            times.push(began.elapsed().as_secs_f64());
        }
        times.sort_by(f64::total_cmp);
        Ok::<_, CommError>(times[times.len() / 2])
    });
    let times = times.map_err(|error| Failure::Run(anyhow::anyhow!("{error}")))?;
    Ok(times[0])
}

/// Turns of a reduction.
const ALL_REDUCES: usize = 21;

/// Cores that this process may use.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_measured_machine_is_a_cluster_file() {
        for compute in [DType::Bf16, DType::F32] {
            let machine = measure(compute).unwrap();
            let text = machine.to_toml().unwrap();
            let all = clusters(&[&text]).unwrap();
            assert_eq!(find_cluster(&all, THIS_MACHINE).unwrap(), &machine, "{text}");
            let device = &machine.device;
            let reached = device.reached.unwrap();
            for (name, value) in [
                ("bf16", device.peak_bf16),
                ("f32", device.peak_f32),
                ("memory", device.memory_bytes as f64),
                ("bandwidth", device.bandwidth),
                ("product", reached.gemm_efficiency),
                ("attention", reached.flash_efficiency),
                ("element-wise", reached.bandwidth_efficiency),
                ("call", reached.kernel_gap),
                ("link", machine.levels[0].bandwidth),
                ("latency", machine.levels[0].latency),
            ] {
                assert!(value > 0.0 && value.is_finite(), "{name}: {value}");
            }
            // A product does not beat the registers that it computes in by more than noise.
            assert!(reached.gemm_efficiency < 1.5, "{}", reached.gemm_efficiency);
            assert_eq!((machine.devices(), device.units), (cores(), 1.0));
        }
    }

    #[test]
    fn types_without_kernels_are_refused() {
        assert!(measure(DType::U8).is_err());
    }
}
