//! A hundred steps of a tiny GPT on the GPU against the CPU's, which are committed.

use super::{Options, Outcome, text};
use crate::{ADAMW, serial};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use trine_buffer::DType;
use trine_comm::threads::{self, WorldOptions};
use trine_kernels::Ops;
use trine_testkit::toy;
use trine_trainer::engine::{Batch, Engine, EngineConfig};
use trine_trainer::run::Devices;
use trine_trainer::{RunPlan, TrainError};

/// Steps of the curve.
pub const STEPS: usize = 100;
/// Of those on a simulated GPU, which takes a while for each.
const STEPS_SIMULATED: usize = 20;
/// Batches that are met in turn.
const BATCHES: usize = 8;
const SAMPLES: usize = 4;
const RATE: f64 = 0.003;

/// How many times further from the exact curve a run may be than the CPU's in f32 has been so far. Both round as
/// often, in other orders: what becomes of it in the steps is of one size, not the same number.
const TIMES: f64 = 16.0;

/// Roundings of a loss by itself: its row's sum, its logarithm, the mean.
const ROUNDINGS: f64 = 4.0;

/// The committed curve, relative to the package.
pub const FILE: &str = "data/curve.json";
const COMMITTED: &str = include_str!("../../data/curve.json");

/// Losses of the CPU in nats per token, one for each step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Curve {
    /// In f64: exact, as far as f32 can tell.
    pub f64: Vec<f64>,
    /// In f32.
    pub f32: Vec<f64>,
}

fn config(compute: DType) -> EngineConfig {
    let (global_batch, micro_batch) = (SAMPLES, SAMPLES);
    EngineConfig { compute, optimizer: ADAMW, global_batch, micro_batch, ..serial(toy::gpt()) }
}

fn losses(compute: DType, steps: usize, devices: Option<&dyn Devices>) -> Result<Vec<f64>, String> {
    let config = config(compute);
    let plan = Arc::new(RunPlan::new(&config).map_err(text)?);
    let (inputs, targets) = toy::tokens(&config.model, BATCHES * SAMPLES, config.seq);
    let each = SAMPLES * config.seq;
    let ran = threads::run(1, &WorldOptions::default(), |comm| {
        let ops: Arc<dyn Ops> = match devices {
            None => config.cpu_ops()?,
            Some(devices) => devices.ops(0, config.numerics)?,
        };
        let mut engine = Engine::with_ops(plan.clone(), comm, ops)?;
        let mut losses = Vec::with_capacity(steps);
        for step in 0..steps {
            let own = step % BATCHES * each..(step % BATCHES + 1) * each;
            let (inputs, targets) = (inputs[own.clone()].to_vec(), targets[own].to_vec());
            let batch = Batch { inputs, targets, document_start: None };
            let (loss, _) = engine.train(step as u64, RATE, &batch, &mut |_, _, _| {})?;
            losses.push(loss.mean());
        }
        Ok::<_, TrainError>(losses)
    });
    Ok(ran.map_err(text)?.remove(0))
}

impl Curve {
    /// The curve of this CPU.
    ///
    /// # Errors
    /// A run that fails.
    pub fn of_cpu() -> Result<Self, String> {
        let [f64, f32] = [DType::F64, DType::F32].map(|compute| losses(compute, STEPS, None));
        Ok(Self { f64: f64?, f32: f32? })
    }

    /// The committed one.
    ///
    /// # Errors
    /// If the file is none, or has another number of steps.
    pub fn committed() -> Result<Self, String> {
        let curve: Self = serde_json::from_str(COMMITTED).map_err(text)?;
        let lengths = [curve.f64.len(), curve.f32.len()];
        let why = || format!("{FILE} has {lengths:?} steps instead of {STEPS}");
        if lengths == [STEPS; 2] { Ok(curve) } else { Err(why()) }
    }

    /// As its file.
    ///
    /// # Errors
    /// A number that is none.
    pub fn to_text(&self) -> Result<String, String> {
        Ok(serde_json::to_string_pretty(self).map_err(text)? + "\n")
    }

    /// How far a loss in f32 may be from the exact one, for each step: a few roundings of the first loss at least, and
    /// a multiple of what the CPU's own f32 has been off so far.
    pub fn bounds(&self) -> Vec<f64> {
        let mut most = 0.0f64;
        let least = ROUNDINGS * DType::F32.epsilon() * self.f64[0];
        let both = self.f64.iter().zip(&self.f32);
        both.map(|(exact, rounded)| {
            most = most.max((exact - rounded).abs());
            least.max(TIMES * most)
        })
        .collect()
    }

    /// Holds losses in f32 against it; how much of its bound the worst one takes.
    ///
    /// # Errors
    /// The first step that is too far off.
    pub fn compare(&self, losses: &[f64]) -> Result<f64, String> {
        let mut worst = 0.0f64;
        for (step, (loss, bound)) in losses.iter().zip(self.bounds()).enumerate() {
            let (exact, off) = (self.f64[step], (loss - self.f64[step]).abs());
            if off.is_nan() || off > bound {
                return Err(format!("step {step}: {loss} instead of {exact} ± {bound:.1e}"));
            }
            worst = worst.max(off / bound);
        }
        Ok(worst)
    }
}

pub(super) fn run(options: &Options) -> Result<Outcome, String> {
    let steps = if options.simulated { STEPS_SIMULATED } else { STEPS };
    let (curve, machine) = (Curve::committed()?, options.sharing(1)?);
    let losses = losses(DType::F32, steps, Some(&machine.ranks))?;
    machine.found()?;
    let worst = curve.compare(&losses)? * 100.0;
    let (first, last) = (losses[0], losses[steps - 1]);
    let fell = format!("{steps} steps from {first:.3} to {last:.3} nats");
    Ok(Outcome::Passed(format!("{fell}, at most {worst:.0} % of the bound from the CPU's")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_curve_is_that_of_this_cpu() {
        let (committed, made) = (Curve::committed().unwrap(), Curve::of_cpu().unwrap());
        for (step, (a, b)) in committed.f64.iter().zip(&made.f64).enumerate() {
            assert!((a - b).abs() < 1e-9, "step {step}: {a} and {b}; --write-curve writes it anew");
        }
        let worst = committed.compare(&made.f32).unwrap();
        assert!(worst < 0.5, "{worst}");
        // It falls, so that a run that learns nothing is found.
        assert!(made.f64[STEPS - 1] < made.f64[0] - 1.0, "{made:?}");
    }

    #[test]
    fn another_curve_is_found() {
        let curve = Curve::committed().unwrap();
        let mut other = curve.f32.clone();
        other[7] += 1e-3;
        assert!(curve.compare(&other).unwrap_err().starts_with("step 7: "));
        other[7] = f64::NAN;
        assert!(curve.compare(&other).unwrap_err().contains("NaN"));
    }
}
