//! Ranks of a run on simulated GPUs, which are of Linux on x86-64.

use crate::compare::beside;
use crate::layouts::Layout;
use crate::{Mutation, Outcome, serial, step};
use std::path::Path;
use trine_buffer::DType;
use trine_gpu::Checks;
use trine_gpu_sim::{self as sim, Settings, Simulator, Source, compile};
use trine_gpu_sys::Search;
use trine_kernels_gpu::SOURCES;
use trine_mesh::Degrees;
use trine_schedule::ScheduleKind;
use trine_spec::ModelSpec;
use trine_trainer::engine::{EngineConfig, ZeroStage};
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

/// A serial run that takes a simulated GPU a moment.
pub fn small(model: ModelSpec, compute: DType) -> EngineConfig {
    EngineConfig { compute, global_batch: 4, ..serial(model) }
}

/// Layouts of eight ranks, in the schedules whose engines differ most.
pub fn eight_ranks() -> Vec<Layout> {
    let eight = Layout {
        degrees: Degrees { tp: 2, pp: 2, dp: 2, ..Degrees::SERIAL },
        schedule: ScheduleKind::OneFOneB,
        virtual_stages: 1,
        zero: ZeroStage::Zero1,
        recompute: false,
        sequence_parallel: false,
    };
    vec![
        eight,
        Layout { schedule: ScheduleKind::Interleaved, virtual_stages: 2, recompute: true, ..eight },
        Layout { schedule: ScheduleKind::ZbH1, zero: ZeroStage::Zero0, ..eight },
        Layout { sequence_parallel: true, recompute: true, ..eight },
    ]
}

/// The step of one rank on the processor that a run in a layout is held against, and how far from it that may be.
///
/// # Errors
/// A step that fails.
pub fn exact(config: &EngineConfig) -> Result<(Outcome, f64), String> {
    let (compute, bound) = beside(config.compute, &config.model, config.degrees.tp);
    let serial = EngineConfig {
        compute,
        degrees: Degrees::SERIAL,
        schedule: ScheduleKind::OneFOneB.into(),
        virtual_stages: 1,
        zero: ZeroStage::Zero0,
        sequence_parallel: false,
        ..config.clone()
    };
    Ok((step(&serial, &Mutation::NONE)?, bound))
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
