//! Runs whose files somebody removes while they go on.

use crate::common::{SERIAL, Scratch, names, small, text, wait_for};
use std::fs;

/// Removes something on the way, and ends the run. Returns what the run said.
fn removed_on_the_way(scratch: &Scratch, out: &str, remove: &[&str]) -> String {
    let args = [SERIAL, &["--steps=100000"]].concat();
    let (started, log) = scratch.start_logged(&small(out, &args));
    let run = scratch.at(out);
    wait_for("steps", || run.lines().len() >= 3);
    for name in remove {
        let path = scratch.path(name);
        if path.is_dir() {
            fs::remove_dir_all(path).unwrap();
        } else {
            fs::remove_file(path).unwrap();
        }
    }
    started.signal("TERM");
    assert_eq!(started.code(), Some(0), "{remove:?}");
    text(&fs::read(log).unwrap())
}

#[test]
fn what_is_removed_is_written_again() {
    let scratch = Scratch::new();
    let cases: [(&str, &[&str], &str); 3] = [
        ("one", &["one"], ".lock, config.toml, metrics.jsonl"),
        ("two", &["two/config.toml"], "config.toml"),
        ("three", &["three/metrics.jsonl"], "metrics.jsonl"),
    ];
    for (out, remove, again) in cases {
        let told = removed_on_the_way(&scratch, out, remove);
        let line = format!("{out}: removed while the run goes on, and written again: {again}\n");
        assert!(told.contains(&line), "{told}");
        let (run, left) = (scratch.at(out), names(&scratch.path(out)));
        assert_eq!(left, [".lock", "checkpoints", "config.toml", "metrics.jsonl", "summary.json"]);
        // No step is lost, and it can be resumed.
        let steps = run.lines().len() as u64;
        assert_eq!(run.numbers("step"), (1..=steps).map(|step| step as f64).collect::<Vec<_>>());
        assert_eq!(run.summary()["steps"], steps);
        let more = format!("--steps={}", steps + 1);
        assert_eq!(scratch.resume(out, &[&more]).lines().len() as u64, steps + 1);
    }
}

#[test]
fn a_run_needs_no_cache_once_it_has_begun() {
    let scratch = Scratch::new();
    removed_on_the_way(&scratch, "run", &["cache"]);
    let step = scratch.at("run").lines().len() as u64;
    assert!(!scratch.at("run").checkpoint_file(step, "tokenizer.json").is_empty());
}

#[test]
fn lost_metrics_are_said_and_strange_lines_are_too() {
    let scratch = Scratch::new();
    let run = scratch.train("run", &[SERIAL, &["--steps=3"]].concat());
    let path = run.path.join("metrics.jsonl");
    let kept = fs::read_to_string(&path).unwrap();
    fs::write(&path, kept.clone() + "not metrics\n").unwrap();
    let (_, told) = scratch.ok(&["train", "--resume", "run", "--steps=4"]);
    let line = "metrics.jsonl: 1 line behind that of step 3 cannot be read, and will be removed\n";
    assert!(told.contains(line), "{told}");
    fs::remove_file(&path).unwrap();
    let (shown, told) = scratch.ok(&["train", "--resume", "run", "--steps=5"]);
    let line = "metrics.jsonl has no lines of steps 1 to 4; it goes on without\n";
    assert!(told.contains(line), "{told}");
    assert_eq!(run.numbers("step"), [5.0]);
    // What is of this session is said.
    assert!(shown.contains("of step 5, done since the resume:\n"), "{shown}");
    assert_eq!(run.summary()["steps_before"], 4);
    // Something else in its place is refused, and nothing is changed.
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    let resume = ["train", "--resume", "run", "--steps=6"];
    scratch.fails(&resume, 2, &["run/metrics.jsonl: it is a folder, not a regular file"]);
    fs::remove_dir(&path).unwrap();

    // Without metrics the checkpoints tell how far it is.
    let (shown, _) = scratch.ok(&["inspect", "run"]);
    assert!(shown.contains("complete; 5 of 5 steps"), "{shown}");
    assert!(shown.contains("metrics.jsonl does not reach the checkpoint of step 5"), "{shown}");
    fs::write(run.path.join("summary.json"), "{").unwrap();
    let (shown, _) = scratch.ok(&["inspect", "run"]);
    assert!(shown.contains("ended; how is not known, its summary cannot be read; 5"), "{shown}");
    assert!(shown.contains("train --resume run\n"), "{shown}");
    fs::remove_dir_all(run.checkpoints()).unwrap();
    let (shown, _) = scratch.ok(&["inspect", "run"]);
    assert!(shown.contains("train run/config.toml --out NEW\n"), "{shown}");
    assert!(!shown.contains("--resume"), "{shown}");
}

#[test]
fn an_older_checkpoint_is_not_taken_in_silence() {
    let scratch = Scratch::new();
    let args = ["--steps=4", "--set=checkpoint.every=2", "--set=checkpoint.keep_last=9"];
    let run = scratch.train("run", &[SERIAL, &args].concat());
    let path = run.checkpoints().join("step-4/model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(path, bytes).unwrap();
    let (_, told) = scratch.ok(&["generate", "--run", "run", "--prompt", "fn"]);
    assert_eq!(told.lines().count(), 1, "{told}");
    assert!(told.contains("checkpoints/step-4"), "{told}");
    assert!(told.ends_with("run/checkpoints/step-2 is used\n"), "{told}");
    let (shown, _) = scratch.ok(&["inspect", "run"]);
    let note = "note: step-4 is damaged: generate and --resume take step-2";
    assert!(shown.contains(note), "{shown}");
}
