//! What ranks that hold the same model divide among themselves.

use trine_mesh::AxisSet;

/// Over which axes ranks divide what belongs to a bucket instead of each holding it whole (Rajbhandari et al.,
/// 1910.02054).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Shares {
    /// Its weights.
    pub weights: AxisSet,
    /// Its reduced gradient.
    pub gradients: AxisSet,
    /// Master weights and moments: each rank updates its own part of the bucket.
    pub states: AxisSet,
}

impl Shares {
    /// Nothing is divided: ZeRO-0.
    pub const NONE: Self =
        Self { weights: AxisSet::EMPTY, gradients: AxisSet::EMPTY, states: AxisSet::EMPTY };

    /// What a stage of ZeRO divides over `axes`: 0 nothing, 1 optimizer state, 2 gradients too, 3 and above
    /// weights too.
    ///
    /// ```
    /// use trine_mesh::AxisSet;
    /// use trine_spec::Shares;
    ///
    /// let optimizer = Shares::zero(1, AxisSet::DP);
    /// assert_eq!(optimizer, Shares { states: AxisSet::DP, ..Shares::NONE });
    /// assert_eq!(Shares::zero(0, AxisSet::DP), Shares::NONE);
    /// ```
    pub fn zero(stage: u8, axes: AxisSet) -> Self {
        let from = |first: u8| if stage >= first { axes } else { AxisSet::EMPTY };
        Self { weights: from(3), gradients: from(2), states: from(1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stage_divides_what_the_one_before_does_and_more() {
        let (none, dp) = (AxisSet::EMPTY, AxisSet::DP);
        let divided = |stage| {
            let Shares { weights, gradients, states } = Shares::zero(stage, dp);
            [weights, gradients, states]
        };
        assert_eq!(divided(0), [none; 3]);
        assert_eq!(divided(1), [none, none, dp]);
        assert_eq!(divided(2), [none, dp, dp]);
        assert_eq!(divided(3), [dp; 3]);
    }
}
