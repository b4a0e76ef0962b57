//! Norms over rows, and in parts that ranks add.

use super::{Bound, Case, Rows, TYPES, case, floats, numbers};
use trine_buffer::DType;
use trine_kernels::{NormShape, RmsShape};

/// Outputs, gain, stream.
const TYPES_OF_NORMS: [(DType, DType, DType); 5] = [
    (DType::F32, DType::F32, DType::F32),
    (DType::Bf16, DType::Bf16, DType::Bf16),
    (DType::Bf16, DType::Bf16, DType::F32),
    (DType::Bf16, DType::F32, DType::Bf16),
    (DType::Bf16, DType::F32, DType::F32),
];

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (t, g, s) in TYPES_OF_NORMS {
        for (rows, cols) in [(3, 37), (1, 1030), (0, 5)] {
            let shape = NormShape { rows, cols, eps: 1e-5 };
            rms_norm(&mut cases, shape, t, g, s);
            if t == g {
                layer_norm(&mut cases, shape, t, s);
            }
        }
        let shape = NormShape { rows: 150, cols: 11, eps: 1e-6 };
        rms_norm(&mut cases, shape, t, g, s);
        if t == g {
            layer_norm(&mut cases, shape, t, s);
        }
    }
    for dtype in TYPES {
        for (groups, blocks, group) in [(1, 8, 64), (3, 1, 20), (5, 6, 12)] {
            parts(
                &mut cases,
                dtype,
                RmsShape { groups, blocks, elements: 2 * group, eps: 1e-5 },
                group,
            );
        }
    }
    cases
}

/// Sums over a row, and what is rounded after them.
fn chain(shape: NormShape) -> Bound {
    Bound::Chain(shape.cols + 16)
}

fn rms_norm(cases: &mut Vec<Case>, shape: NormShape, t: DType, g: DType, s: DType) {
    let NormShape { rows, cols, .. } = shape;
    let (what, all) = (format!("{shape} {t} {g} {s}"), rows * cols);
    let written =
        [(numbers(t, 1, all), chain(shape)), (numbers(DType::F32, 2, rows), chain(shape))];
    let read = [numbers(s, 3, all), numbers(g, 4, cols)];
    cases.push(case("rms_norm", &*what, written, read, move |ops, [y, rstd, x, gamma]| {
        ops.rms_norm(shape, y.slice_mut(), rstd.slice_mut(), x.slice(), gamma.slice())
    }));
    for add in [false, true] {
        let weights = Bound::Chain(rows + cols + 16);
        let written = [(numbers(s, 1, all), chain(shape)), (numbers(DType::F32, 2, cols), weights)];
        let read = [
            numbers(s, 3, all),
            numbers(DType::F32, 4, rows),
            numbers(g, 5, cols),
            numbers(t, 6, all),
        ];
        let what = format!("{what}, add {add}");
        cases.push(case(
            "rms_norm_backward",
            what,
            written,
            read,
            move |ops, [dx, dgamma, x, rstd, gamma, dy]| {
                let (dx, dgamma) = (dx.slice_mut(), dgamma.slice_mut());
                ops.rms_norm_backward(
                    shape,
                    dx,
                    add,
                    dgamma,
                    x.slice(),
                    rstd.slice(),
                    gamma.slice(),
                    dy.slice(),
                )
            },
        ));
    }
}

fn layer_norm(cases: &mut Vec<Case>, shape: NormShape, t: DType, s: DType) {
    let NormShape { rows, cols, .. } = shape;
    let (what, all) = (format!("{shape} {t} {s}"), rows * cols);
    let written =
        [(numbers(t, 1, all), chain(shape)), (numbers(DType::F32, 2, 2 * rows), chain(shape))];
    let read = [numbers(s, 3, all), numbers(t, 4, cols), numbers(t, 5, cols)];
    cases.push(case(
        "layer_norm",
        &*what,
        written,
        read,
        move |ops, [y, stats, x, gamma, beta]| {
            let (y, stats) = (y.slice_mut(), stats.slice_mut());
            ops.layer_norm(shape, y, stats, x.slice(), gamma.slice(), beta.slice())
        },
    ));
    for add in [false, true] {
        let weights = Bound::Chain(rows + cols + 16);
        let written = [
            (numbers(s, 1, all), chain(shape)),
            (numbers(DType::F32, 2, cols), weights),
            (numbers(DType::F32, 3, cols), weights),
        ];
        let read = [
            numbers(s, 4, all),
            numbers(DType::F32, 5, 2 * rows),
            numbers(t, 6, cols),
            numbers(t, 7, all),
        ];
        let what = format!("{what}, add {add}");
        cases.push(case(
            "layer_norm_backward",
            what,
            written,
            read,
            move |ops, [dx, dgamma, dbeta, x, stats, gamma, dy]| {
                let (dx, dgamma, dbeta) = (dx.slice_mut(), dgamma.slice_mut(), dbeta.slice_mut());
                let (x, stats, gamma) = (x.slice(), stats.slice(), gamma.slice());
                ops.layer_norm_backward(shape, dx, add, dgamma, dbeta, x, stats, gamma, dy.slice())
            },
        ));
    }
}

fn parts(cases: &mut Vec<Case>, dtype: DType, shape: RmsShape, group: usize) {
    let (groups, f32) = (shape.groups, DType::F32);
    let at = Rows::new(70, groups * group, 3);
    let (mats, sums) = (at.len(), at.rows * groups);
    let what = format!("{shape:?} {dtype}");
    let chain = Bound::Chain(group + 8);
    let written = [(numbers(f32, 1, sums), chain)];
    cases.push(case(
        "rms_squares",
        &*what,
        written,
        [numbers(dtype, 2, mats)],
        move |ops, [sums, x]| ops.rms_squares(shape, sums.slice_mut(), at.of(x)),
    ));
    let written = [(numbers(f32, 1, sums), chain)];
    let read = [numbers(dtype, 2, mats), numbers(dtype, 3, group), numbers(dtype, 4, mats)];
    cases.push(case("rms_products", &*what, written, read, move |ops, [sums, x, gamma, dy]| {
        ops.rms_products(shape, sums.slice_mut(), at.of(x), gamma.slice(), at.of(dy))
    }));
    // Sums of squares are above 0.
    let squares = floats(2, sums).map(|x| x + 1.5).collect();
    let written = [
        (numbers(dtype, 1, mats), Bound::Bits),
        (trine_buffer::Buf::from_vec(squares), Bound::Bits),
    ];
    let read = [numbers(dtype, 3, mats), numbers(dtype, 4, group)];
    cases.push(case("rms_scale", &*what, written, read, move |ops, [y, stats, x, gamma]| {
        ops.rms_scale(shape, at.of_mut(y), stats.slice_mut(), at.of(x), gamma.slice())
    }));
    let written = [(numbers(dtype, 1, mats), Bound::Bits)];
    let read = [
        numbers(dtype, 2, mats),
        numbers(f32, 3, sums),
        numbers(f32, 4, sums),
        numbers(dtype, 5, group),
    ];
    cases.push(case(
        "rms_backward",
        &*what,
        written,
        read,
        move |ops, [d, x, rstd, products, gamma]| {
            let (rstd, products) = (rstd.slice(), products.slice());
            ops.rms_backward(shape, at.of_mut(d), at.of(x), rstd, products, gamma.slice())
        },
    ));
    let written = [(numbers(f32, 1, group), Bound::Chain(at.rows + groups + 8))];
    let read = [numbers(dtype, 2, mats), numbers(f32, 3, sums), numbers(dtype, 4, mats)];
    cases.push(case("rms_gain", what, written, read, move |ops, [dgamma, x, rstd, dy]| {
        ops.rms_gain(shape, dgamma.slice_mut(), at.of(x), rstd.slice(), at.of(dy))
    }));
}
