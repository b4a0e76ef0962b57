//! A small Llama in 3D parallelism, eight ranks as threads, in a training loop of one's own.
#![expect(clippy::print_stdout, reason = "an example shows what it finds")]

use std::error::Error;
use trine::comm::threads;
use trine::mesh::{Degrees, Mesh};
use trine::spec::{ModelSpec, presets};
use trine::trainer::TrainError;
use trine::trainer::engine::{Batch, Engine, EngineConfig};

/// What one data-parallel rank sees in a step: sequences in which each token follows from the one before.
fn batch(step: usize, dp_index: usize, config: &EngineConfig) -> Batch {
    let vocab = config.model.vocab;
    let each = config.global_batch / config.degrees.dp;
    let first = step * config.global_batch + dp_index * each;
    let next = move |token: &usize| Some((token * 5 + 3) % vocab);
    let tokens = |skip: usize| {
        let samples = first..first + each;
        let of = |sample: usize| std::iter::successors(Some(sample % vocab), next).skip(skip);
        samples.flat_map(|sample| of(sample).take(config.seq)).map(|token| token as u32).collect()
    };
    Batch { inputs: tokens(0), targets: tokens(1), document_start: None }
}

fn main() -> Result<(), Box<dyn Error>> {
    let wide = presets::find("llama2-7b")?.model;
    let narrow = ModelSpec { hidden: 32, heads: 4, kv_heads: 4, head_dim: 8, ffn: 64, ..wide };
    let model = ModelSpec { layers: 2, vocab: 64, seq_max: 16, ..narrow };
    let config = EngineConfig {
        degrees: Degrees { dp: 2, pp: 2, tp: 2, ..Degrees::SERIAL },
        global_batch: 16,
        micro_batch: 2,
        ..EngineConfig::serial(model)
    };
    let mesh = Mesh::new(config.degrees, config.degrees.world())?;
    let losses = threads::run(mesh.world(), &Default::default(), |comm| {
        let dp_index = mesh.coordinate(comm.rank()).dp;
        let mut engine = Engine::new(&config, comm)?;
        let step = |step| {
            let batch = batch(step, dp_index, &config);
            Ok::<_, TrainError>(
                engine.train(step as u64, 0.01, &batch, &mut |_, _, _| {})?.0.mean(),
            )
        };
        (0..40).map(step).collect::<Result<Vec<f64>, _>>()
    })?;
    for (step, loss) in losses[0].iter().enumerate().step_by(13) {
        println!("step {step:>2}: loss {loss:.3}");
    }
    Ok(())
}
