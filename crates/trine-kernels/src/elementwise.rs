//! Sums, copies, conversions, bias.

use crate::check::{Mat, MatSplit, dims, typed, typed_mut, with_num};
use crate::isa::vectorised;
use crate::num::{Num, Real};
use crate::scratch::Split;
use crate::{CpuOps, KernelError, MatMut, MatRef};
use trine_buffer::{Element, Float, Slice, SliceMut};

type Done = Result<(), KernelError>;

/// Columns that are summed together over the rows.
const COLUMNS: usize = 64;

vectorised! {
    fn offset_row<T: Num>(y: &mut [T::Acc], x: &[T], by: T::Acc) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = x.widen() + by;
        }
    }

    fn add_row<T: Num, S: Num<Acc = T::Acc>>(y: &mut [S], a: &[S], b: &[T]) {
        for ((y, &a), &b) in y.iter_mut().zip(a).zip(b) {
            *y = S::narrow(a.widen() + b.widen());
        }
    }

    fn add_assign_row<T: Num>(y: &mut [T], a: &[T]) {
        for (y, &a) in y.iter_mut().zip(a) {
            *y = T::narrow(y.widen() + a.widen());
        }
    }

    fn accumulate_row<T: Num>(y: &mut [T::Acc], a: &[T]) {
        for (y, &a) in y.iter_mut().zip(a) {
            *y += a.widen();
        }
    }

    fn accumulate_rows<T: Num>(acc: &mut [T::Acc], x: &[T], stride: usize, rows: usize) {
        // A run of columns at a time, whose sums stay in registers from row to row.
        let len = acc.len();
        for (run, acc) in acc.chunks_mut(COLUMNS).enumerate() {
            let x = &x[run * COLUMNS..];
            if acc.len() == COLUMNS {
                let mut sums = [T::Acc::ZERO; COLUMNS];
                sums.copy_from_slice(acc);
                for row in 0..rows {
                    for (sum, x) in sums.iter_mut().zip(&x[row * stride..][..COLUMNS]) {
                        *sum += x.widen();
                    }
                }
                acc.copy_from_slice(&sums);
            } else {
                for row in 0..rows {
                    for (sum, x) in acc.iter_mut().zip(&x[row * stride..][..len % COLUMNS]) {
                        *sum += x.widen();
                    }
                }
            }
        }
    }

    fn scale_row<T: Num>(y: &mut [T], factor: T::Acc) {
        for y in y {
            *y = T::narrow(y.widen() * factor);
        }
    }

    fn convert_row<T: Convert<U>, U: Num>(y: &mut [U], x: &[T]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = x.convert();
        }
    }
}

/// Rounds towards zero, and then to an odd last bit unless exact: a second rounding, to a type with
/// fewer bits, then gives what a single one would.
#[inline(always)]
fn to_odd(x: f64) -> f32 {
    let nearest = x as f32;
    let back = f64::from(nearest);
    let bits = nearest.to_bits() - u32::from(back.abs() > x.abs());
    f32::from_bits(bits | u32::from(back != x && !x.is_nan()))
}

/// Rounding from one compute type to another, once.
pub(crate) trait Convert<U>: Num {
    fn convert(self) -> U;
}

macro_rules! convert {
    ($($from:ty => $to:ty: $x:ident => $value:expr;)+) => {$(
        impl Convert<$to> for $from {
            #[inline(always)]
            fn convert(self) -> $to {
                let $x = self;
                $value
            }
        }
    )+};
}

convert! {
    f64 => f64: x => x;
    f64 => f32: x => x as f32;
    f64 => half::bf16: x => Num::narrow(to_odd(x));
    f32 => f64: x => f64::from(x);
    f32 => f32: x => x;
    f32 => half::bf16: x => Num::narrow(x);
    half::bf16 => f64: x => f64::from(x.widen());
    half::bf16 => f32: x => x.widen();
    half::bf16 => half::bf16: x => x;
}

pub(crate) fn add_bias(cpu: &CpuOps, y: MatMut<'_>, bias: Slice<'_>) -> Done {
    const OP: &str = "add_bias";
    fn run<T: Num>(cpu: &CpuOps, y: MatMut<'_>, bias: Slice<'_>) -> Done {
        let bias = typed::<T>(OP, "bias", bias)?;
        let y = MatSplit::<T>::new(OP, "y", y)?;
        cpu.parallel(y.rows, y.cols, |rows| {
            for row in rows {
                // SAFETY: each row is written by one thread.
                add_assign_row(cpu.isa, unsafe { y.part(row, 0..y.cols) }, bias);
            }
        });
        Ok(())
    }
    with_num!(OP, "y", y.data.dtype(), T => run::<T>(cpu, y, bias))
}

pub(crate) fn sum_rows(cpu: &CpuOps, acc: SliceMut<'_>, x: MatRef<'_>) -> Done {
    const OP: &str = "sum_rows";
    fn run<T: Num>(cpu: &CpuOps, acc: SliceMut<'_>, x: MatRef<'_>) -> Done {
        let x = Mat::<T>::new(OP, "x", x)?;
        let acc = typed_mut::<T::Acc>(OP, "acc", acc)?;
        let acc = Split::new(acc);
        cpu.parallel(x.cols, x.rows, |cols| {
            // SAFETY: each column is written by one thread.
            let acc = unsafe { acc.range(cols.clone()) };
            if x.rows > 0 {
                accumulate_rows(cpu.isa, acc, &x.data[cols.start..], x.stride, x.rows);
            }
        });
        Ok(())
    }
    with_num!(OP, "x", x.data.dtype(), T => run::<T>(cpu, acc, x))
}

pub(crate) fn add(cpu: &CpuOps, y: SliceMut<'_>, a: Slice<'_>, b: Slice<'_>) -> Done {
    const OP: &str = "add";
    fn run<T: Num, S: Num<Acc = T::Acc>>(
        cpu: &CpuOps,
        y: SliceMut<'_>,
        a: Slice<'_>,
        b: Slice<'_>,
    ) -> Done {
        let (a, b) = (typed::<S>(OP, "a", a)?, typed::<T>(OP, "b", b)?);
        let y = typed_mut::<S>(OP, "y", y)?;
        let len = y.len();
        let y = Split::new(y);
        cpu.parallel(len, 1, |range| {
            // SAFETY: the ranges are disjoint.
            let y = unsafe { y.range(range.clone()) };
            add_row(cpu.isa, y, &a[range.clone()], &b[range]);
        });
        Ok(())
    }
    with_num!(OP, "b", b.dtype(), T => {
        if y.dtype() == <T as Element>::DTYPE {
            run::<T, T>(cpu, y, a, b)
        } else {
            run::<T, <T as Num>::Acc>(cpu, y, a, b)
        }
    })
}

pub(crate) fn add_assign(cpu: &CpuOps, y: SliceMut<'_>, a: Slice<'_>) -> Done {
    const OP: &str = "add_assign";
    fn run<T: Num>(cpu: &CpuOps, y: SliceMut<'_>, a: Slice<'_>) -> Done {
        let a = typed::<T>(OP, "a", a)?;
        let len = y.len();
        if y.dtype() == T::DTYPE {
            let y = Split::new(typed_mut::<T>(OP, "y", y)?);
            cpu.parallel(len, 1, |range| {
                // SAFETY: the ranges are disjoint.
                add_assign_row(cpu.isa, unsafe { y.range(range.clone()) }, &a[range]);
            });
        } else {
            let y = Split::new(typed_mut::<T::Acc>(OP, "y", y)?);
            cpu.parallel(len, 1, |range| {
                // SAFETY: the ranges are disjoint.
                accumulate_row::<T>(cpu.isa, unsafe { y.range(range.clone()) }, &a[range]);
            });
        }
        Ok(())
    }
    with_num!(OP, "a", a.dtype(), T => run::<T>(cpu, y, a))
}

pub(crate) fn scale(cpu: &CpuOps, y: SliceMut<'_>, factor: f64) -> Done {
    const OP: &str = "scale";
    fn run<T: Num>(cpu: &CpuOps, y: SliceMut<'_>, factor: f64) -> Done {
        let y = typed_mut::<T>(OP, "y", y)?;
        let (len, y) = (y.len(), Split::new(y));
        cpu.parallel(len, 1, |range| {
            // SAFETY: the ranges are disjoint.
            scale_row(cpu.isa, unsafe { y.range(range) }, T::Acc::from_f64(factor));
        });
        Ok(())
    }
    with_num!(OP, "y", y.dtype(), T => run::<T>(cpu, y, factor))
}

pub(crate) fn cast(cpu: &CpuOps, y: SliceMut<'_>, x: Slice<'_>) -> Done {
    const OP: &str = "cast";
    fn run<T: Convert<U>, U: Num>(cpu: &CpuOps, y: SliceMut<'_>, x: Slice<'_>) -> Done {
        let x = typed::<T>(OP, "x", x)?;
        let y = typed_mut::<U>(OP, "y", y)?;
        let len = y.len();
        let y = Split::new(y);
        cpu.parallel(len, 1, |range| {
            // SAFETY: the ranges are disjoint.
            convert_row::<T, U>(cpu.isa, unsafe { y.range(range.clone()) }, &x[range]);
        });
        Ok(())
    }
    with_num!(OP, "x", x.dtype(), T => with_num!(OP, "y", y.dtype(), U => run::<T, U>(cpu, y, x)))
}

pub(crate) fn offset(cpu: &CpuOps, y: SliceMut<'_>, x: Slice<'_>, by: f64) -> Done {
    const OP: &str = "offset";
    fn run<T: Num>(cpu: &CpuOps, y: SliceMut<'_>, x: Slice<'_>, by: f64) -> Done {
        let (x, y) = (typed::<T>(OP, "x", x)?, typed_mut::<T::Acc>(OP, "y", y)?);
        let y = Split::new(y);
        cpu.parallel(x.len(), 1, |range| {
            // SAFETY: the ranges are disjoint.
            offset_row(cpu.isa, unsafe { y.range(range.clone()) }, &x[range], T::Acc::from_f64(by));
        });
        Ok(())
    }
    with_num!(OP, "x", x.dtype(), T => run::<T>(cpu, y, x, by))
}

pub(crate) fn copy(cpu: &CpuOps, y: MatMut<'_>, x: MatRef<'_>) -> Done {
    const OP: &str = "copy";
    fn run<T: Element>(cpu: &CpuOps, y: MatMut<'_>, x: MatRef<'_>) -> Done {
        let x = Mat::<T>::new(OP, "x", x)?;
        let y = MatSplit::<T>::new(OP, "y", y)?;
        cpu.parallel(x.rows, x.cols, |rows| {
            for row in rows {
                // SAFETY: each row is written by one thread.
                unsafe { y.part(row, 0..y.cols) }.copy_from_slice(x.row(row));
            }
        });
        Ok(())
    }
    match y.data {
        SliceMut::F64(_) => run::<f64>(cpu, y, x),
        SliceMut::F32(_) => run::<f32>(cpu, y, x),
        SliceMut::Bf16(_) => run::<half::bf16>(cpu, y, x),
        SliceMut::F16(_) => run::<half::f16>(cpu, y, x),
        SliceMut::U64(_) => run::<u64>(cpu, y, x),
        SliceMut::U32(_) => run::<u32>(cpu, y, x),
        SliceMut::U8(_) => run::<u8>(cpu, y, x),
        // The enum is open for devices, whose memory the host cannot reach.
        _ => dims(OP, false, || "the view is not of host memory".into()),
    }
}
