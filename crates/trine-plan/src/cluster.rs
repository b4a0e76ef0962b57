//! Machines as data: devices, and the levels of the network between them.

use crate::{DeviceConstants, PlanError};
use serde::{Deserialize, Serialize};

/// What a matrix product is computed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Single precision.
    F32,
    /// bfloat16 with f32 sums.
    Bf16,
    /// half precision with f32 sums and loss scaling.
    F16,
    /// fp8 in the linear layers with one scale a tensor, bf16 elsewhere.
    Fp8,
    /// fp8 with a scale for each row: accumulators are rescaled in software, at bf16's rate at best.
    Fp8Rows,
}

impl Precision {
    /// Bytes of an activation.
    pub(crate) fn element_bytes(self) -> f64 {
        if self == Self::F32 { 4.0 } else { 2.0 }
    }
}

/// One accelerator: facts of its data sheet, and under which name its calibrated constants stand.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// As published runs spell it.
    pub name: String,
    /// Where the facts come from.
    pub source: String,
    /// What NVIDIA's driver calls it; none if that does not drive it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub driver_names: Vec<String>,
    /// The row of [`crate::Constants`] that holds for it; may be left out if `reached` is there.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub constants: String,
    /// Dense peak in bf16 and f16, FLOP/s.
    pub peak_bf16: f64,
    /// Dense peak in fp8, FLOP/s; 0 where there is none.
    #[serde(default)]
    pub peak_fp8: f64,
    /// Dense peak in f32 (or its matrix mode), FLOP/s.
    pub peak_f32: f64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Memory bandwidth, bytes/s.
    pub bandwidth: f64,
    /// Streaming multiprocessors, compute units or cores that share out the tiles of a product.
    pub units: f64,
    /// What software reaches of this very device, where that was measured: in place of `constants`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reached: Option<DeviceConstants>,
}

impl Precision {
    /// Whether products take casts to fp8.
    pub fn is_fp8(self) -> bool {
        matches!(self, Self::Fp8 | Self::Fp8Rows)
    }
}

impl Device {
    /// Whether it is a GPU on which trine itself can compute, and not a core or another's accelerator.
    pub fn is_gpu(&self) -> bool {
        !self.driver_names.is_empty()
    }

    /// Peak of a precision, FLOP/s. A device without fp8 computes it in bf16.
    pub fn peak(&self, precision: Precision) -> f64 {
        match precision {
            Precision::F32 => self.peak_f32,
            Precision::Bf16 | Precision::F16 | Precision::Fp8Rows => self.peak_bf16,
            Precision::Fp8 if self.peak_fp8 > 0.0 => self.peak_fp8,
            Precision::Fp8 => self.peak_bf16,
        }
    }
}

/// Which calibrated share of a link's data-sheet bandwidth collectives reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Link {
    /// Inside a node: NVLink, Infinity Fabric, a torus.
    Inside,
    /// Between nodes.
    Between,
}

/// One level of the network, from the inside out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Level {
    /// What it is.
    pub name: String,
    /// How many devices one unit of this level holds: a group of neighbours that fits into it never leaves it.
    pub devices: usize,
    /// Bytes/s that one device can send across this level while all others do, one direction.
    pub bandwidth: f64,
    /// Seconds of a smallest message.
    pub latency: f64,
    /// How much less is left when the whole level is busy (a tapered fabric): divides the bandwidth; 1 = none.
    #[serde(default = "one")]
    pub contention: f64,
    /// Whether it lies inside or between nodes.
    pub link: Link,
}

fn one() -> f64 {
    1.0
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cluster {
    /// What it is called on the command line.
    pub name: String,
    /// One line for people.
    pub about: String,
    /// Its accelerators, all alike.
    pub device: Device,
    /// A published run of this device belongs here if its source contains one of these.
    pub sources: Vec<String>,
    /// From the inside out; the last one holds every device of the machine.
    pub levels: Vec<Level>,
    /// Price of one device for an hour in US dollars; 0 if not known.
    pub dollars_per_device_hour: f64,
}

/// A file of clusters.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    device: Vec<Device>,
    #[serde(default)]
    cluster: Vec<Row>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    name: String,
    about: String,
    device: String,
    #[serde(default)]
    sources: Vec<String>,
    #[serde(default)]
    dollars_per_device_hour: f64,
    level: Vec<Level>,
}

const BUILT_IN: &str = include_str!("../data/clusters.toml");

impl Cluster {
    /// The machine and its device as a file that [`clusters`] reads.
    ///
    /// # Errors
    /// A number that TOML cannot hold.
    pub fn to_toml(&self) -> Result<String, PlanError> {
        let row = Row {
            name: self.name.clone(),
            about: self.about.clone(),
            device: self.device.name.clone(),
            sources: self.sources.clone(),
            dollars_per_device_hour: self.dollars_per_device_hour,
            level: self.levels.clone(),
        };
        let file = File { device: vec![self.device.clone()], cluster: vec![row] };
        toml::to_string(&file).map_err(|error| PlanError::Data {
            what: format!("cluster \"{}\"", self.name),
            why: error.to_string(),
        })
    }
}

/// The machines that trine knows, and those of `more`, texts in the same format that may use the known devices.
///
/// # Errors
/// A text that does not parse, a cluster of an unknown device, levels that do not grow.
pub fn clusters(more: &[&str]) -> Result<Vec<Cluster>, PlanError> {
    let mut devices: Vec<Device> = Vec::new();
    let mut found: Vec<Cluster> = Vec::new();
    for (index, text) in std::iter::once(&BUILT_IN).chain(more).enumerate() {
        let what =
            if index == 0 { "built-in clusters".into() } else { format!("cluster file {index}") };
        let bad = |why: String| PlanError::Data { what: what.clone(), why };
        let file: File = toml::from_str(text).map_err(|error| bad(in_a_line(text, &error)))?;
        for device in file.device {
            check_device(&device).map_err(bad)?;
            devices.retain(|known| known.name != device.name);
            devices.push(device);
        }
        for row in file.cluster {
            let Some(device) = devices.iter().find(|device| device.name == row.device) else {
                let names: Vec<&str> = devices.iter().map(|device| device.name.as_str()).collect();
                return Err(PlanError::unknown("device", &row.device, &names));
            };
            check_levels(&row).map_err(bad)?;
            found.retain(|known| known.name != row.name);
            found.push(Cluster {
                name: row.name,
                about: row.about,
                device: device.clone(),
                sources: row.sources,
                levels: row.level,
                dollars_per_device_hour: row.dollars_per_device_hour,
            });
        }
    }
    Ok(found)
}

/// The data sheet of the device that NVIDIA's driver calls so.
///
/// # Errors
/// Never, unless the committed file is broken.
pub fn data_sheet(driver_name: &str) -> Result<Option<Device>, PlanError> {
    let mut devices = clusters(&[])?.into_iter().map(|cluster| cluster.device);
    Ok(devices.find(|device| device.driver_names.iter().any(|name| name == driver_name)))
}

/// Where and what, without a picture of the place.
fn in_a_line(text: &str, error: &toml::de::Error) -> String {
    let message = error.message().replace('\n', ", ");
    let before = error.span().and_then(|span| text.get(..span.start));
    match before {
        Some(before) => format!("line {}: {message}", 1 + before.matches('\n').count()),
        None => message,
    }
}

fn check_device(device: &Device) -> Result<(), String> {
    let positive = [
        ("peak_bf16", device.peak_bf16),
        ("peak_f32", device.peak_f32),
        ("memory_bytes", device.memory_bytes as f64),
        ("bandwidth", device.bandwidth),
        ("units", device.units),
    ];
    let bad = |field: &str, value: f64, rule: &str| {
        Err(format!("device \"{}\": {field} = {value} {rule}", device.name))
    };
    if let Some((field, value)) =
        positive.into_iter().find(|(_, value)| !(*value > 0.0 && value.is_finite()))
    {
        return bad(field, value, "must be positive");
    }
    match &device.reached {
        None if device.constants.is_empty() => {
            Err(format!("device \"{}\" needs constants = a name, or reached", device.name))
        }
        None => Ok(()),
        Some(reached) => check_reached(reached, bad),
    }
}

/// Measured shares may lie outside of what accelerators reach, but not outside of sense: a divisor is not zero.
fn check_reached(
    reached: &DeviceConstants,
    bad: impl Fn(&str, f64, &str) -> Result<(), String>,
) -> Result<(), String> {
    for (info, value) in DeviceConstants::INFO.into_iter().zip(reached.values()) {
        if !(value.is_finite() && value >= 0.0) {
            return bad(info.name, value, "must be finite and not negative");
        }
        if info.name.ends_with("_efficiency") && value == 0.0 {
            return bad(info.name, value, "must be positive");
        }
    }
    Ok(())
}

fn check_levels(row: &Row) -> Result<(), String> {
    if row.level.is_empty() {
        return Err(format!("cluster \"{}\" has no level", row.name));
    }
    let mut inner = 1;
    for level in &row.level {
        let at = format!("cluster \"{}\", level \"{}\"", row.name, level.name);
        if level.devices < inner || !level.devices.is_multiple_of(inner) {
            return Err(format!(
                "{at}: devices = {} must be a multiple of the {inner} of the level inside it",
                level.devices
            ));
        }
        let sane = level.bandwidth > 0.0 && level.latency >= 0.0 && level.contention >= 1.0;
        if !sane {
            return Err(format!("{at}: bandwidth > 0, latency >= 0 and contention >= 1 must hold"));
        }
        inner = level.devices;
    }
    Ok(())
}

/// The cluster of this name.
///
/// # Errors
/// [`PlanError::Unknown`] with every name there is.
pub fn find<'a>(all: &'a [Cluster], name: &str) -> Result<&'a Cluster, PlanError> {
    all.iter().find(|cluster| cluster.name == name).ok_or_else(|| {
        let names: Vec<&str> = all.iter().map(|cluster| cluster.name.as_str()).collect();
        PlanError::unknown("cluster", name, &names)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_of_a_die_is_what_the_papers_percentages_mean() {
        let all = clusters(&[]).unwrap();
        let frontier = find(&all, "frontier").unwrap();
        // 73.5 TFLOPS are 38.38 %, 69.2 are 36.14 % (2312.12705).
        assert!((73.5e12 / 0.3838 / frontier.device.peak_bf16 - 1.0).abs() < 1e-3);
        assert!((69.2e12 / 0.3614 / frontier.device.peak_bf16 - 1.0).abs() < 1e-3);
        assert_eq!(frontier.levels[1].devices, 8);
        assert_eq!(all.len(), 11);
    }

    #[test]
    fn a_data_sheet_is_found_by_the_name_that_the_driver_says() {
        let peak = |name| data_sheet(name).unwrap().map(|device| device.peak_bf16);
        assert_eq!(peak("NVIDIA H200"), Some(989.4e12));
        assert_eq!(peak("NVIDIA A100-SXM4-40GB"), Some(312e12));
        // Of another peak than the one that is known.
        assert_eq!((peak("NVIDIA H100 PCIe"), peak("simulated GPU")), (None, None));
        let all = clusters(&[]).unwrap();
        let driven: Vec<bool> = ["h100", "frontier", "tpu-v4"]
            .map(|name| find(&all, name).unwrap().device.is_gpu())
            .into();
        assert_eq!(driven, [true, false, false]);
        let mut names: Vec<String> =
            all.into_iter().flat_map(|cluster| cluster.device.driver_names).collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert!(names.len() > 4 && names.len() <= count, "{names:?}");
    }

    #[test]
    fn a_machine_with_measured_shares_goes_through_its_file() {
        let all = clusters(&[]).unwrap();
        let mut machine = find(&all, "h100").unwrap().clone();
        machine.name = "measured".into();
        let reached = crate::Constants::built_in().unwrap().device["h100"];
        machine.device.constants = String::new();
        // Lower than accelerators reach, which is no reason to refuse it.
        machine.device.reached = Some(DeviceConstants { gemm_efficiency: 0.1, ..reached });
        let text = machine.to_toml().unwrap();
        assert_eq!(find(&clusters(&[&text]).unwrap(), "measured").unwrap(), &machine);
        for (bad, said) in [
            ("gemm_efficiency = 0.0", "gemm_efficiency = 0 must be positive"),
            ("gemm_efficiency = -1.0", "must be finite and not negative"),
            ("gemm_eficiency = 0.1", "gemm_eficiency"),
        ] {
            let error = clusters(&[&text.replace("gemm_efficiency = 0.1", bad)]).unwrap_err();
            assert!(error.to_string().contains(said), "{error}");
        }
    }

    #[test]
    fn users_add_clusters_and_bad_ones_are_refused() {
        let mine = "[[cluster]]\nname = \"mine\"\nabout = \"two nodes\"\ndevice = \"A100-80GB\"\n\
                    [[cluster.level]]\nname = \"node\"\ndevices = 4\nbandwidth = 1e11\nlatency = 1e-6\nlink = \"inside\"\n";
        assert_eq!(find(&clusters(&[mine]).unwrap(), "mine").unwrap().device.units, 108.0);
        let unknown = mine.replace("A100-80GB", "A1000");
        assert!(clusters(&[&unknown]).unwrap_err().to_string().contains("A100-40GB"));
        let extra = format!(
            "{mine}[[cluster.level]]\nname = \"all\"\ndevices = 6\nbandwidth = 1e9\nlatency = 1e-6\nlink = \"between\"\n"
        );
        assert!(clusters(&[&extra]).unwrap_err().to_string().contains("multiple of the 4"));
        assert!(clusters(&["[[cluster]]\nnam = 1"]).unwrap_err().to_string().contains("nam"));
        let none = clusters(&[
            "[[device]]\nname = \"x\"\nsource = \"\"\npeak_bf16 = 1.0\npeak_f32 = 1.0\n\
                               memory_bytes = 1\nbandwidth = 1.0\nunits = 1.0",
        ]);
        assert!(none.unwrap_err().to_string().contains("needs constants = a name, or reached"));
        let text = find(&clusters(&[]).unwrap(), "fronteer").unwrap_err().to_string();
        assert!(text.contains("fronteer") && text.contains("frontier"), "{text}");
    }
}
