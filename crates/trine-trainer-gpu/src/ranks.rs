//! Which rank computes on which GPU, and how ranks exchange.

use crate::libraries::Libraries;
use std::sync::Arc;
use trine_buffer::BufferError;
use trine_comm::{Communicator, SharedDevice};
use trine_comm_nccl::{NcclOptions, join};
use trine_gpu::{Device, GpuError, Priority, Products, Stream};
use trine_gpu_sys::{CublasLt, Gpu, LoadError, Nccl, load, nccl};
use trine_kernels::Ops;
use trine_kernels_gpu::{Exchanges, GpuOps, IMAGES, Kernels};
use trine_nn::Numerics;
use trine_trainer::TrainError;
use trine_trainer::run::{DeviceFacts, Devices};

/// What products may use on each GPU beside their matrices.
const WORKSPACE_BYTES: usize = 32 << 20;

/// Why ranks cannot have the GPUs of their host.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RanksError {
    /// There are fewer GPUs, and more than one.
    #[error(
        "{ranks} ranks on {gpus} GPUs: ranks have a GPU each, or all share a single one; the nearest is {gpus} ranks"
    )]
    TooFew {
        /// Ranks of the run.
        ranks: usize,
        /// GPUs of the host.
        gpus: usize,
    },
    /// Ranks with a GPU each need NCCL.
    #[error("ranks with a GPU each exchange by NCCL: {0}")]
    Nccl(#[from] LoadError),
    /// A GPU cannot be used.
    #[error(transparent)]
    Gpu(#[from] GpuError),
}

/// The ranks of a process on the GPUs of its host: each on one of its own, or all on a single one.
#[derive(Debug)]
pub struct GpuRanks {
    devices: Vec<Device>,
    /// What they are, and all other GPUs of the host.
    all: Vec<DeviceFacts>,
    /// Bytes that were free when this process began: what it frees stays with it.
    free: Vec<u64>,
    products: Arc<CublasLt>,
    workspace_bytes: usize,
    way: Way,
}

/// How ranks exchange what lies on GPUs.
#[derive(Debug)]
enum Way {
    /// There is one rank.
    Alone,
    /// Each rank has a GPU.
    Nccl(Arc<Nccl>),
    /// All ranks have the same one.
    Shared(Arc<dyn SharedDevice>),
}

impl GpuRanks {
    /// GPUs for so many ranks, all of this process.
    ///
    /// # Errors
    /// Too few GPUs, no NCCL where it is needed, or a GPU that cannot be used.
    pub fn new(libraries: Libraries, ranks: usize) -> Result<Self, RanksError> {
        let gpus = libraries.count();
        if ranks > gpus && gpus > 1 {
            return Err(RanksError::TooFew { ranks, gpus });
        }
        Self::on(libraries, ranks, gpus.min(ranks))
    }

    /// The first GPU for so many ranks, all of this process, however many GPUs there are.
    ///
    /// # Errors
    /// A GPU that cannot be used.
    pub fn sharing(libraries: Libraries, ranks: usize) -> Result<Self, RanksError> {
        Self::on(libraries, ranks, ranks.min(1))
    }

    fn on(libraries: Libraries, ranks: usize, used: usize) -> Result<Self, RanksError> {
        let Libraries { gpus, products, search } = libraries;
        let used = 0..used;
        let devices = used.map(|index| gpus.device(index)).collect::<Result<Vec<_>, _>>()?;
        let free = devices.iter().map(|device| Ok(device.memory_bytes()?.0 as u64));
        let free = free.collect::<Result<Vec<_>, GpuError>>()?;
        let facts =
            |gpu: &Gpu| DeviceFacts { name: gpu.name.clone(), memory_bytes: gpu.memory_bytes };
        let all = gpus.list().iter().map(facts).collect();
        let way = match ranks {
            0 | 1 => Way::Alone,
            _ if devices.len() == 1 => Way::Shared(Arc::new(exchanges(&devices[0])?)),
            _ => Way::Nccl(Arc::new(load::<Nccl>(&nccl::CUDA, &search)?.functions)),
        };
        Ok(Self { devices, all, free, products, workspace_bytes: WORKSPACE_BYTES, way })
    }

    /// With so many bytes beside their matrices for the products of each rank, instead of 32 MiB.
    #[must_use]
    pub fn with_workspace(self, workspace_bytes: usize) -> Self {
        Self { workspace_bytes, ..self }
    }

    fn computing(&self, rank: usize, numerics: Numerics) -> Result<GpuOps, GpuError> {
        let device = &self.devices[self.of_rank(rank)];
        let stream = device.stream(&format!("compute of rank {rank}"), Priority::Normal)?;
        let kernels = kernels(&stream)?;
        if numerics == Numerics::Reference {
            return Ok(GpuOps::in_order(&stream, kernels));
        }
        let products = Products::new(&stream, self.products.clone(), self.workspace_bytes)?;
        Ok(GpuOps::new(&stream, kernels, products))
    }
}

/// The exchanges of ranks that share a GPU, before other work of it.
fn exchanges(device: &Device) -> Result<Exchanges, GpuError> {
    let stream = device.stream("exchanges", Priority::First)?;
    let kernels = kernels(&stream)?;
    Ok(Exchanges::new(stream, kernels))
}

fn kernels(stream: &Stream) -> Result<Kernels, GpuError> {
    Kernels::load(stream, IMAGES.iter().map(|image| image.ptx))
}

fn failed(error: GpuError) -> TrainError {
    BufferError::from(error).into()
}

impl Devices for GpuRanks {
    fn of_rank(&self, rank: usize) -> usize {
        rank % self.devices.len()
    }

    fn name(&self, device: usize) -> String {
        format!("free memory of GPU {}", self.devices[device].index())
    }

    fn facts(&self, device: usize) -> DeviceFacts {
        self.all[self.devices[device].index()].clone()
    }

    fn beside_bytes(&self) -> u64 {
        self.workspace_bytes as u64
    }

    fn ranks_max(&self) -> usize {
        self.all.len()
    }

    fn free_bytes(&self, device: usize) -> Result<u64, TrainError> {
        Ok(self.free[device])
    }

    fn ops(&self, rank: usize, numerics: Numerics) -> Result<Arc<dyn Ops>, TrainError> {
        Ok(Arc::new(self.computing(rank, numerics).map_err(failed)?))
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
