//! What a rank holds between steps: planned, and measured (contract C10).

use trine_buffer::DType;
use trine_mesh::Degrees;
use trine_nn::{GradStore, ParamStore};
use trine_spec::{ElementBytes, RankBytes, RankLayout};

/// What the stores and the optimizer hold now.
pub fn measured_bytes(
    params: &ParamStore,
    grads: &GradStore,
    master: usize,
    moments: usize,
) -> RankBytes {
    RankBytes { weights: params.size_bytes(), gradients: grads.size_bytes(), master, moments }
}

/// What one rank of a mesh of these degrees will hold: a pure function of its layout, the compute type, and how
/// many moments the optimizer keeps for an element. It is the same for all data-parallel ranks.
pub fn planned_bytes(
    layout: &RankLayout,
    degrees: &Degrees,
    compute: DType,
    moments: usize,
) -> RankBytes {
    RankBytes::of(layout, &element_bytes(compute, moments), degrees)
}

/// Bytes of the training state of one element.
pub fn element_bytes(compute: DType, moments: usize) -> ElementBytes {
    let sums = compute.accumulator();
    ElementBytes {
        weights: compute.bytes(),
        gradients: sums.bytes(),
        master: if compute == sums { 0 } else { sums.bytes() },
        moments: moments * sums.bytes(),
    }
}
