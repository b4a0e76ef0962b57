//! Scores and logits with a bound: `cap · tanh(score / cap)`.

use crate::check::{dims, typed_mut, with_num};
use crate::isa::vectorised;
use crate::num::{Num, Real};
use crate::scratch::Split;
use crate::{CpuOps, KernelError};
use std::ops::Range;
use trine_buffer::SliceMut;

/// The bound and the way to it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cap<A> {
    /// From the product of a query and a key to the argument of tanh.
    inner: A,
    cap: A,
    /// The slope at 0.
    scale: A,
}

impl<A: Real> Cap<A> {
    pub(crate) fn new(scale: f64, cap: f64) -> Self {
        let [inner, cap, scale] = [scale / cap, cap, scale].map(A::from_f64);
        Self { inner, cap, scale }
    }
}

vectorised! {
    /// Products of queries and keys become bounded scores.
    pub(crate) fn soft_cap<T: Num>(products: &mut [T], cap: Cap<T::Acc>) {
        for score in products {
            *score = T::narrow(cap.cap * (score.widen() * cap.inner).tanh());
        }
    }

    /// The same for what is seen of rows of `width`; `slopes` receives the derivatives of the scores.
    pub(crate) fn soft_cap_slopes<A: Real>(
        products: &mut [A],
        slopes: &mut [A],
        width: usize,
        seen: &[Range<usize>],
        cap: Cap<A>,
    ) {
        let rows = products.chunks_exact_mut(width).zip(slopes.chunks_exact_mut(width));
        for ((products, slopes), seen) in rows.zip(seen) {
            let values = products[seen.clone()].iter_mut().zip(&mut slopes[seen.clone()]);
            for (score, slope) in values {
                let t = (*score * cap.inner).tanh();
                *score = cap.cap * t;
                *slope = cap.scale * (A::ONE - t * t);
            }
        }
    }

    /// Multiplies what is seen of rows of `width` with factors.
    pub(crate) fn multiply_seen<A: Real>(
        values: &mut [A],
        factors: &[A],
        width: usize,
        seen: &[Range<usize>],
    ) {
        let rows = values.chunks_exact_mut(width).zip(factors.chunks_exact(width));
        for ((values, factors), seen) in rows.zip(seen) {
            for (value, factor) in values[seen.clone()].iter_mut().zip(&factors[seen.clone()]) {
                *value = *value * *factor;
            }
        }
    }
}

/// Refuses a bound that is none. `what` names what is bounded.
pub(crate) fn check_cap(
    op: &'static str,
    what: &'static str,
    cap: Option<f64>,
) -> Result<(), KernelError> {
    dims(op, cap.is_none_or(|cap| cap > 0.0 && cap.is_finite()), || {
        format!("{what} capped at {}, it must be a positive number", cap.unwrap_or_default())
    })
}

pub(crate) fn softcap(cpu: &CpuOps, y: SliceMut<'_>, cap: f64) -> Result<(), KernelError> {
    const OP: &str = "softcap";
    fn run<T: Num>(cpu: &CpuOps, y: SliceMut<'_>, cap: f64) -> Result<(), KernelError> {
        let y = typed_mut::<T>(OP, "y", y)?;
        let (len, y) = (y.len(), Split::new(y));
        cpu.parallel(len, 4, |range| {
            // SAFETY: the ranges are disjoint.
            soft_cap(cpu.isa, unsafe { y.range(range) }, Cap::new(1.0, cap));
        });
        Ok(())
    }
    with_num!(OP, "y", y.dtype(), T => run::<T>(cpu, y, cap))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tanh_of_f32_has_all_digits_but_the_last_two() {
        let (mut worst, mut compared) = (0.0f64, 0);
        for i in -12_000..=12_000 {
            let x = i as f32 / 1000.0 * (i as f32 / 12_000.0).abs();
            let exact = f64::from(x).tanh();
            let error = (f64::from(Real::tanh(x)) - exact).abs() / exact.abs().max(1e-30);
            worst = worst.max(error);
            compared += 1;
        }
        assert!(worst < 2.0 * f64::from(f32::EPSILON), "{worst:e}");
        assert_eq!(compared, 24_001);
        assert!(Real::tanh(f32::NAN).is_nan());
        assert_eq!([f32::INFINITY, f32::NEG_INFINITY].map(Real::tanh), [1.0, -1.0]);
    }
}
