//! The fit: a few constants with a meaning each, on a quarter of the published rows, tested on the rest.

use crate::evaluate::{Compared, World};
use crate::published::{Outcome, PublishedRun, Run};
use crate::{Cluster, Constants, DeviceConstants, PlanError, Stack, StackConstants};
use std::collections::{BTreeMap, BTreeSet};

/// A device with too few complete rows: all constants but three are those of another device.
#[derive(Debug, Clone, Copy)]
struct Shared {
    device: &'static str,
    from: &'static str,
    own: [&'static str; 3],
    /// The only rows it may be fitted on, if not those that the hash chooses.
    rows: &'static [&'static str],
}

const SHARED: [Shared; 3] = [
    Shared {
        device: "mi250x",
        from: "a100",
        own: ["gemm_efficiency", "inside_efficiency", "between_efficiency"],
        rows: &["LUMI-PORO-34B", "FRONTIER-22B-script"],
    },
    Shared {
        device: "h100-500w",
        from: "h100",
        own: ["gemm_efficiency", "fp8_efficiency", "flash_efficiency"],
        rows: &[],
    },
    Shared {
        device: "gb200",
        from: "h100",
        own: ["gemm_efficiency", "fp8_efficiency", "flash_efficiency"],
        rows: &[],
    },
];

fn shared(device: &str) -> Option<&'static Shared> {
    SHARED.iter().find(|shared| shared.device == device)
}

/// Errors beyond this count linearly, not squared: a few odd rows must not bend the constants.
const ROBUST: f64 = 0.05;

/// Rounds of least squares.
const ROUNDS: usize = 60;

/// 64-bit FNV-1a: the hash that chooses the fit rows.
pub fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Which rows are for the fit: those with hash(row_id) mod 4 = 0, where rows that are equal in layout go by the
/// smallest row_id among them, and where devices with named rows (MI250X) go by those. If that is more than a quarter,
/// the rows with the largest hashes go back.
pub fn fit_rows(rows: &[PublishedRun], clusters: &[Cluster]) -> Vec<bool> {
    let mut first: BTreeMap<String, &str> = BTreeMap::new();
    for row in rows {
        let name = first.entry(row.layout_key()).or_insert(&row.row_id);
        *name = (*name).min(&row.row_id);
    }
    let hash = |row: &PublishedRun| fnv1a(first[&row.layout_key()]);
    let mut chosen: Vec<bool> = rows
        .iter()
        .map(|row| match &row.run {
            Ok(run) => match shared(&clusters[run.cluster].device.constants) {
                Some(shared) if !shared.rows.is_empty() => {
                    shared.rows.contains(&row.row_id.as_str())
                }
                _ => hash(row).is_multiple_of(4),
            },
            Err(_) => false,
        })
        .collect();
    while chosen.iter().filter(|fit| **fit).count() * 4 > rows.len() {
        let named = |row: &PublishedRun| {
            SHARED.iter().any(|shared| shared.rows.contains(&row.row_id.as_str()))
        };
        let open = |index: &usize| chosen[*index] && !named(&rows[*index]);
        let Some(last) = (0..rows.len()).filter(open).map(|index| hash(&rows[index])).max() else {
            break;
        };
        for (row, fit) in rows.iter().zip(&mut chosen) {
            *fit &= hash(row) != last;
        }
    }
    chosen
}

/// One constant of one owner, as the fit moves it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Knob {
    device: bool,
    owner: String,
    index: usize,
}

/// Errors of each source's rows when no row of that source was in the fit.
///
/// # Errors
/// A device or stack without constants to start from.
pub fn leave_one_source_out<'a>(
    fit: &Fit<'_>,
    rows: &'a [PublishedRun],
    chosen: &[bool],
) -> Result<Vec<(&'a str, Vec<f64>)>, PlanError> {
    let sources: BTreeSet<&str> = rows.iter().map(|row| row.source.as_str()).collect();
    let mut left_out = Vec::new();
    for source in sources {
        let others: Vec<&PublishedRun> = rows
            .iter()
            .zip(chosen)
            .filter(|(row, fit)| **fit && row.source != source)
            .map(|(row, _)| row)
            .collect();
        let constants = fit.run(&others)?;
        let world = World { clusters: fit.clusters, stacks: fit.stacks, constants: &constants };
        let mut errors = Vec::new();
        for row in rows.iter().filter(|row| row.source == source) {
            let compared = world.compare(std::slice::from_ref(row))?;
            errors.extend(compared[0].time_error().map(f64::abs));
        }
        if !errors.is_empty() {
            left_out.push((source, errors));
        }
    }
    Ok(left_out)
}

/// What to fit on.
#[derive(Debug, Clone, Copy)]
pub struct Fit<'a> {
    /// The machines.
    pub clusters: &'a [Cluster],
    /// The software.
    pub stacks: &'a [Stack],
    /// Where to start, and what unidentified constants stay near.
    pub start: &'a Constants,
}

impl Fit<'_> {
    /// Fits every constant that some row touches, by damped least squares on logarithms of predicted over published
    /// time and memory, each source counting as the square root of its rows; constants are drawn weakly to where they
    /// start. Devices with few rows come second, so that they do not move what they share.
    ///
    /// # Errors
    /// A device or stack without constants to start from.
    pub fn run(&self, rows: &[&PublishedRun]) -> Result<Constants, PlanError> {
        let few = |row: &&PublishedRun| match &row.run {
            Ok(run) => shared(&self.clusters[run.cluster].device.constants).is_some(),
            Err(_) => false,
        };
        let (few, many): (Vec<&PublishedRun>, Vec<&PublishedRun>) =
            rows.iter().copied().partition(few);
        let constants = self.round(&many, &few)?;
        Fit { start: &constants, ..*self }.round(&few, &many)
    }

    /// Fits the constants of devices and stacks that have more rows here than elsewhere.
    fn round(
        &self,
        rows: &[&PublishedRun],
        elsewhere: &[&PublishedRun],
    ) -> Result<Constants, PlanError> {
        let knobs = self.knobs(rows, elsewhere);
        let weights = weights(rows);
        let problem = Problem { fit: self, rows, weights: &weights, knobs: &knobs };
        let mut at: Vec<f64> = knobs.iter().map(|knob| position(self.start, knob)).collect();
        let start = at.clone();
        let mut damping = 1e-2;
        let (mut residuals, mut cost) = problem.residuals(&at, &start)?;
        for _ in 0..ROUNDS {
            let jacobian = problem.jacobian(&at, &start, &residuals)?;
            let step = solve(&jacobian, &residuals, damping);
            let next: Vec<f64> =
                at.iter().zip(&step).map(|(at, step)| (at - step).clamp(0.0, 1.0)).collect();
            let (new_residuals, new_cost) = problem.residuals(&next, &start)?;
            if new_cost < cost {
                (at, residuals, cost) = (next, new_residuals, new_cost);
                damping = (damping * 0.4f64).max(1e-7);
            } else {
                damping *= 4.0;
                if damping > 1e6 {
                    break;
                }
            }
        }
        Ok(problem.constants(&at))
    }

    /// The constants that rows touch; of devices with few rows, their own three.
    fn knobs(&self, rows: &[&PublishedRun], elsewhere: &[&PublishedRun]) -> Vec<Knob> {
        let count = |rows: &[&PublishedRun], stack: usize| {
            let name = self.stacks[stack].constants();
            let same = |run: &Run| self.stacks[run.stack].constants() == name;
            let of = |row: &&&PublishedRun| row.run.as_ref().is_ok_and(same);
            rows.iter().filter(of).count()
        };
        let mut knobs = BTreeSet::new();
        for row in rows {
            let Ok(run) = &row.run else { continue };
            let device = &self.clusters[run.cluster].device.constants;
            if row.time_s.is_some() {
                for (index, info) in DeviceConstants::INFO.iter().enumerate() {
                    if shared(device).is_none_or(|shared| shared.own.contains(&info.name)) {
                        knobs.insert(Knob { device: true, owner: device.clone(), index });
                    }
                }
            }
            if count(rows, run.stack) > count(elsewhere, run.stack) {
                let stack = self.stacks[run.stack].constants();
                for index in 0..StackConstants::INFO.len() {
                    knobs.insert(Knob { device: false, owner: stack.to_owned(), index });
                }
            }
        }
        knobs.into_iter().collect()
    }
}

/// A source with many rows must not drown the others.
fn weights(rows: &[&PublishedRun]) -> Vec<f64> {
    let mut count: BTreeMap<&str, f64> = BTreeMap::new();
    for row in rows {
        *count.entry(&row.sheet).or_default() += 1.0;
    }
    rows.iter().map(|row| count[row.sheet.as_str()].powf(-0.25)).collect()
}

struct Problem<'a> {
    fit: &'a Fit<'a>,
    rows: &'a [&'a PublishedRun],
    weights: &'a [f64],
    knobs: &'a [Knob],
}

impl Problem<'_> {
    /// The constants at a point of the unit cube.
    fn constants(&self, at: &[f64]) -> Constants {
        let mut constants = self.fit.start.clone();
        for (knob, at) in self.knobs.iter().zip(at) {
            set(&mut constants, knob, *at);
        }
        share(&mut constants);
        constants
    }

    /// Weighted residuals, then those of the pull to the start; and their cost.
    fn residuals(&self, at: &[f64], start: &[f64]) -> Result<(Vec<f64>, f64), PlanError> {
        let constants = self.constants(at);
        let world =
            World { clusters: self.fit.clusters, stacks: self.fit.stacks, constants: &constants };
        let mut residuals = Vec::with_capacity(3 * self.rows.len() + at.len());
        for (row, weight) in self.rows.iter().zip(self.weights) {
            let compared = world.compare(std::slice::from_ref(*row))?;
            residuals.extend(misses(&compared[0]).map(|miss| robust(miss) * weight));
        }
        residuals.extend(at.iter().zip(start).map(|(at, start)| PULL * (at - start)));
        let cost = residuals.iter().map(|residual| residual * residual).sum();
        Ok((residuals, cost))
    }

    /// Derivatives by forward differences, a column a knob.
    fn jacobian(
        &self,
        at: &[f64],
        start: &[f64],
        residuals: &[f64],
    ) -> Result<Vec<Vec<f64>>, PlanError> {
        const STEP: f64 = 1e-5;
        let column = |index: usize| {
            let mut moved = at.to_vec();
            let step = if moved[index] > 0.5 { -STEP } else { STEP };
            moved[index] += step;
            let (other, _) = self.residuals(&moved, start)?;
            Ok(other.iter().zip(residuals).map(|(other, here)| (other - here) / step).collect())
        };
        (0..at.len()).map(column).collect()
    }
}

/// How strongly a constant that nothing determines stays where it was; the unit is its whole range.
const PULL: f64 = 0.03;

/// Logarithms of predicted over published time and memory, and by how much a row that fitted is predicted not to, or
/// the other way round.
fn misses(compared: &Compared<'_>) -> impl Iterator<Item = f64> {
    let time = compared.time_error().map(|error| (1.0 + error).ln());
    let memory = compared.memory_error().map(|error| (1.0 + error).ln());
    let edge =
        compared.estimate.as_ref().ok().zip(compared.row.outcome).map(|(estimate, outcome)| {
            let over = (estimate.memory.total() / estimate.memory_bytes).ln();
            match outcome {
                Outcome::Fits => over.max(0.0),
                Outcome::OutOfMemory => over.min(0.0),
            }
        });
    [time.unwrap_or(0.0), memory.unwrap_or(0.0), edge.unwrap_or(0.0)].into_iter()
}

/// Squared below [`ROBUST`], linear above, once the residual is squared (Huber).
fn robust(miss: f64) -> f64 {
    let size = miss.abs();
    let flat = if size <= ROBUST { size } else { (2.0 * ROBUST * size - ROBUST * ROBUST).sqrt() };
    flat.copysign(miss)
}

/// Gives devices with few rows the constants that they share.
fn share(constants: &mut Constants) {
    for shared in SHARED {
        let from = constants.device.get(shared.from).copied();
        let Some((from, own)) = from.zip(constants.device.get_mut(shared.device)) else { continue };
        let mut values = from.values();
        for ((value, info), own) in values.iter_mut().zip(&DeviceConstants::INFO).zip(own.values())
        {
            if shared.own.contains(&info.name) {
                *value = own;
            }
        }
        *own = DeviceConstants::from_values(values);
    }
}

fn position(constants: &Constants, knob: &Knob) -> f64 {
    let (info, value) = if knob.device {
        let row = &constants.device[&knob.owner];
        (DeviceConstants::INFO[knob.index], row.values()[knob.index])
    } else {
        let row = &constants.stack[&knob.owner];
        (StackConstants::INFO[knob.index], row.values()[knob.index])
    };
    (value - info.low) / (info.high - info.low)
}

fn set(constants: &mut Constants, knob: &Knob, at: f64) {
    let value = |low: f64, high: f64| low + at * (high - low);
    if knob.device {
        if let Some(row) = constants.device.get_mut(&knob.owner) {
            let info = DeviceConstants::INFO[knob.index];
            let mut values = row.values();
            values[knob.index] = value(info.low, info.high);
            *row = DeviceConstants::from_values(values);
        }
    } else if let Some(row) = constants.stack.get_mut(&knob.owner) {
        let info = StackConstants::INFO[knob.index];
        let mut values = row.values();
        values[knob.index] = value(info.low, info.high);
        *row = StackConstants::from_values(values);
    }
}

/// (JᵀJ + λ (diag JᵀJ + 1e-9)) x = Jᵀr by Gaussian elimination; J by columns.
fn solve(jacobian: &[Vec<f64>], residuals: &[f64], damping: f64) -> Vec<f64> {
    let dot = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
    let n = jacobian.len();
    let mut rows: Vec<Vec<f64>> = (0..n)
        .map(|i| {
            let mut row: Vec<f64> = (0..n).map(|j| dot(&jacobian[i], &jacobian[j])).collect();
            row[i] += damping * row[i] + 1e-9;
            row.push(dot(&jacobian[i], residuals));
            row
        })
        .collect();
    // Positive definite: no pivoting needed.
    for pivot in 0..n {
        let head = rows[pivot].clone();
        for row in &mut rows[pivot + 1..] {
            let by = row[pivot] / head[pivot];
            for (value, above) in row.iter_mut().zip(&head).skip(pivot) {
                *value -= by * above;
            }
        }
    }
    let mut x = vec![0.0; n];
    for i in (0..n).rev() {
        let known: f64 = (i + 1..n).map(|j| rows[i][j] * x[j]).sum();
        x[i] = (rows[i][n] - known) / rows[i][i];
    }
    x
}
