//! Where the ranks of a run compute: on the host, or on devices that a program brings.

use crate::TrainError;
use std::fmt::Debug;
use std::sync::Arc;
use trine_comm::{Communicator, SharedDevice};
use trine_kernels::Ops;
use trine_nn::Numerics;

/// What a device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceFacts {
    /// What its maker calls it, such as `NVIDIA H200`.
    pub name: String,
    /// Bytes of its memory, in use or not.
    pub memory_bytes: u64,
}

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

    /// What a device is.
    fn facts(&self, device: usize) -> DeviceFacts;

    /// How many ranks could have a device of their own here.
    fn ranks_max(&self) -> usize;

    /// Bytes of a device that a rank takes for itself, beside what a plan knows of.
    fn beside_bytes(&self) -> u64;

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
