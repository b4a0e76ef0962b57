//! Rotary position embedding.

use crate::check::{MatSplit, dims, typed, with_num};
use crate::isa::vectorised;
use crate::num::Num;
use crate::{CpuOps, KernelError, MatMut, RopeShape};
use trine_buffer::{Buf, DType, Float, Slice};

/// The usual frequencies, `theta^(−2i / head_dim)` for `i < head_dim / 2` (arXiv 2104.09864).
pub fn rope_frequencies(theta: f64, head_dim: usize) -> Vec<f64> {
    (0..head_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64)).collect()
}

/// Cosines and sines for [`crate::Ops::rope`]: for each position `head_dim / 2` cosines, then as
/// many sines, of `position · frequency`, rounded from f64 to `dtype` (the accumulator of the
/// compute type).
///
/// # Errors
/// `dtype` is not f64 or f32.
pub fn rope_table(dtype: DType, frequencies: &[f64], positions: usize) -> Result<Buf, KernelError> {
    fn table<A: Float>(frequencies: &[f64], positions: usize) -> Buf {
        let row = |position| {
            let angles = frequencies.iter().map(move |f| f * position as f64);
            angles.clone().map(f64::cos).chain(angles.map(f64::sin))
        };
        Buf::from_vec((0..positions).flat_map(row).map(A::from_f64).collect())
    }
    match dtype {
        DType::F64 => Ok(table::<f64>(frequencies, positions)),
        DType::F32 => Ok(table::<f32>(frequencies, positions)),
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
        let RopeShape { heads, head_dim, seq, start } = shape;
        let table = typed::<T::Acc>(OP, "table", table)?;
        let x = MatSplit::<T>::new(OP, "x", x)?;
        dims(OP, x.cols == heads * head_dim, || {
            format!("rows of {} elements are not {heads} heads of {head_dim}", x.cols)
        })?;
        dims(OP, head_dim.is_multiple_of(2), || format!("head_dim {head_dim} is not even"))?;
        dims(OP, seq > 0 || x.rows == 0, || "sequences of 0 rows".into())?;
        let last = start + seq.min(x.rows);
        dims(OP, table.len() >= last * head_dim, || {
            let held = table.len() / head_dim.max(1);
            format!("positions up to {last} need a longer table than {held} positions")
        })?;
        cpu.parallel(x.rows, x.cols, |rows| {
            for row in rows {
                let position = start + row % seq;
                let (cos, sin) = table[position * head_dim..][..head_dim].split_at(head_dim / 2);
                for head in 0..heads {
                    // SAFETY: each row is written by one thread.
                    let head = unsafe { x.part(row, head * head_dim..(head + 1) * head_dim) };
                    let (left, right) = head.split_at_mut(head_dim / 2);
                    rotate(cpu.isa, left, right, cos, sin, inverse);
                }
            }
        });
        Ok(())
    }
    with_num!(OP, "x", x.data.dtype(), T => run::<T>(cpu, shape, inverse, x, table))
}
