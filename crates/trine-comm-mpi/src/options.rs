//! How a world of processes behaves.

use std::time::Duration;
use trine_comm::Delivery;

/// How a world of processes behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MpiOptions {
    /// When a message is over for its sender: buffered if short, or when its receiver takes it.
    pub delivery: Delivery,
    /// How long a rank waits for another in one operation.
    pub deadline: Duration,
    /// Bytes of one MPI message at most, 4 KiB at least: MPI counts them in 31 bits.
    pub chunk_bytes_max: usize,
}

impl Default for MpiOptions {
    /// Buffered, 60 s, 1 GiB.
    fn default() -> Self {
        Self {
            delivery: Delivery::Buffered,
            deadline: Duration::from_secs(60),
            chunk_bytes_max: 1 << 30,
        }
    }
}
