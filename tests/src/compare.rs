//! The comparison of a run with the serial one, for layouts that must pass it and for mutants that
//! must not.

use crate::Outcome;
use std::fmt;
use trine_testkit::assemble::Tensors;

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

/// The checks that a run in fast numerics fails: the initial weights must be equal, everything else
/// within `bound` of the serial run in f64.
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

/// The largest relative error of any gradient, with its name. In exact arithmetic some gradients are
/// zero (a key bias shifts all scores of a query alike), so what is left of them is the rounding of
/// terms that cancel: an error is measured against at least this parameter's share of the whole
/// gradient, as if all elements were of equal size.
///
/// # Panics
/// The two runs have other parameters.
pub fn worst(grads: &Tensors, exact: &Tensors) -> (String, f64) {
    assert!(grads.keys().eq(exact.keys()), "other parameters");
    let square = |values: &Vec<f64>| values.iter().map(|v| v * v).sum::<f64>();
    let elements: usize = exact.values().map(Vec::len).sum();
    let mean_square = exact.values().map(square).sum::<f64>() / elements as f64;
    let error = |(name, grad): (&String, &Vec<f64>)| {
        let exact = &exact[name];
        let difference: Vec<f64> = grad.iter().zip(exact).map(|(g, e)| g - e).collect();
        let size = square(exact).max(mean_square * exact.len() as f64);
        (name.clone(), (square(&difference) / size).sqrt())
    };
    let worst = grads.iter().map(error).max_by(|a, b| a.1.total_cmp(&b.1));
    worst.expect("invariant: a model has parameters")
}
