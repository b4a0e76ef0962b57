//! The serial model, and the loop that feeds it its own tokens.

use crate::{GenerateError, LoadError, Sampling, sample};
use std::sync::Arc;
use trine_buffer::{Act, Buf, DType, Pool};
use trine_comm::SelfComm;
use trine_kernels::{CpuOps, Team};
use trine_models::{StageModel, StageParts};
use trine_nn::{Context, Mode, Numerics, ParamStore, Rows};
use trine_rng::Stream;
use trine_spec::{ModelSpec, Piece, StageLayout, StageRequest};

/// A bucket is closed after the first piece, so that weights are loaded piece by piece.
const BUCKET_ELEMENTS: usize = 1;

/// A model on one rank in f32, ready to continue prompts.
#[derive(Debug)]
pub struct Generator {
    vocab: usize,
    seq_max: usize,
    model: StageModel,
    weights: ParamStore,
    ops: CpuOps,
    pool: Pool,
}

impl Generator {
    /// Builds the serial model for `threads` threads. `load` is called once a bucket with the layout
    /// of the whole model, the bucket's index, and the bucket to fill, which is all zeros; entries
    /// that pad the vocabulary are never drawn, whatever they hold.
    ///
    /// # Errors
    /// An impossible model, no thread, or what `load` returns.
    pub fn new(
        model: &ModelSpec,
        threads: usize,
        load: &mut dyn FnMut(&StageLayout, usize, &mut [f32]) -> Result<(), LoadError>,
    ) -> Result<Self, GenerateError> {
        model.check()?;
        if threads == 0 {
            let (value, nearest) = (threads.to_string(), "1".into());
            let rule = "must be at least 1";
            return Err(GenerateError::Value { field: "threads", value, rule, nearest });
        }
        let pieces: Vec<Piece> = model.pieces().collect();
        let layout = Arc::new(StageLayout::new(&StageRequest {
            model,
            pieces: &pieces,
            tp: 1,
            tp_index: 0,
            dp: 1,
            tied_apart: false,
            bucket_elements: BUCKET_ELEMENTS,
        })?);
        let mut weights = ParamStore::zeros(layout.clone(), DType::F32);
        for bucket in 0..layout.buckets.len() {
            let out = weights.bucket_mut(bucket)?.typed_mut::<f32>()?;
            load(&layout, bucket, out).map_err(|source| GenerateError::Load { bucket, source })?;
        }
        let stage = StageModel::new(&StageParts {
            model,
            layout: &layout,
            comm: SelfComm::new(),
            sequence_parallel: false,
            recompute: false,
            numerics: Numerics::Fast,
            compute: DType::F32,
            seed: 0, // of dropout masks, which are off
        })?;
        let (ops, pool) = (CpuOps::new(Team::new(threads)), Pool::new());
        let (vocab, seq_max) = (model.vocab, model.seq_max);
        Ok(Self { vocab, seq_max, model: stage, weights, ops, pool })
    }

    /// Continues `prompt` by at most `tokens` tokens and returns them; `on_token` is told each as it
    /// comes. The token `end` ends the text and is not part of it. An empty prompt starts from `end`.
    ///
    /// The model sees the last `seq_max` tokens of prompt and continuation. Token `i` of the
    /// continuation is drawn with number `i` of the stream "generate" of `sampling.seed`, so the same
    /// call gives the same text, with any number of threads.
    ///
    /// # Errors
    /// Ids beyond the vocabulary, an empty prompt without `end`, sampling constants out of range, or
    /// weights that give no probabilities.
    pub fn generate(
        &self,
        prompt: &[u32],
        tokens: usize,
        end: Option<u32>,
        sampling: &Sampling,
        on_token: &mut dyn FnMut(u32),
    ) -> Result<Vec<u32>, GenerateError> {
        sampling.check()?;
        let mut text = self.start(prompt, end)?;
        let stream = Stream::new(sampling.seed, "generate");
        let mut made = Vec::new();
        for index in 0..tokens {
            let logits = self.next_logits(&text)?;
            let uniform = stream.uniform(index as u64);
            let token = sample(&logits.typed()?[..self.vocab], sampling, f64::from(uniform))?;
            if Some(token) == end {
                break;
            }
            made.push(token);
            text.push(token);
            on_token(token);
        }
        Ok(made)
    }

    /// The tokens to start from, all of them checked.
    fn start(&self, prompt: &[u32], end: Option<u32>) -> Result<Vec<u32>, GenerateError> {
        let places = prompt.iter().enumerate();
        let places = places.map(|(at, &token)| (token, format!("token {at} of the prompt")));
        for (token, place) in places.chain(end.map(|token| (token, "the end of text".into()))) {
            if token as usize >= self.vocab {
                return Err(GenerateError::Token { place, token, vocab: self.vocab });
            }
        }
        match (prompt, end) {
            ([], None) => Err(GenerateError::EmptyPrompt),
            ([], Some(end)) => Ok(vec![end]),
            (prompt, _) => Ok(prompt.to_vec()),
        }
    }

    /// The logits of what follows `text`, padding entries included.
    fn next_logits(&self, text: &[u32]) -> Result<Buf, GenerateError> {
        let window = &text[text.len().saturating_sub(self.seq_max)..];
        let ctx = self.context(window.len());
        let ids = Act::new(Buf::from_vec(window.to_vec()));
        Ok(self.model.next_logits(&self.weights, ids, &ctx)?)
    }

    fn context(&self, seq: usize) -> Context<'_> {
        Context {
            ops: &self.ops,
            pool: &self.pool,
            compute: DType::F32,
            numerics: Numerics::Fast,
            mode: Mode::Eval,
            step: 0,
            rows: Rows { samples: 0..1, seq },
            document_start: None,
            targets: None,
            loss_scale: 1.0,
        }
    }
}
