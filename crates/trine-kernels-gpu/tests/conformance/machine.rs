//! A simulated GPU with the crate's kernels.

use std::path::Path;
use std::sync::Arc;
use trine_gpu::{Checks, Gpus, Priority, Products};
use trine_gpu_sim::{self as sim, Settings, Simulator, Source, compile};
use trine_gpu_sys::{CublasLt, Search, cublaslt, load};
use trine_kernels_gpu::{GpuOps, Kernels, SOURCES};

/// Orders of threads, blocks and streams that each case runs in.
pub(crate) const SEEDS: u64 = 3;

const WORKSPACE_BYTES: usize = 1 << 16;

pub(crate) struct Machine {
    pub(crate) sim: Simulator,
    pub(crate) ops: GpuOps,
}

impl Machine {
    pub(crate) fn new(seed: u64) -> Self {
        Self::with(seed, sim::Checks::On)
    }

    /// With kernels as plain compiled code, for what is long.
    pub(crate) fn unchecked() -> Self {
        Self::with(0, sim::Checks::Off)
    }

    /// With products in the order of the CPU's kernels.
    pub(crate) fn in_order(seed: u64) -> Self {
        let Self { sim, ops } = Self::new(seed);
        let kernels = Kernels::load(ops.stream(), [sim.image().as_str()]).unwrap();
        Self { ops: GpuOps::in_order(ops.stream(), kernels), sim }
    }

    /// With kernels of other sources.
    pub(crate) fn of_sources(sources: &[Source<'_>]) -> Self {
        Self::compiled(0, sim::Checks::On, sources)
    }

    fn with(seed: u64, checks: sim::Checks) -> Self {
        let sources: Vec<_> = SOURCES.iter().map(|&(name, text)| Source { name, text }).collect();
        Self::compiled(seed, checks, &sources)
    }

    fn compiled(seed: u64, checks: sim::Checks, sources: &[Source<'_>]) -> Self {
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("trine-gpu-sim");
        let library = compile(&kept, sources, checks).unwrap_or_else(|e| panic!("{e}"));
        let settings = Settings { seed, ..Settings::default() };
        let sim = Simulator::start(&library, &settings).unwrap();
        let search = Search::only(vec![sim.folder().to_owned()]);
        let gpus = Gpus::open(&search, Checks::On).unwrap();
        let stream = gpus.device(0).unwrap().stream("compute", Priority::Normal).unwrap();
        let kernels = Kernels::load(&stream, [sim.image().as_str()]).unwrap();
        let lt = Arc::new(load::<CublasLt>(&cublaslt::CUDA, &search).unwrap().functions);
        let products = Products::new(&stream, lt, WORKSPACE_BYTES).unwrap();
        Self { sim, ops: GpuOps::new(&stream, kernels, products) }
    }

    /// Asserts that the simulator has found nothing.
    #[track_caller]
    pub(crate) fn is_clean(&self) {
        self.ops.stream().synchronize().unwrap();
        assert_eq!(self.sim.reports(), Vec::<String>::new());
    }
}
