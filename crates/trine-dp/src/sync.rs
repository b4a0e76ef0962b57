//! Gradient reduction, bucket by bucket, while the backward pass still runs.

use crate::DpError;
use crate::shared::SharedBucket;
use crate::tied::Tied;
use crate::trees::TreeExchange;
use std::ops::Range;
use std::panic::Location;
use std::sync::Arc;
use trine_buffer::{Buf, Place, Pool};
use trine_comm::{Communicator, Groups, Name, Pending, ReduceOp};
use trine_kernels::Ops;
use trine_nn::{GradStore, Numerics, TakenGrads};
use trine_spec::RankLayout;

/// What a [`GradSync`] is made of, beside the layout and the groups of the rank.
#[derive(Debug, Clone)]
pub struct GradSyncOptions {
    /// How sums are ordered.
    pub numerics: Numerics,
    /// Samples of a step over all ranks.
    pub global_batch: usize,
    /// The two ranks that hold the two copies of a tied embedding, when they lie on different
    /// stages and this is one of them.
    pub tied_peer: Option<Arc<dyn Communicator>>,
    /// Where gradients lie.
    pub place: Place,
}

/// The gradient reduction of one rank's buckets, each over the axes that it says ([`trine_spec::Bucket::summed`]).
///
/// A posted bucket is absent from the [`GradStore`] until it is waited for, so adding to it is an
/// error. The gradient of the loss was seeded with one over the number of valid tokens of all ranks
/// (contract C2), so gradients are summed and never averaged.
#[derive(Debug)]
pub struct GradSync {
    options: GradSyncOptions,
    tied: Tied,
    buckets: Vec<SharedBucket>,
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
    /// Nothing: it was summed before (a tied bucket in reference numerics).
    Complete(Buf),
}

impl GradSync {
    /// The reduction of the gradients of `layout` among the ranks of `groups`.
    ///
    /// # Errors
    /// As [`crate::own_ranges`], or tied buckets that do not match the link to their copies.
    pub fn new(
        layout: &RankLayout,
        options: GradSyncOptions,
        groups: &Groups,
    ) -> Result<Self, DpError> {
        let buckets = SharedBucket::of(layout, groups)?;
        let tied = Tied::new(layout, options.tied_peer.as_ref())?;
        let posted = layout.buckets.iter().map(|_| None).collect();
        let pool = Pool::on(options.place.clone());
        Ok(Self { options, tied, buckets, posted, pool })
    }

    /// Takes a bucket whose gradient is complete on this rank, and posts its reduction without
    /// waiting. Ranks that sum a bucket together post their buckets in the same order.
    ///
    /// Fast numerics: a reduce-scatter where states are shared out, else an all-reduce. Reference
    /// numerics: a gather of the subtrees over samples.
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
        let posted = match (self.options.numerics, grads.take(bucket, ops)?) {
            (Numerics::Fast, TakenGrads::Sum(sum)) => self.reduce(bucket, sum)?,
            (Numerics::Fast, TakenGrads::Nodes(_)) => return Err(DpError::Numerics { bucket }),
            (Numerics::Reference, TakenGrads::Sum(sum)) => Posted::Complete(sum),
            (Numerics::Reference, TakenGrads::Nodes(held)) => {
                let trees = self.trees(bucket);
                Posted::Gathered(trees.post(bucket, (dtype, len), &held, &self.pool)?)
            }
        };
        self.posted[bucket] = Some(posted);
        Ok(())
    }

    fn reduce(&self, bucket: usize, sum: Buf) -> Result<Posted, DpError> {
        let name = Name::new("gradient").with("bucket", bucket as u64);
        let shared = &self.buckets[bucket];
        if !shared.is_split() {
            return Ok(Posted::Reduced(shared.summed.post_all_reduce(sum, ReduceOp::Sum, name)?));
        }
        let recv = self.pool.alloc(sum.dtype(), shared.own().len())?;
        let pending = shared.summed.post_reduce_scatter(sum, recv, ReduceOp::Sum, name)?;
        Ok(Posted::Scattered(pending))
    }

    /// The exchange of a bucket's subtrees over samples.
    fn trees(&self, bucket: usize) -> TreeExchange<'_> {
        TreeExchange::new(self.options.global_batch, &*self.buckets[bucket].summed)
    }

    /// The elements of a bucket that are the sum on this rank once it has been waited for: in fast
    /// numerics its own part ([`crate::own_ranges`]), in reference numerics all of them.
    pub fn reduced(&self, bucket: usize) -> Range<usize> {
        match self.options.numerics {
            Numerics::Fast => self.buckets[bucket].own(),
            Numerics::Reference => self.buckets[bucket].whole(),
        }
    }

    /// Waits for a posted bucket and puts it back. Only [`GradSync::reduced`] is the sum then; the
    /// rest is stale and must not be read.
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
        let site = Location::caller();
        let sum = match posted {
            Posted::Complete(sum) => sum,
            Posted::Reduced(pending) => pending.wait()?.into_send(site)?,
            Posted::Scattered(pending) => {
                let (mut sum, part) = pending.wait()?.into_both(site)?;
                sum.slice_mut().range(self.buckets[bucket].own())?.copy_from(part.slice())?;
                sum
            }
            Posted::Gathered(pending) => {
                let gathered = pending.wait()?.into_recv(site)?;
                self.trees(bucket).finish(&gathered, grads.layout().buckets[bucket].len, ops)?
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

    /// Sums the gradients of the two copies of a tied embedding, so that both buckets hold the sum:
    /// the schedule's `ReduceTied`, once a step, before the tied buckets are posted. Does nothing on
    /// a stage without a tied bucket.
    ///
    /// In reference numerics the tied buckets are summed over their axes here already, and
    /// posting them later costs nothing.
    ///
    /// # Errors
    /// A tied bucket is posted already, or a failed operation.
    pub fn tied(&mut self, grads: &mut GradStore, ops: &dyn Ops) -> Result<(), DpError> {
        match self.options.numerics {
            Numerics::Fast => {}
            Numerics::Reference => self.complete(grads, &self.tied.buckets(), ops)?,
        }
        self.tied.sum(grads, ops)
    }

    fn complete(
        &mut self,
        grads: &mut GradStore,
        buckets: &[usize],
        ops: &dyn Ops,
    ) -> Result<(), DpError> {
        buckets.iter().try_for_each(|bucket| self.post(grads, *bucket, ops))?;
        buckets.iter().try_for_each(|bucket| self.wait(grads, *bucket, ops))
    }
}
