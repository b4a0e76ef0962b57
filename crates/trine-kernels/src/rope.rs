//! Rotary position embedding.

use crate::check::{MatSplit, typed, with_num};
use crate::isa::vectorised;
use crate::num::Num;
use crate::{CpuOps, KernelError, MatMut, RopeShape};
use trine_buffer::{Buf, DType, Float, Slice};

/// The usual frequencies of the `turned` elements of a head, `theta^(−2i / turned)` for
/// `i < turned / 2` (arXiv 2104.09864).
pub fn rope_frequencies(theta: f64, turned: usize) -> Vec<f64> {
    (0..turned / 2).map(|i| theta.powf(-2.0 * i as f64 / turned as f64)).collect()
}

/// Cosines and sines for [`crate::Ops::rope`]: for each position a cosine of each frequency, then as
/// many sines, of `position · frequency`. They are multiplied by `amplitude` (YaRN's factor on
/// queries and keys, arXiv 2309.00071; 1 for plain positions) and rounded from f64 to `dtype` (the
/// accumulator of the compute type).
///
/// # Errors
/// `dtype` is not f64 or f32.
pub fn rope_table(
    dtype: DType,
    frequencies: &[f64],
    amplitude: f64,
    positions: usize,
) -> Result<Buf, KernelError> {
    fn table<A: Float>(frequencies: &[f64], amplitude: f64, positions: usize) -> Buf {
        let row = |position| {
            let angles = frequencies.iter().map(move |f| f * position as f64);
            angles.clone().map(f64::cos).chain(angles.map(f64::sin))
        };
        let entries = (0..positions).flat_map(row).map(|entry| A::from_f64(amplitude * entry));
        Buf::from_vec(entries.collect())
    }
    match dtype {
        DType::F64 => Ok(table::<f64>(frequencies, amplitude, positions)),
        DType::F32 => Ok(table::<f32>(frequencies, amplitude, positions)),
        DType::Bf16 | DType::F16 | DType::U64 | DType::U32 | DType::U8 => {
            let message = format!("the table is f32 or f64, not {dtype}");
            Err(KernelError::Dims { op: "rope_table", message })
        }
    }
}

vectorised! {
    fn rotate<T: Num>(left: &mut [T], right: &mut [T], cos: &[T::Acc], sin: &[T::Acc], inverse: bool) {
        let pairs = left.iter_mut().zip(right);
        for (((left, right), &cos), &sin) in pairs.zip(cos).zip(sin) {
            let sin = if inverse { -sin } else { sin };
            let (a, b) = (left.widen(), right.widen());
            *left = T::narrow(a * cos - b * sin);
            *right = T::narrow(b * cos + a * sin);
        }
    }
}

pub(crate) fn rope(
    cpu: &CpuOps,
    shape: RopeShape,
    inverse: bool,
    x: MatMut<'_>,
    table: Slice<'_>,
) -> Result<(), KernelError> {
    const OP: &str = "rope";
    fn run<T: Num>(
        cpu: &CpuOps,
        shape: RopeShape,
        inverse: bool,
        x: MatMut<'_>,
        table: Slice<'_>,
    ) -> Result<(), KernelError> {
        let RopeShape { heads, head_dim, turned, seq, start } = shape;
        let table = typed::<T::Acc>(OP, "table", table)?;
        let x = MatSplit::<T>::new(OP, "x", x)?;
        cpu.parallel(x.rows, x.cols, |rows| {
            for row in rows {
                let position = start + row % seq;
                let (cos, sin) = table[position * turned..][..turned].split_at(turned / 2);
                for head in 0..heads {
                    let first = head * head_dim;
                    // SAFETY: each row is written by one thread.
                    let head = unsafe { x.part(row, first..first + turned) };
                    let (left, right) = head.split_at_mut(turned / 2);
                    rotate(cpu.isa, left, right, cos, sin, inverse);
                }
            }
        });
        Ok(())
    }
    with_num!(OP, "x", x.data.dtype(), T => run::<T>(cpu, shape, inverse, x, table))
}
