//! The update of a bucket: together with all others, or as soon as its gradient is there.

use crate::TrainError;
use trine_dp::{DpError, WeightSync, check_finite};
use trine_kernels::Ops;
use trine_nn::{GradStore, ParamStore};
use trine_optim::{Optimizer, Update};

/// Updates buckets of one rank in one step. Where nothing is clipped, nothing of an update depends on
/// the other buckets, so each may be updated while the gradients of the others are still on their way.
#[derive(Debug)]
pub(crate) struct Updating<'a> {
    pub(crate) optimizer: &'a mut Optimizer,
    pub(crate) weight_sync: &'a mut WeightSync,
    pub(crate) update: Update,
}

impl Updating<'_> {
    /// Updates what this rank owns of a bucket, and posts the gather of the rest.
    pub(crate) fn bucket(
        &mut self,
        bucket: usize,
        weights: &mut ParamStore,
        grads: &GradStore,
        ops: &dyn Ops,
    ) -> Result<(), TrainError> {
        self.optimizer.step_bucket(bucket, weights, grads, self.update, ops)?;
        Ok(self.weight_sync.post(weights, bucket)?)
    }
}

/// The updates of a step that do not wait for the norm. What the norm would have noticed is looked for
/// before each of them.
#[derive(Debug)]
pub(crate) struct AtOnce<'a> {
    pub(crate) updating: Updating<'a>,
    /// World rank, for messages.
    pub(crate) rank: usize,
    /// The first gradient that is not finite. It and all later buckets are left as they are, and the
    /// step goes on to the norm, where all ranks meet and stop.
    pub(crate) refused: Option<DpError>,
}

impl AtOnce<'_> {
    /// Updates a bucket whose gradient is reduced, if every element that the update reads is finite.
    pub(crate) fn bucket(
        &mut self,
        bucket: usize,
        weights: &mut ParamStore,
        grads: &GradStore,
        ops: &dyn Ops,
    ) -> Result<(), TrainError> {
        if self.refused.is_some() {
            return Ok(());
        }
        let own = self.updating.optimizer.own(bucket);
        match check_finite(grads, bucket, own, self.rank, ops) {
            Ok(()) => self.updating.bucket(bucket, weights, grads, ops),
            Err(refused @ DpError::NonFinite { .. }) => {
                self.refused = Some(refused);
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }
}
