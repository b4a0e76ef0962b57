//! The GPUs of this machine.

use super::THIS_MACHINE;
use super::rates::{HEAD_DIM, Rates, Sizes, copy, product, reductions};
use crate::failure::Failure;
use trine_buffer::DType;
use trine_comm::threads::WorldOptions;
use trine_kernels::{KernelError, Ops};
use trine_nn::Numerics;
use trine_plan::{Cluster, Constants, Device, DeviceConstants, Level, Link};
use trine_trainer::TrainError;
use trine_trainer::run::Devices;

/// Rows of the square product whose rate is the peak: the first in this range, each twice the one before, that takes
/// long enough for its ends not to count.
const PEAK_ROWS: [usize; 2] = [128, 8192];
const PEAK_SECONDS_MIN: f64 = 1e-3;

/// A product that is neither small nor large has a fourth as many rows.
const PRODUCT_SHARE: usize = 4;

/// Elements of the copy that shows the rate of memory, at most: more than a GPU's cache has.
const COPY_LEN_MAX: usize = 32 << 20;

/// Matrices of f32 as large as those of the peak that a measurement holds at most.
const HELD: u64 = 6;

/// Bytes of a reduction whose time is transfer, at most: those of a bucket of gradients.
const REDUCED_BYTES_MAX: usize = 64 << 20;

/// Ranks of a reduction at most.
const RANKS_MAX: usize = 8;

/// Measures what the kernels of a GPU reach, and reductions between `ranks` ranks that compute on the GPUs. All times
/// are those of the GPUs. The first GPU stands for all.
///
/// # Errors
/// A GPU that cannot be used, or fails.
pub(crate) fn measure(
    devices: &dyn Devices,
    ranks: usize,
    compute: DType,
) -> Result<Cluster, Failure> {
    let failed = |error: TrainError| Failure::Run(error.into());
    let first = devices.of_rank(0);
    let facts = devices.facts(first);
    let room = devices.free_bytes(first).map_err(failed)?;
    let ops = devices.ops(0, Numerics::Fast).map_err(failed)?;
    let measured =
        Measured::of(&*ops, compute, room).map_err(|error| Failure::Run(error.into()))?;
    drop(ops);
    let count = if devices.shared().is_some() { 1 } else { ranks };
    let level = match ranks {
        0 | 1 => alone(&measured),
        _ => between(devices, ranks, measured.rows)?,
    };
    let name = facts.name;
    Ok(Cluster {
        name: THIS_MACHINE.into(),
        about: format!("{count} × {name}, shares of kernels in {compute}"),
        device: measured.device(name, facts.memory_bytes)?,
        sources: vec![],
        levels: vec![Level { name: "GPUs".into(), devices: count, ..level }],
        dollars_per_device_hour: 0.0,
    })
}

/// A rank that exchanges with nobody.
fn alone(measured: &Measured) -> Level {
    Level {
        name: String::new(),
        devices: 1,
        bandwidth: measured.copy,
        latency: measured.rates.call_s,
        contention: 1.0,
        link: Link::Inside,
    }
}

fn between(devices: &dyn Devices, ranks: usize, rows: usize) -> Result<Level, Failure> {
    let options = WorldOptions { device: devices.shared(), ..WorldOptions::default() };
    let bytes = (size_of::<f32>() * rows * rows).min(REDUCED_BYTES_MAX);
    reductions(ranks.min(RANKS_MAX), bytes, &options, |host| {
        let ops = devices.ops(host.rank(), Numerics::Fast)?;
        Ok((devices.communicator(host)?, ops.place().clone()))
    })
}

/// What the first GPU reaches.
#[derive(Debug)]
struct Measured {
    /// FLOP/s of the largest product in bf16, in f32, and in the type of the run.
    peaks: [f64; 2],
    own_peak: f64,
    /// Rows of that product.
    rows: usize,
    /// Bytes/s of a copy.
    copy: f64,
    rates: Rates,
}

impl Measured {
    fn of(ops: &dyn Ops, compute: DType, room: u64) -> Result<Self, KernelError> {
        let (rows, own_peak) = peak(ops, compute, room)?;
        let other = |dtype| if dtype == compute { Ok(own_peak) } else { product(ops, dtype, rows) };
        let peaks = [other(DType::Bf16)?, other(DType::F32)?];
        let sizes = Sizes {
            product: rows / PRODUCT_SHARE,
            attention: [rows / 4, (rows / 4 / HEAD_DIM).max(1)],
            rows: [rows / 2, rows],
        };
        let copy = copy(ops, (rows * rows).min(COPY_LEN_MAX))?;
        Ok(Self { peaks, own_peak, rows, copy, rates: Rates::measure(ops, compute, sizes)? })
    }

    fn device(&self, name: String, memory_bytes: u64) -> Result<Device, Failure> {
        let constants = Constants::built_in().map_err(|error| Failure::Run(error.into()))?;
        // What is not measured is as on GPUs of which runs are known.
        let known = constants.device.get("h100");
        let interference = known.map_or(0.0, |known| known.interference);
        let ([peak_bf16, peak_f32], rates) = (self.peaks, self.rates);
        Ok(Device {
            source: format!(
                "measured: peaks are products of {rows} × {rows}, bandwidth is copying",
                rows = self.rows
            ),
            driver_names: vec![name.clone()],
            name: format!("{THIS_MACHINE} {name}"),
            constants: String::new(),
            peak_bf16,
            peak_fp8: 0.0,
            peak_f32,
            memory_bytes,
            bandwidth: self.copy,
            units: 1.0,
            reached: Some(DeviceConstants {
                gemm_efficiency: rates.product / self.own_peak,
                wave_tail: 0.0,
                inner_half: 0.0,
                fp8_efficiency: 1.0,
                // Narrow heads are slower in the planner by this root.
                flash_efficiency: rates.attention / peak_bf16 * (128.0 / HEAD_DIM as f64).sqrt(),
                flash_half: 0.0,
                bandwidth_efficiency: rates.element_wise / self.copy,
                kernel_gap: rates.call_s,
                inside_efficiency: 1.0,
                between_efficiency: 1.0,
                interference,
                straggling: 0.0,
            }),
        })
    }
}

/// The rows of the largest product, and its FLOP/s.
fn peak(ops: &dyn Ops, dtype: DType, room: u64) -> Result<(usize, f64), KernelError> {
    let [mut rows, rows_max] = PEAK_ROWS;
    loop {
        let rate = product(ops, dtype, rows)?;
        let seconds = 2.0 * (rows as f64).powi(3) / rate;
        let next = 2 * rows;
        let next_bytes = HELD * (size_of::<f32>() * next * next) as u64;
        if seconds >= PEAK_SECONDS_MIN || next > rows_max || next_bytes > room {
            return Ok((rows, rate));
        }
        rows = next;
    }
}
