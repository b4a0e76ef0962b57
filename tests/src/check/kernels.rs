//! Every operation of `Ops` on the GPU against the CPU.

use super::{Options, Outcome, shortened, text};
use std::collections::BTreeSet;
use trine_kernels::{CpuOps, Isa, Ops, Team};
use trine_nn::Numerics;
use trine_testkit::ops::{Case, all_products, attention, cases, same};
use trine_trainer::run::Devices;

pub(super) fn run(options: &Options) -> Result<Outcome, String> {
    let machine = options.sharing(1)?;
    let ops = machine.ranks.ops(0, Numerics::Fast).map_err(text)?;
    let in_order = machine.ranks.ops(0, Numerics::Reference).map_err(text)?;
    let cpu = CpuOps::new(Team::new(1));
    let (mut checked, mut failures, mut methods) = (0, Vec::new(), BTreeSet::new());
    let mut found = |result: Result<(), String>| {
        checked += 1;
        failures.extend(result.err());
    };
    for case in cases() {
        methods.insert(case.method());
        found(near(&case, &*ops, &cpu));
    }
    let portable = CpuOps::with_isa(Team::new(1), Isa::Portable).map_err(text)?;
    all_products().iter().for_each(|case| found(equal(case, &*in_order, &portable)));
    for case in attention::cases() {
        let problem = attention::Problem::new(case);
        let expected = problem.expected(&cpu).map_err(text)?;
        found(problem.check(&*ops, &expected));
    }
    found(attention::check_merge(&*ops, &cpu));
    methods.extend(attention::METHODS);
    machine.found()?;
    if !failures.is_empty() {
        let count = failures.len();
        return Err(format!("{count} of {checked} calls: {}", shortened(&failures)));
    }
    let count = methods.len();
    Ok(Outcome::Passed(format!("{checked} calls of {count} operations agree with the CPU's")))
}

/// Within the bounds of a case.
fn near(case: &Case, ops: &dyn Ops, cpu: &CpuOps) -> Result<(), String> {
    let expected = case.on(cpu).map_err(text)?;
    let found = case.on(ops).map_err(|error| format!("{case:?}: {error}"))?;
    case.compare(&found, &expected)
}

/// To the bit.
fn equal(case: &Case, ops: &dyn Ops, cpu: &CpuOps) -> Result<(), String> {
    let expected = case.on(cpu).map_err(text)?;
    let found = case.on(ops).map_err(|error| format!("{case:?} in order: {error}"))?;
    for (found, expected) in found.iter().zip(&expected) {
        same(found, expected).map_err(|error| format!("{case:?} in order: {error}"))?;
    }
    Ok(())
}
