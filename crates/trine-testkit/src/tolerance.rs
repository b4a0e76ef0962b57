//! How far a gradient may be from the one computed in f64 (contract C4).

use trine_buffer::DType;
use trine_spec::ModelSpec;

/// The one constant: how many roundings of the derived size a gradient may be off. Measured over the
/// toy models and all layouts, errors stay below a quarter of it; wrong gradients exceed it by orders
/// of magnitude.
const C: f64 = 4.0;

/// The bound on ‖g − g64‖ / ‖g64‖ for every parameter: C · ε · √(depth · K). Rounding errors of
/// independent terms grow with the square root of their number: K terms in a product, one product
/// after the other along the depth.
pub fn bound(dtype: DType, model: &ModelSpec) -> f64 {
    let longest = model.hidden.max(model.ffn).max(model.q_dim());
    // Forward and backward, four products a block and the two ends.
    let depth = 2 * (4 * model.layers + 2);
    C * dtype.epsilon() * ((depth * longest) as f64).sqrt()
}
