//! Published runs as data: any CSV with the columns of `runs.csv`, each row as a model, a layout and what was measured.

use crate::csv::Table;
use crate::flops::{Convention, flops};
use crate::{Attention, Cluster, Layout, Model, PlanError, Precision, Recompute, Stack};
use std::collections::BTreeSet;
use trine_mesh::{Degrees, plural};
use trine_schedule::ScheduleKind;
use trine_spec::ModelSpec;

/// The vocabulary of GPT-2, where a run does not say.
const VOCAB_ASSUMED: usize = 50257;

/// What a published memory figure counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryKind {
    /// Live tensors at the peak.
    Allocated,
    /// What the framework's allocator has taken.
    Reserved,
    /// What the device's own tool shows.
    Device,
}

/// How a published run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It ran.
    Fits,
    /// It ran out of memory.
    OutOfMemory,
}

/// A row that can be planned.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// The model.
    pub model: Model,
    /// The layout.
    pub layout: Layout,
    /// The device's name.
    pub device: String,
    /// Index into the clusters.
    pub cluster: usize,
    /// Index into the stacks.
    pub stack: usize,
    /// What the row leaves open, and what was taken.
    pub assumed: Vec<String>,
}

/// One row of a file of published runs.
#[derive(Debug, Clone, PartialEq)]
pub struct PublishedRun {
    /// Its name.
    pub row_id: String,
    /// Who published it.
    pub source: String,
    /// The sheet of a sweep it comes from, or its source.
    pub sheet: String,
    /// The run, or why it cannot be planned.
    pub run: Result<Run, String>,
    /// Seconds of a step.
    pub time_s: Option<f64>,
    /// Bytes of one device, and what they count.
    pub memory: Option<(f64, MemoryKind)>,
    /// How it ended, if memory decided it.
    pub outcome: Option<Outcome>,
}

impl PublishedRun {
    /// Equal for runs that differ in nothing but their result: model, machine, software, layout.
    pub fn layout_key(&self) -> String {
        match &self.run {
            Ok(run) => {
                format!("{:?} {:?} {} {}", run.model.spec, run.layout, run.cluster, run.stack)
            }
            Err(_) => self.row_id.clone(),
        }
    }

    /// Equal for runs of the same model, devices, sequence and batch, which a search would choose among.
    pub fn group_key(&self) -> Option<String> {
        let run = self.run.as_ref().ok()?;
        let (spec, layout) = (&run.model.spec, &run.layout);
        let family = if spec.gates() > 0.0 { "gated" } else { "plain" };
        Some(format!(
            "{} layers, hidden {}, {family}, seq {}, batch {}, {} × {}",
            spec.layers,
            spec.hidden,
            layout.seq,
            layout.global_batch,
            layout.devices(),
            run.device
        ))
    }
}

/// Reads a file of published runs.
///
/// # Errors
/// A file that is no CSV table or has no `row_id`. Rows that lack something are kept with the reason.
pub fn read(
    text: &str,
    clusters: &[Cluster],
    stacks: &[Stack],
) -> Result<Vec<PublishedRun>, PlanError> {
    let table = Table::parse(text)?;
    if table.column("row_id").is_none() {
        let why = "no column row_id: a file of published runs has the columns of runs.csv".into();
        return Err(PlanError::Csv { line: 1, why });
    }
    let rows = table.rows.iter().map(|(_, fields)| Row { table: &table, fields });
    Ok(rows.map(|row| row.published(clusters, stacks)).collect())
}

const BUILT_IN: [&str; 3] = [
    include_str!("../data/published/runs.csv"),
    include_str!("../data/published/layout_sweep.csv"),
    include_str!("../data/published/frontier.csv"),
];

/// The published runs that lie in this repository, each once.
///
/// # Errors
/// Never, unless a committed file is broken.
pub fn built_in(clusters: &[Cluster], stacks: &[Stack]) -> Result<Vec<PublishedRun>, PlanError> {
    let mut rows: Vec<PublishedRun> = Vec::new();
    let mut known = BTreeSet::new();
    for text in BUILT_IN {
        let read = read(text, clusters, stacks)?;
        rows.extend(read.into_iter().filter(|row| known.insert(row.row_id.clone())));
    }
    Ok(rows)
}

struct Row<'a> {
    table: &'a Table,
    fields: &'a [String],
}

impl Row<'_> {
    /// A field; empty if the column is missing.
    fn text(&self, name: &str) -> &str {
        self.table.column(name).map_or("", |column| self.fields[column].trim())
    }

    fn lower(&self, name: &str) -> String {
        self.text(name).to_lowercase()
    }

    fn number(&self, name: &str) -> Result<Option<f64>, String> {
        let text = self.text(name);
        if is_empty(text) {
            return Ok(None);
        }
        // Thousands may be set apart.
        match text.replace([',', '_'], "").parse::<f64>() {
            Ok(number) if number.is_finite() && number > 0.0 => Ok(Some(number)),
            _ => Err(format!("{name} = \"{text}\" is not a positive number")),
        }
    }

    fn optional(&self, name: &str, default: usize) -> Result<usize, String> {
        match self.number(name)? {
            None => Ok(default),
            Some(number) if number > largest(name) => {
                Err(format!("{name} = {number} is more than {}", largest(name)))
            }
            Some(number) if number.fract() == 0.0 => Ok(number as usize),
            Some(number) => Err(format!("{name} = {number} is not a whole number")),
        }
    }

    fn yes(&self, name: &str) -> bool {
        matches!(self.lower(name).as_str(), "yes" | "true" | "y" | "1" | "on")
    }

    fn needed(&self, name: &str) -> Result<usize, String> {
        match self.optional(name, 0)? {
            0 => Err(format!("{name} is empty")),
            number => Ok(number),
        }
    }

    fn published(&self, clusters: &[Cluster], stacks: &[Stack]) -> PublishedRun {
        let run = self.run(clusters, stacks);
        let source = self.text("source").to_owned();
        let address = self.text("source_address");
        let sheet = match address.rsplit('/').next() {
            Some(file) if file.ends_with(".xlsx") => file.to_owned(),
            _ => source.clone(),
        };
        let outcome = match self.lower("outcome").as_str() {
            "ok" => Some(Outcome::Fits),
            text if text.contains("oom") || text.contains("out of memory") => {
                Some(Outcome::OutOfMemory)
            }
            _ => None,
        };
        let time_s = run.as_ref().ok().and_then(|run| self.time_s(run));
        let memory = self.memory();
        let row_id = self.text("row_id").to_owned();
        PublishedRun { row_id, source, sheet, run, time_s, memory, outcome }
    }

    fn run(&self, clusters: &[Cluster], stacks: &[Stack]) -> Result<Run, String> {
        let mut assumed = Vec::new();
        self.dense()?;
        let cluster = self.cluster(clusters)?;
        let stack = self.stack(stacks);
        let spec = self.model(&mut assumed)?;
        let model = Model::new(&spec).map_err(|error| error.to_string())?;
        let layout = self.layout(&stacks[stack], &mut assumed)?;
        let checked = layout.check(&model);
        let checked = checked.and_then(|()| stacks[stack].check_degree(&spec, layout.degrees.tp));
        checked.map_err(|error| error.to_string())?;
        let device = clusters[cluster].device.name.clone();
        Ok(Run { model, layout, device, cluster, stack, assumed })
    }

    /// Refuses mixtures of experts, which no part of the model describes.
    fn dense(&self) -> Result<(), String> {
        for column in ["num_experts", "experts", "moe_experts", "n_experts", "ep"] {
            if self.optional(column, 1)? > 1 {
                let count = self.text(column);
                return Err(format!("{column} = {count}: mixtures of experts are not planned"));
            }
        }
        let model = self.lower("model");
        let by_name = ["moe", "mixtral", "experts", "8x7b", "8x22b", "deepseek-v"];
        match by_name.iter().find(|word| model.contains(**word)) {
            Some(_) => Err(format!("{}: mixtures of experts are not planned", self.text("model"))),
            None => Ok(()),
        }
    }

    fn model(&self, assumed: &mut Vec<String>) -> Result<ModelSpec, String> {
        let (layers, hidden) = (self.needed("layers")?, self.needed("hidden")?);
        let (heads, seq) = (self.needed("heads")?, self.needed("seq_len")?);
        let head_dim = match self.optional("head_dim", 0)? {
            0 if !hidden.is_multiple_of(heads) => {
                return Err(format!("hidden {hidden} is not divisible by {heads} heads"));
            }
            0 => hidden / heads,
            given => given,
        };
        let gated = self.yes("gated_mlp");
        let ffn = if gated { (8 * hidden / 3).next_multiple_of(256) } else { 4 * hidden };
        let mut vocab = self.optional("vocab", 0)?;
        if vocab == 0 {
            vocab = VOCAB_ASSUMED;
            assumed.push(format!("vocab {vocab}"));
        }
        Ok(ModelSpec {
            hidden,
            layers,
            heads,
            kv_heads: self.optional("kv_heads", heads)?,
            head_dim,
            ffn: self.optional("ffn", ffn)?,
            vocab,
            seq_max: seq,
            tied: if is_empty(self.text("tied_embed")) { !gated } else { self.yes("tied_embed") },
            ..ModelSpec::usual(gated)
        })
    }

    fn layout(&self, stack: &Stack, assumed: &mut Vec<String>) -> Result<Layout, String> {
        let (tp, pp, cp) =
            (self.optional("tp", 1)?, self.optional("pp", 1)?, self.optional("cp", 1)?);
        let gpus = self.optional("gpus", 0)?;
        let mut dp = self.optional("dp", 0)?;
        if dp == 0 {
            if gpus == 0 {
                return Err("gpus and dp are empty".into());
            }
            dp = (gpus / (tp * pp * cp)).max(1);
        }
        let degrees = Degrees { dp, pp, tp, cp, ep: 1 };
        let (micro_batch, global_batch) = self.batch(dp, assumed)?;
        if gpus != 0 && degrees.world() != gpus {
            let (world, noun) = (degrees.world(), plural(degrees.world() as u64, "rank"));
            return Err(format!("{degrees} are {world} {noun}, not {gpus} gpus"));
        }
        let asked = if pp == 1 { 1 } else { self.optional("vpp", 1)? };
        let pipeline = self.pipeline(asked, pp, assumed)?;
        let (fewest, most) = pipeline.info().chunks;
        let virtual_stages = asked.clamp(fewest, most);
        Ok(Layout {
            degrees,
            virtual_stages,
            pipeline,
            micro_batch,
            global_batch,
            seq: self.needed("seq_len")?,
            sequence_parallel: self.yes("seq_parallel"),
            recompute: self.recompute(assumed)?,
            attention: self.attention(stack, assumed),
            zero: self.zero(stack, assumed),
            precision: self.precision()?,
        })
    }

    /// Sequences of a micro-batch and of a step; one of the two may follow from the number of micro-batches.
    fn batch(&self, dp: usize, assumed: &mut Vec<String>) -> Result<(usize, usize), String> {
        let (size, all) = (self.optional("mbs", 0)?, self.optional("gbs_seqs", 0)?);
        let count = self.optional("num_microbatches", 0)?;
        match (size, all, count) {
            (1.., 1.., _) => Ok((size, all)),
            (0, 1.., 1..) if all.is_multiple_of(count * dp) => {
                assumed.push(format!("mbs {}", all / count / dp));
                Ok((all / count / dp, all))
            }
            (1.., 0, 1..) => {
                assumed.push(format!("gbs_seqs {}", size * count * dp));
                Ok((size, size * count * dp))
            }
            (0, ..) => Err("mbs is empty".into()),
            _ => Err("gbs_seqs is empty".into()),
        }
    }

    fn pipeline(
        &self,
        virtual_stages: usize,
        pp: usize,
        assumed: &mut Vec<String>,
    ) -> Result<ScheduleKind, String> {
        let name = self.lower("schedule");
        let named = |text: &str| name.contains(text);
        Ok(match () {
            () if pp == 1 => ScheduleKind::OneFOneB,
            () if named("gpipe") || named("afab") => ScheduleKind::GPipe,
            () if named("breadth") || named("bfs") => ScheduleKind::BreadthFirst,
            () if named("zb-v") || named("zbv") => ScheduleKind::ZbV,
            () if named("zb-1p") || named("zb-h1") || named("zbh1") => ScheduleKind::ZbH1,
            () if named("zb-2p") || named("zb-h2") || named("zbh2") => ScheduleKind::ZbH2,
            () if virtual_stages > 1 => ScheduleKind::Interleaved,
            () if named("interleaved") || named("1f1b-i") => {
                assumed.push("vpp 1".into());
                ScheduleKind::OneFOneB
            }
            () if name.is_empty() || named("1f1b") || named("none") => ScheduleKind::OneFOneB,
            () => return Err(format!("schedule \"{name}\" is not known")),
        })
    }

    fn recompute(&self, assumed: &mut Vec<String>) -> Result<Recompute, String> {
        let name = self.lower("recompute");
        if is_empty(&name) || name.contains("not stated") {
            assumed.push("recompute none".into());
        }
        let whole = ["full", "yes", "true", "every", "uniform", "block"];
        Ok(match () {
            () if whole.iter().any(|word| name.starts_with(word)) => {
                // "full, every 2": one block of two.
                let digits = |text: &str| text.chars().filter(char::is_ascii_digit).collect();
                let number: String = name.split("every").nth(1).map_or(String::new(), digits);
                Recompute::Full { every: number.parse().unwrap_or(1) }
            }
            () if name.starts_with("selective-op") => Recompute::SelectiveOps,
            () if name.starts_with("selective") => Recompute::Selective,
            () if is_empty(&name)
                || ["none", "no", "false", "not stated"]
                    .iter()
                    .any(|word| name.starts_with(word)) =>
            {
                Recompute::None
            }
            () => return Err(format!("recompute \"{name}\" is not known")),
        })
    }

    fn attention(&self, stack: &Stack, assumed: &mut Vec<String>) -> Attention {
        match self.lower("flash_attn").as_str() {
            "" => {
                assumed.push(format!("attention {:?}", stack.attention));
                stack.attention
            }
            "no" | "false" | "fused" | "0" => Attention::FusedSoftmax,
            "torch" | "eager" | "math" => Attention::Unfused,
            "flash_attention" => Attention::Flash1,
            text if text.contains("v1") || text.contains("attention1") => Attention::Flash1,
            _ => Attention::Flash2,
        }
    }

    fn zero(&self, stack: &Stack, assumed: &mut Vec<String>) -> u8 {
        let name = self.lower("zero_stage");
        match name.chars().find_map(|digit| digit.to_digit(10)) {
            // "2 (FSDP …)", "FSDP2": what FSDP shards unless the stage comes first.
            Some(stage) if !name.starts_with("fsdp") => stage as u8,
            _ if name.contains("fsdp") => 3,
            _ if name.starts_with("no") => 0,
            _ => {
                assumed.push(format!("ZeRO {}", stack.zero));
                stack.zero
            }
        }
    }

    fn precision(&self) -> Result<Precision, String> {
        let name = self.lower("precision");
        let any = |words: &[&str]| words.iter().any(|word| name.contains(word));
        Ok(match () {
            () if any(&["fp4", "float4", "int8", "int4"]) => {
                return Err(format!("precision \"{name}\" is not planned"));
            }
            () if any(&["fp8", "float8", "f8", "e4m3"]) && name.contains("row") => {
                Precision::Fp8Rows
            }
            () if any(&["fp8", "float8", "f8", "e4m3"]) => Precision::Fp8,
            () if ["fp16", "float16", "f16", "half"].iter().any(|word| name.starts_with(word)) => {
                Precision::F16
            }
            () if any(&["bf16", "bfloat16", "mixed", "amp"]) || is_empty(&name) => Precision::Bf16,
            () if any(&["fp16", "float16"]) => Precision::F16,
            () if any(&["fp32", "float32", "f32", "tf32"]) => Precision::F32,
            () => return Err(format!("precision \"{name}\" is not known")),
        })
    }

    /// The machine of the device's name whose sources the row's names, or the first one that names none.
    fn cluster(&self, clusters: &[Cluster]) -> Result<usize, String> {
        let asked = plain(self.text("gpu_type"));
        if asked.is_empty() {
            return Err("gpu_type is empty".into());
        }
        // The kind of device is its name up to the first word with a digit: A100 of "A100-80GB", TPU v4. The row's name
        // has all of its words, in any order.
        let parts = words(self.text("gpu_type"));
        let is_kind = |name: &str| {
            let all = words(name);
            let end = all.iter().position(|word| word.contains(|c: char| c.is_ascii_digit()));
            all.iter().take(end.map_or(all.len(), |end| end + 1)).all(|word| parts.contains(word))
        };
        let stated = parts.iter().find_map(|word| word.strip_suffix("gb")?.parse::<f64>().ok());
        let memory = self.number("gpu_mem_GB")?.or(stated);
        let likeness = |cluster: &Cluster| {
            let name = plain(&cluster.device.name);
            let bytes = cluster.device.memory_bytes as f64 / f64::from(1 << 30);
            let far = memory.map_or(0.0, |asked| (asked / bytes).ln().abs());
            match () {
                () if name == asked => Some(0.0),
                () if is_kind(&cluster.device.name) => Some(1.0 + far),
                () => None,
            }
        };
        let source = format!("{} {}", self.text("source"), self.text("source_address"));
        let named = |cluster: &Cluster| {
            cluster.sources.iter().any(|pattern| source.contains(pattern.as_str()))
        };
        let all = clusters.iter().enumerate();
        let candidates = all
            .filter(|(_, cluster)| cluster.sources.is_empty() || named(cluster))
            .filter_map(|(index, cluster)| Some((likeness(cluster)?, !named(cluster), index)));
        let best = candidates.min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        best.map(|(_, _, index)| index)
            .ok_or_else(|| format!("gpu_type \"{}\" is on no known cluster", self.text("gpu_type")))
    }

    /// By source; an unknown source by what its columns tell of the software.
    fn stack(&self, stacks: &[Stack]) -> usize {
        let source = self.text("source");
        let (zero, flash) = (self.text("zero_stage").to_uppercase(), self.lower("flash_attn"));
        let named = |name: &str| stacks.iter().position(|stack| stack.name == name).unwrap_or(0);
        match () {
            () if source.contains("Aleph") && flash.contains("rms") => named("aleph-alpha-rms"),
            () if source.contains("Aleph") => named("aleph-alpha"),
            () => {
                let matches =
                    |stack: &Stack| stack.sources.iter().any(|pattern| source.contains(pattern));
                let old = self.precision() == Ok(Precision::F16) && flash.starts_with("no");
                let fallback = if old { "megatron-2021" } else { "megatron-core" };
                let fallback = match () {
                    () if zero.contains("FSDP2") => "torchtitan",
                    () if zero.contains("FSDP") => "fsdp",
                    () => fallback,
                };
                stacks.iter().position(matches).unwrap_or_else(|| named(fallback))
            }
        }
    }

    /// Seconds of a step, as measured or from the throughput.
    fn time_s(&self, run: &Run) -> Option<f64> {
        let number = |name: &str| self.number(name).ok().flatten();
        let layout = &run.layout;
        let devices = layout.devices() as f64;
        let batch = layout.global_batch as f64;
        number("iter_time_s")
            .or_else(|| number("iter_time_derived_s"))
            .or_else(|| {
                Some(batch * layout.seq as f64 / (number("tokens_per_s_per_gpu")? * devices))
            })
            .or_else(|| Some(batch / (number("samples_per_s_per_gpu")? * devices)))
            .or_else(|| {
                let counted = flops(&run.model, layout, Convention::FullAttention);
                let kind = self.lower("tflops_kind");
                let work = if kind == "hw" { counted.hardware } else { counted.model };
                Some(work / (number("tflops_per_gpu")? * 1e12 * devices))
            })
    }

    fn memory(&self) -> Option<(f64, MemoryKind)> {
        let amount = self.number("mem_per_gpu").ok().flatten()?;
        let (unit, kind) = (self.text("mem_unit"), self.lower("mem_kind"));
        let device = unit.contains("nvidia-smi") || kind.contains("nvidia-smi");
        let scale = match unit.split_whitespace().next().unwrap_or("GB") {
            // nvidia-smi divides by 1024.
            "GB" if device => f64::from(1 << 30),
            "GiB" => f64::from(1 << 30),
            "MiB" => f64::from(1 << 20),
            "MB" => 1e6,
            "bytes" | "B" => 1.0,
            _ => 1e9,
        };
        let kind = match () {
            () if device => MemoryKind::Device,
            () if kind.contains("reserved") => MemoryKind::Reserved,
            () => MemoryKind::Allocated,
        };
        Some((amount * scale, kind))
    }
}

/// No number of a run is larger, and products of those that are multiplied stay whole.
fn largest(name: &str) -> f64 {
    match name {
        "layers" | "heads" | "kv_heads" | "head_dim" | "tp" | "pp" | "cp" | "vpp" => 1e4,
        "hidden" | "ffn" | "dp" | "mbs" | "num_microbatches" => 1e6,
        _ => 1e9,
    }
}

/// Whether a field says nothing.
fn is_empty(text: &str) -> bool {
    matches!(text.to_lowercase().as_str(), "" | "-" | "–" | "na" | "n/a" | "nan" | "null" | "?")
}

/// Words of letters and digits, in lower case.
fn words(text: &str) -> Vec<String> {
    let split = text.split(|c: char| !c.is_ascii_alphanumeric());
    split.filter(|word| !word.is_empty()).map(str::to_lowercase).collect()
}

/// Letters and digits alone, in lower case.
fn plain(text: &str) -> String {
    text.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_lowercase()
}
