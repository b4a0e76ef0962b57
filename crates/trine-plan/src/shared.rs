//! Steps of ranks that share the cores of one machine: trine's own runs on a processor.

use crate::{Cluster, Device, Layout, PlanError, Planner};
use trine_schedule::{Schedule, step_times};

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
    /// The step of a layout by the compute-only `lists` of its schedule, whose stages have so many `blocks`, when so
    /// many ranks compute `at_once`.
    ///
    /// Ranks with cores of their own wait for the pipeline. Where there are more ranks than cores, those that wait
    /// leave their cores to others, so that the step takes at least all work divided by the cores; it takes the longer
    /// of the two (Graham's bound lies at their sum, 10.1137/0117039).
    ///
    /// # Errors
    /// Lists that do not fit the stages.
    pub fn shared_step(
        &self,
        layout: &Layout,
        lists: &Schedule,
        blocks: &[usize],
        at_once: f64,
    ) -> Result<SharedStep, PlanError> {
        let times = step_times(lists, &self.costs_of(layout, blocks))?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Attention, Constants, Model, Precision, Recompute, clusters, find_cluster, find_stack,
        simulate_step, stacks,
    };
    use trine_mesh::Degrees;
    use trine_schedule::ScheduleKind;

    #[test]
    fn ranks_without_cores_of_their_own_take_as_long_as_all_work() {
        let (machines, all) = (clusters(&[]).unwrap(), stacks().unwrap());
        let constants = Constants::built_in().unwrap();
        let model = Model::new(&trine_spec::presets::find("gpt2-124m").unwrap().model).unwrap();
        let machine = find_cluster(&machines, "h100").unwrap();
        let stack = find_stack(&all, "trine").unwrap();
        let planner = Planner::new(&model, machine, stack, &constants).unwrap();
        let layout = Layout {
            degrees: Degrees { dp: 1, pp: 4, tp: 1, ..Degrees::SERIAL },
            virtual_stages: 1,
            pipeline: ScheduleKind::OneFOneB,
            micro_batch: 1,
            global_batch: 8,
            seq: 1024,
            sequence_parallel: false,
            recompute: Recompute::None,
            attention: Attention::Flash2,
            zero: 0,
            precision: Precision::Bf16,
        };
        let step = |blocks: &[usize], at_once| {
            planner.shared_step(&layout, &layout.schedule().unwrap(), blocks, at_once).unwrap()
        };
        let by_work = [4, 4, 3, 1];
        let alone = step(&by_work, 4.0);
        let simulated = simulate_step(&planner, &layout, &planner.estimate(&layout)).unwrap();
        assert!((alone.step / simulated.step - 1.0).abs() < 1e-12, "no node waits for another");
        assert_eq!(alone.bubble_fraction, simulated.bubble_fraction);
        // One core for all: no bubble costs time, and half as many cores take twice as long.
        let (one, half) = (step(&by_work, 1.0), step(&by_work, 0.5));
        assert!((half.step / one.step - 2.0).abs() < 1e-12);
        let busy = 4.0 * simulated.pipeline * (1.0 - simulated.bubble_fraction);
        let time = planner.time(&layout);
        let after = 4.0 * (time.data + time.optimizer);
        assert!((one.step / (busy + after) - 1.0).abs() < 1e-12);
        // Stages as they are given, not by work.
        assert!(step(&[1, 1, 1, 9], 4.0).step > 1.5 * alone.step);
    }

    #[test]
    fn ranks_of_two_cores_have_twice_the_device() {
        let machines = clusters(&[]).unwrap();
        let machine = find_cluster(&machines, "h100").unwrap();
        let shared = machine.of_ranks(2, 1 << 20);
        assert_eq!(shared.device.peak_f32, 2.0 * machine.device.peak_f32);
        assert_eq!(shared.device.bandwidth, 2.0 * machine.device.bandwidth);
        assert_eq!((shared.device.units, shared.devices()), (264.0, 1 << 20));
    }
}
