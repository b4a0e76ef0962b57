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
    C * dtype.epsilon() * ((depth(model) * longest) as f64).sqrt()
}

/// Products one after the other: forward and backward, four a block and the two ends.
fn depth(model: &ModelSpec) -> usize {
    2 * (4 * model.layers + 2)
}

/// How many times the bounds a model may be off, whose gradients change by `condition` times what its weights are
/// changed by, each by itself; changes are relative.
///
/// A rounding changes a product as a change of its weights does. The bounds take it that each such change is in the
/// gradients as large as it was: `depth` independent ones add up to √depth. The norm behind a branch makes its sum as
/// large as any other, and what was rounded of a small sum with it. A window of one token, few features of a head or
/// scores that nearly cancel do the like. There the condition is above √depth, and by as much the model magnifies.
pub fn magnified(model: &ModelSpec, condition: f64) -> f64 {
    (condition / (depth(model) as f64).sqrt()).max(1.0)
}

/// The bound on ‖g − gₛ‖ / ‖gₛ‖ of a layout with `tp` tensor-parallel ranks, where gₛ is the serial run's gradient in
/// the same type.
///
/// One tensor-parallel rank computes the products of the serial run: what differs is the order in which gradients are
/// summed, in the accumulator's type. Several round their summands, what these come to, and what a norm makes of it,
/// which the serial run does not: in two regions of each block and in one at each end, forward and backward. So many
/// independent roundings of half an ε each add up by the square root of their number. In bf16 the toy models stay below
/// a half of it, models with norms behind their branches below nine tenths.
pub fn bound_beside_serial(dtype: DType, model: &ModelSpec, tp: usize) -> f64 {
    if tp == 1 {
        return bound(dtype.accumulator(), model);
    }
    let (regions, passes, each) = (2 * model.layers + 2, 2, 3);
    let roundings = regions * passes * each;
    dtype.epsilon() / 2.0 * (roundings as f64).sqrt()
}
