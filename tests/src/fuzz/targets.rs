//! What is fuzzed: each row reads one kind of input as trine does.

use super::folders::{Folder, written};
use super::mutate::{self, Dice};
use super::store;
use std::fmt::{self, Debug, Display};
use std::path::Path;
use trine_buffer::SliceMut;
use trine_checkpoint::{Check, Checkpoint, WEIGHTS, latest, model_from_config, open_hf};
use trine_data::{CorpusManifest, Dataset, Tokenizer, ValidationWindows};
use trine_plan::clusters;
use trine_schedule::{Schedule, ScheduleKind, Shape as ScheduleShape, lower, verify};
use trine_spec::{ModelParts, RankLayout, RankRequest, StagePieces};
use trine_trainer::config::{Config, File, Typed};
use trine_trainer::run::{MetricsLine, Summary};

/// What an input is made of, which decides how it is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Lines of words and numbers.
    Text,
    /// JSON, changed as a structure and as a text.
    Json,
    /// A safetensors file: its header.
    Tensors,
    /// Numbers: bytes.
    Bytes,
}

/// A file of a machine with one cluster.
const MACHINE: &str = r#"
[[device]]
name = "D"
source = "nowhere"
constants = "a100"
peak_bf16 = 312e12
peak_f32 = 156e12
memory_bytes = 85899345920
bandwidth = 2.039e12
units = 108

[[cluster]]
name = "this-machine"
about = "of a test"
device = "D"
sources = []
dollars_per_device_hour = 0
level = [{ name = "node", devices = 8, bandwidth = 3e11, latency = 3e-6, link = "inside" }]
"#;

/// A list of crates.
const CORPUS: &str = r#"{ "packages": [{ "name": "a", "version": "1.0.0", "root": "a-1.0.0" }] }"#;

/// Accepts an input, or refuses it and says why.
pub(super) type Read = Box<dyn Fn(&[u8]) -> Result<(), String> + Send>;

/// A reader, and inputs that it accepts.
pub struct Target {
    /// What it is called on the command line.
    pub name: &'static str,
    shape: Shape,
    seeds: Vec<Vec<u8>>,
    read: Read,
}

impl Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target").field("name", &self.name).field("shape", &self.shape).finish()
    }
}

impl Target {
    /// The input of a number; the first ones are the seeds as they are.
    pub(super) fn input(&self, seed: u64, index: u64) -> Vec<u8> {
        if let Some(input) = usize::try_from(index).ok().and_then(|index| self.seeds.get(index)) {
            return input.clone();
        }
        let mut dice = Dice::new(seed, self.name, index);
        let mut input = self.seeds[dice.below(self.seeds.len())].clone();
        let other = &self.seeds[dice.below(self.seeds.len())];
        match self.shape {
            Shape::Json if dice.below(3) > 0 => mutate::json(&mut input, other, &mut dice),
            Shape::Tensors => mutate::tensors(&mut input, other, &mut dice),
            Shape::Text | Shape::Json | Shape::Bytes => mutate::text(&mut input, other, &mut dice),
        }
        input
    }

    /// Accepts or refuses an input.
    pub(super) fn read(&self, input: &[u8]) -> Result<(), String> {
        (self.read)(input)
    }
}

/// All targets.
pub fn targets() -> Vec<Target> {
    let row = |name, shape, seeds, read| Target { name, shape, seeds, read };
    let mut all = vec![
        row("config", Shape::Text, configs(), Box::new(config)),
        row("schedule", Shape::Text, schedules(), Box::new(schedule)),
        row("machine", Shape::Text, vec![MACHINE.into()], Box::new(machine)),
        row("tokenizer", Shape::Json, tokenizers(), Box::new(tokenizer)),
        row("metrics", Shape::Json, metrics(), Box::new(metrics_line)),
        row("summary", Shape::Json, vec![written("gpt/summary.json")], Box::new(summary)),
        row("store", Shape::Json, store::seeds(), store::conversation()),
        row("corpus", Shape::Json, vec![CORPUS.into()], in_file("corpus.json", corpus)),
        row("hf-config", Shape::Json, hf_configs(), in_file("config.json", hf_config)),
    ];
    for (name, file, shape) in [
        ("hf-tensors", "model.safetensors", Shape::Tensors),
        ("hf-described", "config.json", Shape::Json),
    ] {
        all.push(in_folder(name, shape, ("gpt/checkpoints/step-3", "manifest.json"), file, hf));
    }
    for (name, file, shape) in [
        ("manifest", "manifest.json", Shape::Json),
        ("checkpoint", "model.safetensors", Shape::Tensors),
        ("moments", "optimizer.safetensors", Shape::Tensors),
    ] {
        let folder = ("llama/checkpoints/step-3", "manifest.json");
        all.push(in_folder(name, shape, folder, file, checkpoint));
    }
    for (name, file, shape) in [
        ("index", "index.json", Shape::Json),
        ("tokens", "train.bin", Shape::Bytes),
        ("documents", "val.documents.bin", Shape::Bytes),
        ("dataset-tokenizer", "tokenizer.json", Shape::Json),
    ] {
        all.push(in_folder(name, shape, ("dataset", "index.json"), file, dataset));
    }
    all
}

/// A target that changes one file of a folder, whose list is made right.
fn in_folder(
    name: &'static str,
    shape: Shape,
    (folder, list): (&'static str, &'static str),
    file: &'static str,
    read: fn(&Path) -> Result<(), String>,
) -> Target {
    let seeds = vec![written(&format!("{folder}/{file}"))];
    let whole = written(&format!("{folder}/{list}"));
    let folder = Folder::new(folder, list);
    let read = Box::new(move |input: &[u8]| {
        folder.put(list, &whole)?;
        folder.put(file, input)?;
        read(folder.path())
    });
    Target { name, shape, seeds, read }
}

/// A reader of a path, for an input that is alone in its folder.
fn in_file(name: &'static str, read: fn(&Path) -> Result<(), String>) -> Read {
    let home = tempfile::tempdir().expect("invariant: there is a place for temporary files");
    Box::new(move |input: &[u8]| {
        let path = home.path().join(name);
        std::fs::write(&path, input).map_err(said)?;
        read(&path)
    })
}

pub(super) fn said(error: impl Display) -> String {
    error.to_string()
}

fn text(input: &[u8]) -> Result<&str, String> {
    str::from_utf8(input).map_err(said)
}

fn configs() -> Vec<Vec<u8>> {
    let preset = |name| Config::preset(name).and_then(|config| config.to_toml());
    let presets = ["rust-default", "gpt2-124m", "llama2-7b"].map(preset);
    let presets = presets.into_iter().flatten().map(String::into_bytes);
    presets.chain([written("gpt.toml"), written("llama/config.toml")]).collect()
}

fn config(input: &[u8]) -> Result<(), String> {
    let file = File { name: "fuzzed.toml".to_owned(), text: text(input)?.to_owned() };
    let typed = Typed { file: Some(file), ..Typed::default() };
    let config = Config::load(&typed).map_err(said)?;
    // What is accepted is written, and read back as the same.
    let written = config.to_toml().map_err(said)?;
    let file = File { name: "again.toml".to_owned(), text: written };
    let again = Config::load(&Typed { file: Some(file), ..Typed::default() });
    assert_eq!(again.as_ref(), Ok(&config), "a resolved configuration gives itself");
    Ok(())
}

fn schedules() -> Vec<Vec<u8>> {
    let kinds = [ScheduleKind::GPipe, ScheduleKind::OneFOneB, ScheduleKind::ZbH1];
    let shape = ScheduleShape { ranks: 3, chunks: 1, micro_batches: 4 };
    let lists = kinds.into_iter().filter_map(|kind| kind.generate_shape(shape).ok());
    lists
        .flat_map(|list| [Some(list.to_string()), lower(&list, None).ok().map(|l| l.to_string())])
        .flatten()
        .map(String::into_bytes)
        .collect()
}

fn schedule(input: &[u8]) -> Result<(), String> {
    let schedule: Schedule = text(input)?.parse().map_err(said)?;
    assert_eq!(schedule.to_string().parse().as_ref(), Ok(&schedule), "the text form reads back");
    // A list of computations is completed first, as a user's would be.
    verify(&schedule).map(drop).or_else(|error| match lower(&schedule, None) {
        Ok(whole) => verify(&whole).map(drop).map_err(said),
        Err(_) => Err(said(error)),
    })
}

fn machine(input: &[u8]) -> Result<(), String> {
    clusters(&[text(input)?]).map(drop).map_err(said)
}

fn tokenizers() -> Vec<Vec<u8>> {
    vec![written("dataset/tokenizer.json")]
}

fn tokenizer(input: &[u8]) -> Result<(), String> {
    let tokenizer = Tokenizer::from_json(text(input)?, "fuzzed").map_err(said)?;
    let ids = tokenizer.encode("the größe of <|endoftext|> is 3\n").map_err(said)?;
    tokenizer.decode(&ids);
    Ok(())
}

fn metrics() -> Vec<Vec<u8>> {
    written("gpt/metrics.jsonl").split(|byte| *byte == b'\n').map(<[u8]>::to_vec).take(2).collect()
}

fn metrics_line(input: &[u8]) -> Result<(), String> {
    serde_json::from_slice::<MetricsLine>(input).map(drop).map_err(said)
}

fn summary(input: &[u8]) -> Result<(), String> {
    serde_json::from_slice::<Summary>(input).map(drop).map_err(said)
}

fn corpus(path: &Path) -> Result<(), String> {
    CorpusManifest::read(path).map(drop).map_err(said)
}

fn hf_configs() -> Vec<Vec<u8>> {
    ["gpt", "llama"].map(|run| written(&format!("{run}/checkpoints/step-3/config.json"))).into()
}

fn hf_config(path: &Path) -> Result<(), String> {
    model_from_config(path).map(drop).map_err(said)
}

fn hf(folder: &Path) -> Result<(), String> {
    let opened = open_hf(folder).map_err(said)?;
    each_bucket(&opened.model().parts(1).map_err(said)?, |layout, bucket, out| {
        opened.load_bucket(layout, bucket, out).map_err(said)
    })
}

fn checkpoint(folder: &Path) -> Result<(), String> {
    let checkpoint = Checkpoint::open(folder).map_err(said)?;
    checkpoint.verify().map_err(said)?;
    // Its folder is no folder of checkpoints, which must not matter.
    latest(folder, Check::Sizes).map_err(said)?;
    each_bucket(&checkpoint.parts(), |layout, bucket, out| {
        checkpoint.load_bucket(WEIGHTS, layout, bucket, out).map_err(said)
    })
}

/// Loads a model that was accepted, as one rank does.
fn each_bucket(
    model: &ModelParts,
    load: impl Fn(&RankLayout, usize, SliceMut<'_>) -> Result<(), String>,
) -> Result<(), String> {
    let stages = [StagePieces::whole(model)];
    let layout = RankLayout::new(&RankRequest::serial(model, &stages)).map_err(said)?;
    for bucket in 0..layout.buckets.len() {
        let mut values = vec![0.0f32; layout.buckets[bucket].len];
        load(&layout, bucket, SliceMut::F32(&mut values))?;
    }
    Ok(())
}

fn dataset(folder: &Path) -> Result<(), String> {
    let dataset = Dataset::open(folder).map_err(said)?;
    let windows =
        ValidationWindows::new(dataset.validation.clone(), 16, true, Some(4)).map_err(said)?;
    windows.raw_bytes(&dataset.tokenizer.byte_lengths());
    Ok(())
}
