//! Sizes a training run before it is started: what each rank holds, how long a step takes, for any model, layout and
//! machine; held against published runs.
//!
//! * [`clusters()`]: machines as data; [`stacks()`]: software as data; [`Constants`]: what was calibrated, and on what.
//! * [`Planner`]: one model on one machine under one stack. [`Planner::estimate`] takes microseconds and allocates
//!   nothing, so that searches can ask for every layout.
//! * [`published`]: published runs as data; [`mod@evaluate`]: predicted against published; [`mod@calibrate`]: the fit.
//!
//! Pure: no clock, file, thread, environment or tensor.
//!
//! ```
//! use trine_plan::*;
//!
//! let clusters = clusters(&[])?;
//! let stacks = stacks()?;
//! let constants = Constants::built_in()?;
//! let model = Model::new(&trine_spec::presets::find("frontier-175b")?.model)?;
//! let frontier = find_cluster(&clusters, "frontier")?;
//! let stack = find_stack(&stacks, "megatron-deepspeed")?;
//! let planner = Planner::new(&model, frontier, stack, &constants)?;
//!
//! let degrees = trine_mesh::Degrees { dp: 2, pp: 16, tp: 4, cp: 1, ep: 1 };
//! let layout = Layout {
//!     degrees,
//!     virtual_stages: 1,
//!     pipeline: trine_schedule::ScheduleKind::OneFOneB,
//!     micro_batch: 1,
//!     global_batch: 1280,
//!     seq: 2048,
//!     sequence_parallel: false,
//!     recompute: Recompute::Full { every: 1 },
//!     attention: Attention::Flash2,
//!     zero: 1,
//!     precision: Precision::F16,
//! };
//! layout.check(&model)?;
//! let estimate = planner.estimate(&layout);
//! assert!(estimate.fits(0.1));
//! assert!(estimate.time.step > 300.0 && estimate.time.step < 600.0);
//! # Ok::<(), PlanError>(())
//! ```

mod activations;
mod again;
pub mod calibrate;
mod choices;
pub mod cluster;
mod collectives;
mod constants;
mod csv;
mod draw;
mod elements;
mod error;
pub mod evaluate;
mod flops;
mod impossible;
mod kernels;
mod layout;
mod memory;
mod model;
mod pipeline;
mod plot;
pub mod published;
mod recompute;
pub mod report;
mod runnable;
mod scaling;
mod search;
mod sensitivity;
mod shared;
mod simulate;
pub mod stack;
mod time;
mod trained;

pub use activations::{ActivationRequest, activation_peak};
pub use choices::{Choice, Fixed, Request};
pub use cluster::{
    Cluster, Device, Level, Link, Precision, clusters, data_sheet, find as find_cluster,
};
pub use collectives::Group;
pub use constants::{ConstantInfo, Constants, DeviceConstants, StackConstants};
pub use draw::memory_svg;
pub use error::PlanError;
pub use flops::{Convention, Flops, flops, flops_per_token};
pub use impossible::{Impossible, Limit};
pub use layout::{Attention, Layout};
pub use memory::Memory;
pub use model::{Ends, Model};
pub use pipeline::{StageTime, blocks_of};
pub use plot::{evaluation_svg, scaling_svg};
pub use recompute::{List, Recompute};
pub use runnable::runs_schedule;
pub use scaling::{Scaling, ScalingPoint, scale};
pub use search::{Found, SearchError, default_global_batch, explain_lead, items, rank, search};
pub use sensitivity::{Factor, Sensitivity, sensitivity};
pub use shared::SharedStep;
pub use simulate::{SimulatedStep, simulate_step};
pub use stack::{Stack, StateBytes, find as find_stack, stacks};
pub use time::Time;

/// One model on one machine under one software stack.
#[derive(Debug, Clone, Copy)]
pub struct Planner<'a> {
    /// The model.
    pub model: &'a Model,
    /// The machine.
    pub cluster: &'a Cluster,
    /// The software.
    pub stack: &'a Stack,
    /// What software reaches of the machine's devices.
    pub device: &'a DeviceConstants,
    /// What the software costs.
    pub costs: &'a StackConstants,
}

/// What a layout needs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// Memory of each device of the fullest pipeline rank.
    pub memory: Memory,
    /// Which rank of the pipeline that is.
    pub stage: usize,
    /// Seconds of a step.
    pub time: Time,
    /// What a device has.
    pub memory_bytes: f64,
}

impl<'a> Planner<'a> {
    /// Looks up the constants.
    ///
    /// # Errors
    /// No constants for the device or the stack.
    pub fn new(
        model: &'a Model,
        cluster: &'a Cluster,
        stack: &'a Stack,
        constants: &'a Constants,
    ) -> Result<Self, PlanError> {
        let device = &cluster.device.constants;
        let unknown = |kind, name: &str, all: Vec<&str>| PlanError::unknown(kind, name, &all);
        let names = || constants.device.keys().map(String::as_str).collect();
        let stacks = || constants.stack.keys().map(String::as_str).collect();
        let row = || {
            let row = constants.device.get(device);
            row.ok_or_else(|| unknown("device with constants", device, names()))
        };
        Ok(Self {
            model,
            cluster,
            stack,
            device: cluster.device.reached.as_ref().map_or_else(row, Ok)?,
            costs: constants
                .stack
                .get(stack.constants())
                .ok_or_else(|| unknown("stack with constants", stack.constants(), stacks()))?,
        })
    }

    /// Memory and time of a layout that [`Layout::check`] has passed.
    pub fn estimate(&self, layout: &Layout) -> Estimate {
        let (stage, memory) = self.peak_memory(layout);
        let memory_bytes = self.cluster.device.memory_bytes as f64;
        Estimate { memory, stage, time: self.time(layout), memory_bytes }
    }
}

impl Estimate {
    /// Whether it fits with this share of the memory left free.
    pub fn fits(&self, headroom: f64) -> bool {
        self.memory.total() <= self.memory_bytes * (1.0 - headroom)
    }

    /// Tokens per second of all devices.
    pub fn tokens_per_s(&self, layout: &Layout) -> f64 {
        layout.global_batch as f64 * layout.seq as f64 / self.time.step
    }
}
