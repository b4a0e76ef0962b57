//! Products of matrices and linear layers.

use super::{Bound, Case, Rows, case, numbers};
use trine_buffer::DType;
use trine_kernels::Product;

/// Factors and result.
const MIXED: [(DType, DType); 3] =
    [(DType::F32, DType::F32), (DType::Bf16, DType::F32), (DType::Bf16, DType::Bf16)];

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (t, s) in MIXED {
        for (m, n, k) in [(6, 10, 33), (1, 3, 5), (4, 5, 0), (0, 5, 3)] {
            for product in [Product::Nt, Product::Nn, Product::Tn] {
                for accumulate in [false, true] {
                    matmul(&mut cases, (t, s), product, accumulate, [m, n, k]);
                }
            }
            linear(&mut cases, (t, s), [m, n, k]);
        }
    }
    cases
}

/// More than a block makes, and more than one step of k.
pub(super) fn large() -> Vec<Case> {
    let mut cases = Vec::new();
    for types in MIXED {
        matmul(&mut cases, types, Product::Nt, true, [70, 66, 35]);
        matmul(&mut cases, types, Product::Nn, false, [65, 3, 17]);
        matmul(&mut cases, types, Product::Tn, true, [3, 130, 40]);
        linear(&mut cases, types, [67, 65, 16]);
    }
    cases
}

fn chain(k: usize) -> Bound {
    Bound::Chain(k + 4)
}

fn matmul(
    cases: &mut Vec<Case>,
    (t, s): (DType, DType),
    product: Product,
    accumulate: bool,
    [m, n, k]: [usize; 3],
) {
    let ((ar, ac), (br, bc)) = match product {
        Product::Nt => ((m, k), (n, k)),
        Product::Nn => ((m, k), (k, n)),
        Product::Tn => ((k, m), (k, n)),
    };
    let (a, b, c) = (Rows::new(ar, ac, 2), Rows::new(br, bc, 0), Rows::new(m, n, 3));
    let written = [(numbers(s, 1, c.len()), chain(k))];
    let read = [numbers(t, 2, a.len()), numbers(t, 3, b.len())];
    let what = format!("{product:?} {t} to {s}, {m} × {n} × {k}, accumulate {accumulate}");
    cases.push(case("matmul", what, written, read, move |ops, [to, left, right]| {
        ops.matmul(product, accumulate, a.of(left), b.of(right), c.of_mut(to))
    }));
}

fn linear(cases: &mut Vec<Case>, (t, s): (DType, DType), [m, n, k]: [usize; 3]) {
    let (x, w, y) = (Rows::new(m, k, 2), Rows::new(n, k, 0), Rows::new(m, n, 3));
    let written = [(numbers(s, 1, y.len()), chain(k))];
    let read = [numbers(t, 2, x.len()), numbers(t, 3, w.len()), numbers(t, 4, n)];
    let what = format!("{t} to {s}, {m} × {n} × {k}");
    cases.push(case("linear", what, written, read, move |ops, [to, left, right, bias]| {
        ops.linear(y.of_mut(to), x.of(left), w.of(right), bias.slice())
    }));
}
