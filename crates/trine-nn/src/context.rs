//! What a layer call is told beside its input: kernels, memory, numerics, and where in the run the
//! micro-batch stands.

use serde::{Deserialize, Serialize};
use std::ops::Range;
use trine_buffer::{Buf, DType, Pool, Slice};
use trine_kernels::{Isa, Ops};
use trine_spec::CANONICAL_BLOCKS;

use crate::{DecodeCache, NnError};

/// How sums are ordered (contract C4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Numerics {
    /// The fastest order; equal from run to run at the same layout.
    #[default]
    Fast,
    /// One fixed tree over global indices: every layout gives the same bits. Slower.
    Reference,
}

impl Numerics {
    /// The instruction set for kernels: this processor's best, in reference numerics of those whose products have the
    /// same bits everywhere, however many rows one sum is made of.
    pub fn isa(self) -> Isa {
        match self {
            Self::Fast => Isa::detect(),
            Self::Reference => Isa::detect().without_tiles(),
        }
    }

    /// In how many equal blocks a dimension is summed of which `parts` ranks hold one part each:
    /// the canonical number in reference numerics, one otherwise.
    pub fn blocks(self, parts: usize) -> usize {
        match self {
            Self::Fast => 1,
            Self::Reference => CANONICAL_BLOCKS / parts,
        }
    }
}

/// What a forward pass is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Save what backward needs; dropout is on.
    Train,
    /// Save nothing; dropout is off.
    Eval,
}

/// The rows of a micro-batch: whole sequences, sample after sample.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rows {
    /// The samples' places in the global batch of this step: `0..global_batch` over all ranks.
    pub samples: Range<usize>,
    /// Tokens of each sample.
    pub seq: usize,
}

impl Rows {
    /// Tokens in the micro-batch.
    pub fn tokens(&self) -> usize {
        self.samples.len() * self.seq
    }

    /// The rows of one sample, by its place in the global batch.
    pub fn of(&self, sample: usize) -> Range<usize> {
        let first = (sample - self.samples.start) * self.seq;
        first..first + self.seq
    }
}

/// The context of one call on one micro-batch. Built per micro-batch by whoever runs the stage.
#[derive(Debug, Clone)]
pub struct Context<'a> {
    /// Kernels of this rank's device.
    pub ops: &'a dyn Ops,
    /// Where activations come from.
    pub pool: &'a Pool,
    /// Type of weights and activations; the residual stream has that of their sums
    /// ([`stream_type`]).
    pub compute: DType,
    /// How sums are ordered.
    pub numerics: Numerics,
    /// Train or evaluate.
    pub mode: Mode,
    /// The optimizer step: part of the coordinates of dropout masks.
    pub step: u64,
    /// The rows of this micro-batch.
    pub rows: Rows,
    /// For each token, the first position of its sequence that it may attend to (document masks).
    pub document_start: Option<Slice<'a>>,
    /// For each token the next one, `u32::MAX` where there is nothing to predict.
    pub targets: Option<Slice<'a>>,
    /// The gradient of the step's loss by one token's loss: 1 / valid tokens of the whole step over
    /// all ranks (contract C2). Gradients are scaled here and nowhere else.
    pub loss_scale: f64,
    /// The tokens before this micro-batch's one sequence, when it continues one. With
    /// [`Mode::Eval`] only.
    pub decode: Option<&'a DecodeCache>,
}

/// The type of the residual stream and of its gradient. Every block adds to it, so it is kept as
/// sums are: in bf16 each addition would round what all blocks before have added.
pub fn stream_type(compute: DType) -> DType {
    compute.accumulator()
}

impl<'a> Context<'a> {
    /// The first step of a training run in `compute`, in fast numerics, without document masks or
    /// targets.
    pub fn train(ops: &'a dyn Ops, pool: &'a Pool, compute: DType, rows: Rows) -> Self {
        Self {
            ops,
            pool,
            compute,
            numerics: Numerics::Fast,
            mode: Mode::Train,
            step: 0,
            rows,
            document_start: None,
            targets: None,
            loss_scale: 1.0,
            decode: None,
        }
    }
}

impl Context<'_> {
    /// The type of the residual stream.
    pub fn stream(&self) -> DType {
        stream_type(self.compute)
    }

    /// A compute-type buffer for `rows × cols`, contents arbitrary.
    ///
    /// # Errors
    /// As [`Pool::alloc`].
    pub fn alloc(&self, rows: usize, cols: usize) -> Result<Buf, NnError> {
        Ok(self.pool.alloc(self.compute, rows * cols)?)
    }

    /// An accumulator-type buffer, contents arbitrary.
    ///
    /// # Errors
    /// As [`Pool::alloc`].
    pub fn alloc_sums(&self, len: usize) -> Result<Buf, NnError> {
        Ok(self.pool.alloc(self.compute.accumulator(), len)?)
    }

    /// The position of the micro-batch's first token in its sequence: 0, or behind the tokens in the
    /// cache.
    pub fn first_position(&self) -> usize {
        self.decode.map_or(0, DecodeCache::position)
    }

    /// Whether this is a training pass.
    pub fn training(&self) -> bool {
        self.mode == Mode::Train
    }
}
