//! Gradients of one step in two types, in files, for whoever compares them.

use super::{engine_of, synthetic};
use crate::TrainError;
use crate::config::Config;
use crate::engine::{Batch, Engine, EngineConfig};
use serde::Serialize;
use std::path::{Path, PathBuf};
use trine_buffer::{Buf, DType};
use trine_checkpoint::{Disk, RunState, SaveRequest, WEIGHTS, save};
use trine_comm::SelfComm;

/// What a checkpoint of [`gradients`] holds of each parameter beside its weights.
pub const GRADIENT: &str = "gradient";

/// The file that describes the step: tokens, losses, and where the gradients are.
pub const STEP_FILE: &str = "step.json";

/// How that file begins.
pub const STEP_FIRST: &str = "{\"written_by\":\"trine bench gradients\",";

/// The step in one type.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GradientStep {
    /// Type of weights and activations.
    pub compute: DType,
    /// Nats per token.
    pub loss: f64,
    /// The checkpoint with weights and gradients in the accumulator type, relative to the folder.
    pub checkpoint: PathBuf,
}

/// What [`STEP_FILE`] holds.
#[derive(Debug, Serialize)]
struct Written<'a> {
    /// First of all: so a file of ours is known ([`STEP_FIRST`]).
    written_by: &'static str,
    name: &'a str,
    sequences: usize,
    seq: usize,
    /// Row after row.
    inputs: &'a [u32],
    targets: &'a [u32],
    steps: &'a [GradientStep],
}

/// Runs one forward and backward pass over synthetic tokens on one rank, in `config`'s type and again
/// in f64, both from the very same initial weights (they are f32 numbers in any type). `dir` gets a
/// checkpoint of each, with the weights and the [`GRADIENT`] of the mean loss, not clipped, and then
/// [`STEP_FILE`].
///
/// # Errors
/// A layout of more than one rank, a loss that is not finite, or a file that cannot be written.
pub fn gradients(
    config: &Config,
    cores: usize,
    dir: &Path,
) -> Result<Vec<GradientStep>, TrainError> {
    let engine = engine_of(config, cores)?;
    let batch = synthetic(engine.global_batch * engine.seq, engine.model.vocab, config.seed);
    let mut steps = Vec::new();
    for compute in [engine.compute, DType::F64] {
        // One after the other: the weights, gradients and moments of both may not fit together.
        steps.push(step(&EngineConfig { compute, ..engine.clone() }, &batch, dir)?);
    }
    let written = Written {
        written_by: "trine bench gradients",
        name: &config.name,
        sequences: engine.global_batch,
        seq: engine.seq,
        inputs: &batch.inputs,
        targets: &batch.targets,
        steps: &steps,
    };
    let path = dir.join(STEP_FILE);
    let text = serde_json::to_string(&written).map_err(|e| TrainError::Json(e.to_string()))?;
    std::fs::write(&path, text + "\n").map_err(|source| TrainError::Io {
        what: "write",
        path,
        source,
    })?;
    Ok(steps)
}

/// The step in the type that `config` says, and its checkpoint.
fn step(config: &EngineConfig, batch: &Batch, dir: &Path) -> Result<GradientStep, TrainError> {
    let mut engine = Engine::new(config, SelfComm::new())?;
    let loss = engine.backward(0, batch, &mut |_, _, _| {})?.mean();
    let folder = dir.join(config.compute.to_string());
    let path = save(
        &SaveRequest {
            dir: &folder,
            model: &engine.plan().parts,
            mesh: &engine.plan().mesh,
            ranks: &engine.plan().ranks,
            dtype: config.compute.accumulator(),
            moments: &[GRADIENT],
            run: &RunState {
                step: 0,
                consumed_samples: 0,
                seed: config.seed,
                data_hash: "synthetic".to_owned(),
                tokenizer_hash: None,
                trainer: serde_json::Value::Null,
            },
            tokenizer: None,
            storage: &Disk,
        },
        &**engine.world(),
        &mut |quantity, bucket| match quantity {
            WEIGHTS => engine.full_bucket(WEIGHTS, bucket).map_err(Into::into),
            _ => gradient(&engine, bucket).map_err(Into::into),
        },
    )?;
    let checkpoint = path.strip_prefix(dir).map_or_else(|_| path.clone(), Path::to_owned);
    Ok(GradientStep { compute: config.compute, loss, checkpoint })
}

/// A copy of one bucket's gradient; that of what is frozen is zero.
fn gradient(engine: &Engine, bucket: usize) -> Result<Buf, TrainError> {
    let held = &engine.layout().buckets[bucket];
    if !held.trainable {
        return Ok(Buf::zeros(engine.grads().dtype(), held.len));
    }
    let sum = engine.grads().bucket(bucket)?;
    let mut copy = Buf::zeros(sum.dtype(), sum.len());
    copy.slice_mut().copy_from(sum.slice())?;
    Ok(copy)
}
