//! Where the ranks of a run compute: on the host, or on devices that a program brings.

use crate::TrainError;
use std::fmt::Debug;
use std::sync::Arc;
use trine_comm::{Communicator, SharedDevice};
use trine_kernels::Ops;
use trine_nn::Numerics;

/// Devices for the ranks of this process. All that a run knows of them: what it computes with, what it talks through,
/// and how much memory there is.
pub trait Devices: Debug + Sync {
    /// Which device a rank of the world computes on. Ranks of one device share its memory.
    fn of_rank(&self, rank: usize) -> usize;

    /// A device as people know it, such as `GPU 0`.
    fn name(&self, device: usize) -> String;

    /// The bytes of a device that are free.
    ///
    /// # Errors
    /// If the device does not say.
    fn free_bytes(&self, device: usize) -> Result<u64, TrainError>;

    /// The kernels of a rank, on its device. In reference numerics no sum of theirs depends on what a call covers.
    ///
    /// # Errors
    /// If the device cannot be used.
    fn ops(&self, rank: usize, numerics: Numerics) -> Result<Arc<dyn Ops>, TrainError>;

    /// The device on which buffers of all ranks lie, if they are threads that share one.
    fn shared(&self) -> Option<Arc<dyn SharedDevice>>;

    /// What a rank talks through, given what it talks through about what lies on the host. A collective call.
    ///
    /// # Errors
    /// If the devices have no way to each other.
    fn communicator(
        &self,
        host: Arc<dyn Communicator>,
    ) -> Result<Arc<dyn Communicator>, TrainError>;
}
