//! What a rank holds between steps: planned, and measured (contract C10).

use crate::{Partition, ZeroStage};
use serde::{Deserialize, Serialize};
use std::fmt;
use trine_buffer::DType;
use trine_nn::{GradStore, ParamStore};
use trine_spec::StageLayout;

/// Bytes that one rank holds for its stage. Padding is included: it is allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RankBytes {
    /// Weights in the compute type.
    pub weights: usize,
    /// Gradients in the accumulator type. In reference numerics: after the reduction; before it
    /// they are trees over samples.
    pub gradients: usize,
    /// Master weights in the accumulator type, where the weights are not in it.
    pub master: usize,
    /// The optimizer's moments in the accumulator type.
    pub moments: usize,
}

impl RankBytes {
    /// What the stores and the optimizer hold now.
    pub fn measured(params: &ParamStore, grads: &GradStore, master: usize, moments: usize) -> Self {
        Self { weights: params.size_bytes(), gradients: grads.size_bytes(), master, moments }
    }

    /// All of it.
    pub fn total(&self) -> usize {
        self.weights + self.gradients + self.master + self.moments
    }
}

impl fmt::Display for RankBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { weights, gradients, master, moments } = self;
        write!(f, "weights {weights}, gradients {gradients}, master {master}, moments {moments}")
    }
}

/// What one rank will hold: a pure function of its stage's layout (which is laid out for `dp`
/// ranks), the ZeRO stage, the compute type, and how many moments the optimizer keeps for an
/// element. It is the same for all data-parallel ranks.
pub fn planned_bytes(
    layout: &StageLayout,
    zero: ZeroStage,
    dp: usize,
    compute: DType,
    moments: usize,
) -> RankBytes {
    let (elements, sums) = (layout.elements(), compute.accumulator());
    let first = Partition::new(zero, dp.max(1), 0).expect("invariant: index 0 is in every group");
    let owned: usize = layout.buckets.iter().map(|bucket| first.own(bucket.len).len()).sum();
    RankBytes {
        weights: elements * compute.bytes(),
        gradients: elements * sums.bytes(),
        master: if compute == sums { 0 } else { owned * sums.bytes() },
        moments: moments * owned * sums.bytes(),
    }
}
