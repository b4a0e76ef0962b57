//! How much a model magnifies what is rounded, measured in f64.

use crate::{Mutation, Outcome};
use trine_buffer::Buf;
use trine_rng::Stream;
use trine_trainer::TrainError;
use trine_trainer::engine::{Engine, WEIGHTS};
use trine_trainer::parity::worst;

/// By which part of itself a weight is changed: far above what f64 rounds, far below what bends a gradient.
const CHANGE: f64 = 1e-7;

/// Changes of all weights that are tried: what one of them comes to is off by a factor of two.
const TRIES: u64 = 8;

/// How many times larger the relative change of the gradients is than that of the weights, each of which changes by
/// itself: what [`trine_testkit::tolerance::magnified`] takes. `exact` is a serial step in f64 with one copy of what
/// is tied, and `step` is the same one.
///
/// # Errors
/// What `step` returns.
pub fn condition(
    exact: &Outcome,
    step: impl Fn(&Mutation<'_>) -> Result<Outcome, String>,
) -> Result<f64, String> {
    let mut squares = 0.0;
    for number in 0..TRIES {
        let begin = |engine: &mut Engine| change(engine, number);
        let changed = step(&Mutation { begin: &begin, ..Mutation::NONE })?;
        squares += (worst(&changed.grads, &exact.grads).1 / CHANGE).powi(2);
    }
    Ok((squares / TRIES as f64).sqrt())
}

fn change(engine: &mut Engine, number: u64) -> Result<(), TrainError> {
    for bucket in 0..engine.layout().buckets.len() {
        let mut weights = engine.full_bucket(WEIGHTS, bucket)?.to_f64_vec()?;
        let mut noise = vec![0.0; weights.len()];
        let stream = Stream::new(number, &format!("change of bucket {bucket}"));
        stream.fill_normal(0, 1.0, &mut noise);
        for (weight, noise) in weights.iter_mut().zip(noise) {
            *weight *= 1.0 + CHANGE * f64::from(noise);
        }
        engine.load_bucket(WEIGHTS, bucket, &Buf::from_vec(weights))?;
    }
    Ok(())
}
