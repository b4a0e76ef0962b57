//! Whether a run computes on GPUs, and on which.

use crate::failure::Failure;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use trine_buffer::BufferError;
use trine_comm::{Communicator, SharedDevice};
use trine_comm_nccl::{NcclOptions, join};
use trine_gpu::{Checks, Gpus, Priority, Products};
use trine_gpu_sys::{CublasLt, Nccl, Search, cublaslt, load, nccl};
use trine_kernels::Ops;
use trine_kernels_gpu::{Exchange, GpuOps, IMAGES, Kernels};
use trine_trainer::TrainError;
use trine_trainer::config::{Config, Device, Loaded, Precision};
use trine_trainer::run::Devices;

/// Variables that name the folder of a toolkit or of a Python environment.
const FOLDERS: [&str; 4] = ["CUDA_HOME", "CUDA_PATH", "VIRTUAL_ENV", "CONDA_PREFIX"];

/// The oldest GPUs that the kernels are compiled for.
const CAPABILITY_MIN: (u32, u32) = (8, 0);

/// What products may use beside their matrices on each GPU.
const WORKSPACE_BYTES: usize = 32 << 20;

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
    let why = "ranks that are processes compute on processors; one process takes all GPUs of its host";
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
}

/// Decides what a run computes on. Degrees that were given are not for this machine to change.
///
/// # Errors
/// If GPUs were asked for and cannot be used, or are too few for the layout that was asked for.
pub(crate) fn choose(mut loaded: Loaded, search: &Search) -> Result<Chosen, Failure> {
    let cpu = |loaded, why: String| {
        Ok(Chosen { loaded, gpus: None, said: format!("device  the processor: {why}") })
    };
    let config = &loaded.config;
    if config.train.device == Device::Cpu {
        return cpu(loaded, "train.device = \"cpu\"".into());
    }
    let usable = not_computed(config).map_or_else(|| Libraries::find(search), Err);
    let libraries = match (usable, config.train.device) {
        (Ok(libraries), _) => libraries,
        (Err(why), Device::Cuda) => {
            let nearest = "train.device = \"cpu\" computes on the processor";
            return Err(Failure::usage(format!("train.device = \"cuda\": {why}; {nearest}")));
        }
        (Err(why), Device::Auto | Device::Cpu) => return cpu(loaded, why),
    };
    let mut said = format!("device  {}", libraries.named());
    let (asked, count) = (config.degrees(), libraries.gpus.list().len());
    if asked.world() > count && !loaded.degrees_are_given {
        loaded.config = shrink(loaded.config, count);
        let taken = loaded.config.degrees();
        said.push_str(&format!("; {asked} would need more of them, so the layout is {taken}"));
    }
    let gpus = Some(GpuRanks::new(libraries, loaded.config.world())?);
    Ok(Chosen { loaded, gpus, said })
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
        down(config.layout.pp).flat_map(move |pp| down(config.layout.dp).map(move |dp| (dp, pp, tp)))
    });
    let with = |(dp, pp, tp)| {
        let mut other = config.clone();
        (other.layout.dp, other.layout.pp, other.layout.tp) = (dp, pp, tp);
        other
    };
    let fits = |other: &Config| other.world() <= ranks && other.check().is_ok();
    all.map(with).find(fits).unwrap_or(config)
}

/// The GPUs of this host, and what computing on them takes.
#[derive(Debug)]
struct Libraries {
    gpus: Gpus,
    products: Arc<CublasLt>,
    search: Search,
}

impl Libraries {
    /// All of them, or which one is missing and where it was looked for.
    fn find(search: &Search) -> Result<Self, String> {
        let checks = Checks::default();
        let gpus = Gpus::open(search, checks).map_err(|error| error.to_string())?;
        let Some(oldest) = gpus.list().iter().min_by_key(|gpu| gpu.capability) else {
            return Err("the driver has no GPU".into());
        };
        if oldest.capability < CAPABILITY_MIN {
            let ((has, minor), (needs, _)) = (oldest.capability, CAPABILITY_MIN);
            let name = &oldest.name;
            return Err(format!("{name} has capability {has}.{minor}, kernels need {needs}.0"));
        }
        let products = load::<CublasLt>(&cublaslt::CUDA, search);
        let products = Arc::new(products.map_err(|error| error.to_string())?.functions);
        Ok(Self { gpus, products, search: search.clone() })
    }

    /// The GPUs, for people.
    fn named(&self) -> String {
        let list = self.gpus.list();
        let (path, version) = self.gpus.driver();
        let first = &list[0].name;
        let count = if list.len() == 1 { String::new() } else { format!("{} × ", list.len()) };
        format!("{count}{first}, by CUDA {version} ({})", path.display())
    }
}

/// The ranks of this process on the GPUs of its host: each on one of its own, or all on a single one.
#[derive(Debug)]
pub(crate) struct GpuRanks {
    devices: Vec<trine_gpu::Device>,
    products: Arc<CublasLt>,
    way: Way,
}

/// How ranks exchange what lies on GPUs.
#[derive(Debug)]
enum Way {
    /// There is one rank.
    Alone,
    /// Each rank has a GPU.
    Nccl(Arc<Nccl>),
    /// All ranks have the same one, which NCCL refuses.
    Shared(Arc<dyn SharedDevice>),
}

impl GpuRanks {
    fn new(libraries: Libraries, ranks: usize) -> Result<Self, Failure> {
        let Libraries { gpus, products, search } = libraries;
        let run = |error: trine_gpu::GpuError| Failure::Run(error.into());
        let count = gpus.list().len();
        let devices = (0..count.min(ranks)).map(|index| gpus.device(index));
        let devices = devices.collect::<Result<Vec<_>, _>>().map_err(run)?;
        let way = match (ranks, count) {
            (1, _) => Way::Alone,
            (_, 1) => Way::Shared(Arc::new(Exchange::new(&devices[0]).map_err(run)?)),
            _ if ranks <= count => {
                let nccl = load::<Nccl>(&nccl::CUDA, &search);
                let nccl = nccl.map_err(|error| {
                    let why = "ranks with a GPU each exchange by NCCL";
                    Failure::usage(format!("{why}: {error}; --tp 1 --pp 1 --dp 1 needs none"))
                })?;
                Way::Nccl(Arc::new(nccl.functions))
            }
            _ => {
                return Err(Failure::usage(format!(
                    "the layout has {ranks} ranks and this host {count} GPUs; NCCL takes one rank a GPU: give \
                     degrees whose product is {count} or less, or none"
                )));
            }
        };
        Ok(Self { devices, products, way })
    }

    fn failed(error: trine_gpu::GpuError) -> TrainError {
        BufferError::from(error).into()
    }
}

impl Devices for GpuRanks {
    fn of_rank(&self, rank: usize) -> usize {
        rank % self.devices.len()
    }

    fn name(&self, device: usize) -> String {
        format!("free memory of GPU {}", self.devices[device].index())
    }

    fn free_bytes(&self, device: usize) -> Result<u64, TrainError> {
        let (free, _) = self.devices[device].memory_bytes().map_err(Self::failed)?;
        Ok(free as u64)
    }

    fn ops(&self, rank: usize) -> Result<Arc<dyn Ops>, TrainError> {
        let device = &self.devices[self.of_rank(rank)];
        let make = || {
            let stream = device.stream(&format!("compute of rank {rank}"), Priority::Normal)?;
            let kernels = Kernels::load(&stream, IMAGES.iter().map(|image| image.ptx))?;
            let products = Products::new(&stream, self.products.clone(), WORKSPACE_BYTES)?;
            Ok(GpuOps::new(&stream, kernels, products))
        };
        make().map(|ops| Arc::new(ops) as Arc<dyn Ops>).map_err(Self::failed)
    }

    fn shared(&self) -> Option<Arc<dyn SharedDevice>> {
        if let Way::Shared(shared) = &self.way { Some(shared.clone()) } else { None }
    }

    fn communicator(
        &self,
        host: Arc<dyn Communicator>,
    ) -> Result<Arc<dyn Communicator>, TrainError> {
        match &self.way {
            Way::Alone | Way::Shared(_) => Ok(host),
            Way::Nccl(nccl) => {
                let device = &self.devices[self.of_rank(host.rank())];
                Ok(join(nccl, device, host, NcclOptions::default())?)
            }
        }
    }
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
