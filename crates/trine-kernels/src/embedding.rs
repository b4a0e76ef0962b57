//! Rows of a table, looked up and added to.

use crate::check::{typed, typed_mut, with_num};
use crate::isa::vectorised;
use crate::num::Num;
use crate::scratch::Split;
use crate::{CpuOps, KernelError};
use trine_buffer::{Float, Slice, SliceMut};

type Done = Result<(), KernelError>;

/// The table's row of an id, if this part of the vocabulary has it.
fn local_row(id: u32, first_row: usize, rows: usize) -> Option<usize> {
    (id as usize).checked_sub(first_row).filter(|&row| row < rows)
}

vectorised! {
    fn accumulate<T: Num>(acc: &mut [T::Acc], x: &[T]) {
        for (acc, x) in acc.iter_mut().zip(x) {
            *acc += x.widen();
        }
    }
}

pub(crate) fn embedding(
    cpu: &CpuOps,
    cols: usize,
    y: SliceMut<'_>,
    ids: Slice<'_>,
    table: Slice<'_>,
    first_row: usize,
) -> Done {
    const OP: &str = "embedding";
    with_num!(OP, "table", table.dtype(), T => {
        let (table, ids) = (typed::<T>(OP, "table", table)?, typed::<u32>(OP, "ids", ids)?);
        let y = typed_mut::<T>(OP, "y", y)?;
        let table_rows = table.len() / cols;
        let y = Split::new(y);
        cpu.parallel(ids.len(), cols, |rows| {
            for row in rows {
                // SAFETY: each row is written by one thread.
                let y = unsafe { y.range(row * cols..(row + 1) * cols) };
                match local_row(ids[row], first_row, table_rows) {
                    Some(at) => y.copy_from_slice(&table[at * cols..(at + 1) * cols]),
                    None => y.fill(T::from_f64(0.0)),
                }
            }
        });
        Ok(())
    })
}

pub(crate) fn embedding_backward(
    cpu: &CpuOps,
    cols: usize,
    dtable: SliceMut<'_>,
    ids: Slice<'_>,
    dy: Slice<'_>,
    first_row: usize,
) -> Done {
    const OP: &str = "embedding_backward";
    fn run<T: Num>(
        cpu: &CpuOps,
        cols: usize,
        dtable: SliceMut<'_>,
        ids: &[u32],
        dy: Slice<'_>,
        first_row: usize,
    ) -> Done {
        let dtable = typed_mut::<T::Acc>(OP, "dtable", dtable)?;
        let dy = typed::<T>(OP, "dy", dy)?;
        let table_rows = dtable.len() / cols;
        let dtable = Split::new(dtable);
        cpu.parallel(cols, ids.len(), |here| {
            for (row, &id) in ids.iter().enumerate() {
                let Some(at) = local_row(id, first_row, table_rows) else { continue };
                // SAFETY: each column is written by one thread.
                let acc = unsafe { dtable.range(at * cols + here.start..at * cols + here.end) };
                accumulate(cpu.isa, acc, &dy[row * cols..][here.clone()]);
            }
        });
        Ok(())
    }
    let ids = typed::<u32>(OP, "ids", ids)?;
    with_num!(OP, "dy", dy.dtype(), T => run::<T>(cpu, cols, dtable, ids, dy, first_row))
}
