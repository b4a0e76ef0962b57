//! The calibrated constants: at most twelve a device type and three a software stack, each with a meaning.

use crate::PlanError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What is known of one constant beforehand: what it means, and where it can lie at all.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ConstantInfo {
    /// Its name in `constants.toml`.
    pub name: &'static str,
    /// What it is, physically.
    pub meaning: &'static str,
    /// Smallest value that makes sense.
    pub low: f64,
    /// Largest value that makes sense.
    pub high: f64,
}

macro_rules! constants {
    (
        $(#[$about:meta])* $owner:ident, $count:literal:
        $($name:ident = $low:literal ..= $high:literal, $meaning:literal;)*
    ) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $owner {
            $(#[doc = $meaning] pub $name: f64,)*
        }

        impl $owner {
            /// What is known of each.
            pub const INFO: [ConstantInfo; $count] = [
                $(ConstantInfo { name: stringify!($name), meaning: $meaning, low: $low, high: $high },)*
            ];

            /// The values in the order of [`Self::INFO`].
            pub fn values(&self) -> [f64; $count] {
                [$(self.$name,)*]
            }

            /// From values in that order.
            pub fn from_values(values: [f64; $count]) -> Self {
                let [$($name,)*] = values;
                Self { $($name,)* }
            }
        }
    };
}

constants! {
    /// What software reaches of one type of device.
    DeviceConstants, 12:
    gemm_efficiency = 0.4 ..= 0.9, "share of the peak that a very large matrix product reaches";
    wave_tail = 0.0 ..= 2.0, "waves of output tiles that a product loses at its end (imperfect last wave, ramp-up)";
    inner_half = 0.0 ..= 512.0, "inner dimension at which a tile spends as long on prologue and epilogue as on products";
    fp8_efficiency = 0.2 ..= 0.75, "share of the fp8 peak that a very large product reaches (0.2 where there is none)";
    flash_efficiency = 0.1 ..= 1.0, "share of the peak of fused attention with very long rows";
    flash_half = 0.0 ..= 2048.0, "sequence length at which fused attention reaches half of that";
    bandwidth_efficiency = 0.5 ..= 0.95, "share of the memory bandwidth that element-wise kernels reach";
    kernel_gap = 1e-6 ..= 6e-4, "seconds that the host needs from one kernel to the next";
    inside_efficiency = 0.3 ..= 0.95, "share of the link bandwidth inside a node that collectives reach";
    between_efficiency = 0.15 ..= 0.95, "share of the link bandwidth between nodes that collectives reach";
    interference = 0.0 ..= 0.8, "share of hidden communication that comes back as slower computation";
    straggling = 0.0 ..= 0.01, "spread of a node's step time: the slowest of n nodes is sqrt(2 ln n) spreads late";
}

constants! {
    /// What one software stack costs or saves.
    StackConstants, 3:
    host_overhead = 0.85 ..= 1.4, "time of all kernels relative to a stack that launches nothing needless";
    traffic = 0.5 ..= 8.0, "bytes that element-wise kernels move, relative to well-fused ones";
    reserve = 0.0 ..= 0.3, "memory that the allocator holds beyond what is live, relative to it";
}

/// Every constant.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Constants {
    /// By [`crate::Device::constants`].
    pub device: BTreeMap<String, DeviceConstants>,
    /// By [`crate::Stack::name`].
    pub stack: BTreeMap<String, StackConstants>,
}

const BUILT_IN: &str = include_str!("../data/constants.toml");
const PRIORS: &str = include_str!("../data/priors.toml");

impl Constants {
    /// The committed constants, as `trine plan calibrate` wrote them.
    ///
    /// # Errors
    /// Never, unless the committed file is broken.
    pub fn built_in() -> Result<Self, PlanError> {
        Self::parse(BUILT_IN)
    }

    /// Where the fit starts: what data sheets and microbenchmarks say before any run is looked at.
    ///
    /// # Errors
    /// Never, unless the committed file is broken.
    pub fn priors() -> Result<Self, PlanError> {
        Self::parse(PRIORS)
    }

    /// Reads constants.
    ///
    /// # Errors
    /// A text that does not parse, an unknown or missing name, a value outside of its range.
    pub fn parse(text: &str) -> Result<Self, PlanError> {
        let bad = |why: String| PlanError::Data { what: "constants".into(), why };
        let constants: Self = toml::from_str(text).map_err(|error| bad(error.to_string()))?;
        let devices = constants.device.iter().flat_map(|(owner, row)| {
            DeviceConstants::INFO.into_iter().zip(row.values()).map(move |pair| (owner, pair))
        });
        let stacks = constants.stack.iter().flat_map(|(owner, row)| {
            StackConstants::INFO.into_iter().zip(row.values()).map(move |pair| (owner, pair))
        });
        for (owner, (info, value)) in devices.chain(stacks) {
            if !(info.low..=info.high).contains(&value) {
                let (name, low, high) = (info.name, info.low, info.high);
                return Err(bad(format!("{owner}.{name} = {value} is not in {low}..={high}")));
            }
        }
        Ok(constants)
    }

    /// As text that [`Constants::parse`] reads, every value with its meaning once at the top.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        for info in DeviceConstants::INFO.iter().chain(&StackConstants::INFO) {
            text += &format!("# {:<21} {}\n", info.name, info.meaning);
        }
        for (owner, row) in &self.device {
            text += &format!("\n[device.{owner}]\n");
            text += &lines(&DeviceConstants::INFO, &row.values());
        }
        for (owner, row) in &self.stack {
            text += &format!("\n[stack.{owner}]\n");
            text += &lines(&StackConstants::INFO, &row.values());
        }
        text
    }
}

fn lines(infos: &[ConstantInfo], values: &[f64]) -> String {
    infos.iter().zip(values).map(|(info, value)| format!("{} = {value:?}\n", info.name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_round_trip_and_values_out_of_range_are_refused() {
        let built_in = Constants::built_in().unwrap();
        assert_eq!(Constants::parse(&built_in.to_toml()).unwrap(), built_in);
        let mut bad = built_in.clone();
        bad.device.get_mut("a100").unwrap().gemm_efficiency = 1.5;
        let text = Constants::parse(&bad.to_toml()).unwrap_err().to_string();
        assert!(text.contains("a100.gemm_efficiency = 1.5"), "{text}");
    }
}
