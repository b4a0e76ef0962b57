//! Ranks of a run on simulated GPUs, which are of Linux on x86-64.

use crate::Mutation;
use std::path::Path;
use trine_gpu::Checks;
use trine_gpu_sim::{self as sim, Settings, Simulator, Source, compile};
use trine_gpu_sys::Search;
use trine_kernels_gpu::SOURCES;
use trine_trainer_gpu::{GpuRanks, Libraries};

/// Simulated GPUs, and ranks on them.
#[derive(Debug)]
pub struct Machine {
    /// The GPUs.
    pub sim: Simulator,
    /// Who computes on which.
    pub ranks: GpuRanks,
}

/// Each access of each kernel is looked at, or only what streams order.
pub use sim::Checks as Accesses;

impl Machine {
    /// `ranks` ranks on `gpus` GPUs, whose streams go on in an order of `seed`. The ledger is kept.
    ///
    /// # Errors
    /// If g++ is missing, or the machine does not start.
    pub fn new(gpus: u32, ranks: usize, seed: u64, accesses: Accesses) -> Result<Self, String> {
        let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tmp/trine-gpu-sim");
        let sources: Vec<_> = SOURCES.iter().map(|&(name, text)| Source { name, text }).collect();
        let library = compile(&kept, &sources, accesses).map_err(text)?;
        let settings =
            Settings { devices: gpus, seed, patience_seconds: 30.0, ..Settings::default() };
        let sim = Simulator::start(&library, &settings).map_err(text)?;
        let search = Search::only(vec![sim.folder().to_owned()]);
        let libraries = Libraries::find(&search, Checks::On).map_err(text)?;
        // New memory is filled with poison: that of few products is soon.
        let ranks = GpuRanks::new(libraries, ranks).map_err(text)?.with_workspace(1 << 12);
        Ok(Self { sim, ranks })
    }

    /// A run of all ranks.
    ///
    /// # Errors
    /// The run's, or what the simulator has found wrong in it.
    pub fn run<T>(
        &self,
        mutation: &Mutation<'_>,
        run: impl FnOnce(&Mutation<'_>) -> Result<T, String>,
    ) -> Result<T, String> {
        let outcome = run(&Mutation { devices: Some(&self.ranks), ..*mutation })?;
        let reports = self.sim.reports();
        if reports.is_empty() { Ok(outcome) } else { Err(reports.join("\n")) }
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
