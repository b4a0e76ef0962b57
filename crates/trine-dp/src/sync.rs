//! Gradient reduction, bucket by bucket, while the backward pass still runs.

use crate::tied::Tied;
use crate::trees::TreeShares;
use crate::{DpError, Partition};
use std::panic::Location;
use std::sync::Arc;
use trine_buffer::{Buf, Pool, Queue};
use trine_comm::{Communicator, Name, Pending, ReduceOp};
use trine_kernels::Ops;
use trine_nn::{GradStore, Numerics, TakenGrads};
use trine_spec::RankLayout;

/// What a [`GradSync`] is made of, beside the layout and the data-parallel communicator.
#[derive(Debug, Clone)]
pub struct GradSyncOptions {
    /// This rank's share.
    pub partition: Partition,
    /// How sums are ordered.
    pub numerics: Numerics,
    /// Samples of a step over all ranks.
    pub global_batch: usize,
    /// The two ranks that hold the two copies of a tied embedding, when they lie on different
    /// stages and this is one of them.
    pub tied_peer: Option<Arc<dyn Communicator>>,
}

/// The gradient reduction of one rank's stage over data parallelism.
///
/// A posted bucket is absent from the [`GradStore`] until it is waited for, so adding to it is an
/// error. The gradient of the loss was seeded with one over the number of valid tokens of all ranks
/// (contract C2), so gradients are summed and never averaged.
#[derive(Debug)]
pub struct GradSync {
    pub(crate) options: GradSyncOptions,
    pub(crate) tied: Tied,
    comm: Arc<dyn Communicator>,
    shares: TreeShares,
    posted: Vec<Option<Posted>>,
    // Of its own, so that the step's activations can be counted alone.
    pool: Pool,
}

/// What is done when the operation is over.
#[derive(Debug)]
enum Posted {
    /// The sum is in place.
    Reduced(Pending),
    /// This rank's part of the sum goes back into the bucket.
    Scattered(Pending),
    /// The ranks' subtrees are added up.
    Gathered(Pending),
    /// Nothing: it was summed over data parallelism before (a tied bucket in reference numerics).
    Complete(Buf),
}

impl GradSync {
    /// The reduction of a stage's gradients over `comm`, the data-parallel group.
    ///
    /// # Errors
    /// A partition of another group, or tied buckets that do not match the link to their copies.
    pub fn new(
        layout: &RankLayout,
        options: GradSyncOptions,
        comm: Arc<dyn Communicator>,
    ) -> Result<Self, DpError> {
        check_group(&options.partition, &*comm)?;
        let tied = Tied::new(layout, options.tied_peer.as_ref())?;
        let shares = TreeShares::new(&options.partition, options.global_batch);
        let posted = layout.buckets.iter().map(|_| None).collect();
        Ok(Self { options, tied, comm, shares, posted, pool: Pool::new() })
    }

    /// Takes a bucket whose gradient is complete on this rank, and posts its reduction without
    /// waiting. All data-parallel ranks post their buckets in the same order.
    ///
    /// Fast numerics: an all-reduce under ZeRO-0, a reduce-scatter under ZeRO-1. Reference numerics:
    /// a gather of the subtrees over samples.
    ///
    /// # Errors
    /// The bucket is posted already, or a failed operation.
    pub fn post(
        &mut self,
        grads: &mut GradStore,
        bucket: usize,
        ops: &dyn Ops,
    ) -> Result<(), DpError> {
        let (dtype, len) = (grads.dtype(), grads.layout().buckets[bucket].len);
        let posted =
            match (self.options.numerics, grads.take(bucket, ops)?) {
                (Numerics::Fast, TakenGrads::Sum(sum)) => self.reduce(bucket, sum)?,
                (Numerics::Fast, TakenGrads::Nodes(_)) => return Err(DpError::Numerics { bucket }),
                (Numerics::Reference, TakenGrads::Sum(sum)) => Posted::Complete(sum),
                (Numerics::Reference, TakenGrads::Nodes(held)) => Posted::Gathered(
                    self.shares.post(bucket, (dtype, len), &held, &self.pool, &*self.comm)?,
                ),
            };
        self.posted[bucket] = Some(posted);
        Ok(())
    }

    fn reduce(&self, bucket: usize, sum: Buf) -> Result<Posted, DpError> {
        let name = Name::new("gradient").with("bucket", bucket as u64);
        if !self.options.partition.is_split() {
            return Ok(Posted::Reduced(self.comm.post_all_reduce(sum, ReduceOp::Sum, name)?));
        }
        let part = self.options.partition.own(sum.len()).len();
        let recv = self.pool.alloc(sum.dtype(), part)?;
        Ok(Posted::Scattered(self.comm.post_reduce_scatter(sum, recv, ReduceOp::Sum, name)?))
    }

    /// Waits for a posted bucket and puts it back. In fast numerics under ZeRO-1 only this rank's
    /// part ([`Partition::own`]) is the sum then; the rest is stale and must not be read. Otherwise
    /// the whole bucket is.
    ///
    /// # Errors
    /// The bucket was not posted, or a failed operation.
    pub fn wait(
        &mut self,
        grads: &mut GradStore,
        bucket: usize,
        ops: &dyn Ops,
    ) -> Result<(), DpError> {
        let posted = self.posted[bucket].take();
        let posted = posted.ok_or(DpError::NotPosted { what: "gradients", bucket })?;
        let (queue, site) = (Queue::Host, Location::caller());
        let sum = match posted {
            Posted::Complete(sum) => sum,
            Posted::Reduced(pending) => pending.wait(&queue)?.into_send(site)?,
            Posted::Scattered(pending) => {
                let (mut sum, part) = pending.wait(&queue)?.into_both(site)?;
                let own = self.options.partition.own(sum.len());
                sum.slice_mut().range(own)?.copy_from(part.slice())?;
                sum
            }
            Posted::Gathered(pending) => {
                let gathered = pending.wait(&queue)?.into_recv(site)?;
                self.shares.finish(&gathered, grads.layout().buckets[bucket].len, ops)?
            }
        };
        Ok(grads.restore(bucket, sum)?)
    }

    /// Most bytes that were ever needed at once beside the buckets.
    pub fn buffer_bytes_max(&self) -> usize {
        self.pool.stats().bytes_in_use_max
    }

    /// Whether a bucket is posted and [`GradSync::wait`] would return at once.
    pub fn is_done(&self, bucket: usize) -> bool {
        match &self.posted[bucket] {
            None => false,
            Some(Posted::Complete(_)) => true,
            Some(
                Posted::Reduced(pending) | Posted::Scattered(pending) | Posted::Gathered(pending),
            ) => pending.is_done(),
        }
    }
}

/// Refuses a partition of another group than the communicator's.
pub(crate) fn check_group(partition: &Partition, comm: &dyn Communicator) -> Result<(), DpError> {
    let (index, dp, rank, size) = (partition.index(), partition.dp(), comm.rank(), comm.size());
    if (index, dp) == (rank, size) {
        return Ok(());
    }
    Err(DpError::Group { index, dp, group: comm.group().to_string(), rank, size })
}
