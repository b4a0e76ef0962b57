//! What computing on GPUs takes.

use std::sync::Arc;
use trine_gpu::{Checks, GpuError, Gpus};
use trine_gpu_sys::{CublasLt, LoadError, Search, cublaslt, load};

/// The oldest GPUs that the kernels are compiled for.
const CAPABILITY_MIN: (u32, u32) = (8, 0);

/// Why no GPU can be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Unusable {
    /// The driver is not found, does not start or does not answer.
    #[error(transparent)]
    Driver(#[from] GpuError),
    /// There is a driver, and nothing for it to drive.
    #[error("the CUDA driver has no GPU")]
    NoGpu,
    /// A GPU is older than the kernels.
    #[error("{name} has capability {}.{}, and the kernels need 8.0", .capability.0, .capability.1)]
    TooOld {
        /// What its maker calls it.
        name: String,
        /// What it can do.
        capability: (u32, u32),
    },
    /// cuBLASLt is not found, or too old.
    #[error(transparent)]
    Products(#[from] LoadError),
}

/// The GPUs of a host, and the libraries that computing on them takes.
#[derive(Debug, Clone)]
pub struct Libraries {
    pub(crate) gpus: Gpus,
    pub(crate) products: Arc<CublasLt>,
    pub(crate) search: Search,
}

impl Libraries {
    /// Finds them. With `checks` a ledger refuses accesses that no event orders.
    ///
    /// # Errors
    /// Which of them is missing and where it was looked for, or what is wrong with it.
    pub fn find(search: &Search, checks: Checks) -> Result<Self, Unusable> {
        let gpus = Gpus::open(search, checks)?;
        let oldest = gpus.list().iter().min_by_key(|gpu| gpu.capability).ok_or(Unusable::NoGpu)?;
        if oldest.capability < CAPABILITY_MIN {
            let (name, capability) = (oldest.name.clone(), oldest.capability);
            return Err(Unusable::TooOld { name, capability });
        }
        let products = Arc::new(load::<CublasLt>(&cublaslt::CUDA, search)?.functions);
        Ok(Self { gpus, products, search: search.clone() })
    }

    /// How many GPUs there are.
    pub fn count(&self) -> usize {
        self.gpus.list().len()
    }

    /// The GPUs and their driver, for people.
    pub fn named(&self) -> String {
        let (path, version) = self.gpus.driver();
        let first = self.gpus.list().first().map_or("", |gpu| &gpu.name);
        let times = if self.count() == 1 { String::new() } else { format!("{} × ", self.count()) };
        format!("{times}{first}, by CUDA {version} ({})", path.display())
    }
}
