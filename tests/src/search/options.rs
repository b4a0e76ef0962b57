//! The options of a case, as one table: each with its values, the simplest first.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use trine_buffer::DType;
use trine_nn::Numerics;
use trine_optim::{Group, LrKind, OptimizerConfig};
use trine_schedule::{Purpose, ScheduleKind, UniformStage};
use trine_spec::{Activation, Dropouts, Family, ModelSpec, Pattern, Recompute};
use trine_testkit::toy;
use trine_trainer::RunPlan;
use trine_trainer::engine::{Batch, EngineConfig, ZeroStage};

/// Ranks of a case at most: each is a thread or more.
const RANKS_MAX: usize = 16;
/// Sequences of a step at most.
const SEQUENCES_MAX: usize = 40;
/// Blocks of a model at most.
const BLOCKS_MAX: usize = 14;
/// Ranks of a case at most that share a simulated GPU, whose work is done by one thread.
const RANKS_ON_GPU_MAX: usize = 4;

/// What all options together give.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The parallel run.
    pub config: EngineConfig,
    /// Where documents begin in a sequence.
    pub documents: Documents,
    /// What the ranks compute on.
    pub device: Device,
}

/// What the ranks of a case compute on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// The processor.
    Cpu,
    /// A simulated GPU, which all of them share.
    Gpu,
}

/// Where documents begin: no token attends to one of another document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Documents {
    /// A sequence is one document, and nothing says so.
    None,
    /// Two of one length.
    Halves,
    /// Of lengths that differ from sequence to sequence.
    Uneven,
    /// Every token is a document.
    Tokens,
}

impl Documents {
    /// The first position that a token may attend to, which is one of a sequence of `seq`.
    fn start(self, sample: usize, position: usize, seq: usize) -> usize {
        match self {
            Self::None => 0,
            Self::Halves => position / seq.div_ceil(2) * seq.div_ceil(2),
            Self::Uneven => position / (1 + sample % seq) * (1 + sample % seq),
            Self::Tokens => position,
        }
    }
}

/// KV heads beside query heads and tensor-parallel ranks.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum KvHeads {
    /// One for each query head.
    Each,
    /// One for two.
    Pairs,
    /// One for each rank.
    Ranks,
    /// One for all.
    One,
}

/// Blocks beside the stages of the pipeline.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Blocks {
    /// Three, or as many as stages.
    Few,
    /// As many as stages.
    Stages,
    /// Two more than stages, and four at least.
    More,
}

/// Which stage has the blocks that are more than stages.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Split {
    /// By work.
    Work,
    /// All of them the first one.
    First,
    /// All of them the last one.
    Last,
}

/// Micro-batches beside the ranks of the pipeline.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum MicroBatches {
    /// Two for each.
    Twice,
    /// One for each.
    Once,
    /// One at all.
    One,
    /// Three at all.
    Three,
    /// Three for each and one more.
    Odd,
}

/// The times that lists are made for.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Times {
    /// None are given.
    Equal,
    /// B is long, W is short, messages take as long as an F.
    Uneven,
}

/// Parameters that are updated in another way, as a case has them.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Grouped {
    /// Their names.
    pattern: String,
    /// Factor of the rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    lr: Option<f64>,
    /// Weight decay.
    #[serde(skip_serializing_if = "Option::is_none")]
    decay: Option<f64>,
    /// What the rate does after the warm-up.
    #[serde(skip_serializing_if = "Option::is_none")]
    schedule: Option<LrKind>,
}

impl Grouped {
    /// One that sets nothing yet.
    fn new(pattern: &str) -> Self {
        Self { pattern: pattern.into(), lr: None, decay: None, schedule: None }
    }
}

impl From<Grouped> for Group {
    fn from(Grouped { pattern, lr, decay, schedule }: Grouped) -> Self {
        Self { pattern: Pattern::new(pattern), lr, decay, schedule }
    }
}

/// What an option promises beyond the rule, which is: the serial run's bits in reference numerics, and its gradients
/// within the bound in fast numerics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promise {
    /// The serial run has it too: the rule is for whatever else the case is made of.
    Shared,
    /// The rule.
    Rule,
    /// Also in fast numerics the bits of the same layout without it.
    Bits,
}

type Set = Box<dyn Fn(&mut Setup, &Value) -> serde_json::Result<()> + Send + Sync>;

/// An option.
pub struct Row {
    /// Its name in a case.
    pub name: &'static str,
    /// Its values, the simplest first; `null` leaves what other options say.
    pub values: Vec<Value>,
    /// What is promised of it.
    pub promise: Promise,
    set: Set,
}

impl std::fmt::Debug for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl Row {
    /// Sets the option in what the rows before it have made.
    ///
    /// # Errors
    /// A value that the option does not have.
    pub(super) fn set(&self, setup: &mut Setup, value: &Value) -> Result<(), String> {
        (self.set)(setup, value).map_err(|error| format!("{} = {value}: {error}", self.name))
    }
}

fn row<V: Serialize + DeserializeOwned + 'static>(
    name: &'static str,
    promise: Promise,
    values: impl IntoIterator<Item = V>,
    set: fn(&mut Setup, V),
) -> Row {
    let values = values.into_iter().map(|value| json!(value)).collect();
    let set = move |setup: &mut Setup, value: &Value| {
        set(setup, serde_json::from_value(value.clone())?);
        Ok(())
    };
    Row { name, values, promise, set: Box::new(set) }
}

/// What is computed again. Every model saves something of these names.
pub fn recompute() -> Vec<Recompute> {
    let named = [
        &["norms", "mlp.activation"][..],
        &["norms", "mlp.activation", "attention.qkv"],
        &["*.input"],
        &["attention.*", "head.logits"],
        &["*.stats", "*.log_sum", "mlp.up"],
        &["*"],
    ];
    let blocks = [Recompute::None, Recompute::FULL, Recompute::Blocks { every: 2 }];
    let named = named.map(|names| Recompute::tensors(names.iter().copied()));
    blocks.into_iter().chain(named).collect()
}

/// A trait of the model: the family's, or one of those that are given as in a file.
fn trait_row((name, values): (&'static str, &'static [&'static str])) -> Row {
    let given = values
        .iter()
        .map(|text| serde_json::from_str(text).expect("invariant: the table below is JSON"));
    let set = move |setup: &mut Setup, value: &Value| {
        if !value.is_null() {
            let mut model = json!(setup.config.model);
            model[name] = value.clone();
            setup.config.model = serde_json::from_value(model)?;
        }
        Ok(())
    };
    let values = std::iter::once(Value::Null).chain(given).collect();
    Row { name, values, promise: Promise::Shared, set: Box::new(set) }
}

/// Every trait of a model ([`ModelSpec::traits`]), with values beside the family's.
const TRAITS: [(&str, &[&str]); 17] = [
    ("norm", &[r#""layer""#, r#""rms""#, r#""rms-one""#, r#"["rms", "layer", "rms-one"]"#]),
    ("norm_at", &[r#""before""#, r#""after""#, r#""both""#, r#"["both", "after", "before"]"#]),
    ("positions", &[r#""learned""#, r#""rotary""#, r#""none""#, r#"["rotary", "none"]"#]),
    ("rope_fraction", &["0.5", "1.0", "[1.0, 0.5]"]),
    ("rope_scaling", &[r#""none""#, r#""linear 2""#, r#""llama3 8 1 4 16""#, r#""yarn 4 4 1 8""#]),
    ("qkv_bias", &["false", "true", "[true, false]"]),
    ("output_bias", &["false", "true", "[false, true]"]),
    ("mlp_bias", &["false", "true", "[true, false, false]"]),
    ("qk_norm", &[r#""none""#, r#""head""#, r#""all""#, r#"["all", "head", "none"]"#]),
    (
        "activation",
        &[
            r#""silu""#,
            r#""gelu""#,
            r#""gelu-tanh""#,
            r#""relu""#,
            r#"["gelu", "relu", "gelu-tanh"]"#,
        ],
    ),
    ("gated", &["false", "true", "[true, false]"]),
    ("parallel", &["false", "true", "[false, true]"]),
    ("window", &[r#""none""#, "3", "1", r#"[5, "none"]"#]),
    ("score_dim", &[r#""none""#, "5", r#"["none", 24]"#]),
    ("score_cap", &[r#""none""#, "3.0", r#"[2.0, "none"]"#]),
    ("logit_cap", &[r#""none""#, "2.0"]),
    ("embedding_scale", &[r#""none""#, "1.7"]),
];

/// All options, in the order in which they are applied: those that depend on others come after them.
pub fn options() -> Vec<Row> {
    let mut rows = mesh();
    rows.extend(sizes());
    rows.extend(TRAITS.map(trait_row));
    rows.extend(arithmetic());
    rows.extend(named());
    rows.extend(pipeline());
    rows.extend(step());
    rows
}

fn mesh() -> Vec<Row> {
    let llama_first = |family: &Family| *family != Family::Llama;
    let mut families = Family::ALL.to_vec();
    families.sort_by_key(llama_first);
    vec![
        row("family", Promise::Shared, families, |setup, family| {
            setup.config.model = ModelSpec { seq_max: 16, ..toy::of(family) };
        }),
        row("tp", Promise::Rule, [1, 2, 3, 4, 5, 6, 8], |setup, degree: usize| {
            setup.config.degrees.tp = degree;
        }),
        row("pp", Promise::Rule, [1, 2, 3, 4, 5, 6], |setup, degree: usize| {
            setup.config.degrees.pp = degree;
        }),
        row("dp", Promise::Rule, [1, 2, 3, 4, 5, 6], |setup, degree: usize| {
            setup.config.degrees.dp = degree;
        }),
    ]
}

fn sizes() -> Vec<Row> {
    vec![
        row("heads_each", Promise::Shared, [2, 1, 3, 4], |setup, each: usize| {
            setup.config.model.heads = each * setup.config.degrees.tp;
        }),
        row("heads_left", Promise::Shared, [0, 1, 2], |setup, left: usize| {
            setup.config.model.heads += left;
        }),
        row(
            "kv_heads",
            Promise::Shared,
            [KvHeads::Each, KvHeads::Pairs, KvHeads::Ranks, KvHeads::One],
            |setup, heads| {
                setup.config.model.kv_heads = match heads {
                    KvHeads::Each => setup.config.model.heads,
                    KvHeads::Pairs => setup.config.model.heads.div_ceil(2),
                    KvHeads::Ranks => setup.config.degrees.tp,
                    KvHeads::One => 1,
                };
            },
        ),
        row("head_dim", Promise::Shared, [8, 4, 6, 10], |setup, dim: usize| {
            setup.config.model.head_dim = dim;
        }),
        row("hidden", Promise::Shared, [32, 17], |setup, hidden: usize| {
            setup.config.model.hidden = hidden;
        }),
        row("ffn", Promise::Shared, [120, 48, 60, 65], |setup, ffn: usize| {
            setup.config.model.ffn = ffn;
        }),
        row("vocab", Promise::Shared, [97, 128, 1009, 5], |setup, vocab: usize| {
            setup.config.model.vocab = vocab;
        }),
        row("tied", Promise::Shared, [false, true], |setup, tied| setup.config.model.tied = tied),
    ]
}

fn arithmetic() -> Vec<Row> {
    let rates = |embedding, attention, residual| Dropouts { embedding, attention, residual };
    let dropouts = [Dropouts::NONE, Dropouts::all(0.2), rates(0.3, 0.0, 0.0), rates(0.0, 0.3, 0.1)];
    // With a small `eps` a gradient that is zero but for rounding moves its weight by a full step, this way or that.
    let adamw = OptimizerConfig::AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-3, weight_decay: 0.1 };
    let sgd = |momentum| OptimizerConfig::Sgd { momentum, weight_decay: 0.1 };
    vec![
        row("dropout", Promise::Shared, dropouts, |setup, rates| {
            setup.config.model.dropout = rates;
        }),
        row("compute", Promise::Shared, [DType::F32, DType::Bf16, DType::F64], |setup, dtype| {
            setup.config.compute = dtype;
        }),
        row(
            "numerics",
            Promise::Shared,
            [Numerics::Fast, Numerics::Reference],
            |setup, numerics| {
                setup.config.numerics = numerics;
            },
        ),
        row("optimizer", Promise::Shared, [sgd(0.0), sgd(0.9), adamw], |setup, optimizer| {
            setup.config.optimizer = optimizer;
        }),
        row("clip_norm", Promise::Shared, [0.5, 0.0], |setup, norm| {
            setup.config.clip_norm = norm;
        }),
    ]
}

/// What is updated otherwise than the rest, or not at all.
fn named() -> Vec<Row> {
    let halved = Grouped { lr: Some(0.5), decay: Some(0.0), ..Grouped::new("block.*") };
    let decayed = Grouped { decay: Some(0.7), ..Grouped::new("*") };
    let linear = |pattern| Grouped { schedule: Some(LrKind::Linear), ..Grouped::new(pattern) };
    let ends = Grouped { lr: Some(2.0), ..linear("embedding.*") };
    let groups = [vec![], vec![halved], vec![decayed, ends], vec![linear("*.weight")]];
    let frozen: [&[&str]; 6] = [
        &[],
        &["embedding.*"],
        &["block.0.*", "head.*"],
        &["*.mlp.*"],
        &["*.attention.*"],
        &["*norm*"],
    ];
    let frozen = frozen.map(|patterns| patterns.iter().map(ToString::to_string).collect());
    vec![
        row("groups", Promise::Shared, groups, |setup, groups: Vec<Grouped>| {
            setup.config.groups = groups.into_iter().map(Group::from).collect();
        }),
        row("frozen", Promise::Shared, frozen, |setup, patterns: Vec<String>| {
            setup.config.frozen = patterns.into_iter().map(Pattern::new).collect();
        }),
    ]
}

fn pipeline() -> Vec<Row> {
    let trains = ScheduleKind::all().iter().filter(|info| info.purpose == Purpose::Train);
    let mut schedules: Vec<ScheduleKind> = trains.map(|info| info.kind).collect();
    schedules.sort_by_key(|kind| *kind != ScheduleKind::OneFOneB);
    vec![
        row("schedule", Promise::Rule, schedules, |setup, kind| {
            setup.config.virtual_stages = kind.info().chunks_usual;
            setup.config.schedule = kind.into();
        }),
        row("virtual_stages", Promise::Rule, [None, Some(1), Some(2), Some(3)], |setup, stages| {
            setup.config.virtual_stages = stages.unwrap_or(setup.config.virtual_stages);
        }),
        row("times", Promise::Rule, [Times::Equal, Times::Uneven], |setup, times| {
            setup.config.times = match times {
                Times::Equal => None,
                Times::Uneven => Some(UniformStage {
                    forward: 2.0,
                    backward_input: 5.0,
                    backward_weight: 1.0,
                    transfer: 2.0,
                }),
            };
        }),
        row(
            "blocks",
            Promise::Shared,
            [Blocks::Few, Blocks::Stages, Blocks::More],
            |setup, blocks| {
                let stages = setup.config.stage_count();
                setup.config.model.layers = match blocks {
                    Blocks::Few => stages.max(3),
                    Blocks::Stages => stages,
                    Blocks::More => (stages + 2).max(4),
                };
            },
        ),
        row("layers", Promise::Rule, [Split::Work, Split::First, Split::Last], |setup, split| {
            let stages = setup.config.stage_count();
            let mut blocks = vec![1; stages];
            let more = 1 + setup.config.model.layers - stages;
            setup.config.layers = match split {
                Split::Work => None,
                Split::First => {
                    blocks[0] = more;
                    Some(blocks)
                }
                Split::Last => {
                    blocks[stages - 1] = more;
                    Some(blocks)
                }
            };
        }),
    ]
}

fn step() -> Vec<Row> {
    use MicroBatches::{Odd, Once, One, Three, Twice};
    let documents = [Documents::None, Documents::Halves, Documents::Uneven, Documents::Tokens];
    vec![
        row("micro_batch", Promise::Rule, [1, 2, 3], |setup, sequences: usize| {
            setup.config.micro_batch = sequences;
        }),
        row("micro_batches", Promise::Rule, [Twice, Once, One, Three, Odd], |setup, count| {
            let EngineConfig { degrees, micro_batch, .. } = setup.config;
            let count = match count {
                Twice => 2 * degrees.pp,
                Once => degrees.pp,
                One => 1,
                Three => 3,
                Odd => 3 * degrees.pp + 1,
            };
            setup.config.global_batch = degrees.dp * micro_batch * count;
        }),
        row("seq", Promise::Shared, [8, 12, 15, 5], |setup, seq| setup.config.seq = seq),
        row("documents", Promise::Shared, documents, |setup, documents| {
            setup.documents = documents;
        }),
        row("zero", Promise::Bits, [0, 1], |setup, stage: u8| {
            setup.config.zero = if stage == 0 { ZeroStage::Zero0 } else { ZeroStage::Zero1 };
        }),
        row("sequence_parallel", Promise::Rule, [false, true], |setup, split| {
            setup.config.sequence_parallel = split;
        }),
        row("recompute", Promise::Bits, recompute(), |setup, again| setup.config.recompute = again),
        row("bucket_elements", Promise::Bits, [10_000, 1, 500, 1_000_000], |setup, elements| {
            setup.config.bucket_elements = elements;
        }),
        row("threads", Promise::Bits, [1, 2], |setup, threads| setup.config.threads = threads),
        row("device", Promise::Rule, [Device::Cpu, Device::Gpu], |setup, device| {
            setup.device = device;
        }),
    ]
}

impl Setup {
    /// What the options begin with; all of them are set.
    pub(super) fn blank() -> Self {
        let config = crate::serial(toy::llama(2));
        Self { config, documents: Documents::None, device: Device::Cpu }
    }

    /// The serial run beside which it is held: one sequence after the other.
    pub fn serial(&self) -> EngineConfig {
        let model = self.config.model.clone();
        let EngineConfig { compute, numerics, seq, seed, .. } = self.config;
        let EngineConfig { optimizer, clip_norm, global_batch, .. } = self.config;
        let (groups, frozen) = (self.config.groups.clone(), self.config.frozen.clone());
        let own = EngineConfig { groups, frozen, ..crate::serial(model) };
        EngineConfig { compute, numerics, seq, seed, optimizer, clip_norm, global_batch, ..own }
    }

    /// The samples of one data-parallel rank of a run of it.
    pub fn batch(&self, config: &EngineConfig, dp_index: usize) -> Batch {
        let batch = crate::batch(config, dp_index);
        if self.documents == Documents::None {
            return batch;
        }
        let first = dp_index * config.global_batch / config.degrees.dp;
        let start = |at: usize| {
            self.documents.start(first + at / config.seq, at % config.seq, config.seq) as u32
        };
        let starts = (0..batch.inputs.len()).map(start).collect();
        Batch { document_start: Some(starts), ..batch }
    }

    /// The plan of the parallel run.
    ///
    /// # Errors
    /// Why it is refused, or is no case of a search.
    pub fn plan(&self) -> Result<RunPlan, String> {
        match self.obstacle() {
            Some(reason) => Err(reason),
            None => RunPlan::new(&self.config).map_err(|error| error.to_string()),
        }
    }

    /// Why a search cannot compare it, if it cannot.
    pub(super) fn obstacle(&self) -> Option<String> {
        let EngineConfig { numerics, compute, model, .. } = &self.config;
        let jumps = model.activation.values().contains(&Activation::Relu);
        if jumps && *numerics == Numerics::Fast && *compute != DType::F64 {
            let text = "the derivative of ReLU jumps where rounding moves its argument past zero: \
                        the search has it in reference numerics and in f64";
            return Some(text.to_owned());
        }
        if self.device == Device::Gpu && *compute == DType::F64 {
            return Some("GPUs do not compute in f64".to_owned());
        }
        let ranks_max = if self.device == Device::Gpu { RANKS_ON_GPU_MAX } else { RANKS_MAX };
        let sizes = [
            ("ranks", self.config.degrees.world(), ranks_max),
            ("sequences", self.config.global_batch, SEQUENCES_MAX),
            ("blocks", model.layers, BLOCKS_MAX),
        ];
        let (what, count, max) = sizes.into_iter().find(|(_, count, max)| count > max)?;
        Some(format!("a case of the search has at most {max} {what}, not {count}"))
    }
}
