//! Rotary position embedding.

use crate::gpu::{GpuOps, matrix};
use crate::views::{Shape, bytes_of, named, read, write};
use trine_buffer::Slice;
use trine_gpu::Arg;
use trine_kernels::{KernelError, MatMut, RopeShape};

pub(crate) fn rope(
    ops: &GpuOps,
    shape: RopeShape,
    inverse: bool,
    x: MatMut<'_>,
    table: Slice<'_>,
) -> Result<(), KernelError> {
    let (name, [rows, _, stride]) = (named("rope", "rope", &[x.dtype()])?, x.dims());
    let RopeShape { heads, head_dim, turned, seq, start } = shape;
    // What kernels call `Turns`.
    let of = [heads, head_dim, turned, seq, start].map(|size| size as u64);
    let args = [
        Arg::Write(write(x.data)?),
        Arg::Read(read(table)?),
        Arg::U64(rows as u64),
        Arg::U64(stride as u64),
        Arg::Bytes(bytes_of(&of)),
        Arg::F32(if inverse { -1.0 } else { 1.0 }),
    ];
    // SAFETY: the matrix has the heads of the shape, the table all its positions.
    unsafe { ops.run(&name, matrix(rows, heads * turned / 2), &args) }
}
