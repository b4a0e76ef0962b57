//! Ranks of a run on simulated GPUs.

use std::path::Path;
use trine_gpu::Checks;
use trine_gpu_sim::{self as sim, Settings, Simulator, Source, compile};
use trine_gpu_sys::Search;
use trine_kernels_gpu::SOURCES;
use trine_trainer_gpu::{GpuRanks, Libraries};

/// Simulated GPUs, and ranks on them.
pub(crate) struct Machine {
    pub(crate) sim: Simulator,
    pub(crate) ranks: GpuRanks,
}

/// Each access of each kernel is looked at, or only what streams order.
pub(crate) use sim::Checks as Accesses;

impl Machine {
    /// `ranks` ranks on `gpus` GPUs, whose streams go on in an order of `seed`. The ledger is kept.
    pub(crate) fn new(gpus: u32, ranks: usize, seed: u64, accesses: Accesses) -> Self {
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("trine-gpu-sim");
        let sources: Vec<_> = SOURCES.iter().map(|&(name, text)| Source { name, text }).collect();
        let library = compile(&kept, &sources, accesses).unwrap_or_else(|error| panic!("{error}"));
        let settings =
            Settings { devices: gpus, seed, patience_seconds: 30.0, ..Settings::default() };
        let sim = Simulator::start(&library, &settings).unwrap();
        let search = Search::only(vec![sim.folder().to_owned()]);
        let libraries = Libraries::find(&search, Checks::On).unwrap();
        Self { sim, ranks: GpuRanks::new(libraries, ranks).unwrap() }
    }

    /// Asserts that the simulator has found nothing.
    #[track_caller]
    pub(crate) fn is_clean(&self) {
        assert_eq!(self.sim.reports(), Vec::<String>::new());
    }
}
