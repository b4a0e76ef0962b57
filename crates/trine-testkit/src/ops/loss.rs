//! The loss over a part of the vocabulary.

use super::{Bound, Case, Rows, TYPES, case, floats, numbers};
use trine_buffer::{Buf, DType};
use trine_kernels::{IGNORE, LossShape};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in TYPES {
        for (valid_cols, softcap) in [(48, None), (41, Some(1.5)), (5, None), (0, None)] {
            let shape = LossShape { valid_cols, first_col: 10, softcap };
            for blocks in [1, 6] {
                part(&mut cases, dtype, shape, blocks);
            }
        }
    }
    let rows = 9;
    let all = |seed| above(seed, rows);
    let loss = [(numbers(DType::F32, 1, rows), Bound::Chain(4))];
    let read = [all(2), all(3), all(4), targets(rows)];
    cases.push(case("ce_loss", "9 tokens", loss, read, |ops, [loss, max, sum, logit, targets]| {
        ops.ce_loss(loss.slice_mut(), max.slice(), sum.slice(), logit.slice(), targets.slice())
    }));
    cases
}

/// Numbers above a half.
fn above(seed: u32, len: usize) -> Buf {
    Buf::from_vec(floats(seed, len).map(|x| x + 1.5).collect())
}

/// Some below the part's first column, some in it, in its padding and beyond, and one that does not count.
fn targets(rows: usize) -> Buf {
    let of = |row: usize| if row == 1 { IGNORE } else { (row * 17 % 70) as u32 };
    Buf::from_vec((0..rows).map(of).collect::<Vec<u32>>())
}

fn part(cases: &mut Vec<Case>, dtype: DType, shape: LossShape, blocks: usize) {
    let (at, f32, what) =
        (Rows::new(9, 48, 3), DType::F32, format!("{shape:?} {dtype}, {blocks} blocks"));
    let (rows, len) = (at.rows, at.len());
    let max = [(numbers(f32, 1, rows), Bound::Bits)];
    cases.push(case("ce_max", &*what, max, [numbers(dtype, 2, len)], move |ops, [max, logits]| {
        ops.ce_max(shape, max.slice_mut(), at.of(logits))
    }));
    let written =
        [(numbers(f32, 1, rows), Bound::Chain(at.cols + 8)), (numbers(f32, 2, rows), Bound::Bits)];
    let read = [numbers(dtype, 3, len), above(4, rows), targets(rows)];
    cases.push(case(
        "ce_sum",
        &*what,
        written,
        read,
        move |ops, [sum, logit, logits, max, targets]| {
            let (sum, logit) = (sum.slice_mut(), logit.slice_mut());
            ops.ce_sum(shape, blocks, sum, logit, at.of(logits), max.slice(), targets.slice())
        },
    ));
    let written = [(numbers(dtype, 1, len), Bound::Bits)];
    let read = [above(2, rows), above(3, rows), targets(rows)];
    cases.push(case("ce_grad", what, written, read, move |ops, [logits, max, sum, targets]| {
        ops.ce_grad(shape, at.of_mut(logits), max.slice(), sum.slice(), targets.slice(), 0.3)
    }));
}
