//! The serial model, and the loop that feeds it its own tokens.

use crate::{GenerateError, LoadError, Sampling, sample};
use std::sync::Arc;
use trine_buffer::{Act, Buf, DType, Place, Pool};
use trine_comm::SelfComm;
use trine_kernels::{CpuOps, Team};
use trine_models::{BuildPiece, RankParts, StageModel, zoo};
use trine_nn::{Context, DecodeCache, Mode, Numerics, ParamStore, Rows};
use trine_rng::Stream;
use trine_spec::{ModelParts, ModelSpec, RankLayout, RankRequest, StagePieces};

/// A bucket is closed after the first piece, so that weights are loaded piece by piece.
const BUCKET_ELEMENTS: usize = 1;

/// Where weights come from: fills one bucket of a layout, given the bucket's index.
pub type LoadWeights<'a> = dyn FnMut(&RankLayout, usize, &mut [f32]) -> Result<(), LoadError> + 'a;

/// A model on one rank in f32, ready to continue prompts.
#[derive(Debug)]
pub struct Generator {
    spec: ModelSpec,
    model: StageModel,
    /// Whether every piece can continue from a cache.
    cached: bool,
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
        load: &mut LoadWeights<'_>,
    ) -> Result<Self, GenerateError> {
        model.check()?;
        Self::with_pieces(&model.parts(1)?, &zoo, threads, load)
    }

    /// [`Generator::new`] for a model with pieces of one's own, which `build` builds. `parts` are those of one
    /// tensor-parallel rank. Such a piece cannot continue from a cache, so each token costs a pass over the whole
    /// window.
    ///
    /// # Errors
    /// As [`Generator::new`], and what `build` returns.
    pub fn with_pieces(
        parts: &ModelParts,
        build: BuildPiece<'_>,
        threads: usize,
        load: &mut LoadWeights<'_>,
    ) -> Result<Self, GenerateError> {
        if threads == 0 {
            let (value, nearest) = (threads.to_string(), "1".into());
            let rule = "must be at least 1";
            return Err(GenerateError::Value { field: "threads", value, rule, nearest });
        }
        let (spec, whole) = (parts.spec.clone(), [StagePieces::whole(parts)]);
        let layout = Arc::new(RankLayout::new(&RankRequest {
            bucket_elements: BUCKET_ELEMENTS,
            ..RankRequest::serial(parts, &whole)
        })?);
        let mut weights = ParamStore::zeros(layout.clone(), DType::F32);
        for bucket in 0..layout.buckets.len() {
            let out = weights.bucket_mut(bucket)?.typed_mut::<f32>()?;
            load(&layout, bucket, out).map_err(|source| GenerateError::Load { bucket, source })?;
        }
        let rank = RankParts {
            model: parts,
            layout: &layout,
            comm: SelfComm::new(),
            sequence_parallel: false,
            numerics: Numerics::Fast,
            compute: DType::F32,
            seed: 0, // of dropout masks, which are off
            place: &Place::Host,
        };
        let stages = StageModel::of_rank(&rank, build)?;
        let (ops, pool) = (CpuOps::new(Team::new(threads)), Pool::new());
        let model = stages.into_iter().next().expect("invariant: the layout has one stage");
        let cached = parts.own().next().is_none();
        Ok(Self { spec, model, cached, weights, ops, pool })
    }

    /// Continues `prompt` by at most `tokens` tokens and returns them; `on_token` is told each as it
    /// comes. The token `end` ends the text and is not part of it. An empty prompt starts from `end`.
    ///
    /// The model sees the last `seq_max` tokens of prompt and continuation. Up to there a token costs
    /// a pass over itself, with the keys and values of those before it kept; from there on the window
    /// slides, every position changes, and each token costs a pass over the whole window.
    ///
    /// Token `i` of the continuation is drawn with number `i` of the stream "generate" of
    /// `sampling.seed`, so the same call gives the same text, with any number of threads.
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
        let mut cache = self.cache(text.len().saturating_add(tokens));
        let mut made = Vec::new();
        for index in 0..tokens {
            let logits = self.next_logits(&text, &mut cache)?;
            let uniform = stream.uniform(index as u64);
            let token = sample(&logits.typed()?[..self.spec.vocab], sampling, f64::from(uniform))?;
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
            if token as usize >= self.spec.vocab {
                return Err(GenerateError::Token { place, token, vocab: self.spec.vocab });
            }
        }
        match (prompt, end) {
            ([], None) => Err(GenerateError::EmptyPrompt),
            ([], Some(end)) => Ok(vec![end]),
            (prompt, _) => Ok(prompt.to_vec()),
        }
    }

    /// An empty cache for a text of `tokens` tokens, as far as the model sees it.
    fn cache(&self, tokens: usize) -> DecodeCache {
        let capacity = tokens.min(self.spec.seq_max);
        DecodeCache::new(self.spec.layers, self.spec.kv_dim(), capacity, DType::F32)
    }

    /// The logits of what follows `text`, padding entries included. The cache holds the start of the
    /// text, or is empty; afterwards it holds the text as far as the model sees it.
    fn next_logits(&self, text: &[u32], cache: &mut DecodeCache) -> Result<Buf, GenerateError> {
        let first = text.len().saturating_sub(self.spec.seq_max);
        if first > 0 || !self.cached {
            cache.clear();
        }
        let fresh = &text[first + cache.position()..];
        let ids = Act::new(Buf::from_vec(fresh.to_vec()));
        let ctx = self.context(fresh.len(), cache);
        let logits = self.model.next_logits(&self.weights, ids, &ctx)?;
        if self.cached {
            cache.advance(fresh.len())?;
        }
        Ok(logits)
    }

    fn context<'a>(&'a self, seq: usize, cache: &'a DecodeCache) -> Context<'a> {
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
            decode: self.cached.then_some(cache),
        }
    }
}
