//! This machine as a cluster of cores or of GPUs: measured in about a second, or read from a file.

mod gpus;
mod processor;
mod rates;

pub(crate) use gpus::measure as measure_gpus;
pub(crate) use processor::measure;

use crate::failure::Failure;
use std::path::Path;
use std::time::Instant;
use trine_buffer::DType;
use trine_plan::{Cluster, clusters, find_cluster};
use trine_trainer::Machine;
use trine_trainer::run::Devices;

/// What it is called, on the command line and in files.
pub(crate) const THIS_MACHINE: &str = "this-machine";

/// The machine that `path` describes, or this one, measured now with kernels in `compute`: its GPUs, if so many ranks
/// compute on them, or else its cores.
pub(crate) fn find(
    path: Option<&Path>,
    compute: DType,
    gpus: Option<(&dyn Devices, usize)>,
) -> Result<Machine, Failure> {
    match path {
        Some(path) => from_file(path, gpus.is_some()),
        None => {
            let began = Instant::now();
            let cluster = match gpus {
                Some((devices, ranks)) => measure_gpus(devices, ranks, compute)?,
                None => measure(compute)?,
            };
            let took = began.elapsed().as_secs_f64();
            let source = format!("measured in {compute} at the start, {took:.1} s");
            Ok(Machine { cluster, source })
        }
    }
}

/// The machine that a file describes.
pub(crate) fn from_file(path: &Path, on_gpus: bool) -> Result<Machine, Failure> {
    let cluster = read(path, on_gpus)?;
    let source = format!("{}: {}", path.display(), cluster.about);
    Ok(Machine { cluster, source })
}

/// The cluster called [`THIS_MACHINE`] of a file, which must be one of GPUs or of cores.
pub(crate) fn read(path: &Path, on_gpus: bool) -> Result<Cluster, Failure> {
    let at = path.display();
    let device = if on_gpus { "cuda" } else { "cpu" };
    let hint = format!("`trine plan --measure --device {device} --out {at}` writes it");
    let text = trine_files::read_text(path, trine_files::TEXT_BYTES_MAX).map_err(|error| {
        Failure::usage(format!("{at}: cannot read the machine: {error}; {hint}"))
    })?;
    let all = clusters(&[&text]).map_err(|error| Failure::usage(format!("{at}: {error}")))?;
    let found = find_cluster(&all, THIS_MACHINE);
    let found = found.map_err(|error| Failure::usage(format!("{at}: {error}")))?.clone();
    match (found.device.is_gpu(), on_gpus) {
        (true, false) => Err(Failure::usage(format!(
            "{at}: the machine is one of GPUs, and ranks compute on the processor; {hint}"
        ))),
        (false, true) => Err(Failure::usage(format!(
            "{at}: the machine is one of cores, and ranks compute on GPUs; {hint}"
        ))),
        (true, true) | (false, false) => Ok(found),
    }
}

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
