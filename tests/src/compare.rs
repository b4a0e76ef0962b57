//! The comparison of a run with the serial one, for layouts that must pass it and for mutants that
//! must not.

use crate::Outcome;
use std::fmt;
use trine_buffer::DType;
use trine_spec::ModelSpec;
use trine_testkit::tolerance;
use trine_trainer::parity::worst;

/// One thing that is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Check {
    /// The run ends without an error, and all ranks agree about what they share.
    Run,
    /// The weights before the first step.
    Initial,
    /// The loss of the first step.
    Loss,
    /// Every gradient of the first step.
    Gradients,
    /// The norm of the gradients.
    Norm,
    /// The weights after an update, where they have to be equal.
    Weights,
    /// The loss after an update.
    LossAfter,
}

/// A check that a run fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Which.
    pub check: Check,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.check, self.message)
    }
}

/// How much further off the loss may be after an update. AdamW divides a gradient by its size, so
/// what rounding leaves of a gradient that is zero in exact arithmetic moves its weight by a full
/// step, this way or that.
const AFTER_UPDATE: f64 = 8.0;

/// The type of the serial run that a layout in `compute` is held against in fast numerics, and how far from it the
/// layout may be: in bf16 that of bf16, else the exact one in f64.
pub fn beside(compute: DType, model: &ModelSpec, tp: usize) -> (DType, f64) {
    match compute {
        DType::Bf16 => (DType::Bf16, tolerance::bound_beside_serial(DType::Bf16, model, tp)),
        _ => (DType::F64, tolerance::bound(compute, model)),
    }
}

/// The checks that a run in fast numerics fails: the initial weights must be equal, everything else
/// within `bound` of the serial run ([`beside`]).
pub fn findings(got: &Result<Outcome, String>, exact: &Outcome, bound: f64) -> Vec<Finding> {
    let got = match got {
        Ok(got) => got,
        Err(message) => return vec![Finding { check: Check::Run, message: message.clone() }],
    };
    let mut found = Vec::new();
    let mut find = |check, wrong: bool, message: String| {
        if wrong {
            found.push(Finding { check, message });
        }
    };
    find(Check::Initial, got.initial != exact.initial, "other initial weights".into());
    let (name, error) = worst(&got.grads, &exact.grads);
    let message = format!("that of {name} is off by {error:e} > {bound:e}");
    find(Check::Gradients, error.is_nan() || error > bound, message);
    for (check, value, exact, bound) in [
        (Check::Loss, got.loss, exact.loss, bound),
        (Check::Norm, got.norm, exact.norm, bound),
        (Check::LossAfter, got.loss_after, exact.loss_after, AFTER_UPDATE * bound),
    ] {
        let error = (value - exact).abs() / exact;
        find(check, error.is_nan() || error > bound, format!("{value} instead of {exact}"));
    }
    found
}

/// The checks that a run in reference numerics fails: everything must be equal to the serial run to the bit.
pub fn different_bits(got: &Result<Outcome, String>, exact: &Outcome) -> Vec<Finding> {
    let got = match got {
        Ok(got) => got,
        Err(message) => return vec![Finding { check: Check::Run, message: message.clone() }],
    };
    let mut found = Vec::new();
    let unequal = got.grads.iter().filter(|(name, grad)| exact.grads.get(*name) != Some(grad));
    let names: Vec<&str> = unequal.map(|(name, _)| name.as_str()).collect();
    if let Some(first) = names.first() {
        let (name, error) = worst(&got.grads, &exact.grads);
        let count = names.len();
        let message = format!("{count} differ, {first} and others; {name} by {error:e}");
        found.push(Finding { check: Check::Gradients, message });
    }
    for (check, equal, which) in [
        (Check::Initial, got.initial == exact.initial, "initial weights"),
        (Check::Weights, got.weights == exact.weights, "weights after an update"),
    ] {
        if !equal {
            found.push(Finding { check, message: format!("other {which}") });
        }
    }
    for (check, value, exact) in [
        (Check::Loss, got.loss, exact.loss),
        (Check::Norm, got.norm, exact.norm),
        (Check::LossAfter, got.loss_after, exact.loss_after),
    ] {
        if value.to_bits() != exact.to_bits() {
            found.push(Finding { check, message: format!("{value} instead of {exact}") });
        }
    }
    found
}
