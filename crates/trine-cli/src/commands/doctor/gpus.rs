//! The GPUs of this machine and their libraries: what is found, and what each lack costs.

use super::{Item, inventory};
use crate::output;
use trine_gpu_sys::{CallError, CublasLt, Driver, Gpu, LoadError, Loaded, Nccl, Nvrtc, Search};
use trine_gpu_sys::{cublaslt, driver, load, nccl, nvrtc};

/// The oldest capability whose tensor cores take bf16.
const BF16_CAPABILITY: (u32, u32) = (8, 0);

/// What is true of every machine.
const NOT_RUN: &str =
    "Training on GPUs (--device cuda) has run on simulated ones only, never on a real one.\n";

/// A table of GPUs and libraries, and a line for each thing that cannot be used.
pub(super) fn report(search: &Search) -> String {
    let driver = load::<Driver>(&driver::CUDA, search);
    let gpus = driver.as_ref().ok().map(|driver| driver.functions.gpus());
    let (mut items, mut failures) = (Vec::new(), Vec::new());
    devices(gpus, &mut items, &mut failures);
    let mut library = |name, found: Result<String, LoadError>, cost| {
        items.push(Item::if_missing(name, found.as_ref().ok().cloned(), cost));
        failures.extend(found.err().map(|error| error.to_string()));
    };
    let cublaslt = load::<CublasLt>(&cublaslt::CUDA, search);
    let nccl = load::<Nccl>(&nccl::CUDA, search);
    let nvrtc = load::<Nvrtc>(&nvrtc::CUDA, search);
    library("CUDA driver", driver.map(of), "no GPU can be used");
    library("cuBLASLt", cublaslt.map(of), "no products on a GPU");
    library("NCCL", nccl.map(of), "no collectives between GPUs");
    library("NVRTC", nvrtc.map(of), "no kernels compiled on this host");
    let lines: String = failures.iter().map(|failure| format!("  {failure}\n")).collect();
    format!("{}{lines}{NOT_RUN}", inventory("GPUs and libraries", items))
}

/// A row for each GPU, or one for all that there are not.
fn devices(
    gpus: Option<Result<Vec<Gpu>, CallError>>,
    items: &mut Vec<Item>,
    failures: &mut Vec<String>,
) {
    let gpus = gpus.unwrap_or_else(|| Ok(Vec::new())).unwrap_or_else(|error| {
        failures.push(format!("the CUDA driver does not tell its GPUs: {error}"));
        Vec::new()
    });
    if gpus.is_empty() {
        items.push(Item::if_missing("GPUs", None, "runs compute on the CPU"));
    }
    for (index, Gpu { name, memory_bytes, capability }) in gpus.iter().enumerate() {
        let (major, minor) = capability;
        let memory = output::human_bytes(*memory_bytes);
        let found = Some(format!("{name}, {memory}, capability {major}.{minor}"));
        let is_old = *capability < BF16_CAPABILITY;
        let cost = if is_old { "no bf16 on tensor cores: that begins with 8.0" } else { "" };
        items.push(Item { name: format!("GPU {index}").into(), found, cost });
    }
}

/// Its version and where it is.
fn of<T>(loaded: Loaded<T>) -> String {
    format!("{}, {}", loaded.version, loaded.path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_without_bf16_products_says_so() {
        let gpu = |capability| Gpu { name: "Stub".into(), memory_bytes: 3 << 29, capability };
        let (mut items, mut failures) = (Vec::new(), Vec::new());
        devices(Some(Ok(vec![gpu((7, 5)), gpu((8, 0))])), &mut items, &mut failures);
        let rows: Vec<_> =
            items.iter().map(|item| (&*item.name, item.found.as_deref(), item.cost)).collect();
        let old = "no bf16 on tensor cores: that begins with 8.0";
        let expected = [
            ("GPU 0", Some("Stub, 1.5 GiB, capability 7.5"), old),
            ("GPU 1", Some("Stub, 1.5 GiB, capability 8.0"), ""),
        ];
        assert_eq!((rows, failures.len()), (expected.to_vec(), 0));
    }
}
