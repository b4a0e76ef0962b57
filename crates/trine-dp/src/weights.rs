//! Gathers weights after an update of parts (ZeRO-1): every rank gets those that the others updated.

use crate::DpError;
use crate::shared::SharedBucket;
use std::panic::Location;
use trine_buffer::{Place, Pool};
use trine_comm::{Groups, Name, Pending};
use trine_nn::ParamStore;
use trine_spec::RankLayout;

/// Gathers the weights of one rank's buckets among the ranks that share out their states, in the
/// compute type, in place. Where every rank has updated a whole bucket there is nothing to do.
#[derive(Debug)]
pub struct WeightSync {
    buckets: Vec<SharedBucket>,
    posted: Vec<(usize, Pending)>,
    pool: Pool,
}

impl WeightSync {
    /// The gather of the weights of `layout`, which lie at `place`, among the ranks of `groups`.
    ///
    /// # Errors
    /// As [`crate::own_ranges`].
    pub fn new(layout: &RankLayout, groups: &Groups, place: &Place) -> Result<Self, DpError> {
        let buckets = SharedBucket::of(layout, groups)?;
        Ok(Self { buckets, posted: Vec::new(), pool: Pool::on(place.clone()) })
    }

    /// Takes a bucket whose own part is updated and posts its gather without waiting: the optimizer
    /// may go on with the next bucket. All ranks that share a bucket post in the same order.
    ///
    /// # Errors
    /// The bucket is away, or a failed operation.
    pub fn post(&mut self, params: &mut ParamStore, bucket: usize) -> Result<(), DpError> {
        let shared = &self.buckets[bucket];
        if !shared.is_split() {
            return Ok(());
        }
        let (weights, own) = (params.take(bucket)?, shared.own());
        let mut part = self.pool.alloc(weights.dtype(), own.len())?;
        part.slice_mut().copy_from(weights.slice().range(own)?)?;
        let name = Name::new("weights").with("bucket", bucket as u64);
        self.posted.push((bucket, shared.states.post_all_gather(part, weights, name)?));
        Ok(())
    }

    /// Waits for all posted buckets and puts them back.
    ///
    /// # Errors
    /// A failed operation.
    pub fn wait(&mut self, params: &mut ParamStore) -> Result<(), DpError> {
        for (bucket, pending) in self.posted.drain(..) {
            let weights = pending.wait()?.into_recv(Location::caller())?;
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
