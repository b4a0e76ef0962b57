//! GELU and SwiGLU.

use crate::check::{Mat, MatSplit, length, same_shape, typed, typed_mut, with_num};
use crate::isa::vectorised;
use crate::num::{Num, Real};
use crate::scratch::Split;
use crate::view::check_sections;
use crate::{CpuOps, GateUpMut, GeluKind, KernelError, MatMut, MatRef};
use std::f64::consts::LOG2_E;
use trine_buffer::{Slice, SliceMut};

type Done = Result<(), KernelError>;

const SQRT_2_OVER_PI: f64 = 0.797_884_560_802_865_4;
const CUBIC: f64 = 0.044_715;

#[inline(always)]
fn sigmoid<A: Real>(x: A) -> A {
    sigmoid_and_rest(x).0
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

#[inline(always)]
fn gelu_tanh_slope<A: Real>(x: A) -> A {
    let (s, rest) = tanh_gate(x);
    let inner = A::ONE + A::from_f64(3.0 * CUBIC) * x * x;
    s + x * s * rest * A::from_f64(2.0 * SQRT_2_OVER_PI) * inner
}

#[inline(always)]
fn gelu_erf_slope<A: Real>(x: A) -> A {
    let density = (A::from_f64(-0.5) * x * x).exp() * A::from_f64(SQRT_2_OVER_PI * 0.5);
    phi(x) + x * density
}

vectorised! {
    fn gelu_tanh_row<T: Num>(y: &mut [T], x: &[T]) {
        for (y, &x) in y.iter_mut().zip(x) {
            let x = x.widen();
            *y = T::narrow(x * tanh_gate(x).0);
        }
    }

    fn gelu_erf_row<T: Num>(y: &mut [T], x: &[T]) {
        for (y, &x) in y.iter_mut().zip(x) {
            let x = x.widen();
            *y = T::narrow(x * phi(x));
        }
    }

    fn gelu_tanh_backward_row<T: Num>(dx: &mut [T], x: &[T], dy: &[T]) {
        for ((dx, &x), &dy) in dx.iter_mut().zip(x).zip(dy) {
            *dx = T::narrow(dy.widen() * gelu_tanh_slope(x.widen()));
        }
    }

    fn gelu_erf_backward_row<T: Num>(dx: &mut [T], x: &[T], dy: &[T]) {
        for ((dx, &x), &dy) in dx.iter_mut().zip(x).zip(dy) {
            *dx = T::narrow(dy.widen() * gelu_erf_slope(x.widen()));
        }
    }

    fn swiglu_row<T: Num>(y: &mut [T], gate: &[T], up: &[T]) {
        for ((y, &gate), &up) in y.iter_mut().zip(gate).zip(up) {
            let gate = gate.widen();
            *y = T::narrow(gate * sigmoid(gate) * up.widen());
        }
    }

    fn swiglu_backward_row<T: Num>(
        dgate: &mut [T],
        dup: &mut [T],
        gate: &[T],
        up: &[T],
        dy: &[T],
    ) {
        let outputs = dgate.iter_mut().zip(dup);
        for ((((dgate, dup), &gate), &up), &dy) in outputs.zip(gate).zip(up).zip(dy) {
            let (gate, dy) = (gate.widen(), dy.widen());
            let (s, rest) = sigmoid_and_rest(gate);
            let silu = gate * s;
            *dup = T::narrow(dy * silu);
            *dgate = T::narrow(dy * up.widen() * (s + silu * rest));
        }
    }
}

pub(crate) fn gelu(cpu: &CpuOps, kind: GeluKind, y: SliceMut<'_>, x: Slice<'_>) -> Done {
    const OP: &str = "gelu";
    fn run<T: Num>(cpu: &CpuOps, kind: GeluKind, y: SliceMut<'_>, x: Slice<'_>) -> Done {
        let (x, y) = (typed::<T>(OP, "x", x)?, typed_mut::<T>(OP, "y", y)?);
        length(OP, "y", y.len(), x.len(), "x")?;
        let y = Split::new(y);
        cpu.parallel(x.len(), 4, |range| {
            // SAFETY: the ranges are disjoint.
            let y = unsafe { y.range(range.clone()) };
            match kind {
                GeluKind::Tanh => gelu_tanh_row(cpu.isa, y, &x[range]),
                GeluKind::Erf => gelu_erf_row(cpu.isa, y, &x[range]),
            }
        });
        Ok(())
    }
    with_num!(OP, "x", x.dtype(), T => run::<T>(cpu, kind, y, x))
}

pub(crate) fn gelu_backward(
    cpu: &CpuOps,
    kind: GeluKind,
    dx: SliceMut<'_>,
    x: Slice<'_>,
    dy: Slice<'_>,
) -> Done {
    const OP: &str = "gelu_backward";
    fn run<T: Num>(
        cpu: &CpuOps,
        kind: GeluKind,
        dx: SliceMut<'_>,
        x: Slice<'_>,
        dy: Slice<'_>,
    ) -> Done {
        let (x, dy) = (typed::<T>(OP, "x", x)?, typed::<T>(OP, "dy", dy)?);
        let dx = typed_mut::<T>(OP, "dx", dx)?;
        length(OP, "dy", dy.len(), x.len(), "x")?;
        length(OP, "dx", dx.len(), x.len(), "x")?;
        let dx = Split::new(dx);
        cpu.parallel(x.len(), 4, |range| {
            // SAFETY: the ranges are disjoint.
            let dx = unsafe { dx.range(range.clone()) };
            let (x, dy) = (&x[range.clone()], &dy[range]);
            match kind {
                GeluKind::Tanh => gelu_tanh_backward_row(cpu.isa, dx, x, dy),
                GeluKind::Erf => gelu_erf_backward_row(cpu.isa, dx, x, dy),
            }
        });
        Ok(())
    }
    with_num!(OP, "x", x.dtype(), T => run::<T>(cpu, kind, dx, x, dy))
}

pub(crate) fn swiglu(cpu: &CpuOps, y: MatMut<'_>, gate: MatRef<'_>, up: MatRef<'_>) -> Done {
    const OP: &str = "swiglu";
    fn run<T: Num>(cpu: &CpuOps, y: MatMut<'_>, gate: MatRef<'_>, up: MatRef<'_>) -> Done {
        let gate = Mat::<T>::new(OP, "gate", gate)?;
        let up = Mat::<T>::new(OP, "up", up)?;
        let y = MatSplit::<T>::new(OP, "y", y)?;
        same_shape(OP, "up", up.shape(), gate.shape())?;
        same_shape(OP, "y", y.shape(), gate.shape())?;
        cpu.parallel(y.rows, 4 * y.cols, |rows| {
            for row in rows {
                // SAFETY: each row is written by one thread.
                let y = unsafe { y.part(row, 0..y.cols) };
                swiglu_row(cpu.isa, y, gate.row(row), up.row(row));
            }
        });
        Ok(())
    }
    with_num!(OP, "gate", gate.data.dtype(), T => run::<T>(cpu, y, gate, up))
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

pub(crate) fn swiglu_backward(
    cpu: &CpuOps,
    d: GateUpMut<'_>,
    gate: MatRef<'_>,
    up: MatRef<'_>,
    dy: MatRef<'_>,
) -> Done {
    const OP: &str = "swiglu_backward";
    fn run<T: Num>(
        cpu: &CpuOps,
        d: GateUpMut<'_>,
        gate: MatRef<'_>,
        up: MatRef<'_>,
        dy: MatRef<'_>,
    ) -> Done {
        let gate = Mat::<T>::new(OP, "gate", gate)?;
        let up = Mat::<T>::new(OP, "up", up)?;
        let dy = Mat::<T>::new(OP, "dy", dy)?;
        same_shape(OP, "up", up.shape(), gate.shape())?;
        same_shape(OP, "dy", dy.shape(), gate.shape())?;
        let (rows, cols) = gate.shape();
        let d = match d {
            GateUpMut::Fused(all) => {
                check_sections(OP, all.cols, &[cols, cols])?;
                same_shape(OP, "d", (all.rows, all.cols), (rows, 2 * cols))?;
                Halves::Fused(MatSplit::<T>::new(OP, "d", all)?)
            }
            GateUpMut::Separate { gate, up } => {
                same_shape(OP, "d.gate", (gate.rows, gate.cols), (rows, cols))?;
                same_shape(OP, "d.up", (up.rows, up.cols), (rows, cols))?;
                let gate = MatSplit::<T>::new(OP, "d.gate", gate)?;
                Halves::Separate(gate, MatSplit::<T>::new(OP, "d.up", up)?)
            }
        };
        cpu.parallel(rows, 4 * cols, |rows| {
            for row in rows {
                // SAFETY: each row is written by one thread.
                let (dgate, dup) = unsafe { d.row(row, cols) };
                swiglu_backward_row(cpu.isa, dgate, dup, gate.row(row), up.row(row), dy.row(row));
            }
        });
        Ok(())
    }
    with_num!(OP, "gate", gate.data.dtype(), T => run::<T>(cpu, d, gate, up, dy))
}
