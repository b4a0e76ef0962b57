//! What is no file, what is too much, and what would work on a terminal: one error at once.

use crate::common::{fails, ok, trine};
use std::fs;
use std::path::Path;
use std::process::Command;

/// What version 0.1 wrote: a run and a dataset.
const WRITTEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/v0.1");

/// A folder with a copy of a folder of version 0.1 under the same name.
fn with(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let copied =
        Command::new("cp").arg("-r").arg(Path::new(WRITTEN).join(name)).arg(folder.path()).status();
    assert!(copied.is_ok_and(|status| status.success()), "{name}");
    folder
}

/// Puts a FIFO where a file was, or was not.
fn fifo(path: &Path) {
    if path.exists() {
        fs::remove_file(path).expect("a file");
    }
    let made = Command::new("mkfifo").arg(path).status();
    assert!(made.is_ok_and(|status| status.success()), "{}", path.display());
}

#[test]
fn what_is_no_file_is_named_instead_of_waited_for() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    fifo(&folder.path().join("pipe"));
    let is_fifo = "is a pipe, not a regular file";
    let is_device = "is a device, not a regular file";
    let cases: &[(&[&str], &str)] = &[
        (&["train", "pipe"], is_fifo),
        (&["train", "/dev/zero"], is_device),
        (&["train", "--dry-run", "--machine", "pipe"], is_fifo),
        (&["train", "--dry-run", "--machine", "/dev/zero"], is_device),
        (&["schedule", "verify", "pipe"], is_fifo),
        (&["schedule", "verify", "/dev/zero"], is_device),
        (&["plan", "--cluster-file", "/dev/zero"], is_device),
        (&["plan", "--model", "pipe"], is_fifo),
        (&["plan", "--model", "./pipe"], is_fifo),
        (&["plan", "--model", "/dev/zero"], is_device),
    ];
    for (args, part) in cases {
        fails(folder.path(), args, 2, &[args[args.len() - 1], part]);
    }
}

#[test]
fn files_of_a_run_and_of_a_dataset_are_files() {
    for (name, args) in [
        ("config.toml", &["inspect", "gpt"][..]),
        ("metrics.jsonl", &["inspect", "gpt"]),
        ("summary.json", &["inspect", "gpt"]),
        (".lock", &["train", "--resume", "gpt"]),
        ("checkpoints/step-3/model.safetensors", &["generate", "--run=gpt", "--prompt=a"]),
        ("checkpoints/step-3/tokenizer.json", &["generate", "--run=gpt", "--prompt=a"]),
    ] {
        let folder = with("gpt");
        fifo(&folder.path().join("gpt").join(name));
        let output = trine(folder.path(), args);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{name}: {errors}");
        let file = name.rsplit('/').next().unwrap_or(name);
        assert!(errors.contains(file) && errors.contains("is a pipe"), "{name}: {errors}");
    }
    let folder = with("dataset");
    fifo(&folder.path().join("dataset/train.bin"));
    let args = ["train", "--data", "dataset", "--preset", "rust-default", "--out", "run"];
    let output = trine(folder.path(), &args);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && errors.contains("is a pipe"), "{errors}");
}

#[test]
fn an_index_names_no_file_of_others() {
    let folder = with("dataset");
    let index = folder.path().join("dataset/index.json");
    let text = fs::read_to_string(&index).expect("an index");
    fs::write(folder.path().join("secret"), "not for others").expect("a file");
    fs::write(&index, text.replace("\"train.bin\"", "\"../secret\"")).expect("an index");
    let args = ["train", "--data", "dataset", "--preset", "rust-default", "--out", "run"];
    let output = trine(folder.path(), &args);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{errors}");
    assert!(errors.contains("\"../secret\" is not the name of a file in this folder"), "{errors}");
    assert!(!errors.contains("14 B"), "nothing is told of it: {errors}");
}

#[test]
fn nothing_that_is_printed_works_on_the_terminal() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let evil = "\u{1b}[2J\u{1b}[31mx";
    fs::write(folder.path().join("evil.toml"), format!("\"{evil}\" = 1\n")).expect("a file");
    fs::write(folder.path().join("evil.txt"), format!("schedule a\n{evil}\n")).expect("a file");
    let quoted = "\"\\u001b[2J\" = 1\nname = \"\\u001b[2J\"\n";
    fs::write(folder.path().join("quoted.toml"), quoted).expect("a file");
    let cases: &[&[&str]] = &[
        &["train", evil],
        &["train", "--set", evil],
        &["train", "evil.toml"],
        &["train", "quoted.toml"],
        &["train", "--data", evil],
        &["inspect", evil],
        &["schedule", "verify", "evil.txt"],
        &["schedule", "show", evil],
        &["presets", evil],
        &[evil],
    ];
    for args in cases {
        let output = trine(folder.path(), args);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && errors.contains("error: "), "{args:?}: {errors}");
        let raw = output.stderr.iter().chain(&output.stdout).find(|byte| **byte == 0x1b);
        assert!(raw.is_none(), "{args:?}: {errors:?}");
        // The parser of TOML says where the text is wrong and does not repeat it.
        let is_repeated = !args.contains(&"evil.toml");
        let is_shown = errors.to_lowercase().contains("1b");
        assert_eq!(is_shown, is_repeated, "shown, not dropped: {args:?}: {errors}");
    }
}

#[test]
fn what_is_too_much_is_refused_with_the_limit() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let here = folder.path();
    let lr: &[&str] = &["train", "--set", "optimizer.lr=1e300"];
    fails(here, lr, 2, &["optimizer.lr = 1e300", "as f32 has them", "nearest valid: 0.0025"]);
    let threads: &[&str] = &["train", "--set", "layout.threads_per_rank=100000"];
    fails(here, threads, 2, &["must be at most 4096", "nearest valid: 4096"]);
    let stages: &[&str] = &["schedule", "show", "1f1b", "--stages", "20000"];
    fails(here, stages, 2, &["20000", "1 to 4096"]);
    let pairs: &[&str] =
        &["schedule", "show", "gpipe", "--stages", "4096", "--micro-batches", "4096"];
    fails(here, pairs, 2, &["4096 stages × 4096 micro-batches: 16777216 pairs", "at most 1048576"]);
    fs::write(here.join("large.toml"), " ".repeat((1 << 20) + 1)).expect("a file");
    fails(here, &["train", "large.toml"], 2, &["it has 1048577 bytes; at most 1048576 are read"]);
}

/// A line for each stage: proved in less than a second, not in the square of it.
#[test]
fn a_schedule_of_many_stages_is_proved() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let stages = 20_000;
    let numbers = (0..stages).map(|stage| format!(" {stage}")).collect::<String>();
    let mut text = format!(
        "schedule long\npurpose evaluate\nmicro-batches 1\nplacement{numbers}\nin-flight{}\n",
        " 0".repeat(stages)
    );
    for stage in 0..stages {
        let from = if stage > 0 { format!("RA{stage}.0<{} ", stage - 1) } else { String::new() };
        let last = stage + 1 == stages;
        let to = if last { String::new() } else { format!(" SA{stage}.0>{}", stage + 1) };
        text.push_str(&format!("rank {stage}\n  {from}F{stage}.0{to}\n"));
    }
    fs::write(folder.path().join("long.txt"), text).expect("a file");
    let said = ok(folder.path(), &["schedule", "verify", "long.txt"]);
    assert!(said.contains("is right: 20,000 stages on 20,000 ranks"), "{}", &said[..100]);
}
