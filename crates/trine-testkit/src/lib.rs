//! What tests of parallel training share: toy models with every awkward property, global tensors
//! put together from the ranks' shards, tolerances that are derived and not guessed, calls of every
//! kernel, and libraries of GPUs that only answer.
//!
//! ```
//! use trine_buffer::DType;
//! use trine_testkit::{relative_error, tolerance, toy};
//!
//! let model = toy::gpt();
//! assert_eq!((model.vocab, model.layers, model.tied), (1009, 5, true));
//! let bound = tolerance::bound(DType::F32, &model);
//! assert!(relative_error(&[1.0, 2.0], &[1.0, 2.0 + 1e-7]) < bound);
//! assert!(relative_error(&[1.0, 2.0], &[2.0, 1.0]) > bound);
//! ```

pub mod gpu;
pub mod ops;
pub mod tolerance;
pub mod toy;

pub use trine_spec::assemble;

/// ‖a − b‖ / ‖b‖ in the Euclidean norm; infinite if the lengths differ or `b` is zero and `a` is not.
pub fn relative_error(a: &[f64], b: &[f64]) -> f64 {
    if a.len() != b.len() {
        return f64::INFINITY;
    }
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let difference = square(&mut a.iter().zip(b).map(|(a, b)| a - b)).sqrt();
    let size = square(&mut b.iter().copied()).sqrt();
    if difference == 0.0 { 0.0 } else { difference / size }
}
