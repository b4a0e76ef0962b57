//! A model that the zoo does not have: a gated convolution written in candle and a parallel block written in `Ops`
//! between blocks of Llama. It is planned, trained in several layouts and held against one rank, saved, loaded in
//! another layout, resumed, evaluated and sampled from. What differs ends the program with an error.
#![expect(clippy::print_stdout, reason = "an example shows what it finds")]

mod convolution;
mod parallel;

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use trine::buffer::{Buf, DType, SliceMut};
use trine::checkpoint::{Check, Checkpoint, Disk, RunState, SaveRequest, WEIGHTS, latest, save};
use trine::comm::{Communicator, threads};
use trine::generate::{Generator, Sampling};
use trine::mesh::Degrees;
use trine::models::{Builder, PieceLayer, zoo};
use trine::nn::{NnError, Numerics};
use trine::schedule::ScheduleKind;
use trine::spec::{ModelParts, ModelSpec, Piece, PieceParts, Recompute, SpecError, presets};
use trine::trainer::engine::{Batch, Engine, EngineConfig};
use trine::trainer::parity::{gradients_of, worst};
use trine::trainer::{RankMemory, RunPlan, TrainError};

type Anything<T> = Result<T, Box<dyn Error>>;

/// The pieces as `tp` ranks share them.
fn parts(spec: &ModelSpec, tp: usize) -> Result<ModelParts, SpecError> {
    let mut parts = spec.parts(tp)?;
    parts.replace(1, convolution::piece(1, spec))?;
    parts.replace(2, parallel::piece(2, spec, tp))?;
    Ok(parts)
}

/// The layer of a piece.
fn build(b: &Builder<'_>, part: &PieceParts) -> Result<PieceLayer, NnError> {
    match (part.own_name(), part.piece) {
        (Some(convolution::KIND), Piece::Block(index)) => convolution::layer(b, index),
        (Some(parallel::KIND), Piece::Block(index)) => parallel::layer(b, index),
        _ => zoo(b, part),
    }
}

fn plan(config: &EngineConfig) -> Result<Arc<RunPlan>, TrainError> {
    Ok(Arc::new(RunPlan::of_parts(config, parts(&config.model, config.degrees.tp)?)?))
}

fn engine(plan: &Arc<RunPlan>, comm: Arc<dyn Communicator>) -> Result<Engine, TrainError> {
    Engine::with_pieces(plan.clone(), comm, plan.config.cpu_ops()?, &build)
}

/// What one data-parallel rank sees in a step: sequences in which each token follows from the one before.
fn batch(config: &EngineConfig, step: u64, dp_index: usize) -> Batch {
    let each = config.global_batch / config.degrees.dp;
    let first = step as usize * config.global_batch + dp_index * each;
    let tokens = |skip: usize| {
        let samples = first..first + each;
        let of = |sample: usize| std::iter::successors(Some(sample % config.model.vocab), follows);
        samples.flat_map(|s| of(s).skip(skip).take(config.seq)).map(|token| token as u32).collect()
    };
    Batch { inputs: tokens(0), targets: tokens(1), document_start: None }
}

/// The token behind a token.
fn follows(token: &usize) -> Option<usize> {
    Some((token * 5 + 3) % 32)
}

/// Runs every rank of a plan as a thread.
fn ranks<T: Send>(
    plan: &Arc<RunPlan>,
    run: impl Fn(&mut Engine) -> Result<T, TrainError> + Sync,
) -> Anything<Vec<T>> {
    let world = plan.mesh.world();
    Ok(threads::run(world, &Default::default(), |comm| run(&mut engine(plan, comm)?))?)
}

/// Steps `first..last` on every rank: the losses.
fn train(engine: &mut Engine, first: u64, last: u64) -> Result<Vec<f64>, TrainError> {
    let (config, dp) = (engine.config().clone(), engine.coordinate().dp);
    let mut losses = Vec::new();
    for step in first..last {
        let batch = batch(&config, step, dp);
        losses.push(engine.train(step, 0.02, &batch, &mut |_, _, _| {})?.0.mean());
    }
    Ok(losses)
}

/// The gradients of a step in each layout beside those of one rank.
fn compare_gradients(serial: &EngineConfig) -> Anything<()> {
    let degrees = |dp, pp, tp| Degrees { dp, pp, tp, ..Degrees::SERIAL };
    let all = EngineConfig { degrees: degrees(2, 2, 2), ..serial.clone() };
    let gradients = |config: &EngineConfig| {
        gradients_of(&plan(config)?, &build, &|dp_index| batch(config, 0, dp_index))
    };
    for (numerics, compute, bound) in [
        (Numerics::Reference, DType::F32, 0.0),
        (Numerics::Fast, DType::F32, 1e-5),
        (Numerics::Fast, DType::Bf16, 0.05),
    ] {
        let exact = gradients(&EngineConfig { numerics, compute, ..serial.clone() })?;
        for layout in [
            all.clone(),
            EngineConfig { sequence_parallel: false, ..all.clone() },
            EngineConfig {
                degrees: degrees(1, 4, 1),
                schedule: ScheduleKind::ZbH1.into(),
                ..all.clone()
            },
            EngineConfig { schedule: ScheduleKind::ZbV.into(), virtual_stages: 2, ..all.clone() },
            EngineConfig { recompute: true.into(), degrees: degrees(1, 1, 4), ..all.clone() },
        ] {
            let got = gradients(&EngineConfig { numerics, compute, ..layout.clone() })?;
            let (parameter, error) = worst(&got, &exact);
            println!(
                "{numerics:?} {compute}, {}, {}{}{}: {} gradients within {error:.1e} of one rank's",
                layout.degrees,
                layout.schedule,
                if layout.sequence_parallel { ", tokens split" } else { "" },
                if layout.recompute != Recompute::None { ", recomputed" } else { "" },
                got.len(),
            );
            if got.len() != exact.len() || error.is_nan() || error > bound {
                return Err(format!("the gradient of {parameter} is off by {error:e}").into());
            }
        }
    }
    Ok(())
}

/// What ranks were planned to hold beside what they held.
fn compare_memory(config: &EngineConfig) -> Anything<()> {
    let measured = ranks(&plan(config)?, |engine| {
        train(engine, 0, 1)?;
        let at = engine.coordinate();
        Ok((engine.plan().memory(at.pp, at.tp), RankMemory::measured(engine)))
    })?;
    for (rank, (planned, held)) in measured.iter().enumerate() {
        let activations = |memory: &RankMemory| memory.activations.unwrap_or(0);
        let (planned_peak, peak) = (activations(planned), activations(held));
        println!(
            "rank {rank} holds {} bytes as planned, and at most {peak} of activations (planned {planned_peak})",
            held.state.total(),
        );
        if planned.state != held.state || planned.buffers != held.buffers {
            return Err(format!("planned {planned:?}, held {held:?}").into());
        }
        if (planned_peak as f64 / peak as f64 - 1.0).abs() > 0.03 {
            return Err(
                format!("activations of {planned_peak} bytes were planned, not {peak}").into()
            );
        }
    }
    Ok(())
}

/// Saves what an engine holds behind `step` steps.
fn save_step(engine: &Engine, dir: &Path, step: u64) -> Result<(), TrainError> {
    let (config, plan) = (engine.config(), engine.plan());
    let run = RunState {
        step,
        consumed_samples: step * config.global_batch as u64,
        seed: config.seed,
        data_hash: "made up".into(),
        tokenizer_hash: None,
        trainer: Default::default(),
    };
    let request = SaveRequest {
        dir,
        model: &plan.parts,
        mesh: &plan.mesh,
        ranks: &plan.ranks,
        dtype: config.compute.accumulator(),
        moments: engine.moments(),
        run: &run,
        tokenizer: None,
        storage: &Disk,
    };
    let whole = &mut |quantity: &str, bucket| Ok(engine.full_bucket(quantity, bucket)?);
    save(&request, &**engine.world(), whole)?;
    Ok(())
}

/// Loads this rank's part of a checkpoint that any layout has written.
fn load(engine: &mut Engine, checkpoint: &Checkpoint) -> Result<(), TrainError> {
    checkpoint.check_model(&engine.plan().parts)?;
    let (layout, moments) = (engine.layout().clone(), engine.moments());
    for quantity in [WEIGHTS].iter().chain(moments) {
        for (index, bucket) in layout.buckets.iter().enumerate() {
            let mut all = Buf::zeros(engine.config().compute.accumulator(), bucket.len);
            checkpoint.load_bucket(quantity, &layout, index, all.slice_mut())?;
            engine.load_bucket(quantity, index, &all)?;
        }
    }
    Ok(())
}

/// Trains in one layout, goes on in another, and compares with never having stopped.
fn save_and_resume(config: &EngineConfig, dir: &Path) -> Anything<Checkpoint> {
    let straight = ranks(&plan(config)?, |engine| train(engine, 0, 24))?;
    ranks(&plan(config)?, |engine| {
        train(engine, 0, 20)?;
        save_step(engine, dir, 20)
    })?;
    let found = latest(dir, Check::Checksums)?.checkpoint;
    let checkpoint = found.ok_or("no checkpoint was saved")?;
    let other = EngineConfig {
        degrees: Degrees { pp: 4, ..Degrees::SERIAL },
        schedule: ScheduleKind::ZbH1.into(),
        ..config.clone()
    };
    let resumed = ranks(&plan(&other)?, |engine| {
        load(engine, &checkpoint)?;
        let before = engine.evaluate(&batch(&other, 50, 0))?.mean();
        Ok((before, train(engine, 20, 24)?))
    })?;
    let (evaluated, losses) = &resumed[0];
    println!("saved at step 20 in {}, evaluated there: {evaluated:.3}", config.degrees);
    println!("resumed in {}: losses to {:.3}, to the bit", other.degrees, losses[losses.len() - 1]);
    if losses[..] != straight[0][20..] {
        return Err(format!("resumed: {losses:?}, never stopped: {:?}", &straight[0][20..]).into());
    }
    Ok(checkpoint)
}

/// Continues a sequence with a checkpoint's weights on one rank.
fn sample(checkpoint: &Checkpoint, spec: &ModelSpec) -> Anything<()> {
    let weights = &mut |layout: &_, bucket, out: &mut [f32]| {
        Ok(checkpoint.load_bucket(WEIGHTS, layout, bucket, SliceMut::F32(out))?)
    };
    let generator = Generator::with_pieces(&parts(spec, 1)?, &build, 1, weights)?;
    let greedy = Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, seed: 1 };
    let made = generator.generate(&[7, 6, 1, 8], 6, None, &greedy, &mut |_| {})?;
    let right: Vec<u32> =
        std::iter::successors(follows(&8), follows).take(6).map(|token| token as u32).collect();
    println!("sampled {made:?}; the rule gives {right:?}");
    Ok(())
}

fn main() -> Anything<()> {
    let wide = presets::find("llama2-7b")?.model;
    let narrow = ModelSpec { hidden: 32, heads: 8, kv_heads: 8, head_dim: 4, ffn: 64, ..wide };
    let spec = ModelSpec { layers: 4, vocab: 32, seq_max: 16, ..narrow };
    let serial =
        EngineConfig { global_batch: 8, micro_batch: 2, ..EngineConfig::serial(spec.clone()) };
    compare_gradients(&serial)?;
    let degrees = Degrees { dp: 2, pp: 2, tp: 2, ..Degrees::SERIAL };
    compare_memory(&EngineConfig { degrees, ..serial.clone() })?;
    let dir = std::env::temp_dir().join(format!("trine-own-model-{}", std::process::id()));
    let config = EngineConfig { degrees, numerics: Numerics::Reference, ..serial };
    let checkpoint = save_and_resume(&config, &dir);
    let sampled = checkpoint.and_then(|checkpoint| sample(&checkpoint, &spec));
    std::fs::remove_dir_all(&dir)?;
    sampled
}
