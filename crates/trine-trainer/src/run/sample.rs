//! Completions by a checkpoint.

use crate::TrainError;
use crate::config::Config;
use trine_buffer::SliceMut;
use trine_checkpoint::{Checkpoint, WEIGHTS};
use trine_data::Tokenizer;
use trine_generate::{Generator, Sampling};
use trine_models::zoo;

/// A prompt and what the model made of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    /// What was given.
    pub prompt: String,
    /// What came back.
    pub text: String,
}

/// Completes a prompt with the model of a checkpoint, on one rank. `on_text` is told the prompt once the model is
/// there, and then the text in pieces, as tokens come.
///
/// # Errors
/// A checkpoint that cannot be read, or sampling constants out of range.
pub fn complete(
    checkpoint: &Checkpoint,
    tokenizer: &Tokenizer,
    prompt: &str,
    config: &Config,
    threads: usize,
    on_text: &mut dyn FnMut(&str),
) -> Result<Completion, TrainError> {
    let model = checkpoint.manifest().model.parts(1)?;
    checkpoint.check_model(&model)?;
    let generator = Generator::with_pieces(&model, &zoo, threads, &mut |layout, bucket, out| {
        Ok(checkpoint.load_bucket(WEIGHTS, layout, bucket, SliceMut::F32(out))?)
    })?;
    let sample = &config.sample;
    let sampling = Sampling {
        temperature: sample.temperature,
        top_k: sample.top_k,
        top_p: sample.top_p,
        seed: config.seed,
    };
    let mut ids = tokenizer.encode(prompt)?;
    if ids.is_empty() {
        ids.push(tokenizer.end_of_text());
    }
    on_text(prompt);
    let end = Some(tokenizer.end_of_text());
    let mut made: Vec<u32> = Vec::new();
    let mut shown = 0;
    let tokens = generator.generate(&ids, sample.tokens, end, &sampling, &mut |token| {
        made.push(token);
        let text = tokenizer.decode(&made);
        // A character may still be incomplete: it is shown once its last byte is there.
        if !text.ends_with('\u{fffd}') && text.len() > shown {
            on_text(&text[shown..]);
            shown = text.len();
        }
    })?;
    Ok(Completion { prompt: prompt.into(), text: tokenizer.decode(&tokens) })
}
