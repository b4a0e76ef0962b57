//! Sequences of several documents, from the stream of tokens to the samples of a rank, and each document alone.

use crate::serial;
use std::sync::Arc;
use trine_buffer::DType;
use trine_comm::SelfComm;
use trine_data::{BatchOptions, Batches, DataError, Share, TokenStream};
use trine_models::zoo;
use trine_rng::Stream;
use trine_testkit::assemble::{Tensors, assemble};
use trine_trainer::engine::{Batch, Engine, EngineConfig, WEIGHTS};
use trine_trainer::parity::gradients;
use trine_trainer::{RunPlan, TrainError};

/// The token behind each document.
const END_OF_TEXT: u32 = 0;
/// Tokens of the documents, one after the other and again from the start: shorter than a sequence, as long, longer.
const LENGTHS: [u64; 7] = [3, 1, 6, 2, 13, 4, 8];
/// The parameter of learned positions.
const POSITIONS: &str = "embedding.position";

/// The samples of a data-parallel rank in the first step over a stream of documents, which are kept apart.
///
/// # Errors
/// A configuration whose ranks do not divide its samples.
pub fn batch(config: &EngineConfig, dp_index: usize) -> Result<Batch, DataError> {
    let tokens = config.global_batch * config.seq;
    let (mut starts, mut next) = (vec![0], 0);
    for length in LENGTHS.into_iter().cycle() {
        next += length + 1;
        if next >= tokens as u64 {
            break;
        }
        starts.push(next);
    }
    let stream = Stream::new(5, "packed tokens");
    let words = config.model.vocab as f32 - 1.0;
    let token = |at: u64| match starts.binary_search(&(at + 1)) {
        Ok(_) => END_OF_TEXT,
        Err(_) => 1 + (stream.uniform(at) * words) as u32,
    };
    let tokens = (0..tokens as u64).map(token).collect();
    let stream = TokenStream::new(tokens, starts.clone(), 1, config.model.vocab, END_OF_TEXT)?;
    let EngineConfig { seq, global_batch, seed, .. } = *config;
    let options = BatchOptions { seq, global_batch, seed, document_mask: true };
    let share = Share { dp_rank: dp_index, dp: config.degrees.dp, micro_batches: 1 };
    let batch = Batches::new(Arc::new(stream), options)?.micro_batch(0, share, 0)?;
    let trine_data::Batch { inputs, targets, document_start, .. } = batch;
    Ok(Batch { inputs, targets, document_start })
}

/// A document as a sequence of its own, as far as a packed sequence has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Where it begins in the packed sequence.
    pub first: usize,
    /// Its tokens and what follows each.
    pub batch: Batch,
}

/// The documents of packed sequences: each begins with the end of the text before it.
pub fn documents(batch: &Batch, seq: usize) -> Vec<Document> {
    let mut documents = Vec::new();
    let rows = batch.inputs.chunks_exact(seq).zip(batch.targets.chunks_exact(seq));
    for (inputs, targets) in rows {
        let begins = |at: &usize| *at == 0 || inputs[*at] == END_OF_TEXT;
        let firsts: Vec<usize> = (0..seq).filter(begins).collect();
        let ends = firsts[1..].iter().copied().chain([seq]);
        for (first, end) in firsts.iter().copied().zip(ends) {
            let (inputs, targets) = (inputs[first..end].to_vec(), targets[first..end].to_vec());
            let batch = Batch { inputs, targets, document_start: None };
            documents.push(Document { first, batch });
        }
    }
    documents
}

/// The gradients of the mean loss over all tokens of `documents`, each of which runs alone, serially and in f64.
/// Learned positions are those of the packed sequence.
///
/// # Errors
/// A failed step.
pub fn sum_alone(config: &EngineConfig, documents: &[Document]) -> Result<Tensors, TrainError> {
    let tokens: u64 = documents.iter().map(|document| document.batch.valid_tokens()).sum();
    let mut sum = Tensors::new();
    for document in documents {
        let share = document.batch.valid_tokens() as f64 / tokens as f64;
        for (name, gradient) in alone(config, document)? {
            let total = sum.entry(name).or_insert_with(|| vec![0.0; gradient.len()]);
            total.iter_mut().zip(gradient).for_each(|(total, value)| *total += share * value);
        }
    }
    Ok(sum)
}

/// The gradients of one document's mean loss.
fn alone(config: &EngineConfig, document: &Document) -> Result<Tensors, TrainError> {
    let EngineConfig { numerics, seed, .. } = *config;
    let (model, seq) = (config.model.clone(), document.batch.inputs.len());
    let shifted = document.first * model.hidden;
    let own = EngineConfig { compute: DType::F64, numerics, seed, ..serial(model) };
    let own = EngineConfig { seq, global_batch: 1, micro_batch: 1, ..own };
    let plan = Arc::new(RunPlan::new(&own)?);
    let mut engine = Engine::with_pieces(plan, SelfComm::new(), own.cpu_ops()?, &zoo)?;
    let layout = engine.layout().clone();
    if let Some(positions) = layout.find(POSITIONS).map(|index| &layout.params[index]) {
        let mut weights = engine.full_bucket(WEIGHTS, positions.bucket)?;
        weights.typed_mut::<f64>()?[positions.span()].rotate_left(shifted);
        engine.load_bucket(WEIGHTS, positions.bucket, &weights)?;
    }
    engine.backward(0, &document.batch, &mut |_, _, _| {})?;
    let mut found = assemble(&[gradients(&engine)?]).map_err(TrainError::Parity)?;
    // Rows that the document has not reached have no gradient.
    if let Some(positions) = found.get_mut(POSITIONS) {
        positions.rotate_right(shifted);
    }
    Ok(found)
}
