//! Sums, copies, conversions, bias, bounds, activations, dropout.

use super::{Bound, Case, Rows, TYPES, case, floats, numbers, of_floats};
use trine_buffer::{Buf, DType};
use trine_kernels::{Dropout, DropoutPlace, Function, GateUpMut};

/// Result and summand.
const MIXED: [(DType, DType); 3] =
    [(DType::F32, DType::F32), (DType::F32, DType::Bf16), (DType::Bf16, DType::Bf16)];

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (s, t) in MIXED {
        for len in [0, 1, 777] {
            let (y, a, b) = (numbers(s, 1, len), numbers(s, 2, len), numbers(t, 3, len));
            let what = format!("{len} {s} and {t}");
            cases.push(case("add", &*what, [(y, Bound::Bits)], [a, b], |ops, [y, a, b]| {
                ops.add(y.slice_mut(), a.slice(), b.slice())
            }));
            let (y, a) = (numbers(s, 1, len), numbers(t, 3, len));
            let (apart, shifted) = (format!("{what}, unaligned"), len.saturating_sub(1));
            let sum = [(numbers(s, 1, len), Bound::Bits)];
            cases.push(case("add_assign", apart, sum, [numbers(t, 3, len)], move |ops, [y, a]| {
                ops.add_assign(
                    y.slice_mut().range(len - shifted..len)?,
                    a.slice().range(0..shifted)?,
                )
            }));
            cases.push(case("add_assign", what, [(y, Bound::Bits)], [a], |ops, [y, a]| {
                ops.add_assign(y.slice_mut(), a.slice())
            }));
        }
    }
    for dtype in TYPES {
        in_place(&mut cases, dtype);
        matrices(&mut cases, dtype);
        functions(&mut cases, dtype);
        dropout(&mut cases, dtype);
    }
    conversions(&mut cases);
    copies(&mut cases);
    cases
}

fn in_place(cases: &mut Vec<Case>, dtype: DType) {
    for len in [0, 300] {
        let (what, y) = (format!("{len} {dtype}"), || [(numbers(dtype, 1, len), Bound::Bits)]);
        cases.push(case("scale", &*what, y(), [], |ops, [y]| ops.scale(y.slice_mut(), 0.3)));
        cases.push(case("softcap", &*what, y(), [], |ops, [y]| ops.softcap(y.slice_mut(), 0.7)));
        let y = [(numbers(DType::F32, 1, len), Bound::Bits)];
        cases.push(case("offset", what, y, [numbers(dtype, 2, len)], |ops, [y, x]| {
            ops.offset(y.slice_mut(), x.slice(), 0.3)
        }));
    }
}

fn matrices(cases: &mut Vec<Case>, dtype: DType) {
    for at in [Rows::new(5, 37, 4), Rows::new(0, 3, 0), Rows::new(2, 300, 0)] {
        let y = [(numbers(dtype, 1, at.len()), Bound::Bits)];
        let bias = numbers(dtype, 2, at.cols);
        cases.push(case(
            "add_bias",
            format!("{at:?} {dtype}"),
            y,
            [bias],
            move |ops, [y, bias]| ops.add_bias(at.of_mut(y), bias.slice()),
        ));
    }
    for at in [Rows::new(150, 37, 4), Rows::new(1, 300, 0), Rows::new(0, 3, 0)] {
        let acc = [(numbers(DType::F32, 1, at.cols), Bound::Chain(at.rows + 1))];
        let x = numbers(dtype, 2, at.len());
        cases.push(case("sum_rows", format!("{at:?} {dtype}"), acc, [x], move |ops, [acc, x]| {
            ops.sum_rows(acc.slice_mut(), at.of(x))
        }));
    }
}

/// Numbers between -12 and 12, and what is none.
fn wide(dtype: DType, seed: u32, len: usize) -> Buf {
    let mut values: Vec<f32> = floats(seed, len).map(|x| x * 12.0).collect();
    for (value, special) in values.iter_mut().zip([f32::NAN, 0.0, -0.0, 1e30, -1e30]) {
        *value = special;
    }
    of_floats(dtype, values)
}

fn functions(cases: &mut Vec<Case>, dtype: DType) {
    let (len, at) = (300, Rows::new(3, 50, 6));
    let wider = Rows::new(3, 100, 5);
    for function in Function::ALL {
        let what = format!("{function:?} {dtype}");
        let (y, x) = ([(numbers(dtype, 1, len), Bound::Bits)], [wide(dtype, 2, len)]);
        cases.push(case("activation", &*what, y, x, move |ops, [y, x]| {
            ops.activation(function, y.slice_mut(), x.slice())
        }));
        let dx = [(numbers(dtype, 1, len), Bound::Bits)];
        let read = [wide(dtype, 2, len), numbers(dtype, 3, len)];
        cases.push(case("activation_backward", &*what, dx, read, move |ops, [dx, x, dy]| {
            ops.activation_backward(function, dx.slice_mut(), x.slice(), dy.slice())
        }));
        let read = || {
            [wide(dtype, 2, wider.len()), numbers(dtype, 3, at.len()), numbers(dtype, 4, at.len())]
        };
        let [gate, up, _] = read();
        let y = [(numbers(dtype, 1, at.len()), Bound::Bits)];
        cases.push(case("gated", &*what, y, [gate, up], move |ops, [y, gate, up]| {
            // Gate: the left half of wider rows.
            ops.gated(function, at.of_mut(y), wider.of(gate).columns(0..at.cols)?, at.of(up))
        }));
        let d = [(numbers(dtype, 1, wider.len()), Bound::Bits)];
        cases.push(case(
            "gated_backward",
            format!("fused {what}"),
            d,
            read(),
            move |ops, [d, gate, up, dy]| {
                let d = GateUpMut::Fused(wider.of_mut(d));
                let gate = wider.of(gate).columns(0..at.cols)?;
                ops.gated_backward(function, d, gate, at.of(up), at.of(dy))
            },
        ));
        let d = [
            (numbers(dtype, 1, at.len()), Bound::Bits),
            (numbers(dtype, 5, at.len()), Bound::Bits),
        ];
        cases.push(case(
            "gated_backward",
            what,
            d,
            read(),
            move |ops, [dgate, dup, gate, up, dy]| {
                let d = GateUpMut::Separate { gate: at.of_mut(dgate), up: at.of_mut(dup) };
                let gate = wider.of(gate).columns(0..at.cols)?;
                ops.gated_backward(function, d, gate, at.of(up), at.of(dy))
            },
        ));
    }
}

/// Masks are the CPU's, bit for bit, wherever the columns begin.
fn dropout(cases: &mut Vec<Case>, dtype: DType) {
    let dropout =
        Dropout { probability: 0.3, key: 0x1234_5678_9abc_def0, step: 7, first_sample: 5 };
    for first_feature in [0, 3, 6, 1 << 20] {
        let place = DropoutPlace { tokens: 3, first_token: 11, first_feature };
        let (to, from) = (Rows::new(6, 37, 2), Rows::new(6, 37, 0));
        let y = [(numbers(dtype, 1, to.len()), Bound::Bits)];
        let x = [numbers(dtype, 2, from.len())];
        let what = format!("{place:?} {dtype}");
        cases.push(case("dropout", what, y, x, move |ops, [y, x]| {
            ops.dropout(dropout, place, to.of_mut(y), from.of(x))
        }));
    }
}

fn conversions(cases: &mut Vec<Case>) {
    for (to, from) in TYPES.into_iter().flat_map(|to| TYPES.map(|from| (to, from))) {
        let (y, x) = ([(numbers(to, 1, 300), Bound::Bits)], [wide(from, 2, 300)]);
        cases.push(case("cast", format!("{from} to {to}"), y, x, |ops, [y, x]| {
            ops.cast(y.slice_mut(), x.slice())
        }));
    }
}

fn copies(cases: &mut Vec<Case>) {
    for dtype in [DType::F32, DType::Bf16, DType::F64, DType::U8, DType::U32] {
        for (to, from) in
            [(Rows::new(3, 5, 2), Rows::new(3, 5, 0)), (Rows::new(3, 5, 0), Rows::new(3, 5, 0))]
        {
            let x = match dtype {
                DType::F64 => Buf::from_vec((0..from.len()).map(|i| i as f64).collect()),
                DType::U8 => Buf::from_vec((0..from.len()).map(|i| i as u8).collect()),
                DType::U32 => Buf::from_vec((0..from.len()).map(|i| i as u32).collect()),
                _ => numbers(dtype, 2, from.len()),
            };
            let y = [(Buf::zeros(dtype, to.len()), Bound::Bits)];
            cases.push(case("copy", format!("{to:?} {dtype}"), y, [x], move |ops, [y, x]| {
                ops.copy(to.of_mut(y), from.of(x))
            }));
        }
    }
}
