//! A simulated machine under the crate's own interface.

use std::path::Path;
use trine_gpu::{Checks, DIALECT, Device, Gpus, Kernel, Memory, Module, Priority, Stream};
use trine_gpu_sim::{self as sim, Settings, Simulator, Source, compile};
use trine_gpu_sys::Search;

const SOURCES: [Source<'static>; 2] = [
    Source { name: "trine.cuh", text: DIALECT },
    Source { name: "kernels.cu", text: include_str!("kernels.cu") },
];

pub(crate) struct Machine {
    pub(crate) sim: Simulator,
    pub(crate) gpus: Gpus,
    pub(crate) device: Device,
    pub(crate) module: Module,
}

impl Machine {
    /// With the ledger, two GPUs, and this seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self::with(&Settings { seed, ..Settings::default() }, Checks::On)
    }

    pub(crate) fn with(settings: &Settings, checks: Checks) -> Self {
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("trine-gpu-sim");
        let library =
            compile(&kept, &SOURCES, sim::Checks::On).unwrap_or_else(|error| panic!("{error}"));
        let sim = Simulator::start(&library, settings).unwrap();
        let gpus = Gpus::open(&Search::only(vec![sim.folder().to_owned()]), checks).unwrap();
        let device = gpus.device(0).unwrap();
        let module = device.module(&sim.image()).unwrap();
        Self { sim, gpus, device, module }
    }

    pub(crate) fn stream(&self, name: &str) -> Stream {
        self.device.stream(name, Priority::Normal).unwrap()
    }

    pub(crate) fn kernel(&self, name: &str) -> Kernel {
        self.module.kernel(name).unwrap()
    }

    /// Asserts that the simulator has found nothing.
    #[track_caller]
    pub(crate) fn is_clean(&self) {
        assert_eq!(self.sim.reports(), Vec::<String>::new());
    }
}

/// Memory with these elements.
pub(crate) fn uploaded<T: bytemuck::Pod>(stream: &Stream, name: &str, values: &[T]) -> Memory {
    let bytes = size_of_val(values);
    let mut memory = stream.alloc(name, bytes).unwrap();
    let mut pinned = stream.device().pinned(bytes).unwrap();
    pinned.elements::<T>().unwrap().copy_from_slice(values);
    stream.upload(memory.span_mut(), &mut pinned, 0..bytes).unwrap();
    memory
}

/// The elements of memory, waited for.
pub(crate) fn downloaded<T: bytemuck::Pod>(stream: &Stream, memory: &Memory) -> Vec<T> {
    let mut pinned = stream.device().pinned(memory.bytes()).unwrap();
    let bytes = 0..memory.bytes();
    stream.download(&mut pinned, bytes, memory.span()).unwrap();
    pinned.elements::<T>().unwrap().to_vec()
}
