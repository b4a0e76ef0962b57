//! Rotary positions and rows of a table: the bits of the CPU.

use super::{Bound, Case, Rows, TYPES, case, numbers};
use trine_buffer::{Buf, DType};
use trine_kernels::{RopeShape, rope_frequencies, rope_table};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in TYPES {
        for (turned, inverse, rows) in
            [(8, false, 10), (6, true, 10), (0, false, 10), (8, false, 0)]
        {
            let shape = RopeShape { heads: 3, head_dim: 8, turned, seq: 5, start: 2 };
            let table = rope_table(DType::F32, &rope_frequencies(10_000.0, turned), 1.2, 7)
                .expect("invariant: there is memory for a small table");
            let at = Rows::new(rows, 24, 5);
            let x = [(numbers(dtype, 1, at.len()), Bound::Bits)];
            let what = format!("{shape:?} {dtype}, inverse {inverse}");
            cases.push(case("rope", what, x, [table], move |ops, [x, table]| {
                ops.rope(shape, inverse, at.of_mut(x), table.slice())
            }));
        }
        embeddings(&mut cases, dtype);
    }
    cases
}

/// Ids below, in and beyond the table's rows 10 to 14, most of them several times, some twice in a row.
fn ids(tokens: usize) -> Buf {
    let id = |i: usize| (i / 2 * i + i / 3) as u32 % 11 + 7;
    Buf::from_vec((0..tokens).map(id).collect::<Vec<u32>>())
}

fn embeddings(cases: &mut Vec<Case>, dtype: DType) {
    for (tokens, cols) in [(150, 19), (1, 300), (0, 4)] {
        let what = format!("{tokens} tokens of {cols} {dtype}");
        let y = [(numbers(dtype, 1, tokens * cols), Bound::Bits)];
        let read = [ids(tokens), numbers(dtype, 2, 5 * cols)];
        cases.push(case("embedding", &*what, y, read, move |ops, [y, ids, table]| {
            ops.embedding(cols, y.slice_mut(), ids.slice(), table.slice(), 10)
        }));
        let dtable = [(numbers(DType::F32, 1, 5 * cols), Bound::Bits)];
        let read = [ids(tokens), numbers(dtype, 2, tokens * cols)];
        cases.push(case(
            "embedding_backward",
            what,
            dtable,
            read,
            move |ops, [dtable, ids, dy]| {
                ops.embedding_backward(cols, dtable.slice_mut(), ids.slice(), dy.slice(), 10)
            },
        ));
    }
}
