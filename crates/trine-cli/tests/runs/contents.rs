//! What a run leaves behind, and the commands that read it.

use crate::common::{ALL_AXES, Run, SERIAL, Scratch, names, small, wait_for};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use trine_checkpoint::{Check, Checkpoint, CheckpointError, latest};

/// The run that most tests here look at.
fn run(scratch: &Scratch) -> Run {
    let args = ["--steps=6", "--set=checkpoint.every=2", "--set=eval.every=4", "--trace=t.json"];
    scratch.train("run", &[ALL_AXES, &args].concat())
}

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn a_run_directory_is_complete() {
    let scratch = Scratch::new();
    let run = run(&scratch);
    let expected = [".lock", "checkpoints", "config.toml", "metrics.jsonl", "summary.json"];
    assert_eq!(names(&run.path), expected);
    check_metrics(&run);
    assert_eq!(run.metrics()[5]["val_loss"], run.summary()["val_loss"]);
    check_summary(&run.summary());
    check_checkpoints(&run);
    check_trace(&scratch);
}

fn check_metrics(run: &Run) {
    let metrics = run.metrics();
    assert_eq!(metrics.len(), 6);
    let mut fields = BTreeSet::from([
        "step",
        "loss",
        "grad_norm",
        "lr",
        "tokens",
        "tokens_per_s",
        "step_ms",
        "time",
    ]);
    for (index, line) in metrics.iter().enumerate() {
        let step = index as u64 + 1;
        // Every fourth step evaluates, and the last one, whose loss is the summary's.
        if step == 4 || step == 6 {
            fields.insert("val_loss");
        } else {
            fields.remove("val_loss");
        }
        assert_eq!(keys(line), fields, "{line}");
        assert_eq!(line["step"], step);
        assert_eq!(line["tokens"], step * 4 * 32);
        let time = line["time"].as_str().unwrap();
        assert!(time.len() == 24 && time.ends_with('Z') && time > "2026", "{time}");
        for name in fields.iter().filter(|name| **name != "time") {
            assert!(line[*name].as_f64().unwrap() > 0.0, "{name}: {line}");
        }
    }
}

fn check_summary(summary: &Value) {
    let text = |name: &str| summary[name].as_str().unwrap();
    assert!(text("started") < text("ended") && text("ended").ends_with('Z'), "{summary}");
    assert_eq!(text("version"), env!("CARGO_PKG_VERSION"));
    assert!(!text("host").is_empty());
    let phases = summary["seconds"].as_object().unwrap();
    assert_eq!(phases.len(), 5);
    let sum: f64 = phases.values().map(|seconds| seconds.as_f64().unwrap()).sum();
    assert!(phases.values().all(|seconds| seconds.as_f64().unwrap() > 0.0), "{phases:?}");
    assert!(sum <= summary["wall_s"].as_f64().unwrap(), "{phases:?}");
    let hidden = 32;
    let block = 12 * hidden * hidden + 13 * hidden;
    // The longest sequence is the preset's 256; the head is the embedding.
    assert_eq!(summary["params"], 300 * hidden + 256 * hidden + 2 * block + 2 * hidden);
    assert_eq!(summary["layout"], "dp 2 × pp 2 × tp 2");
    assert_eq!(summary["tokens"], 6 * 4 * 32);
    assert_eq!((&summary["steps"], &summary["steps_total"]), (&6.into(), &6.into()));
    assert_eq!(summary["steps_cut"], false);
    assert!(summary["stopped_early"].is_null());
    let positive = [
        "final_loss",
        "val_loss",
        "val_bits_per_byte",
        "bigram_bits_per_byte",
        "bigram_full_bits_per_byte",
        "tokens_per_s",
        "model_flops_per_s",
        "wall_s",
        "bubble_predicted",
    ];
    for name in positive {
        assert!(summary[name].as_f64().is_some_and(|value| value > 0.0), "{name}: {summary}");
    }
    for name in ["bubble_measured", "wait_share"] {
        let share = summary[name].as_f64().unwrap();
        assert!((0.0..1.0).contains(&share), "{name}: {share}");
    }
    if cfg!(target_os = "linux") {
        assert!(summary["peak_rss_bytes"].as_u64().is_some_and(|bytes| bytes > 1 << 20));
    }
    // The bigram that has seen everything is the better one.
    let bits = |name: &str| summary[name].as_f64().unwrap();
    assert!(bits("bigram_full_bits_per_byte") < bits("bigram_bits_per_byte"));
    let ranks = summary["ranks"].as_array().unwrap();
    assert_eq!(ranks.len(), 8);
    for (index, rank) in ranks.iter().enumerate() {
        assert_eq!(rank["rank"], index);
        assert_eq!(rank["bytes_planned"], rank["bytes_measured"], "{rank}");
        let kinds = BTreeSet::from(["weights", "gradients", "master", "moments"]);
        assert_eq!(keys(&rank["bytes_measured"]), kinds);
        assert!(rank["bytes_measured"]["weights"].as_u64().unwrap() > 4 * block / 2);
        assert!(rank["activation_bytes_max"].as_u64().unwrap() > 0);
    }
    let places: BTreeSet<&str> = ranks.iter().map(|rank| rank["place"].as_str().unwrap()).collect();
    assert_eq!(places.len(), 8, "{places:?}");
}

fn check_checkpoints(run: &Run) {
    // Of the three saved, the last two are kept.
    assert_eq!(names(&run.checkpoints()), ["step-4", "step-6"]);
    let found = latest(&run.checkpoints(), Check::Checksums).unwrap();
    assert!(found.damaged.is_empty(), "{:?}", found.damaged);
    let checkpoint = found.checkpoint.unwrap();
    let state = &checkpoint.manifest().run;
    assert_eq!((state.step, state.consumed_samples, state.seed), (6, 24, 1));
    assert_eq!(run.summary()["corpus_hash"], state.data_hash);
    let files = [
        "config.json",
        "generation_config.json",
        "manifest.json",
        "model.safetensors",
        "optimizer.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    for step in ["step-4", "step-6"] {
        assert_eq!(names(&run.checkpoints().join(step)), files);
    }
    let weights = run.checkpoint_file(6, "model.safetensors");
    let weights = SafeTensors::deserialize(&weights).unwrap();
    let moments = run.checkpoint_file(6, "optimizer.safetensors");
    let moments = SafeTensors::deserialize(&moments).unwrap();
    let expected = hugging_face_shapes();
    assert_eq!(weights.len(), expected.len());
    assert_eq!(moments.len(), 2 * expected.len());
    for (name, shape) in expected {
        assert_eq!(weights.tensor(&name).unwrap().shape(), shape, "{name}");
        for moment in ["exp_avg", "exp_avg_sq"] {
            let moment = moments.tensor(&format!("{name}.{moment}")).unwrap();
            assert_eq!(moment.shape(), shape, "{name}");
        }
    }
}

/// The tensors of a GPT-2 as `transformers` names and shapes them: matrices are (in, out), the tied
/// head is not stored.
fn hugging_face_shapes() -> Vec<(String, Vec<usize>)> {
    let (h, f) = (32, 128);
    let block: [(&str, &[usize]); 12] = [
        ("ln_1.weight", &[h]),
        ("ln_1.bias", &[h]),
        ("attn.c_attn.weight", &[h, 3 * h]),
        ("attn.c_attn.bias", &[3 * h]),
        ("attn.c_proj.weight", &[h, h]),
        ("attn.c_proj.bias", &[h]),
        ("ln_2.weight", &[h]),
        ("ln_2.bias", &[h]),
        ("mlp.c_fc.weight", &[h, f]),
        ("mlp.c_fc.bias", &[f]),
        ("mlp.c_proj.weight", &[f, h]),
        ("mlp.c_proj.bias", &[h]),
    ];
    let mut all = vec![
        ("transformer.wte.weight".to_owned(), vec![300, h]),
        ("transformer.wpe.weight".to_owned(), vec![256, h]),
        ("transformer.ln_f.weight".to_owned(), vec![h]),
        ("transformer.ln_f.bias".to_owned(), vec![h]),
    ];
    for layer in 0..2 {
        let name = |name: &str| format!("transformer.h.{layer}.{name}");
        all.extend(block.iter().map(|(own, shape)| (name(own), shape.to_vec())));
    }
    all
}

fn check_trace(scratch: &Scratch) {
    let trace = fs::read_to_string(scratch.path("t.json")).unwrap();
    let events: Vec<Value> = serde_json::from_str(&trace).unwrap();
    let (names, actions): (Vec<&Value>, Vec<&Value>) =
        events.iter().partition(|event| event["ph"] == "M");
    let mut ranks: Vec<u64> = Vec::new();
    for name in names.iter().filter(|name| name["name"] == "thread_name") {
        let (rank, title) = (name["tid"].as_u64().unwrap(), name["args"]["name"].as_str().unwrap());
        assert!(title.starts_with(&format!("rank {rank} (dp ")), "{title}");
        ranks.push(rank);
    }
    ranks.sort_unstable();
    assert_eq!(ranks, [0, 1, 2, 3, 4, 5, 6, 7]);
    for rank in 0..8 {
        let own: Vec<&&Value> = actions.iter().filter(|event| event["tid"] == rank).collect();
        let count = |kind: &str| {
            let names = own.iter().map(|event| event["name"].as_str().unwrap());
            names.filter(|name| name.starts_with(kind)).count()
        };
        // Two micro-batches; a backward may come in parts, so that reductions can begin early.
        assert_eq!(count("F"), 6 * 2, "rank {rank}");
        assert!(count("B") >= 6 * 2 && count("B") % 6 == 0, "rank {rank}: {}", count("B"));
        // One after the other: a rank does one thing at a time.
        let mut end = 0.0;
        for event in own {
            let number = |name: &str| event[name].as_f64().unwrap();
            assert!(number("ts") >= end, "rank {rank}: {event}");
            end = number("ts") + number("dur");
        }
    }
}

#[test]
fn text_is_generated_by_seed() {
    let scratch = Scratch::new();
    let run = scratch.train("run", &[SERIAL, &["--steps=20"]].concat());
    let generate = |args: &[&str]| {
        let fixed = ["generate", "--run", "run", "--prompt", "pub fn read_", "--tokens", "24"];
        scratch.ok(&[&fixed, args].concat()).0
    };
    let first = generate(&["--seed", "5"]);
    assert!(first.starts_with("pub fn read_") && first.len() > 30, "{first:?}");
    assert_eq!(generate(&["--seed", "5"]), first);
    assert_ne!(generate(&["--seed", "6"]), first);
    // The likeliest tokens need no seed.
    let greedy = generate(&["--temperature", "0", "--seed", "5"]);
    assert_eq!(generate(&["--temperature", "0", "--seed", "6"]), greedy);
    assert_eq!(generate(&["--top-k", "1", "--seed", "7"]), greedy);
    let inspected = scratch.ok(&["inspect", "run"]).0;
    let loss = format!("20: loss {:.4}", run.summary()["final_loss"].as_f64().unwrap());
    for part in ["complete; 20 of 20 steps", &loss, "whole (checksums compared); last"] {
        assert!(inspected.contains(part), "{inspected}\n  expected: {part}");
    }
}

#[test]
fn a_run_is_inspected_while_it_goes_on_and_after_it_was_killed() {
    let scratch = Scratch::new();
    let args = [SERIAL, &["--steps=100000", "--set=checkpoint.every=5"]].concat();
    let started = scratch.start(&small("run", &args));
    let run = scratch.at("run");
    wait_for("a checkpoint", || run.checkpoints().join("step-5/manifest.json").exists());
    let (text, _) = scratch.ok(&["inspect", "run"]);
    assert!(text.contains("state      running; ") && text.contains(" left\n"), "{text}");
    started.kill();
    let (text, _) = scratch.ok(&["inspect", "run"]);
    assert!(text.contains("state      ended without a summary"), "{text}");
    let (json, _) = scratch.ok(&["inspect", "run", "--json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["state"], "killed");
    let last = json["checkpoints"].as_array().unwrap().last().unwrap();
    assert_eq!((&last["verified"], &last["last"]), (&"checksums".into(), &true.into()));
}

#[test]
fn time_cuts_the_steps_and_the_configuration_says_how_many() {
    let scratch = Scratch::new();
    // Shorter than one step: one is done all the same.
    let args = [SERIAL, &["--steps=500", "--set=train.minutes_max=0.00001"]].concat();
    let (shown, _) = scratch.ok(&crate::common::small("one", &args));
    assert!(shown.contains("1 (the time limit was reached)"), "{shown}");
    // A planned end: it has its samples.
    assert!(shown.contains("--- completion of \"pub fn\""), "{shown}");
    let summary = scratch.at("one").summary();
    assert_eq!((&summary["steps"], &summary["steps_cut"]), (&1.into(), &true.into()));

    // A second: the steps are counted once the warm-up is over.
    let limit = ["--steps=1000000", "--set=train.minutes_max=0.02", "--set=lr.warmup_steps=10"];
    let (shown, told) = scratch.ok(&crate::common::small("cut", &[SERIAL, &limit].concat()));
    // The time left is at most that of the limit, from the first step on.
    let first = told.lines().find(|line| line.starts_with("step 1/1000000 ")).unwrap();
    assert!(first.contains(" · ETA 0:01 ") || first.contains(" · ETA 0:00 "), "{first}");
    let cut = scratch.at("cut");
    let summary = cut.summary();
    let total = summary["steps_total"].as_u64().unwrap();
    assert!((11..100_000).contains(&total), "{summary}");
    assert_eq!(summary["steps_cut"], true);
    assert!(summary["wall_s"].as_f64().unwrap() < 5.0, "{summary}");
    let note = format!("time limit of 0.02 min: {total} of 1000000 steps fit");
    assert!(told.contains(&note), "{told}");
    assert!(shown.contains("cut to fit") || shown.contains("time limit"), "{shown}");
    // Fed back, the configuration gives the same losses.
    let config = fs::read_to_string(cut.path.join("config.toml")).unwrap();
    assert!(config.contains(&format!("steps = {total}\nminutes_max = 0.0\n")), "{config}");
    let stop = "--set=train.steps=".to_owned() + &total.to_string();
    scratch.ok(&["train", "cut/config.toml", "--out", "again", &stop]);
    let done = cut.loss_texts();
    assert_eq!(scratch.at("again").loss_texts()[..done.len()], done);
    let validated = cut.metrics().iter().filter(|line| !line["val_loss"].is_null()).count();
    assert_eq!(validated, 1, "the last step's, whichever it was");
    assert_eq!(cut.metrics().pop().unwrap()["val_loss"], cut.summary()["val_loss"]);
}

/// A program with pieces of its own may have gone on with a run: no command is offered that this one would refuse.
#[test]
fn a_run_with_pieces_of_somebodys_own_is_inspected_and_refused_by_name() {
    let scratch = Scratch::new();
    let step =
        scratch.train("run", &[SERIAL, &["--steps=1"]].concat()).checkpoints().join("step-1");
    let path = step.join("manifest.json");
    let mut manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    manifest.as_object_mut().unwrap().remove("checksum");
    let gain = json!({ "name": "transformer.h.1.ln_1.weight", "shape": [32] });
    manifest["own"] = json!([{ "block": 1, "kind": "of the zoo", "params": [gain] }]);
    let body = format!("{manifest:#}").strip_suffix("\n}").unwrap().to_owned();
    let write = |checksum: &str| {
        fs::write(&path, format!("{body},\n  \"checksum\": \"{checksum}\"\n}}\n")).unwrap();
    };
    write(&"0".repeat(32));
    let Err(CheckpointError::Altered { found, .. }) = Checkpoint::open(&step) else {
        panic!("a checksum of zeros is taken")
    };
    write(&found);
    let (text, _) = scratch.ok(&["inspect", "run"]);
    let note = "note: step-1 needs the program that has its pieces: block 1 is \"of the zoo\"";
    assert!(text.contains(note), "{text}");
    assert!(text.contains("whole (checksums compared)"), "{text}");
    assert!(!text.contains("\nresume ") && !text.contains("\ngenerate "), "{text}");
    let (told, _) = scratch.ok(&["inspect", "run", "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&told).unwrap()["resume"], Value::Null);
    let says = ["block 1 is \"of the zoo\" there and of the zoo here"];
    let generate = ["generate", "--run=run", "--prompt=a"];
    scratch.fails(&generate, 2, &says);
    assert!(scratch.trine(&generate).stdout.is_empty(), "the prompt is shown of a refused run");
    scratch.fails(&["train", "--resume=run", "--steps=2"], 2, &says);
}
