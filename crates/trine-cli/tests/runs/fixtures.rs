//! What version 0.1 wrote is loaded, inspected, generated from and resumed by this version.

use crate::common::{Run, Scratch, copy};
use serde_json::Value;
use std::fs;
use std::path::Path;

/// What version 0.1 wrote; its README says how.
const WRITTEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/v0.1");

/// The runs, and what each continues `the ` with, drawn with seed 7.
const RUNS: &[(&str, &str)] = &[
    (
        "gpt",
        "the \u{1e}q\u{fffd}\u{19}\u{4}\u{fffd}\u{fffd}dO\u{d}G\u{fffd}\u{fffd}#\u{5eb}\u{fffd}\u{1e}q\u{fffd}Uix",
    ),
    (
        "llama",
        "the j;\u{fffd}\u{fffd}\u{fffd}8z\u{fffd}/\u{fffd}\u{fffd}\u{e}U\u{fffd}\u{fffd}\u{fffd}\u{7}\u{fffd}\u{fffd}\u{fffd}\u{462}I",
    ),
    (
        "bf16",
        "the &\u{fffd}\u{1d}P\u{fffd}T\u{fffd}x x\u{fffd}\u{fffd}WT\u{13}'\u{e}'\u{13}\u{fffd}\u{fffd}\u{fffd}^i",
    ),
];

/// Fields of metrics that depend on the clock.
const TIMES: [&str; 2] = ["tokens_per_s", "step_ms"];

/// A scratch folder with all that version 0.1 wrote.
fn written() -> Scratch {
    let scratch = Scratch::new();
    copy(Path::new(WRITTEN), &scratch.path(""));
    scratch
}

/// The manifest of the checkpoint that the uninterrupted run ended with, or of the one here.
fn manifest(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// Name and checksum of the tensor files in a manifest.
fn tensors(manifest: &Value) -> Vec<(&str, &str)> {
    let files = manifest["files"].as_array().unwrap().iter();
    let named = files.map(|file| (file["name"].as_str().unwrap(), &file["xxh3_128"]));
    named
        .filter(|(name, _)| name.ends_with(".safetensors"))
        .map(|(name, checksum)| (name, checksum.as_str().unwrap()))
        .collect()
}

/// Every step is there, and every number that version 0.1 wrote is `near` the one here.
#[track_caller]
fn assert_goes_on(run: &Run, whole: &Run, near: impl Fn(&Value, &Value) -> bool) {
    let (ours, theirs) = (run.metrics(), whole.metrics());
    assert_eq!(ours.len(), theirs.len());
    let mut compared = 0;
    for (ours, theirs) in ours.iter().zip(&theirs) {
        for (field, value) in theirs.as_object().unwrap() {
            if !TIMES.contains(&field.as_str()) {
                assert!(near(&ours[field], value), "{field}: {ours} for {theirs}");
                compared += 1;
            }
        }
    }
    assert_eq!(compared, 6 * 5 + 2, "five numbers a step, and two evaluations");
    let (ours, theirs) = (run.summary(), whole.summary());
    for field in ["steps", "tokens", "params", "final_loss", "val_loss", "bigram_bits_per_byte"] {
        assert!(near(&ours[field], &theirs[field]), "{field}: {}", ours[field]);
    }
}

/// Resumes a run in a layout; every bit is that of the run that never stopped.
#[track_caller]
fn assert_resumes_to_the_bit(name: &str, layout: &[&str]) {
    let scratch = written();
    let run = scratch.resume(name, layout);
    let whole = Run { path: Path::new(WRITTEN).join(name) };
    assert_goes_on(&run, &whole, |ours, theirs| ours == theirs);
    let (ours, theirs) = (
        manifest(&run.checkpoints().join("step-6/manifest.json")),
        manifest(&whole.path.join("step-6.json")),
    );
    assert_eq!(tensors(&ours).len(), 2, "{name}");
    assert_eq!(tensors(&ours), tensors(&theirs), "{name}: weights and moments");
    assert_eq!(ours["run"]["data_hash"], theirs["run"]["data_hash"]);
    assert_eq!(ours["run"]["tokenizer_hash"], theirs["run"]["tokenizer_hash"]);
}

#[test]
fn a_gpt_is_resumed_to_the_bit() {
    assert_resumes_to_the_bit("gpt", &[]);
    assert_resumes_to_the_bit("gpt", &["--dp=2", "--pp=2"]);
}

#[test]
fn a_llama_is_resumed_to_the_bit() {
    assert_resumes_to_the_bit("llama", &[]);
    assert_resumes_to_the_bit("llama", &["--tp=2", "--pp=2"]);
}

/// Fast numerics promise no bits on another machine: bf16 has 8 of them, and 6 steps round little.
#[test]
fn a_run_in_bf16_is_resumed() {
    let scratch = written();
    let run = scratch.resume("bf16", &[]);
    let whole = Run { path: Path::new(WRITTEN).join("bf16") };
    assert_goes_on(&run, &whole, |ours, theirs| {
        let (ours, theirs) = (ours.as_f64().unwrap(), theirs.as_f64().unwrap());
        (ours - theirs).abs() <= 0.01 * theirs.abs()
    });
}

#[test]
fn runs_are_inspected_and_generated_from() {
    let scratch = written();
    for (name, text) in RUNS {
        let (said, _) = scratch.ok(&["inspect", name]);
        for part in ["complete; 6 of 6 steps", "384 tokens in ", "validation ", "step-3"] {
            assert!(said.contains(part), "{name}: {said}");
        }
        let args = ["generate", "--run", name, "--prompt=the ", "--seed=7", "--tokens=24"];
        assert_eq!(scratch.ok(&args).0, format!("{text}\n"), "{name}");
    }
}

#[test]
fn a_configuration_and_a_dataset_give_the_same_run() {
    let scratch = written();
    let whole = Run { path: Path::new(WRITTEN).join("gpt") };
    for (out, data) in [("from-text", "text"), ("from-dataset", "dataset")] {
        scratch.ok(&["train", "gpt.toml", "--out", out, "--data", data]);
        assert_goes_on(&scratch.at(out), &whole, |ours, theirs| ours == theirs);
    }
}

/// The loss of a checkpoint is that of the library transformers, stored with its versions.
#[test]
fn transformers_find_the_same_loss() {
    let scratch = written();
    let stored = manifest(&Path::new(WRITTEN).join("transformers.json"));
    let losses = stored["losses"].as_object().unwrap();
    assert_eq!(losses.len(), 2);
    for (name, theirs) in losses {
        // Nothing is left to train: the checkpoint is evaluated, on all windows.
        let args = ["--steps=3", "--set=eval.final_windows_max=0"];
        let ours = scratch.resume(name, &args).summary()["val_loss"].as_f64().unwrap();
        let theirs = theirs.as_f64().unwrap();
        assert!(((ours - theirs) / theirs).abs() < 1e-6, "{name}: {ours} for {theirs}");
    }
}
