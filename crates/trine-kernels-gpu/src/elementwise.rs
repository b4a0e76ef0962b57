//! Sums, copies, conversions, bias.

use crate::ops::{GpuOps, elements};
use trine_buffer::DType;
use trine_gpu::{Arg, GpuError, Span, SpanMut};

impl GpuOps {
    /// `y = a + b`; `b` holds `of_b`, `y` and `a` both hold `of_y`.
    ///
    /// # Errors
    /// If the lengths differ, or there is no kernel for these types.
    pub fn add(
        &self,
        (y, of_y): (SpanMut<'_>, DType),
        a: Span<'_>,
        (b, of_b): (Span<'_>, DType),
    ) -> Result<(), GpuError> {
        let len = y.bytes() / of_y.bytes();
        for (from, to) in [(a.bytes(), y.bytes()), (b.bytes(), len * of_b.bytes())] {
            if from != to {
                return Err(GpuError::Length { from, to });
            }
        }
        let args = [Arg::Write(y), Arg::Read(a), Arg::Read(b), Arg::U64(len as u64)];
        // SAFETY: all three have `len` elements.
        unsafe { self.launch(&format!("add_{of_y}_{of_b}"), elements(len), &args) }
    }
}
