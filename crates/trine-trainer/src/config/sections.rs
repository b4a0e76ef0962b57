//! The sections of a configuration, key by key.

use super::schema::{Field, Key, Kind, choice, key_name, section};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use trine_buffer::DType;
use trine_nn::Numerics;
use trine_optim::LrKind;
use trine_schedule::{Order, UniformStage};
use trine_spec::Recompute;

/// Where the text comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Source {
    /// The Rust sources of the packages that `data.manifest` lists: `"crates"`.
    Crates,
    /// A text file, a folder or a prepared dataset. (A folder called `crates` is `./crates`.)
    Path(PathBuf),
}

impl From<String> for Source {
    fn from(text: String) -> Self {
        if text == Self::CRATES { Self::Crates } else { Self::Path(text.into()) }
    }
}

impl From<Source> for String {
    fn from(source: Source) -> Self {
        match source {
            Source::Crates => Source::CRATES.into(),
            Source::Path(path) => path.to_string_lossy().into_owned(),
        }
    }
}

impl Source {
    /// The word that stands for [`Source::Crates`].
    pub(super) const CRATES: &'static str = "crates";
}

impl Field for Source {
    const KIND: Kind = Kind::Path;
}

choice! {
    /// In which type activations and weights are computed with.
    Precision {
        /// 32-bit floats throughout.
        F32 = "f32",
        /// bfloat16 weights and activations; master weights, gradients and sums in f32.
        Bf16 = "bf16",
        /// 64-bit floats throughout: for comparisons, slow.
        F64 = "f64",
    }
}

choice! {
    /// What ranks compute on.
    Device {
        /// A GPU where one can be used, else the processor.
        Auto = "auto",
        /// The processor.
        Cpu = "cpu",
        /// NVIDIA's GPUs, or none.
        Cuda = "cuda",
    }
}

impl Precision {
    /// The type that weights and activations have; gradients, moments and master weights have its
    /// accumulator's.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::Bf16,
            Self::F64 => DType::F64,
        }
    }
}

choice! {
    /// The optimization algorithm.
    OptimizerKind {
        /// Adam with decoupled weight decay (Loshchilov & Hutter, 1711.05101).
        AdamW = "adamw",
        /// Gradient descent, with momentum if `optimizer.momentum` is not 0.
        Sgd = "sgd",
    }
}

choice! {
    /// Whether threads are kept on cores.
    Pin {
        /// Each thread on a core of its own, where there are enough for all ranks of the process.
        Auto = "auto",
        /// Wherever the system puts them.
        Off = "off",
    }
}

// Enums of the crates that act on them. A test sets every word.
impl Field for Order {
    const KIND: Kind = Kind::Order(&[
        "gpipe",
        "1f1b",
        "interleaved",
        "breadth-first",
        "zb-h1",
        "zb-h2",
        "zb-v",
        "dualpipe-v",
    ]);
}

/// For which times of a stage and a message a schedule is made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "TimesText", into = "TimesText")]
pub enum Times {
    /// Those of F, B, W and a message; none: F, B and W take equally long.
    Given(Vec<f64>),
    /// Those that the ranks measure when the run starts, which keeps them as given ones.
    Measured,
}

impl Times {
    /// The word that stands for [`Times::Measured`].
    pub const MEASURED: &'static str = "measured";
}

impl From<UniformStage> for Times {
    fn from(times: UniformStage) -> Self {
        Self::Given(times.times().into())
    }
}

impl Field for Times {
    const KIND: Kind = Kind::NumbersOr(Self::MEASURED);
}

/// [`Times`] as a configuration has them.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum TimesText {
    Numbers(Vec<f64>),
    Word(String),
}

impl TryFrom<TimesText> for Times {
    type Error = String;

    fn try_from(text: TimesText) -> Result<Self, String> {
        match text {
            TimesText::Numbers(times) => Ok(Self::Given(times)),
            TimesText::Word(word) if word == Self::MEASURED => Ok(Self::Measured),
            TimesText::Word(word) => Err(format!("{word:?} is not {:?}", Self::MEASURED)),
        }
    }
}

impl From<Times> for TimesText {
    fn from(times: Times) -> Self {
        match times {
            Times::Given(times) => Self::Numbers(times),
            Times::Measured => Self::Word(Times::MEASURED.into()),
        }
    }
}

impl Field for Recompute {
    const KIND: Kind = Kind::Recompute;
}

impl Field for Numerics {
    const KIND: Kind = Kind::Choice(&["fast", "reference"]);
}

impl Field for LrKind {
    const KIND: Kind = Kind::Choice(LrKind::WORDS);
}

section! {
    /// `[data]`: the text and its tokens.
    Data in "data" {
        /// "crates" (the Rust sources of the workspace's dependencies), or the path of a text file, a folder or a prepared dataset
        source: Source, "not empty";
        /// list of the packages behind "crates", as `cargo xtask train` writes it; empty: none
        manifest: PathBuf, "any";
        /// files of a folder over so many bytes are left out, 0: none; what is left out is said at the start
        file_bytes_max: u64, "any";
        /// a tokenizer.json for the text, byte-level as GPT-2's; empty: one is trained on it; a prepared dataset has its own
        tokenizer: PathBuf, "any";
        /// entries of the tokenizer that is trained on the text
        vocab: usize, "at most model.vocab; with \"crates\" at least 257";
        /// tokens of a sequence
        seq: usize, "1..=model.seq_max";
        /// attend within a document only, not across the documents of a window
        document_mask: bool, "any";
        /// folder that keeps tokenizers and tokens between runs
        cache: PathBuf, "not empty";
    }
}

section! {
    /// `[layout]`: which rank holds what.
    Layout in "layout" {
        /// data-parallel replicas
        dp: usize, "at least 1, divides batch.global";
        /// pipeline stages
        pp: usize, "1..=model.layers";
        /// tensor-parallel shards of each layer
        tp: usize, "at most model.heads and model.ffn; above model.kv_heads a multiple of them that divides model.heads (any where there is 1)";
        /// split the tokens between sharded layers over the tensor-parallel ranks (2205.05198) where tp divides those of a micro-batch
        sequence_parallel: bool, "any";
        /// order of work in the pipeline
        schedule: Order, "interleaved takes micro-batches in multiples of layout.pp, dualpipe-v at least 2 × layout.pp; a schedule of one's own has layout.pp ranks and the micro-batches of a step";
        /// times of F, B and W of a stage and of a message, in any one unit, for which the schedule is made; empty: F, B and W take equally long; "measured": the ranks measure them when the run starts, which keeps them
        times: Times, "empty, or four numbers, the first three above 0, or \"measured\", with zb-h1, zb-h2 or zb-v";
        /// stages of the pipeline on each rank; 0: as many as the schedule needs, which is one for gpipe, 1f1b, zb-h1 and zb-h2; one's own says it itself
        virtual_stages as "virtual": usize, "0, or as the schedule has it; layout.pp × layout.virtual is at most model.layers";
        /// blocks of each stage; empty: by work, the output layer's included
        layers: Vec<usize>, "empty, or as many positive numbers as there are stages, which add up to model.layers";
        /// threads that compute for one rank; 0: the cores are shared out
        threads_per_rank: usize, "at most 4096";
        /// when ranks are lost, go on with fewer data-parallel replicas
        elastic: bool, "any";
    }
}

section! {
    /// `[threads]`: where ranks compute.
    Threads in "threads" {
        /// keep each thread on a core of its own, where ranks are threads and no more than the cores that this process may use; a launcher sees to processes
        pin: Pin, "any";
    }
}

section! {
    /// `[batch]`: how many sequences make a step.
    Batch in "batch" {
        /// sequences of an optimizer step, over all ranks
        global: usize, "a multiple of layout.dp × batch.micro";
        /// sequences of a micro-batch: what one rank computes with at once
        micro: usize, "at least 1";
    }
}

section! {
    /// `[train]`: how a step is computed, and how many there are.
    Train in "train" {
        /// optimizer steps
        steps: usize, "at least 1";
        /// minutes of wall time after which no further step begins; 0: no limit
        minutes_max: f64, "0 or more";
        /// what the ranks compute on: auto is a GPU where one can be used, else the processor
        device: Device, "any";
        /// type that is computed with
        precision: Precision, "f32 or f64 with reference numerics";
        /// order of sums
        numerics: Numerics, "reference: tp divides 8 and the heads, and 8 divides the widths of heads, KV heads and ffn";
        /// what is computed again in the backward instead of kept. true or "full": all of each block but its input; N: of every N-th block; a list: tensors by name, such as norms, mlp.activation, attention.qkv, with * and ? as in optimizer.groups
        recompute: Recompute, "1 or more blocks; each name one of a saved tensor or of several, which a refused one lists";
        /// ZeRO stage (1910.02054): 1 splits the optimizer's state over layout.dp
        zero: usize, "0 or 1";
        /// parameters that are not trained, by patterns as in optimizer.groups: they keep their weights and have no gradient and no optimizer state
        frozen: Vec<String>, "each names a parameter; queries, keys and values, a gate and its MLP, a norm's gain and bias together; not everything";
        /// largest global gradient norm, larger ones are scaled down to it; 0: no clipping
        clip_norm: f64, "0 or more";
        /// steps between comparisons of the replicas' weights; 0: never
        replica_check_every: usize, "any";
        /// refuse to start where more memory is planned than may be used
        memory_check: bool, "any";
    }
}

section! {
    /// `[optimizer]`: the update.
    Optimizer in "optimizer" {
        /// algorithm
        kind: OptimizerKind, "any";
        /// peak learning rate
        lr: f64, "above 0";
        /// decay of the first moment (adamw)
        beta1: f64, "0 or more, below 1";
        /// decay of the second moment (adamw)
        beta2: f64, "0 or more, below 1";
        /// added to the root of the second moment (adamw)
        eps: f64, "above 0";
        /// decay of matrices; biases and norms have none
        weight_decay: f64, "0 or more";
        /// decay of the velocity (sgd); 0: none is kept
        momentum: f64, "0 or more, below 1";
        /// parameters that are updated in another way, as "block.*.norm.*: lr=0.5 decay=0 schedule=constant": lr is a factor of the rate, decay stands for optimizer.weight_decay, schedule for lr.kind; * is any characters of a name, ? one; of lines that name a parameter each later one wins for what it sets
        groups: Vec<String>, "each names a parameter, and sets one or more of lr, decay and schedule";
    }
}

section! {
    /// `[lr]`: the learning rate over the run.
    Lr in "lr" {
        /// shape after the warm-up
        kind: LrKind, "any";
        /// steps until the peak is reached
        warmup_steps: usize, "any";
        /// last rate as a part of the peak
        min_ratio: f64, "0..=1";
        /// part of all steps that the decay takes (wsd)
        decay_fraction: f64, "0..=1";
    }
}

section! {
    /// `[eval]`: validation.
    Eval in "eval" {
        /// steps between evaluations; 0: only at the end
        every: usize, "any";
        /// validation windows of one evaluation during the run; 0: all
        windows_max: usize, "any";
        /// validation windows of the evaluation at the end; 0: all
        final_windows_max: usize, "any";
    }
}

section! {
    /// `[checkpoint]`: saving.
    Checkpoint in "checkpoint" {
        /// steps between checkpoints; 0: by time alone
        every: usize, "any";
        /// minutes between checkpoints, from one to the next; 0: by steps alone. The last step is always saved
        minutes: f64, "0 or more";
        /// checkpoints kept; older ones are removed
        keep_last: usize, "at least 1";
        /// keep also the checkpoint with the lowest validation loss; each new lowest one is saved at once
        keep_best: bool, "any";
    }
}

section! {
    /// `[comm]`: how ranks wait for each other.
    Comm in "comm" {
        /// seconds that a rank is waited for that begins and ends no action or operation
        deadline_s: f64, "above 0";
        /// the same in phases that are long by nature: building the model, restoring, saving
        long_deadline_s: f64, "at least comm.deadline_s";
        /// check that what ranks send each other arrives unaltered, at the cost of a pass over it at both ends
        checksum: bool, "any";
    }
}

section! {
    /// `[log]`: progress.
    Log in "log" {
        /// seconds between lines when the output is no terminal
        every_seconds: f64, "above 0";
    }
}

section! {
    /// `[output]`: the run directory.
    Output in "output" {
        /// the run directory; empty: runs/NAME
        dir: PathBuf, "any";
    }
}

section! {
    /// `[sample]`: the completions at the end of a run, and the defaults of `trine generate`.
    Sample in "sample" {
        /// what is completed; where the text is not "crates" and neither this nor sample.documents is given, nothing
        prompts: Vec<String>, "any";
        /// validation documents whose beginnings are completed too; 3 where the text is not "crates" and sample.prompts is not given
        documents: usize, "any";
        /// tokens of a completion
        tokens: usize, "at least 1";
        /// 1 draws from the model's distribution, less sharpens it; 0: always the likeliest token
        temperature: f64, "0 or more";
        /// draw from this many likeliest tokens; 0: from all
        top_k: usize, "any";
        /// draw from the fewest tokens that have this probability together
        top_p: f64, "above 0, at most 1";
    }
}
