//! Whether a run computes on GPUs, and on which.

use crate::args::TrainArgs;
use crate::failure::Failure;
use crate::layout;
use std::ffi::OsString;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use trine_gpu::Checks;
use trine_gpu_sys::Search;
use trine_trainer::Machine;
use trine_trainer::config::{Config, Device, LayoutBy, Loaded, Precision};
use trine_trainer_gpu::{GpuRanks, Libraries};

/// Variables that name the folder of a toolkit or of a Python environment.
const FOLDERS: [&str; 4] = ["CUDA_HOME", "CUDA_PATH", "VIRTUAL_ENV", "CONDA_PREFIX"];

/// A look at the environment.
pub(crate) type Env<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// Where libraries are looked for: in the folders that were `asked` for, or else wherever they usually are.
pub(crate) fn search(asked: &[PathBuf], env: Env<'_>) -> Result<Search, Failure> {
    if let Some(wrong) = asked.iter().find(|path| !path.is_dir()) {
        return Err(Failure::usage(no_folder(wrong)));
    }
    if !asked.is_empty() {
        return Ok(Search::only(asked.to_owned()));
    }
    let set = FOLDERS.iter().filter_map(|name| env(name)).filter(|value| !value.is_empty());
    Ok(Search::usual(set.map(PathBuf::from).collect()))
}

fn no_folder(path: &Path) -> String {
    let shown = path.display();
    let folder = path.parent().filter(|folder| path.is_file() && !folder.as_os_str().is_empty());
    let hint = folder.map(|folder| format!("; its folder is {}", folder.display()));
    let what = if path.exists() { "is a file, not a folder" } else { "is no folder" };
    format!("--gpu-libraries {shown}: {shown} {what}{}", hint.unwrap_or_default())
}

/// Refuses GPUs for ranks that are processes.
pub(crate) fn refuse_processes(config: &Config) -> Result<(), Failure> {
    if config.train.device != Device::Cuda {
        return Ok(());
    }
    let why =
        "ranks that are processes compute on processors; one process takes all GPUs of its host";
    Err(Failure::usage(format!("train.device = \"cuda\": {why}, with --backend threads")))
}

/// What a run computes on.
#[derive(Debug)]
pub(crate) struct Chosen {
    /// The configuration, with a layout for the GPUs that there are.
    pub(crate) loaded: Loaded,
    /// `None` is the processor.
    pub(crate) gpus: Option<GpuRanks>,
    /// Which device, and why: a line for people.
    pub(crate) said: String,
    /// Why it has this layout, if the GPUs decided; and what was measured of them for that.
    pub(crate) chosen: Option<String>,
    pub(crate) machine: Option<Machine>,
}

/// Decides what a run computes on. Degrees that were given are not for this machine to change.
///
/// # Errors
/// If GPUs were asked for and cannot be used, or are too few for the layout that was asked for.
pub(crate) fn choose(
    args: &TrainArgs,
    mut loaded: Loaded,
    search: &Search,
) -> Result<Chosen, Failure> {
    let cpu = |loaded, why: String| {
        let said = format!("device  the processor: {why}");
        Ok(Chosen { loaded, gpus: None, said, chosen: None, machine: None })
    };
    let config = &loaded.config;
    let on_cpu = config.train.device == Device::Cpu;
    let found = match not_computed(config).filter(|_| !on_cpu) {
        None => find(config.train.device, search, "train.device")?,
        Some(why) if config.train.device == Device::Cuda => {
            return Err(refused("train.device", why));
        }
        Some(why) => Err(why),
    };
    let libraries = match found {
        Ok(libraries) => libraries,
        Err(why) => return cpu(loaded, why),
    };
    let mut said = format!("device  {}", libraries.named());
    let (mut chosen, mut machine) = (None, None);
    if loaded.layout_by == LayoutBy::Machine {
        let decided = layout::decide_on_gpus(args, loaded.clone(), &libraries)?;
        (loaded.config, chosen, machine) = (decided.config, decided.chosen, decided.machine);
    }
    let (asked, count) = (loaded.config.degrees(), libraries.count());
    if asked.world() > count && !loaded.degrees_are_given {
        loaded.config = shrink(loaded.config, count);
        let taken = loaded.config.degrees();
        said.push_str(&format!("; {asked} would need more of them, so the layout is {taken}"));
    }
    let gpus = Some(ranks(libraries, loaded.config.world())?);
    Ok(Chosen { loaded, gpus, said, chosen, machine })
}

/// The GPUs for a device that `key` has asked for, or why it is the processor.
///
/// # Errors
/// If GPUs were asked for and cannot be used.
pub(crate) fn find(
    device: Device,
    search: &Search,
    key: &str,
) -> Result<Result<Libraries, String>, Failure> {
    if device == Device::Cpu {
        return Ok(Err(format!("{key} = \"cpu\"")));
    }
    match Libraries::find(search, Checks::default()) {
        Ok(libraries) => Ok(Ok(libraries)),
        Err(why) if device == Device::Cuda => Err(refused(key, why)),
        Err(why) => Ok(Err(why.to_string())),
    }
}

fn refused(key: &str, why: impl Display) -> Failure {
    let nearest = format!("{key} = \"cpu\" computes on the processor");
    Failure::usage(format!("{key} = \"cuda\": {why}; {nearest}"))
}

/// GPUs for so many ranks of this process.
pub(crate) fn ranks(libraries: Libraries, ranks: usize) -> Result<GpuRanks, Failure> {
    GpuRanks::new(libraries, ranks).map_err(|error| Failure::usage(error.to_string()))
}

/// What of a configuration no kernel on a GPU computes.
fn not_computed(config: &Config) -> Option<String> {
    (config.train.precision == Precision::F64).then(|| {
        "train.precision = \"f64\" is not computed on GPUs, which take \"bf16\" and \"f32\"".into()
    })
}

/// The largest layout for at most `ranks` ranks: fewer replicas first, then fewer stages, then fewer shards.
fn shrink(config: Config, ranks: usize) -> Config {
    let down = |from: usize| (1..=from).rev();
    let all = down(config.layout.tp).flat_map(|tp| {
        down(config.layout.pp)
            .flat_map(move |pp| down(config.layout.dp).map(move |dp| (dp, pp, tp)))
    });
    let with = |(dp, pp, tp)| {
        let mut other = config.clone();
        (other.layout.dp, other.layout.pp, other.layout.tp) = (dp, pp, tp);
        other
    };
    let fits = |other: &Config| other.world() <= ranks && other.check().is_ok();
    all.map(with).find(fits).unwrap_or(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_that_were_asked_for_are_the_only_ones() {
        let env = |name: &str| match name {
            "CUDA_HOME" => Some("/opt/cuda".into()),
            "VIRTUAL_ENV" => Some("".into()),
            "CONDA_PREFIX" => Some("/opt/conda".into()),
            _ => None,
        };
        let usual = search(&[], &env).unwrap();
        assert!(usual.system);
        assert_eq!(usual.folders[..2], ["/opt/cuda", "/opt/conda"].map(PathBuf::from));
        let here = PathBuf::from(".");
        assert_eq!(search(std::slice::from_ref(&here), &env).unwrap(), Search::only(vec![here]));
    }
}
