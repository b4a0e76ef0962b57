//! What the machine of a run could do at most.

use crate::run::rank::RankRun;
use crate::run::{DeviceFacts, Utilization};
use trine_buffer::DType;
use trine_plan::{Device, Precision, data_sheet};

/// A peak that a run is held against.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Peak {
    whose: String,
    flops_per_s: f64,
}

impl Peak {
    fn of(whose: String, device: &Device, precision: Precision, count: usize) -> Self {
        Self { whose, flops_per_s: device.peak(precision) * count as f64 }
    }

    /// What share of it model FLOP/s and hardware FLOP/s are.
    pub(crate) fn utilization(self, [model, hardware]: [f64; 2]) -> Utilization {
        let Self { whose: peak, flops_per_s } = self;
        let (mfu, hfu) = (model / flops_per_s, hardware / flops_per_s);
        Utilization { peak, peak_flops_per_s: flops_per_s, mfu, hfu }
    }
}

/// The type of products, if peaks are known for it.
fn precision(compute: DType) -> Option<Precision> {
    match compute {
        DType::F32 => Some(Precision::F32),
        DType::Bf16 => Some(Precision::Bf16),
        _ => None,
    }
}

/// The peak of the data sheet of devices. That of f32 is one of other products than ours, which round to 10 bits.
fn of_data_sheet(facts: &DeviceFacts, precision: Precision, count: usize) -> Option<Peak> {
    let sheet = data_sheet(&facts.name).ok().flatten().filter(|_| precision != Precision::F32)?;
    Some(Peak::of(format!("data sheet of {}", sheet.name), &sheet, precision, count))
}

impl RankRun<'_> {
    /// The peaks that are known: of the data sheet, and as measured.
    pub(crate) fn peaks(&self) -> Vec<Peak> {
        let Some(precision) = precision(self.engine.compute) else { return Vec::new() };
        let (world, threads) = (self.engine.degrees.world(), self.engine.threads);
        let devices = self.devices_used();
        let facts = self.request.devices.map(|devices| devices.facts(devices.of_rank(0)));
        let sheet = facts.and_then(|facts| of_data_sheet(&facts, precision, devices?));
        let measured = self.machine.as_ref().ok().map(|machine| {
            let cores = machine.cluster.devices().min(world * threads);
            let (device, count) = (&machine.cluster.device, devices.unwrap_or(cores));
            Peak::of(machine.to_string(), device, precision, count)
        });
        sheet.into_iter().chain(measured).collect()
    }

    /// How many devices compute, if it is not the cores.
    fn devices_used(&self) -> Option<usize> {
        let devices = self.request.devices?;
        Some(if devices.shared().is_some() { 1 } else { self.engine.degrees.world() })
    }

    /// What is to be known of a device without a data sheet.
    pub(crate) fn unknown_device(&self) -> Option<String> {
        let devices = self.request.devices?;
        let name = devices.facts(devices.of_rank(0)).name;
        let is_known = data_sheet(&name).is_ok_and(|sheet| sheet.is_some());
        (!is_known).then(|| {
            format!(
                "no data sheet of {name} is known: MFU and HFU are told of the measured peak only"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_those_of_all_devices() {
        let facts = DeviceFacts { name: "NVIDIA H200".into(), memory_bytes: 1 };
        let peak = of_data_sheet(&facts, Precision::Bf16, 8).unwrap();
        let found = peak.utilization([4.0 * 989.4e12, 5.0 * 989.4e12]);
        let whole = Utilization {
            peak: "data sheet of H200".into(),
            peak_flops_per_s: 8.0 * 989.4e12,
            mfu: 0.5,
            hfu: 0.625,
        };
        assert_eq!(found, whole);
        // Products of f32 are not those of the data sheet's number.
        assert_eq!(of_data_sheet(&facts, Precision::F32, 8), None);
        let unknown = DeviceFacts { name: "simulated GPU".into(), ..facts };
        assert_eq!(of_data_sheet(&unknown, Precision::Bf16, 8), None);
    }
}
