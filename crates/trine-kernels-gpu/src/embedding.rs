//! Rows of a table, looked up and added to.

use crate::gpu::{GpuOps, matrix, rows};
use crate::views::{named, read, write};
use trine_buffer::{Slice, SliceMut};
use trine_gpu::Arg;
use trine_kernels::KernelError;

type Done = Result<(), KernelError>;

pub(crate) fn embedding(
    ops: &GpuOps,
    cols: usize,
    y: SliceMut<'_>,
    ids: Slice<'_>,
    table: Slice<'_>,
    first_row: usize,
) -> Done {
    let name = named("embedding", "embedding", &[table.dtype()])?;
    let (tokens, table_rows) = (ids.len(), table.len() / cols);
    let args = [
        Arg::Write(write(y)?),
        Arg::Read(read(ids)?),
        Arg::Read(read(table)?),
        Arg::U64(tokens as u64),
        Arg::U64(cols as u64),
        Arg::U64(first_row as u64),
        Arg::U64(table_rows as u64),
    ];
    // SAFETY: a row of the result for each token, and the table has so many rows.
    unsafe { ops.run(&name, matrix(tokens, cols), &args) }
}

/// Tokens of one row of the table are chained first. Then one block follows each chain, for its own columns: no two
/// write the same element, and the order is that of the tokens.
pub(crate) fn embedding_backward(
    ops: &GpuOps,
    cols: usize,
    dtable: SliceMut<'_>,
    ids: Slice<'_>,
    dy: Slice<'_>,
    first_row: usize,
) -> Done {
    const OP: &str = "embedding_backward";
    let name = named(OP, OP, &[dy.dtype()])?;
    let (tokens, table_rows) = (ids.len(), dtable.len() / cols);
    let Ok(count) = u32::try_from(tokens) else {
        let message = format!("{tokens} tokens at once, at most {} are", u32::MAX);
        return Err(KernelError::Dims { op: OP, message });
    };
    if tokens == 0 {
        return Ok(());
    }
    let mut next = ops.scratch("next tokens", 4 * tokens)?;
    let mut first = ops.scratch("first tokens", 4 * tokens)?;
    let args = [
        Arg::Write(next.span_mut()),
        Arg::Write(first.span_mut()),
        Arg::Read(read(ids)?),
        Arg::U32(count),
        Arg::U64(first_row as u64),
        Arg::U64(table_rows as u64),
    ];
    // SAFETY: all have a number for each token.
    unsafe { ops.run("embedding_chains", rows(tokens, tokens), &args)? };
    let args = [
        Arg::Write(write(dtable)?),
        Arg::Read(next.span()),
        Arg::Read(first.span()),
        Arg::Read(read(ids)?),
        Arg::Read(read(dy)?),
        Arg::U64(tokens as u64),
        Arg::U64(cols as u64),
        Arg::U64(first_row as u64),
    ];
    // SAFETY: chains have only tokens whose row the table has.
    unsafe { ops.run(&name, matrix(tokens, cols), &args) }
}
