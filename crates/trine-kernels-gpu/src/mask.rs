//! Dropout: masks that are functions of global coordinates.

use crate::gpu::{GpuOps, matrix};
use crate::views::{Shape, named, read, write};
use trine_gpu::Arg;
use trine_kernels::{Dropout, DropoutPlace, KernelError, MatMut, MatRef};

/// Features whose words are drawn together.
const WORDS: usize = 4;

pub(crate) fn dropout(
    ops: &GpuOps,
    dropout: Dropout,
    place: DropoutPlace,
    y: MatMut<'_>,
    x: MatRef<'_>,
) -> Result<(), KernelError> {
    let name = named("dropout", "dropout", &[x.dtype()])?;
    let ([rows, cols, from], [_, _, to]) = (x.dims(), y.dims());
    let DropoutPlace { tokens, first_token, first_feature } = place;
    let args = [
        Arg::Write(write(y.data)?),
        Arg::Read(read(x.data)?),
        Arg::U64(rows as u64),
        Arg::U64(cols as u64),
        Arg::U64(to as u64),
        Arg::U64(from as u64),
        Arg::U64(tokens as u64),
        Arg::U64(first_token as u64),
        Arg::U64(first_feature as u64),
        Arg::U64(dropout.key),
        Arg::U32(dropout.step),
        Arg::U32(dropout.first_sample),
        Arg::U64(dropout.threshold()),
        Arg::F32(dropout.kept_factor() as f32),
    ];
    // SAFETY: both matrices lie in their memory and have the same rows and columns.
    unsafe { ops.run(&name, matrix(rows, cols.div_ceil(WORDS) + 1), &args) }
}
