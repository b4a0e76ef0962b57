//! Activation functions, alone and as gates.

use crate::check::{Mat, MatSplit, typed, typed_mut, with_num};
use crate::isa::vectorised;
use crate::num::{Num, Real};
use crate::scratch::Split;
use crate::{CpuOps, Function, GateUpMut, KernelError, MatMut, MatRef};
use std::f64::consts::LOG2_E;
use trine_buffer::{Slice, SliceMut};

type Done = Result<(), KernelError>;

const SQRT_2_OVER_PI: f64 = 0.797_884_560_802_865_4;
const CUBIC: f64 = 0.044_715;

/// A [`Function`] as a type, so that every loop is compiled for one function.
trait Curve {
    fn value<A: Real>(x: A) -> A;
    /// The value and the derivative.
    fn value_and_slope<A: Real>(x: A) -> (A, A);
}

struct GeluTanh;
struct GeluErf;
struct Silu;
struct Relu;

impl Curve for GeluTanh {
    #[inline(always)]
    fn value<A: Real>(x: A) -> A {
        x * tanh_gate(x).0
    }

    #[inline(always)]
    fn value_and_slope<A: Real>(x: A) -> (A, A) {
        let (s, rest) = tanh_gate(x);
        let inner = A::ONE + A::from_f64(3.0 * CUBIC) * x * x;
        let value = x * s;
        (value, s + value * rest * A::from_f64(2.0 * SQRT_2_OVER_PI) * inner)
    }
}

impl Curve for GeluErf {
    #[inline(always)]
    fn value<A: Real>(x: A) -> A {
        x * phi(x)
    }

    #[inline(always)]
    fn value_and_slope<A: Real>(x: A) -> (A, A) {
        let density = (A::from_f64(-0.5) * x * x).exp() * A::from_f64(SQRT_2_OVER_PI * 0.5);
        let phi = phi(x);
        (x * phi, phi + x * density)
    }
}

impl Curve for Silu {
    #[inline(always)]
    fn value<A: Real>(x: A) -> A {
        x * sigmoid_and_rest(x).0
    }

    #[inline(always)]
    fn value_and_slope<A: Real>(x: A) -> (A, A) {
        let (s, rest) = sigmoid_and_rest(x);
        let value = x * s;
        (value, s + value * rest)
    }
}

impl Curve for Relu {
    // What is not a number stays so.
    #[inline(always)]
    fn value<A: Real>(x: A) -> A {
        if x < A::ZERO { A::ZERO } else { x }
    }

    #[inline(always)]
    fn value_and_slope<A: Real>(x: A) -> (A, A) {
        (Self::value(x), if x > A::ZERO { A::ONE } else { A::ZERO })
    }
}

/// Runs `$body` with `$f` standing for the function.
macro_rules! with_curve {
    ($function:expr, $f:ident => $body:expr) => {
        match $function {
            Function::GeluTanh => {
                type $f = GeluTanh;
                $body
            }
            Function::GeluErf => {
                type $f = GeluErf;
                $body
            }
            Function::Silu => {
                type $f = Silu;
                $body
            }
            Function::Relu => {
                type $f = Relu;
                $body
            }
        }
    };
}

/// `σ(x)` and `1 − σ(x)`, neither of them as the difference of larger numbers.
#[inline(always)]
fn sigmoid_and_rest<A: Real>(x: A) -> (A, A) {
    of_power(x * A::from_f64(-LOG2_E))
}

/// `1 / (1 + 2^t)` and `2^t / (1 + 2^t)`.
#[inline(always)]
fn of_power<A: Real>(t: A) -> (A, A) {
    let bound = A::from_f64(115.0);
    let e = (if t > bound { bound } else { t }).exp2();
    let s = A::ONE / (A::ONE + e);
    (s, e * s)
}

/// `½ · (1 + tanh u)` of GELU's `u(x)`, and 1 minus it: `σ(2u)`, which keeps its digits for negative x.
#[inline(always)]
fn tanh_gate<A: Real>(x: A) -> (A, A) {
    let cubic = A::from_f64(CUBIC) * x * x * x;
    of_power(A::from_f64(-2.0 * SQRT_2_OVER_PI * LOG2_E) * (x + cubic))
}

/// The normal distribution function.
#[inline(always)]
fn phi<A: Real>(x: A) -> A {
    let tail =
        A::from_f64(0.5) * (x.abs() * A::from_f64(std::f64::consts::FRAC_1_SQRT_2)).erfc_positive();
    if x > A::ZERO { A::ONE - tail } else { tail }
}

vectorised! {
    fn activation_row<F: Curve, T: Num>(y: &mut [T], x: &[T]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = T::narrow(F::value(x.widen()));
        }
    }

    fn activation_backward_row<F: Curve, T: Num>(dx: &mut [T], x: &[T], dy: &[T]) {
        for ((dx, &x), &dy) in dx.iter_mut().zip(x).zip(dy) {
            *dx = T::narrow(dy.widen() * F::value_and_slope(x.widen()).1);
        }
    }

    fn gated_row<F: Curve, T: Num>(y: &mut [T], gate: &[T], up: &[T]) {
        for ((y, &gate), &up) in y.iter_mut().zip(gate).zip(up) {
            *y = T::narrow(F::value(gate.widen()) * up.widen());
        }
    }

    fn gated_backward_row<F: Curve, T: Num>(
        dgate: &mut [T],
        dup: &mut [T],
        gate: &[T],
        up: &[T],
        dy: &[T],
    ) {
        let outputs = dgate.iter_mut().zip(dup);
        for ((((dgate, dup), &gate), &up), &dy) in outputs.zip(gate).zip(up).zip(dy) {
            let dy = dy.widen();
            let (value, slope) = F::value_and_slope(gate.widen());
            *dup = T::narrow(dy * value);
            *dgate = T::narrow(dy * up.widen() * slope);
        }
    }
}

pub(crate) fn activation(cpu: &CpuOps, function: Function, y: SliceMut<'_>, x: Slice<'_>) -> Done {
    const OP: &str = "activation";
    fn run<F: Curve, T: Num>(cpu: &CpuOps, y: SliceMut<'_>, x: Slice<'_>) -> Done {
        let (x, y) = (typed::<T>(OP, "x", x)?, typed_mut::<T>(OP, "y", y)?);
        let y = Split::new(y);
        cpu.parallel(x.len(), 4, |range| {
            // SAFETY: the ranges are disjoint.
            let y = unsafe { y.range(range.clone()) };
            activation_row::<F, T>(cpu.isa, y, &x[range]);
        });
        Ok(())
    }
    with_num!(OP, "x", x.dtype(), T => with_curve!(function, F => run::<F, T>(cpu, y, x)))
}

pub(crate) fn activation_backward(
    cpu: &CpuOps,
    function: Function,
    dx: SliceMut<'_>,
    x: Slice<'_>,
    dy: Slice<'_>,
) -> Done {
    const OP: &str = "activation_backward";
    fn run<F: Curve, T: Num>(cpu: &CpuOps, dx: SliceMut<'_>, x: Slice<'_>, dy: Slice<'_>) -> Done {
        let (x, dy) = (typed::<T>(OP, "x", x)?, typed::<T>(OP, "dy", dy)?);
        let dx = typed_mut::<T>(OP, "dx", dx)?;
        let dx = Split::new(dx);
        cpu.parallel(x.len(), 4, |range| {
            // SAFETY: the ranges are disjoint.
            let dx = unsafe { dx.range(range.clone()) };
            let (x, dy) = (&x[range.clone()], &dy[range]);
            activation_backward_row::<F, T>(cpu.isa, dx, x, dy);
        });
        Ok(())
    }
    with_num!(OP, "x", x.dtype(), T => with_curve!(function, F => run::<F, T>(cpu, dx, x, dy)))
}

pub(crate) fn gated(
    cpu: &CpuOps,
    function: Function,
    y: MatMut<'_>,
    gate: MatRef<'_>,
    up: MatRef<'_>,
) -> Done {
    const OP: &str = "gated";
    fn run<F: Curve, T: Num>(
        cpu: &CpuOps,
        y: MatMut<'_>,
        gate: MatRef<'_>,
        up: MatRef<'_>,
    ) -> Done {
        let gate = Mat::<T>::new(OP, "gate", gate)?;
        let up = Mat::<T>::new(OP, "up", up)?;
        let y = MatSplit::<T>::new(OP, "y", y)?;
        cpu.parallel(y.rows, 4 * y.cols, |rows| {
            for row in rows {
                // SAFETY: each row is written by one thread.
                let y = unsafe { y.part(row, 0..y.cols) };
                gated_row::<F, T>(cpu.isa, y, gate.row(row), up.row(row));
            }
        });
        Ok(())
    }
    with_num!(OP, "gate", gate.data.dtype(), T => {
        with_curve!(function, F => run::<F, T>(cpu, y, gate, up))
    })
}

/// Where the two gradients lie: one matrix with the sections at 0 and `cols`, or two.
enum Halves<'a, T> {
    Fused(MatSplit<'a, T>),
    Separate(MatSplit<'a, T>, MatSplit<'a, T>),
}

impl<T: Num> Halves<'_, T> {
    /// # Safety
    /// Each row may be alive in one thread only.
    #[expect(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
    unsafe fn row(&self, row: usize, cols: usize) -> (&mut [T], &mut [T]) {
        // SAFETY: the caller's promise; the two sections of a row do not overlap.
        unsafe {
            match self {
                Self::Fused(all) => (all.part(row, 0..cols), all.part(row, cols..2 * cols)),
                Self::Separate(gate, up) => (gate.part(row, 0..cols), up.part(row, 0..cols)),
            }
        }
    }
}

pub(crate) fn gated_backward(
    cpu: &CpuOps,
    function: Function,
    d: GateUpMut<'_>,
    gate: MatRef<'_>,
    up: MatRef<'_>,
    dy: MatRef<'_>,
) -> Done {
    const OP: &str = "gated_backward";
    fn run<F: Curve, T: Num>(
        cpu: &CpuOps,
        d: GateUpMut<'_>,
        gate: MatRef<'_>,
        up: MatRef<'_>,
        dy: MatRef<'_>,
    ) -> Done {
        let gate = Mat::<T>::new(OP, "gate", gate)?;
        let up = Mat::<T>::new(OP, "up", up)?;
        let dy = Mat::<T>::new(OP, "dy", dy)?;
        let (rows, cols) = gate.shape();
        let d = match d {
            GateUpMut::Fused(all) => Halves::Fused(MatSplit::<T>::new(OP, "d", all)?),
            GateUpMut::Separate { gate, up } => {
                let gate = MatSplit::<T>::new(OP, "d.gate", gate)?;
                Halves::Separate(gate, MatSplit::<T>::new(OP, "d.up", up)?)
            }
        };
        cpu.parallel(rows, 4 * cols, |rows| {
            for row in rows {
                // SAFETY: each row is written by one thread.
                let (dgate, dup) = unsafe { d.row(row, cols) };
                let (gate, up, dy) = (gate.row(row), up.row(row), dy.row(row));
                gated_backward_row::<F, T>(cpu.isa, dgate, dup, gate, up, dy);
            }
        });
        Ok(())
    }
    with_num!(OP, "gate", gate.data.dtype(), T => {
        with_curve!(function, F => run::<F, T>(cpu, d, gate, up, dy))
    })
}
