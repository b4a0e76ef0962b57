//! Each call of the list of all methods on a simulated GPU, against the CPU's.

use crate::machine::{Machine, SEEDS};
use std::collections::BTreeSet;
use trine_buffer::Buf;
use trine_kernels::{CpuOps, Isa, Ops, Team, kernel_methods};
use trine_testkit::ops::attention::METHODS;
use trine_testkit::ops::{Case, all_products, cases, same};

/// The buffers after a call, in which the host waits only if the method answers it.
fn on_gpu(case: &Case, machine: &Machine) -> Vec<Buf> {
    let mut bufs = case.held(machine.ops.place()).unwrap();
    let waits = machine.sim.counters().host_waits;
    case.run(&machine.ops, &mut bufs).unwrap_or_else(|error| panic!("{case:?}: {error}"));
    let waited = machine.sim.counters().host_waits - waits;
    assert_eq!(waited > 0, case.method() == "first_non_finite", "{case:?}: {waited}");
    bufs.iter().map(|buf| buf.slice().to_host().unwrap()).collect()
}

/// Every method in every order of threads, blocks and streams: near the CPU, the same in each, and nothing reported.
/// The host waits for the one method that answers it, and for no other.
#[test]
fn each_method_is_that_of_the_cpu() {
    let cpu = CpuOps::new(Team::new(1));
    let cases = cases();
    let expected: Vec<_> = cases.iter().map(|case| case.on(&cpu).unwrap()).collect();
    let mut first: Vec<Vec<Buf>> = Vec::new();
    for seed in 0..SEEDS {
        let machine = Machine::new(seed);
        for (at, (case, expected)) in cases.iter().zip(&expected).enumerate() {
            let found = on_gpu(case, &machine);
            machine.is_clean();
            case.compare(&found, expected).unwrap();
            match first.get(at) {
                Some(first) => {
                    for (found, first) in found.iter().zip(first) {
                        same(found, first).unwrap_or_else(|e| panic!("{case:?}, {seed}: {e}"));
                    }
                }
                None => first.push(found),
            }
        }
    }
}

#[test]
fn scratch_memory_is_allocated_once() {
    let machine = Machine::new(0);
    let few: Vec<_> = cases().into_iter().filter(|case| SCRATCH.contains(&case.method())).collect();
    let mut counts = Vec::new();
    for _ in 0..2 {
        few.iter().for_each(|case| drop(on_gpu(case, &machine)));
        counts.push(machine.ops.pool().stats().allocations);
    }
    assert!(counts[0] > 0);
    assert_eq!(counts[0], counts[1]);
    assert_eq!(machine.ops.pool().stats().bytes_in_use, 0);
}

/// Methods with partial results.
const SCRATCH: [&str; 6] = [
    "sum_rows",
    "layer_norm_backward",
    "rms_norm_backward",
    "rms_gain",
    "embedding_backward",
    "sum_squares",
];

macro_rules! names {
    ($($module:ident { $(fn $name:ident($($arg:ident: $type:ty),* $(,)?) -> $ret:ty;)+ })+) => {
        [$($(stringify!($name)),+),+]
    };
}

#[test]
fn no_method_is_without_a_case() {
    let methods: BTreeSet<_> =
        kernel_methods!(names).into_iter().chain(["matmul", "linear"]).chain(METHODS).collect();
    let with_case: BTreeSet<_> = cases().iter().map(Case::method).chain(METHODS).collect();
    assert_eq!(methods, with_case);
}

/// More than a block makes, and more than one step of k.
#[test]
fn products_in_order_have_the_bits_of_the_cpu() {
    let cpu = CpuOps::with_isa(Team::new(1), Isa::Portable).unwrap();
    let cases = all_products();
    let expected: Vec<_> = cases.iter().map(|case| case.on(&cpu).unwrap()).collect();
    for seed in 0..SEEDS {
        let machine = Machine::in_order(seed);
        for (case, expected) in cases.iter().zip(&expected) {
            for (found, expected) in on_gpu(case, &machine).iter().zip(expected) {
                same(found, expected).unwrap_or_else(|error| panic!("{case:?}: {error}"));
            }
        }
        machine.is_clean();
    }
    assert_eq!(cases.len(), 3 * (4 * 7 + 4));
}
