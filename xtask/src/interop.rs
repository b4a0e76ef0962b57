//! `cargo xtask interop`: checkpoints of the binary in the hands of others.
//!
//! A GPT and a Llama learn sentences that end. The library transformers must then find the same loss
//! and continue a text to the same end, and lm-eval must tell a sentence that was learned from one
//! that was not.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::trine::build;
use crate::workspace::Workspace;

/// Relative to the root folder.
const SCRIPT: &str = "benches/peers/interop.py";

/// How far two losses in f32 may lie apart, relative to themselves.
const LOSS_TOLERANCE: f64 = 1e-6;

const PROMPT: &str = "the red";

/// The model and the run, for each family; the second head of KV is shared in the Llama.
const FAMILIES: [(&str, &[&str]); 2] = [
    ("gpt", &["--set=model.family=gpt", "--set=model.tied=true"]),
    (
        "llama",
        &[
            "--set=model.family=llama",
            "--set=model.tied=false",
            "--set=model.kv_heads=2",
            "--set=model.head_dim=12",
            "--set=model.ffn=80",
            "--set=model.rope_theta=50000",
            "--set=model.norm_eps=1e-6",
        ],
    ),
];

const RUN: &[&str] = &[
    "--tp=1",
    "--pp=1",
    "--dp=1",
    "--steps=300",
    "--precision=f32",
    "--set=model.hidden=32",
    "--set=model.heads=4",
    "--set=model.layers=2",
    "--set=model.vocab=320",
    "--set=model.seq_max=64",
    "--set=data.vocab=300",
    "--set=data.seq=32",
    "--set=data.cache=cache",
    "--set=batch.global=16",
    "--set=batch.micro=16",
    "--set=lr.warmup_steps=20",
    "--set=optimizer.lr=0.01",
    "--set=train.minutes_max=0",
    "--set=eval.every=0",
    "--set=eval.final_windows_max=0",
    "--set=checkpoint.every=0",
    "--set=sample.prompts=[]",
];

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Python interpreter of an environment with transformers and PyTorch; with lm-eval, it is tried too
    #[arg(long, value_name = "PATH", default_value = "python3")]
    python: PathBuf,
    /// A `trine` that is built already
    #[arg(long, value_name = "PATH")]
    trine: Option<PathBuf>,
}

/// The programs, and the folder in which they work.
struct Interop {
    trine: PathBuf,
    python: PathBuf,
    script: PathBuf,
    folder: PathBuf,
}

/// Trains, and asks the others.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> anyhow::Result<ExitCode> {
    let folder = workspace.target.join("interop");
    if folder.exists() {
        fs::remove_dir_all(&folder)
            .with_context(|| format!("cannot empty {}", folder.display()))?;
    }
    write_text(&folder.join("text"))?;
    let mut interop = Interop {
        trine: PathBuf::new(),
        python: args.python.clone(),
        script: workspace.root.join(SCRIPT),
        folder,
    };
    // Before minutes of building.
    let versions = interop.ask(&["versions"])?;
    println!("{versions}");
    ensure!(!versions["transformers"].is_null(), "transformers is not installed");
    interop.trine = match &args.trine {
        Some(path) => fs::canonicalize(path).with_context(|| format!("no {}", path.display()))?,
        None => build(workspace)?,
    };
    for (family, options) in FAMILIES {
        interop.family(family, options)?;
    }
    if ["lm_eval", "accelerate"].iter().any(|name| versions[name].is_null()) {
        println!("lm-eval, or accelerate that it needs, is not installed: left out");
    } else {
        interop.lm_eval()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether this interpreter can be asked at all.
pub(crate) fn is_possible() -> bool {
    let found = Command::new("python3").args(["-c", "import torch, transformers"]).output();
    found.is_ok_and(|output| output.status.success())
}

impl Interop {
    /// Trains a model, and compares its loss and a continuation.
    fn family(&self, family: &str, options: &[&str]) -> anyhow::Result<()> {
        let name = format!("--set=name={family}");
        let common = ["train", "--data", "text", "--out", family, &name];
        self.trine(&[&common, RUN, options].concat())?;
        let summary = fs::read_to_string(self.folder.join(family).join("summary.json"))?;
        let summary: Value = serde_json::from_str(&summary)?;
        let ours = summary["val_loss"].as_f64().context("the summary has no val_loss")?;

        let (checkpoint, dataset) = (self.checkpoint(family), self.dataset()?);
        let found = self.ask(&["evaluate", &checkpoint, &dataset, "32"])?;
        let theirs = found["loss"].as_f64().context("no loss")?;
        let apart = ((ours - theirs) / theirs).abs();
        println!("{family:6} loss {ours:.9} here, {theirs:.9} there, {apart:.1e} apart");
        ensure!(apart <= LOSS_TOLERANCE, "{family}: the losses are {apart:e} apart");

        let text = self.trine(&[
            "generate",
            "--run",
            family,
            "--prompt",
            PROMPT,
            "--temperature=0",
            "--tokens=40",
        ])?;
        let found = self.ask(&["generate", &checkpoint, PROMPT])?;
        println!("{family:6} {:?} here, {} there", text.trim_end(), found["text"]);
        ensure!(found["ended"] == true, "{family}: the text did not end by itself");
        ensure!(found["text"] == text.trim_end(), "{family}: the texts differ");
        Ok(())
    }

    /// Sentences of the text against the same with another end.
    fn lm_eval(&self) -> anyhow::Result<()> {
        let tasks = self.folder.join("tasks");
        fs::create_dir_all(&tasks)?;
        let lines = (0..20).map(|index| {
            let [subject, rest] = parts(index * 17);
            let (right, wrong) = (format!(" {rest}"), " zq xv jw kq".to_owned());
            json!({ "begin": subject, "ends": [right, wrong], "right": 0 }).to_string() + "\n"
        });
        fs::write(tasks.join("words.jsonl"), lines.collect::<String>())?;
        fs::write(tasks.join("words.yaml"), TASK)?;
        let tasks = tasks.to_string_lossy().into_owned();
        let found = self.ask(&["lm-eval", &self.checkpoint("gpt"), &tasks])?;
        println!("lm-eval accuracy {}", found["accuracy"]);
        ensure!(found["accuracy"] == 1.0, "lm-eval: the accuracy is {}", found["accuracy"]);
        Ok(())
    }

    fn checkpoint(&self, run: &str) -> String {
        self.folder.join(run).join("checkpoints/step-300").to_string_lossy().into_owned()
    }

    /// The prepared text: the only folder of the cache.
    fn dataset(&self) -> anyhow::Result<String> {
        let mut folders = fs::read_dir(self.folder.join("cache"))?.flatten();
        let found = folders.find(|entry| entry.path().join("index.json").is_file());
        Ok(found.context("the cache has no dataset")?.path().to_string_lossy().into_owned())
    }

    fn trine(&self, args: &[&str]) -> anyhow::Result<String> {
        output(Command::new(&self.trine).args(args).current_dir(&self.folder))
    }

    /// The last line that the script prints.
    fn ask(&self, args: &[&str]) -> anyhow::Result<Value> {
        let text = output(Command::new(&self.python).arg(&self.script).args(args))?;
        let line = text.lines().last().context("the script has printed nothing")?;
        serde_json::from_str(line).with_context(|| format!("the script has printed {line}"))
    }
}

/// A local task of lm-eval: which of two ends is likelier.
const TASK: &str = "task: words
dataset_path: json
dataset_kwargs:
  data_files:
    test: words.jsonl
output_type: multiple_choice
test_split: test
doc_to_text: \"{{begin}}\"
doc_to_choice: \"{{ends}}\"
doc_to_target: right
target_delimiter: \"\"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
";

/// Beginning and end of a sentence.
fn parts(index: usize) -> [String; 2] {
    let pick = |words: &[&str], at: usize| words[at % words.len()].to_owned();
    let subject = pick(&["fox", "bird", "cat", "horse", "fish", "dog", "owl"], index);
    let verb = pick(&["sees", "follows", "hears", "likes", "meets"], index / 7);
    let colour = pick(&["blue", "green", "white", "brown"], index / 35);
    let object = pick(&["stone", "tree", "river", "house", "hill", "road"], index / 140);
    [format!("the red {subject} {verb}"), format!("a {colour} {object}.")]
}

/// A sentence a file: many texts that end soon.
fn write_text(folder: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for index in 0..840 {
        fs::write(folder.join(format!("{index:03}.txt")), parts(index).join(" "))?;
    }
    Ok(())
}

fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed:\n{errors}");
    String::from_utf8(output.stdout).context("it printed no text")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_sentence_is_another() {
        let all: BTreeSet<String> = (0..840).map(|index| parts(index).concat()).collect();
        assert_eq!(all.len(), 840);
    }
}
