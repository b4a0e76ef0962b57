//! Steps of ranks that share the cores of one machine: trine's own runs on a processor.

use crate::{Cluster, Device, Layout, PlanError, Planner};
use trine_schedule::step_times;

/// A step of ranks that share cores.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SharedStep {
    /// Seconds of the step.
    pub step: f64,
    /// The share of all ranks' pipeline time that is not work, if each rank had cores of its own.
    pub bubble_fraction: f64,
}

impl Cluster {
    /// A machine whose devices are cores as `ranks` ranks of `cores` cores each see it, as if it had so many.
    pub fn of_ranks(&self, cores: usize, ranks: usize) -> Self {
        let (device, share) = (&self.device, cores as f64);
        let mut cluster = Self {
            device: Device {
                peak_bf16: share * device.peak_bf16,
                peak_fp8: share * device.peak_fp8,
                peak_f32: share * device.peak_f32,
                bandwidth: share * device.bandwidth,
                units: share * device.units,
                ..device.clone()
            },
            ..self.clone()
        };
        if let Some(level) = cluster.levels.last_mut() {
            level.devices = level.devices.max(ranks);
        }
        cluster
    }

    /// Devices of the machine.
    pub fn devices(&self) -> usize {
        self.levels.last().map_or(1, |level| level.devices)
    }
}

impl Planner<'_> {
    /// The step of a layout whose stages have so many `blocks`, when so many ranks compute `at_once`.
    ///
    /// Ranks with cores of their own wait for the pipeline. Where there are more ranks than cores, those that wait
    /// leave their cores to others, so that the step takes at least all work divided by the cores; it takes the longer
    /// of the two (Graham's bound lies at their sum, 10.1137/0117039).
    ///
    /// # Errors
    /// A shape for which the schedule is not defined.
    pub fn shared_step(
        &self,
        layout: &Layout,
        blocks: &[usize],
        at_once: f64,
    ) -> Result<SharedStep, PlanError> {
        let times = step_times(&layout.schedule()?, &self.costs_of(layout, blocks))?;
        let time = self.time(layout);
        let after = time.data + time.optimizer;
        let replicas = (layout.devices() / layout.degrees.pp) as f64;
        let work = replicas * times.busy.iter().sum::<f64>() + layout.devices() as f64 * after;
        Ok(SharedStep {
            step: (times.makespan + after).max(work / at_once),
            bubble_fraction: times.bubble_fraction(),
        })
    }
}
