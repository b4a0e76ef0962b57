//! Ranks with a GPU each: the communicator on NCCL.
//!
//! A rank is a thread or a process. It has a communicator of the host already, of threads or of processes. [`join`]
//! puts NCCL beside it:
//!
//! * **Buffers on the GPU** go by NCCL. Each group has a stream of its own, which a GPU prefers. An operation starts
//!   behind all that the buffers' stream has been given, and `Pending::wait` lets that stream go on behind it. The host
//!   waits for nothing, so a reduction runs beside what is queued after its start.
//! * **Buffers on the host**, a few words a step, go by the host's communicator.
//! * **Every operation is announced** on the host, by name, kind and extents. Ranks that disagree get an error that has
//!   both calls; the GPUs would hang.
//! * **A thread watches** each rank: announcements, the state of NCCL's groups, and whether the world still stands.
//!   What fails first stops the host's communicator, and with it every rank; the groups are aborted, so that no host
//!   hangs in a wait for its GPU.
//!
//! ```
//! use std::sync::Arc;
//! use trine_comm::{CommError, Communicator, threads};
//! use trine_comm_nccl::{NcclOptions, join, open};
//! use trine_gpu::Gpus;
//! use trine_gpu_sys::Search;
//!
//! /// A world of as many ranks as there are GPUs, as threads.
//! fn world(
//!     gpus: &Gpus,
//!     search: &Search,
//!     train: fn(Arc<dyn Communicator>) -> Result<(), CommError>,
//! ) -> Result<(), Box<dyn std::error::Error>> {
//!     let nccl = open(search)?;
//!     threads::run(gpus.list().len(), &Default::default(), |host| {
//!         let gpu = gpus.device(host.rank()).map_err(|error| CommError::Backend {
//!             backend: "GPU",
//!             message: error.to_string(),
//!         })?;
//!         train(join(&nccl, &gpu, host, NcclOptions::default())?)
//!     })?;
//!     Ok(())
//! }
//!
//! let nowhere = Search::only(vec!["no/such/folder".into()]);
//! assert!(open(&nowhere).unwrap_err().to_string().contains("NCCL was not found"));
//! # let _ = world;
//! ```

mod announcement;
mod channels;
mod comm;
mod link;
mod seat;

pub use comm::join;
pub use seat::NcclOptions;

use std::sync::Arc;
use trine_gpu_sys::{LoadError, Nccl, Search, load, nccl};

/// Opens NCCL.
///
/// # Errors
/// If it is nowhere, or too old.
pub fn open(search: &Search) -> Result<Arc<Nccl>, LoadError> {
    Ok(Arc::new(load::<Nccl>(&nccl::CUDA, search)?.functions))
}
