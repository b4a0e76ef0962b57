//! What the tests share: values, configurations, comparisons, finite differences.

use trine_buffer::{Buf, DType, Float};
use trine_kernels::{CpuOps, Isa, Ops, Team};

/// Values between −1 and 1, a pure function of the seed; `T`'s rounding of them.
pub(crate) fn values<T: Float>(seed: u64, len: usize) -> Vec<T> {
    let value = |i: usize| {
        let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(i as u64);
        for _ in 0..2 {
            x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            x ^= x >> 27;
        }
        (x >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    (0..len).map(|i| T::from_f64(value(i))).collect()
}

pub(crate) fn buf<T: Float>(seed: u64, len: usize) -> Buf {
    Buf::from_vec(values::<T>(seed, len))
}

/// Kernels on each instruction set of this machine with one thread, and on the best with two and
/// three.
pub(crate) fn configurations() -> Vec<CpuOps> {
    let best = Isa::detect();
    let single = Isa::ALL.into_iter().filter(|isa| isa.is_within(best)).map(|isa| (isa, 1));
    let all = single.chain([(best, 2), (best, 3)]);
    all.map(|(isa, threads)| CpuOps::with_isa(Team::new(threads), isa).unwrap()).collect()
}

pub(crate) fn one() -> CpuOps {
    CpuOps::new(Team::new(1))
}

/// Kernels whose products of f32 are chains of fused multiply-adds.
pub(crate) fn of_chains(threads: usize) -> CpuOps {
    CpuOps::with_isa(Team::new(threads), Isa::detect().without_tiles()).unwrap()
}

/// Which order of summation products of a type have on an instruction set.
fn order_of_products(dtype: DType, isa: Isa) -> &'static str {
    match (dtype, isa) {
        (DType::Bf16, Isa::Avx512Bf16) => "a chain of pairs",
        (DType::Bf16 | DType::F32, Isa::Amx) => "groups of 32",
        _ => "a chain of products",
    }
}

/// Runs `f` in all configurations and asserts that the bits agree; where it has products of a type, those with
/// one order of summation agree among themselves. Gives the distinct results.
pub(crate) fn everywhere(
    products: Option<DType>,
    f: impl Fn(&dyn Ops) -> Vec<Buf>,
) -> Vec<Vec<Vec<f64>>> {
    let mut results: Vec<(&str, Vec<Vec<f64>>)> = Vec::new();
    for ops in configurations() {
        let order = products.map_or("one for all", |dtype| order_of_products(dtype, ops.isa()));
        let outputs: Vec<_> = f(&ops).iter().map(|buf| buf.to_f64_vec().unwrap()).collect();
        match results.iter().find(|(other, _)| *other == order) {
            None => results.push((order, outputs)),
            Some((_, expected)) => {
                for (output, expected) in outputs.iter().zip(expected) {
                    same_bits(
                        output,
                        expected,
                        &format!("{:?}, {} threads", ops.isa(), ops.threads()),
                    );
                }
            }
        }
    }
    results.into_iter().map(|(_, outputs)| outputs).collect()
}

pub(crate) fn same_bits(left: &[f64], right: &[f64], what: &str) {
    assert_eq!(left.len(), right.len(), "{what}");
    for (i, (l, r)) in left.iter().zip(right).enumerate() {
        assert_eq!(l.to_bits(), r.to_bits(), "{what}: element {i} is {l:e} against {r:e}");
    }
}

/// Asserts |actual − expected| ≤ tolerance · (1 + |expected|) for each element.
pub(crate) fn close(actual: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        let error = (a - e).abs();
        assert!(error <= tolerance * (1.0 + e.abs()), "{what}: element {i} is {a}, not {e}");
    }
}

/// Compares a gradient with central differences of `loss`. Asserts on every `stride`-th element.
pub(crate) fn check_gradient(
    what: &str,
    x: &[f64],
    gradient: &[f64],
    stride: usize,
    loss: impl Fn(&[f64]) -> f64,
) {
    assert_eq!(x.len(), gradient.len(), "{what}");
    let step = 1e-5;
    let mut checked = 0;
    for i in (0..x.len()).step_by(stride) {
        let at = |delta: f64| {
            let mut moved = x.to_vec();
            moved[i] += delta;
            loss(&moved)
        };
        let expected = (at(step) - at(-step)) / (2.0 * step);
        let error = (gradient[i] - expected).abs();
        let bound = 2e-8 * (1.0 + expected.abs());
        assert!(error <= bound, "{what}: element {i} is {}, not {expected}", gradient[i]);
        checked += 1;
    }
    assert!(checked > 0 && checked >= x.len() / stride, "{what}");
}

/// Σ weights · y: a scalar loss whose gradient with respect to `y` is `weights`.
pub(crate) fn weigh(y: &[f64], weights: &[f64]) -> f64 {
    assert_eq!(y.len(), weights.len());
    y.iter().zip(weights).map(|(y, w)| y * w).sum()
}

/// Runs a generic test for f64, f32 and bf16.
macro_rules! for_types {
    ($($name:ident;)+) => {$(
        mod $name {
            #[test]
            fn f64() {
                super::super::$name::<f64>();
            }
            #[test]
            fn f32() {
                super::super::$name::<f32>();
            }
            #[test]
            fn bf16() {
                super::super::$name::<half::bf16>();
            }
        }
    )+};
}
pub(crate) use for_types;
