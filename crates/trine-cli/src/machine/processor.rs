//! The cores of this machine.

use super::rates::{HEAD_DIM, Rates, Sizes, reductions};
use super::{THIS_MACHINE, cores};
use crate::failure::Failure;
use crate::memory;
use trine_buffer::{DType, Place};
use trine_kernels::{CpuOps, KernelError, Team, ceiling};
use trine_plan::{Cluster, Device, DeviceConstants, Level};

/// Bytes of the arrays that show the rate of memory: several times most last caches.
const MEMORY_BYTES: usize = 128 << 20;

/// What a measurement takes at most, with the stacks of its threads.
const MEASURING_BYTES: u64 = 4 * MEMORY_BYTES as u64;

/// Element-wise kernels stay within a last cache, as between two products.
const SIZES: Sizes = Sizes { product: 512, attention: [512, 8], rows: [512, 2048] };

/// Bytes of a reduction whose time is transfer.
const REDUCED_BYTES: usize = 4 << 20;

/// Ranks of a reduction at most: it is the machine that is measured, not a crowd.
const RANKS_MAX: usize = 8;

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
    let rates = Rates::measure(&ops, compute, SIZES).map_err(failed)?;
    let memory_bytes = memory::total_bytes().ok_or_else(|| {
        Failure::Run(anyhow::anyhow!("this system does not tell how much memory there is"))
    })?;
    let options = Default::default();
    let join = |host| Ok((host, Place::Host));
    let link = reductions(cores.clamp(2, RANKS_MAX), REDUCED_BYTES, &options, join)?;
    let each = 1.0 / cores as f64;
    let device = Device {
        name: format!("{THIS_MACHINE} core"),
        source: format!(
            "measured: peaks are multiply-adds in registers ({}), bandwidth is copying",
            ops.isa().name()
        ),
        driver_names: Vec::new(),
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
            flash_efficiency: rates.attention / peak_bf16 * (128.0 / HEAD_DIM as f64).sqrt(),
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
