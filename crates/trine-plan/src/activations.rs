//! The most activation bytes of one rank of a trine run: what each action of its schedule keeps and frees, added up.
//!
//! What is kept is [`ModelSpec::saved`]; what a pass needs beside it, and what is left for the weight gradients,
//! follows from the order of operations in a block (`trine-models`): the pairs (input, output gradient) of its four
//! products stay until W.

use trine_schedule::{Action, Compute, Message, Schedule};
use trine_spec::{Bucket, ModelSpec, Norm, Piece, RankLayout};

/// One rank of a run.
#[derive(Debug, Clone, Copy)]
pub struct ActivationRequest<'a> {
    /// The model.
    pub model: &'a ModelSpec,
    /// The lowered schedule of a training step.
    pub schedule: &'a Schedule,
    /// The pipeline rank.
    pub rank: usize,
    /// What it holds: the pieces of each of its stages, by segment.
    pub layout: &'a RankLayout,
    /// Tokens of a micro-batch.
    pub tokens: usize,
    /// Tensor-parallel degree.
    pub tp: usize,
    /// Whether the residual stream is split by rows over it.
    pub sequence_parallel: bool,
    /// Whether blocks keep their input alone.
    pub recompute: bool,
    /// Bytes of an element in the compute type.
    pub compute_bytes: usize,
    /// Bytes of an element in the accumulator type.
    pub sum_bytes: usize,
}

/// The peak in bytes, messages between stages included, for fast numerics.
///
/// Small buffers of single rows are not counted, and a message that the other side has not taken yet may stay a little
/// longer than here.
pub fn activation_peak(request: &ActivationRequest<'_>) -> usize {
    let sizes = Sizes::new(request);
    let mut memory = Held::default();
    for action in &request.schedule.actions[request.rank] {
        match *action {
            Action::Compute(Compute::Forward { stage, .. }) => {
                request.pieces(stage, None).for_each(|piece| {
                    memory.step(&sizes.forward(piece));
                })
            }
            Action::Compute(Compute::BackwardInput { stage, segment, .. }) => {
                request.pieces(stage, segment).rev().for_each(|piece| {
                    memory.step(&sizes.backward(piece));
                })
            }
            Action::Compute(Compute::BackwardWeight { stage, segment, .. }) => {
                let pieces = request.pieces(stage, segment);
                let work: usize = pieces.map(|piece| sizes.work(piece)).sum();
                memory.add(-(work as i64));
            }
            Action::Message(Message::Recv(_)) => memory.add(sizes.stream as i64),
            Action::Message(Message::Send(_)) => memory.add(-(sizes.stream as i64)),
            Action::Message(Message::Exchange { .. }) => {
                memory.step(&Pass { needs: sizes.stream as i64, leaves: 0 })
            }
            Action::Sync(_) => {}
        }
    }
    memory.peak.max(0) as usize
}

impl ActivationRequest<'_> {
    /// The pieces of a segment of a stage, or of all of them, in forward order.
    fn pieces(
        &self,
        stage: usize,
        segment: Option<usize>,
    ) -> impl DoubleEndedIterator<Item = Piece> + '_ {
        let is_meant = move |bucket: &&Bucket| {
            bucket.stage == stage && segment.is_none_or(|segment| bucket.segment == segment)
        };
        self.layout.buckets.iter().filter(is_meant).flat_map(|bucket| &bucket.pieces).copied()
    }
}

#[derive(Debug, Default)]
struct Held {
    now: i64,
    peak: i64,
}

/// What one piece's pass needs beyond what is held when it begins, at its worst moment, and what it leaves of it.
#[derive(Debug, Clone, Copy)]
struct Pass {
    needs: i64,
    leaves: i64,
}

impl Held {
    fn add(&mut self, bytes: i64) {
        self.now += bytes;
        self.peak = self.peak.max(self.now);
    }

    fn step(&mut self, pass: &Pass) {
        self.peak = self.peak.max(self.now + pass.needs);
        self.add(pass.leaves);
    }
}

/// Bytes of what pieces handle, for one micro-batch on one rank.
#[derive(Debug)]
struct Sizes {
    /// The residual stream outside of parallel regions: the input of a block, and a message.
    stream: usize,
    /// All that a block saves, its input included.
    saved: usize,
    /// Saved by the second half of a block: what its norm reads, with statistics.
    second: usize,
    /// What a norm gives: as many elements in the compute type.
    input: usize,
    /// What a branch adds to the stream: one rank gives it in the stream's type, several sum it in the compute type.
    branch: usize,
    /// The same with the rows of all ranks.
    whole: usize,
    /// The stream's gradient with the rows of all ranks.
    whole_stream: usize,
    qkv: usize,
    output: usize,
    inner: usize,
    activated: usize,
    /// Logits of this rank's part of the vocabulary.
    logits: usize,
    stats: usize,
    ids: usize,
    /// One number a token, in the accumulator type.
    row: usize,
    recompute: bool,
    split_rows: bool,
    /// Whether dropout masks the stream.
    masked: bool,
    /// Whether a branch takes a copy of the stream's gradient: masked, or in another type.
    copied: bool,
}

impl Sizes {
    fn new(request: &ActivationRequest<'_>) -> Self {
        let (model, tokens, tp) = (request.model, request.tokens, request.tp);
        let saved = model.saved(tp);
        let split_rows = request.sequence_parallel && tp > 1;
        let (compute, sum) = (request.compute_bytes, request.sum_bytes);
        let all = |wanted: &dyn Fn(&str) -> bool| -> usize {
            let held = saved.iter().filter(|tensor| wanted(tensor.name));
            held.map(|tensor| tensor.bytes(tokens, tp, split_rows, compute, sum)).sum()
        };
        let of = |name: &str| all(&|other| other == name);
        let rows = if split_rows { tokens / tp } else { tokens };
        let stats = match model.norm() {
            Norm::Layer => 2,
            Norm::Rms => 1,
        };
        Self {
            stream: of("norm1.input"),
            saved: all(&|_| true),
            second: of("norm2.input") + of("norm2.stats"),
            input: of("mlp.input"),
            branch: if tp == 1 { of("norm1.input") } else { of("mlp.input") },
            whole: tokens * model.hidden * compute,
            whole_stream: tokens * model.hidden * sum,
            qkv: of("attention.qkv"),
            output: of("attention.output"),
            inner: of("mlp.inner"),
            activated: of("mlp.activated"),
            logits: tokens * model.vocab_stored(tp) / tp * compute,
            stats: rows * stats * sum,
            ids: tokens * size_of::<u32>(),
            row: tokens * sum,
            recompute: request.recompute,
            split_rows,
            masked: model.dropout > 0.0,
            copied: model.dropout > 0.0 || compute != sum,
        }
    }

    /// F of a piece. The stream that enters is held already, the one that leaves is held afterwards.
    fn forward(&self, piece: Piece) -> Pass {
        let gathered = if self.split_rows { self.whole } else { 0 };
        let (needs, leaves) = match piece {
            // The tokens' rows become the stream; a mask makes another one of it.
            Piece::Embedding => {
                let before = if self.masked { self.whole.max(self.stream) } else { self.whole };
                (self.ids + before + self.stream, self.ids + self.stream)
            }
            Piece::Block(_) => {
                let kept = self.saved - self.stream;
                let leaves = if self.recompute { self.stream } else { self.saved };
                (kept + self.last_sum(), leaves)
            }
            Piece::Head => {
                let kept = self.stats + self.input + self.logits;
                // Maximum, sum and target logit alone and together, loss.
                (kept + gathered.max(6 * self.row), kept)
            }
        };
        Pass { needs: needs as i64, leaves: leaves as i64 }
    }

    /// At the end of a block's forward pass: what its last branch gives, and the sum over ranks that it comes from or
    /// the stream that it is added to.
    fn last_sum(&self) -> usize {
        let gathered = if self.split_rows { self.whole } else { 0 };
        self.branch + gathered.max(self.stream)
    }

    /// B of a piece. The gradient that enters is held already, the one that leaves is held afterwards.
    fn backward(&self, piece: Piece) -> Pass {
        let size = |bytes: usize| bytes as i64;
        match piece {
            Piece::Embedding => Pass {
                needs: size(
                    if self.split_rows { self.whole_stream } else { 0 }
                        + if self.masked { self.stream } else { 0 },
                ),
                leaves: -size(self.ids + self.stream),
            },
            Piece::Block(_) => self.block_backward(),
            Piece::Head => {
                let kept = self.stream + self.stats + self.input + self.logits;
                let gathered = if self.split_rows { self.whole } else { 0 };
                Pass {
                    needs: size(self.whole + gathered + self.stream),
                    leaves: size(self.work(piece) + self.stream) - size(kept),
                }
            }
        }
    }

    fn block_backward(&self) -> Pass {
        let size = |bytes: usize| bytes as i64;
        // With recompute, forward runs again first: all but the input is saved anew.
        let again = if self.recompute { self.saved - self.stream } else { 0 };
        let replay = if self.recompute { self.last_sum() } else { 0 };
        // The gradient of a branch is the stream's own, unless it is masked, of another type, or gathered.
        let copy = if self.copied { self.input } else { 0 };
        let branch = copy + if self.split_rows { self.whole } else { 0 };
        // A norm adds to the stream's gradient, or to a copy of it where a branch's weights still need it.
        let added = if branch == 0 { self.stream } else { 0 };
        // Of the activation's output and input; of the product before, and of the norm before that; of attention's
        // output and of queries, keys and values, when the second half is done.
        let gathered = if self.split_rows { self.whole } else { 0 };
        let mlp = size(branch + self.activated + self.inner);
        let norm = size(branch + self.whole + added + gathered);
        let attention = size(branch + gathered + added + copy + self.output + self.qkv)
            - size(self.second)
            + if self.split_rows { size(self.whole) } else { 0 };
        Pass {
            needs: size(again) + mlp.max(norm).max(attention).max(size(replay)),
            leaves: size(self.work(Piece::Block(0))) + size(again) - size(self.saved),
        }
    }

    /// What B leaves for W: inputs of products and gradients of their outputs.
    fn work(&self, piece: Piece) -> usize {
        let input = if self.split_rows { self.whole } else { self.input };
        let branch = if self.split_rows { self.whole } else { self.input };
        match piece {
            Piece::Embedding => 0,
            Piece::Block(_) => {
                2 * (input + branch) + self.output + self.activated + self.qkv + self.inner
            }
            Piece::Head => input + self.logits,
        }
    }
}
