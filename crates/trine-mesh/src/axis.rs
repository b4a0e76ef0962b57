//! Mesh axes and sets of them.

use serde::{Deserialize, Serialize};
use std::fmt;

/// One axis of the mesh. (A tensor has *dims*, a mesh has *axes*.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Axis {
    /// Pipeline parallelism: stages of layers.
    Pp,
    /// Data parallelism: replicas over samples.
    Dp,
    /// Context parallelism: the sequence is split inside attention.
    Cp,
    /// Expert parallelism.
    Ep,
    /// Tensor parallelism: shards inside a layer.
    Tp,
}

impl Axis {
    /// All axes, outermost (slowest) first: the order in which ranks are numbered. Pipeline
    /// neighbours talk least, so they may sit on other hosts; tensor neighbours talk most.
    pub const ORDER: [Self; 5] = [Self::Pp, Self::Dp, Self::Cp, Self::Ep, Self::Tp];

    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

impl fmt::Display for Axis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pp => "pp",
            Self::Dp => "dp",
            Self::Cp => "cp",
            Self::Ep => "ep",
            Self::Tp => "tp",
        })
    }
}

/// A set of axes: what a tensor dimension is split over, a gradient is summed over, or a group of ranks differs on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct AxisSet(u8);

impl AxisSet {
    /// No axis: replicated.
    pub const EMPTY: Self = Self(0);
    /// Pipeline parallelism alone.
    pub const PP: Self = Self(Axis::Pp.bit());
    /// Data parallelism alone.
    pub const DP: Self = Self(Axis::Dp.bit());
    /// Tensor parallelism alone.
    pub const TP: Self = Self(Axis::Tp.bit());

    /// The set of the given axes.
    pub fn of(axes: &[Axis]) -> Self {
        Self(axes.iter().fold(0, |bits, axis| bits | axis.bit()))
    }

    /// Whether `axis` is in the set.
    pub fn contains(self, axis: Axis) -> bool {
        self.0 & axis.bit() != 0
    }

    /// Whether no axis is in the set.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The axes of this set that are not in `other`.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The axes in the set, outermost first.
    pub fn iter(self) -> impl Iterator<Item = Axis> {
        Axis::ORDER.into_iter().filter(move |axis| self.contains(*axis))
    }
}

impl fmt::Debug for AxisSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

impl fmt::Display for AxisSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("none");
        }
        let names: Vec<String> = self.iter().map(|axis| axis.to_string()).collect();
        f.write_str(&names.join("×"))
    }
}
