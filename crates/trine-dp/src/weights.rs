//! Gathers weights after a ZeRO-1 update: every rank gets the parts that the others updated.

use crate::sync::check_group;
use crate::{DpError, Partition};
use std::panic::Location;
use std::sync::Arc;
use trine_buffer::{Pool, Queue};
use trine_comm::{Communicator, Name, Pending};
use trine_nn::ParamStore;

/// Gathers the weights of one rank's stage over data parallelism, in the compute type, in place.
/// Under ZeRO-0 every rank has updated everything, and there is nothing to do.
#[derive(Debug)]
pub struct WeightSync {
    partition: Partition,
    comm: Arc<dyn Communicator>,
    posted: Vec<(usize, Pending)>,
    pool: Pool,
}

impl WeightSync {
    /// A gather over `comm`, the data-parallel group.
    ///
    /// # Errors
    /// A partition of another group.
    pub fn new(partition: Partition, comm: Arc<dyn Communicator>) -> Result<Self, DpError> {
        check_group(&partition, &*comm)?;
        Ok(Self { partition, comm, posted: Vec::new(), pool: Pool::new() })
    }

    /// Takes a bucket whose own part is updated and posts its gather without waiting: the optimizer
    /// may go on with the next bucket. All data-parallel ranks post in the same order.
    ///
    /// # Errors
    /// The bucket is away, or a failed operation.
    pub fn post(&mut self, params: &mut ParamStore, bucket: usize) -> Result<(), DpError> {
        if !self.partition.is_split() {
            return Ok(());
        }
        let weights = params.take(bucket)?;
        let own = self.partition.own(weights.len());
        let mut part = self.pool.alloc(weights.dtype(), own.len())?;
        part.slice_mut().copy_from(weights.slice().range(own)?)?;
        let name = Name::new("weights").with("bucket", bucket as u64);
        self.posted.push((bucket, self.comm.post_all_gather(part, weights, name)?));
        Ok(())
    }

    /// Waits for all posted buckets and puts them back.
    ///
    /// # Errors
    /// A failed operation.
    pub fn wait(&mut self, params: &mut ParamStore) -> Result<(), DpError> {
        for (bucket, pending) in self.posted.drain(..) {
            let weights = pending.wait(&Queue::Host)?.into_recv(Location::caller())?;
            params.restore(bucket, weights)?;
        }
        Ok(())
    }

    /// Most bytes that were ever needed at once beside the buckets.
    pub fn buffer_bytes_max(&self) -> usize {
        self.pool.stats().bytes_in_use_max
    }

    /// [`WeightSync::post`] for every bucket, then [`WeightSync::wait`].
    ///
    /// # Errors
    /// As those.
    pub fn gather(&mut self, params: &mut ParamStore) -> Result<(), DpError> {
        let buckets = params.layout().buckets.len();
        (0..buckets).try_for_each(|bucket| self.post(params, bucket))?;
        self.wait(params)
    }
}
