//! A search for a layout that is not the serial run: cases are drawn from a table of options, and each
//! runs serially and in parallel.
//!
//! The cases are a pure function of the seed and their number. A case is a JSON object of the options that
//! do not have their simplest value, so it can be run again, and it can be made smaller.

mod options;
pub mod table;

pub use options::{Device, Documents, Promise, Row, Setup, options, recompute};

use crate::compare::{Check, Finding, beside, different_bits, findings};
use crate::condition::condition;
use crate::gpu::{Accesses, Machine};
use crate::{Mutation, Outcome, step_on};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::str::FromStr;
use trine_buffer::DType;
use trine_models::zoo;
use trine_nn::Numerics;
use trine_rng::{Permutation, Stream};
use trine_spec::ModelSpec;
use trine_spec::assemble::Tensors;
use trine_testkit::tolerance;
use trine_trainer::RunPlan;
use trine_trainer::engine::EngineConfig;

/// Options with values other than the simplest, by name.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Case(Map<String, Value>);

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Value::Object(self.0.clone()))
    }
}

impl FromStr for Case {
    type Err = serde_json::Error;

    fn from_str(text: &str) -> serde_json::Result<Self> {
        serde_json::from_str(text).map(Self)
    }
}

impl Case {
    /// The value of an option.
    pub fn value<'a>(&'a self, row: &'a Row) -> &'a Value {
        self.0.get(row.name).unwrap_or(&row.values[0])
    }

    /// The case with another value of an option.
    #[must_use]
    pub fn with(&self, row: &Row, value: &Value) -> Self {
        let mut options = self.0.clone();
        if *value == row.values[0] {
            options.remove(row.name);
        } else {
            options.insert(row.name.to_owned(), value.clone());
        }
        Self(options)
    }

    /// The names of options that do not have their simplest value.
    pub fn names(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }
}

/// The table of options, and what is done with it.
#[derive(Debug)]
pub struct Space {
    /// The table.
    pub rows: Vec<Row>,
}

/// A case, and what was refused on the way to it.
#[derive(Debug, Clone, PartialEq)]
pub struct Drawn {
    /// The case: it has a plan.
    pub case: Case,
    /// Why other values were refused beside those drawn before them.
    pub refused: Vec<String>,
}

/// A case that is not the serial run.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    /// Its number, from 0.
    pub number: u64,
    /// The case.
    pub case: Case,
    /// The checks that it fails.
    pub findings: Vec<Finding>,
}

/// How often each value of each option was drawn.
pub type Counts = Vec<Vec<u64>>;

/// What became of the cases of a search.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Report {
    /// Cases compared.
    pub compared: u64,
    /// What they are made of.
    pub drawn: Counts,
    /// How often a value was refused, by reason; `N` stands for numbers.
    pub refused: BTreeMap<String, u64>,
    /// What was found.
    pub failures: Vec<Failure>,
}

impl Default for Space {
    fn default() -> Self {
        Self { rows: options() }
    }
}

impl Space {
    /// What a case stands for.
    ///
    /// # Errors
    /// An option or a value that is not known.
    pub fn setup(&self, case: &Case) -> Result<Setup, String> {
        let known = |name: &&String| self.rows.iter().any(|row| row.name == **name);
        if let Some(name) = case.0.keys().find(|name| !known(name)) {
            let names: Vec<&str> = self.rows.iter().map(|row| row.name).collect();
            return Err(format!("no option is called {name:?}; there are {}", names.join(", ")));
        }
        let mut setup = Setup::blank();
        self.rows.iter().try_for_each(|row| row.set(&mut setup, case.value(row)))?;
        Ok(setup)
    }

    /// The plan of a case, or why it is refused.
    fn plan(&self, case: &Case) -> Result<RunPlan, String> {
        self.setup(case)?.plan()
    }

    /// The cases of a seed, one after another. Options are drawn in an order of its own for each, and of an option the
    /// value that was drawn least often before. One that is refused beside those drawn before is passed over for the
    /// next: at last for the simplest, which stood there.
    pub fn cases(&self, seed: u64) -> impl Iterator<Item = Drawn> + '_ {
        let mut counts = self.no_counts();
        (0..).map(move |number| {
            let drawn = self.draw(seed, number, &counts);
            self.count(&mut counts, &drawn.case);
            drawn
        })
    }

    fn draw(&self, seed: u64, number: u64, counts: &Counts) -> Drawn {
        let mut drawn = Drawn { case: Case::default(), refused: Vec::new() };
        let shuffled = |len: usize, what: &str| {
            let stream = Stream::new(seed, &format!("search.{number}.{what}"));
            let order = Permutation::new(len as u64, stream);
            (0..len as u64).map(move |at| order.get(at) as usize)
        };
        for at in shuffled(self.rows.len(), "options") {
            let row = &self.rows[at];
            let mut values: Vec<usize> = shuffled(row.values.len(), row.name).collect();
            values.sort_by_key(|value| counts[at][*value]);
            // The simplest value stands there already.
            for value in values.into_iter().take_while(|value| *value != 0) {
                let case = drawn.case.with(row, &row.values[value]);
                match self.plan(&case) {
                    Ok(_) => {
                        drawn.case = case;
                        break;
                    }
                    Err(reason) => drawn.refused.push(reason),
                }
            }
        }
        drawn
    }

    /// Compares the first `cases` cases of a seed; `each` is told of every one with what it fails.
    pub fn search(
        &self,
        seed: u64,
        cases: u64,
        mutation: &Mutation<'_>,
        each: &mut dyn FnMut(u64, &Case, &[Finding]),
    ) -> Report {
        let mut report = Report { drawn: self.no_counts(), ..Report::default() };
        for (number, Drawn { case, refused }) in (0..cases).zip(self.cases(seed)) {
            self.count(&mut report.drawn, &case);
            for reason in &refused {
                *report.refused.entry(without_numbers(reason)).or_default() += 1;
            }
            let findings = self.compare(&case, mutation);
            each(number, &case, &findings);
            report.compared += 1;
            if !findings.is_empty() {
                report.failures.push(Failure { number, case, findings });
            }
        }
        report
    }

    fn no_counts(&self) -> Counts {
        self.rows.iter().map(|row| vec![0; row.values.len()]).collect()
    }

    /// Counts the values of a case.
    fn count(&self, counts: &mut Counts, case: &Case) {
        for (row, counts) in self.rows.iter().zip(counts) {
            for (value, count) in row.values.iter().zip(counts) {
                *count += u64::from(value == case.value(row));
            }
        }
    }

    /// Values of options that no case of a report has, as `option = value`.
    pub fn never_drawn(&self, report: &Report) -> Vec<String> {
        let mut never = Vec::new();
        for (row, counts) in self.rows.iter().zip(&report.drawn) {
            let values = row.values.iter().zip(counts).filter(|(_, count)| **count == 0);
            never.extend(values.map(|(value, _)| format!("{} = {value}", row.name)));
        }
        never
    }

    /// The checks that a case fails; a case that is refused fails none.
    pub fn compare(&self, case: &Case, mutation: &Mutation<'_>) -> Vec<Finding> {
        let compared = catch_unwind(AssertUnwindSafe(|| {
            let setup = self.setup(case)?;
            Ok::<_, String>(match setup.plan() {
                Ok(plan) => held_against_serial(&setup, plan, mutation),
                Err(_) => Vec::new(),
            })
        }));
        let failed = |message| vec![Finding { check: Check::Run, message }];
        match compared {
            Ok(Ok(findings)) => findings,
            Ok(Err(message)) => failed(message),
            Err(_) => failed("panicked outside of its ranks".to_owned()),
        }
    }

    /// The gradients of a case's parallel run.
    ///
    /// # Errors
    /// Why it is refused, or fails.
    pub fn gradients(&self, case: &Case) -> Result<Tensors, String> {
        let setup = self.setup(case)?;
        Ok(run(&setup, setup.plan()?, setup.device, &Mutation::NONE)?.grads)
    }

    /// The smallest case that still fails: one option after another goes back to the simplest value with which it does,
    /// until none can.
    pub fn shrink(&self, case: &Case, fails: &dyn Fn(&Case) -> bool) -> Case {
        let mut smallest = case.clone();
        loop {
            let before = smallest.clone();
            for row in &self.rows {
                let own = smallest.value(row).clone();
                let simpler = row.values.iter().take_while(|value| **value != own);
                let mut cases = simpler.map(|value| smallest.with(row, value));
                if let Some(smaller) = cases.find(fails) {
                    smallest = smaller;
                }
            }
            if smallest == before {
                return smallest;
            }
        }
    }
}

/// A text in which `N` stands for each of its numbers. The digits of f32, 1f1b and zb-h1 are none.
fn without_numbers(text: &str) -> String {
    let mut kept = String::new();
    for part in text.split_inclusive(|letter: char| !letter.is_alphanumeric()) {
        let word = part.trim_end_matches(|letter: char| !letter.is_alphanumeric());
        let is_number = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
        kept.push_str(if is_number { "N" } else { word });
        kept.push_str(&part[word.len()..]);
    }
    kept
}

/// The checks that a run fails beside the serial one.
fn held_against_serial(setup: &Setup, plan: RunPlan, mutation: &Mutation<'_>) -> Vec<Finding> {
    match against_serial(setup, plan, mutation) {
        Ok(findings) => findings,
        Err(error) => {
            let message = format!("the serial run: {error}");
            vec![Finding { check: Check::Run, message }]
        }
    }
}

fn against_serial(
    setup: &Setup,
    plan: RunPlan,
    mutation: &Mutation<'_>,
) -> Result<Vec<Finding>, String> {
    let EngineConfig { numerics, compute, model, degrees, .. } = &setup.config;
    // Bits are those of the same device.
    let alone = if *numerics == Numerics::Reference { setup.device } else { Device::Cpu };
    let serial = |compute, mutation: &Mutation<'_>| {
        let config = EngineConfig { compute, ..setup.serial() };
        let plan = RunPlan::new(&config).map_err(|error| error.to_string())?;
        run(setup, plan, alone, mutation)
    };
    let got = run(setup, plan, setup.device, mutation);
    let alike = |compute| serial(compute, &Mutation::NONE);
    if *numerics == Numerics::Reference {
        return Ok(different_bits(&got, &alike(*compute)?));
    }
    // What a GPU rounds to bf16 differs from what the processor does, as where tensor-parallel ranks add up.
    let is_on_gpu = setup.device == Device::Gpu;
    let roundings_differ = degrees.tp > 1 || is_on_gpu;
    let (beside, bound) = beside(*compute, model, degrees.tp.max(1 + usize::from(is_on_gpu)));
    let beside = alike(beside)?;
    let found = findings(&got, &beside, bound);
    // One tensor-parallel rank rounds in bf16 what the serial run rounds: nothing is there to magnify.
    let same_roundings = *compute == DType::Bf16 && !roundings_differ;
    if found.is_empty() || got.is_err() || same_roundings {
        return Ok(found);
    }
    let condition = condition(&alike(DType::F64)?, |change| serial(DType::F64, change))?;
    Ok(findings(&got, &beside, bound * tolerance::magnified(model, condition)))
}

/// A step of a plan, without the rows that pad the vocabulary, whose number depends on the layout.
fn run(
    setup: &Setup,
    plan: RunPlan,
    device: Device,
    mutation: &Mutation<'_>,
) -> Result<Outcome, String> {
    let config = plan.config.clone();
    let batch = |dp_index| setup.batch(&config, dp_index);
    let step = |mutation: &Mutation<'_>| step_on(plan, &zoo, &batch, mutation);
    let mut outcome = match device {
        Device::Cpu => step(mutation)?,
        Device::Gpu => {
            let machine = Machine::new(1, config.degrees.world(), config.seed, Accesses::Off)?;
            machine.run(mutation, step)?
        }
    };
    for tensors in [&mut outcome.initial, &mut outcome.grads, &mut outcome.weights] {
        unpad(&setup.config.model, tensors);
    }
    Ok(outcome)
}

fn unpad(model: &ModelSpec, tensors: &mut Tensors) {
    let params = model.pieces().flat_map(|piece| model.params(piece, 1));
    for param in params {
        if let Some(values) = tensors.get_mut(&param.name) {
            values.truncate(param.unpadded_len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_left_out_of_a_reason_and_names_are_not() {
        for (text, without) in [
            ("1f1b has 1 stage, not 12", "1f1b has N stage, not N"),
            ("zb-h1 in f32 at 0.25: 7", "zb-h1 in f32 at N.N: N"),
            ("4 × 8", "N × N"),
            ("", ""),
        ] {
            assert_eq!(without_numbers(text), without);
        }
    }
}
