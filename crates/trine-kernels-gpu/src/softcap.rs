//! Logits with a bound.

use crate::gpu::{GpuOps, vector};
use crate::views::{named, write};
use trine_buffer::SliceMut;
use trine_gpu::Arg;
use trine_kernels::KernelError;

pub(crate) fn softcap(ops: &GpuOps, y: SliceMut<'_>, cap: f64) -> Result<(), KernelError> {
    let (name, len) = (named("softcap", "softcap", &[y.dtype()])?, y.len());
    let (inverse, cap) = (Arg::F32((1.0 / cap) as f32), Arg::F32(cap as f32));
    let args = [Arg::Write(write(y)?), Arg::U64(len as u64), inverse, cap];
    // SAFETY: it has `len` elements.
    unsafe { ops.run(&name, vector(len), &args) }
}
