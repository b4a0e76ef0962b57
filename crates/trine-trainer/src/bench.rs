//! Speed of training steps, without files: synthetic tokens through the real engine.

use crate::TrainError;
use crate::config::Config;
use crate::engine::{Batch, Engine};
use crate::run::RANKS;
use std::time::Instant;
use trine_comm::threads;
use trine_rng::Stream;

/// Steps that are not timed: memory is first touched there.
const WARM_UP_STEPS: u64 = 2;

/// Tokens per second of `config`'s training steps (forward, backward, reduction and update) on
/// `cores` cores, over `steps` timed steps.
///
/// # Errors
/// What does not fit, or the first failure of a rank.
pub fn tokens_per_second(config: &Config, cores: usize, steps: u64) -> Result<f64, TrainError> {
    let engine = config.engine(cores)?;
    let seconds = threads::run(engine.degrees.world(), &RANKS, |comm| {
        let mut rank = Engine::new(&engine, comm)?;
        let samples = engine.global_batch / engine.degrees.dp;
        let batch = synthetic(samples * engine.seq, engine.model.vocab, config.seed);
        let mut started = Instant::now();
        for step in 0..WARM_UP_STEPS + steps {
            if step == WARM_UP_STEPS {
                rank.world().barrier("bench")?;
                started = Instant::now();
            }
            rank.backward(step, &batch, &mut |_, _, _| {})?;
            rank.update(step + 1, config.optimizer.lr)?;
        }
        rank.world().barrier("bench")?;
        Ok::<_, TrainError>(started.elapsed().as_secs_f64())
    })
    .map_err(|error| TrainError::Ranks(error.to_string()))?;
    let tokens = steps as usize * engine.global_batch * engine.seq;
    Ok(tokens as f64 / seconds.into_iter().fold(f64::MIN_POSITIVE, f64::max))
}

/// Tokens drawn evenly from the vocabulary, each the target of the one before.
fn synthetic(tokens: usize, vocab: usize, seed: u64) -> Batch {
    let stream = Stream::new(seed, "bench tokens");
    let id = |at: usize| (stream.uniform(at as u64) * vocab as f32) as u32;
    let inputs: Vec<u32> = (0..tokens).map(id).collect();
    let targets = (1..=tokens).map(id).collect();
    Batch { inputs, targets, document_start: None }
}
