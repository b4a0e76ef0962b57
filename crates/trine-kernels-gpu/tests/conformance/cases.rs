//! The list of cases: for each method of `Ops` some calls, and how near the device's results are to the CPU's.

use crate::machine::{Machine, SEEDS};
use crate::{elementwise, loss, norm, optim, positions, products};
use std::collections::BTreeSet;
use trine_buffer::{Buf, DType};
use trine_kernels::{CpuOps, KernelError, MatMut, MatRef, Ops, Team, kernel_methods};

/// Half a unit in the last place of 1 in f32.
const ROUNDING: f64 = 6e-8;
/// A unit in the last place of bf16, relative: two results on both sides of a border differ by so much.
const BF16_UNIT: f64 = 1.0 / 128.0;

/// How near a result is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Bound {
    /// Each operation is rounded as on the CPU.
    Bits,
    /// The longest chain of roundings that both may have in different orders.
    Chain(usize),
}

type Run = Box<dyn Fn(&dyn Ops, &mut [Buf]) -> Result<(), KernelError>>;

/// A call.
pub(crate) struct Case {
    method: &'static str,
    what: String,
    /// What is written, then what is read.
    bufs: Vec<Buf>,
    /// Of what is written; the rest stays as it is.
    bounds: Vec<Bound>,
    run: Run,
}

pub(crate) fn case<const O: usize, const I: usize>(
    method: &'static str,
    what: impl Into<String>,
    outputs: [(Buf, Bound); O],
    inputs: [Buf; I],
    run: impl Fn(&dyn Ops, &mut [Buf]) -> Result<(), KernelError> + 'static,
) -> Case {
    let (written, bounds): (Vec<_>, Vec<_>) = outputs.into_iter().unzip();
    let bufs = written.into_iter().chain(inputs).collect();
    Case { method, what: what.into(), bufs, bounds, run: Box::new(run) }
}

/// The types that kernels on a device compute in.
pub(crate) const TYPES: [DType; 2] = [DType::F32, DType::Bf16];

/// Rows with a gap behind each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) stride: usize,
}

impl Rows {
    pub(crate) fn new(rows: usize, cols: usize, gap: usize) -> Self {
        Self { rows, cols, stride: cols + gap }
    }

    pub(crate) fn len(self) -> usize {
        self.rows * self.stride
    }

    pub(crate) fn of(self, buf: &Buf) -> MatRef<'_> {
        MatRef { data: buf.slice(), rows: self.rows, cols: self.cols, stride: self.stride }
    }

    pub(crate) fn of_mut(self, buf: &mut Buf) -> MatMut<'_> {
        MatMut { data: buf.slice_mut(), rows: self.rows, cols: self.cols, stride: self.stride }
    }
}

pub(crate) fn cases() -> Vec<Case> {
    let lists: [fn() -> Vec<Case>; 6] = [
        elementwise::cases,
        norm::cases,
        positions::cases,
        loss::cases,
        optim::cases,
        products::cases,
    ];
    lists.into_iter().flat_map(|list| list()).collect()
}

impl Case {
    fn copies(&self) -> Vec<Buf> {
        self.bufs.iter().map(|buf| buf.slice().to_host().unwrap()).collect()
    }

    pub(crate) fn on_cpu(&self, cpu: &CpuOps) -> Vec<Buf> {
        let mut bufs = self.copies();
        (self.run)(cpu, &mut bufs).unwrap_or_else(|error| panic!("{}: {error}", self.name()));
        bufs
    }

    pub(crate) fn on_gpu(&self, machine: &Machine) -> Vec<Buf> {
        let place = machine.ops.place();
        let mut bufs: Vec<_> =
            self.copies().into_iter().map(|buf| place.hold(buf).unwrap()).collect();
        let waits = machine.sim.counters().host_waits;
        (self.run)(&machine.ops, &mut bufs)
            .unwrap_or_else(|error| panic!("{}: {error}", self.name()));
        let waited = machine.sim.counters().host_waits - waits;
        assert_eq!(waited > 0, self.method == "first_non_finite", "{}: {waited}", self.name());
        bufs.iter().map(|buf| buf.slice().to_host().unwrap()).collect()
    }

    pub(crate) fn name(&self) -> String {
        format!("{} of {}", self.method, self.what)
    }

    fn check(&self, found: &[Buf], expected: &[Buf]) {
        for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
            let bound = self.bounds.get(at).copied().unwrap_or(Bound::Bits);
            let what = format!("{}, buffer {at}", self.name());
            match bound {
                Bound::Bits => same(&what, found, expected),
                Bound::Chain(chain) => near(&what, found, expected, chain),
            }
        }
    }
}

pub(crate) fn same(what: &str, found: &Buf, expected: &Buf) {
    // What is no number has no certain sign.
    let bits = |buf: &Buf| -> Vec<u64> {
        let values = buf.to_f64_vec().unwrap();
        values.into_iter().map(|x| if x.is_nan() { f64::NAN } else { x }.to_bits()).collect()
    };
    let (found, expected) = (bits(found), bits(expected));
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (found, expected)) in found.into_iter().zip(expected).enumerate() {
        let (found, expected) = (f64::from_bits(found), f64::from_bits(expected));
        let is_same = found.to_bits() == expected.to_bits();
        assert!(is_same, "{what}: element {i} is {found:e}, not {expected:e}");
    }
}

fn near(what: &str, found: &Buf, expected: &Buf, chain: usize) {
    let unit = if expected.dtype() == DType::Bf16 { BF16_UNIT } else { 0.0 };
    let (found, expected) = (found.to_f64_vec().unwrap(), expected.to_f64_vec().unwrap());
    let size = expected
        .iter()
        .fold(0.0f64, |size, x| if x.is_finite() { size.max(x.abs()) } else { size });
    for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let bound = chain as f64 * ROUNDING * size + unit * expected.abs();
        let is_near = found == expected || (found - expected).abs() <= bound;
        assert!(is_near, "{what}: element {i} is {found}, not {expected} ± {bound:.1e}");
    }
}

/// Every method in every order of threads, blocks and streams: near the CPU, the same in each, and nothing reported.
/// The host waits for the one method that answers it, and for no other.
#[test]
fn each_method_is_that_of_the_cpu() {
    let cpu = CpuOps::new(Team::new(1));
    let cases = cases();
    let expected: Vec<_> = cases.iter().map(|case| case.on_cpu(&cpu)).collect();
    let mut first: Vec<Vec<Buf>> = Vec::new();
    for seed in 0..SEEDS {
        let machine = Machine::new(seed);
        for (at, (case, expected)) in cases.iter().zip(&expected).enumerate() {
            let found = case.on_gpu(&machine);
            machine.is_clean();
            case.check(&found, expected);
            match first.get(at) {
                Some(first) => {
                    for (found, first) in found.iter().zip(first) {
                        same(&format!("{} with seed {seed}", case.name()), found, first);
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
    let few: Vec<_> = cases().into_iter().filter(|case| SCRATCH.contains(&case.method)).collect();
    let mut counts = Vec::new();
    for _ in 0..2 {
        few.iter().for_each(|case| drop(case.on_gpu(&machine)));
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
    // Attention has a file of its own.
    let listed = kernel_methods!(names);
    let methods = listed.into_iter().filter(|name| !name.starts_with("attention"));
    let methods: BTreeSet<_> = methods.chain(["matmul", "linear"]).collect();
    let with_case: BTreeSet<_> = cases().iter().map(|case| case.method).collect();
    assert_eq!(methods, with_case);
}
