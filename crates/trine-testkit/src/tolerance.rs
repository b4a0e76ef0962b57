//! How far a gradient may be from the one computed in f64 (contract C4).

use trine_buffer::DType;
use trine_spec::ModelSpec;

/// The one constant. Roundings of either sign cancel better than the formula's worst case: the toy
/// models' gradients stay below a third of the bound in f32 and below a tenth in bf16, over all
/// layouts; wrong ones exceed it by orders of magnitude.
const C: f64 = 0.5;

/// The bound on ‖g − g64‖ / ‖g64‖ for every parameter: C · ε · √(depth · K). Rounding errors of
/// independent terms grow with the square root of their number: K terms in a product, one product
/// after the other along the depth.
pub fn bound(dtype: DType, model: &ModelSpec) -> f64 {
    let longest = model.hidden.max(model.ffn).max(model.q_dim());
    // Forward and backward, four products a block and the two ends.
    let depth = 2 * (4 * model.layers + 2);
    C * dtype.epsilon() * ((depth * longest) as f64).sqrt()
}
