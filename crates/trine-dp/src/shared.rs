//! Which ranks sum a bucket's gradient and which divide its state: as the layout says, with this rank's groups.

use crate::DpError;
use std::ops::Range;
use std::sync::Arc;
use trine_comm::{Communicator, Groups};
use trine_mesh::{AxisSet, part};
use trine_spec::{Bucket, RankLayout};

/// The elements of each bucket that this rank updates and keeps optimizer state for: its even part where states
/// are shared out ([`trine_spec::Shares::states`]), else all of them. Of a bucket that is not trained: nothing.
///
/// # Errors
/// Shares that are not built ([`DpError::Shares`]), or axes along which `groups` has no group.
pub fn own_ranges(layout: &RankLayout, groups: &Groups) -> Result<Vec<Range<usize>>, DpError> {
    Ok(SharedBucket::of(layout, groups)?.iter().map(SharedBucket::own).collect())
}

/// A bucket among the ranks that have it.
#[derive(Debug, Clone)]
pub(crate) struct SharedBucket {
    len: usize,
    /// The ranks that its gradient is summed over.
    pub(crate) summed: Arc<dyn Communicator>,
    /// The ranks that divide its state: this one alone where each keeps it whole.
    pub(crate) states: Arc<dyn Communicator>,
    trainable: bool,
}

impl SharedBucket {
    /// All buckets of a layout, if what they share out is built.
    pub(crate) fn of(layout: &RankLayout, groups: &Groups) -> Result<Vec<Self>, DpError> {
        let group = |axes| groups.of(axes).cloned();
        let of = |(number, bucket): (usize, &Bucket)| {
            check(number, bucket)?;
            let (summed, states) = (group(bucket.summed)?, group(bucket.shared.states)?);
            Ok(Self { len: bucket.len, summed, states, trainable: bucket.trainable })
        };
        layout.buckets.iter().enumerate().map(of).collect()
    }

    /// Whether ranks own different parts, so that parts have to be scattered and gathered.
    pub(crate) fn is_split(&self) -> bool {
        self.states.size() > 1
    }

    /// The elements that this rank updates.
    pub(crate) fn own(&self) -> Range<usize> {
        if self.trainable { part(self.len, self.states.size(), self.states.rank()) } else { 0..0 }
    }

    /// All elements.
    pub(crate) fn whole(&self) -> Range<usize> {
        0..self.len
    }

    /// This rank's part among those that have the same sum, whoever updates it.
    pub(crate) fn counted(&self) -> Range<usize> {
        part(self.len, self.summed.size(), self.summed.rank())
    }
}

/// Refuses what is not built: weights or gradients that are shared out, and states that are shared out over other
/// axes than the gradient is summed over.
fn check(number: usize, bucket: &Bucket) -> Result<(), DpError> {
    let (summed, shared) = (bucket.summed, bucket.shared);
    let refuse =
        |what, axes, nearest| Err(DpError::Shares { bucket: number, what, axes, summed, nearest });
    if !shared.weights.is_empty() {
        return refuse("weights", shared.weights, AxisSet::EMPTY);
    }
    if !shared.gradients.is_empty() {
        return refuse("gradients", shared.gradients, AxisSet::EMPTY);
    }
    if !shared.states.is_empty() && shared.states != summed {
        return refuse("states", shared.states, summed);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use trine_comm::SelfComm;
    use trine_mesh::{Axis, Degrees, Mesh};
    use trine_spec::{Init, ParamSpec, Shares};

    #[test]
    fn shares_that_are_not_built_are_refused_with_bucket_axes_and_the_nearest_that_are() {
        let mesh = Mesh::new(Degrees::SERIAL, 1).unwrap();
        let both = AxisSet::of(&[Axis::Dp, Axis::Cp]);
        let groups = Groups::new(&mesh, &SelfComm::new(), [AxisSet::DP, both]).unwrap();
        let weight = ParamSpec::new("up", &[8, 4], Init::Normal { std: 0.02 });
        let mut layout = RankLayout::of(vec![weight], 1, 0).unwrap();
        let mut own = |summed, shared| {
            (layout.buckets[0].summed, layout.buckets[0].shared) = (summed, shared);
            let own = own_ranges(&layout, &groups).map_err(|error| error.to_string())?;
            Ok::<_, String>(own[0].clone())
        };
        for shared in [Shares::NONE, Shares::zero(1, AxisSet::DP)] {
            assert_eq!(own(AxisSet::DP, shared), Ok(0..32));
        }
        let weights = Shares { weights: AxisSet::DP, ..Shares::NONE };
        let cases = [
            (AxisSet::DP, weights, "bucket 0 divides its weights over dp", "value: none"),
            (
                both,
                Shares::zero(2, both),
                "bucket 0 divides its gradients over dp×cp",
                "value: none",
            ),
            (
                both,
                Shares::zero(1, AxisSet::DP),
                "its states over dp, and its gradient is summed over dp×cp",
                "dp×cp",
            ),
            (AxisSet::EMPTY, Shares::zero(1, AxisSet::DP), "is summed over none", "value: none"),
        ];
        for (summed, shared, says, nearest) in cases {
            let text = own(summed, shared).unwrap_err();
            assert!(text.contains(says) && text.ends_with(nearest), "{text}");
        }
        // A set of axes that the run has no group for.
        let text = own(AxisSet::TP, Shares::NONE).unwrap_err();
        assert!(text.contains("no group along tp"), "{text}");
    }
}
