//! Runs that are asked to stop, and go on.

use crate::common::{ALL_AXES, Run, SERIAL, Scratch, Started, names, small, wait_for};
use std::fs;
use std::io::Write;

/// Long enough to be stopped on the way.
const STEPS: &str = "--steps=120";

/// Waits until a run has done so many steps.
fn wait_for_steps(run: &Run, steps: usize) {
    wait_for("steps", || run.lines().len() >= steps);
}

/// Starts a run and stops it on the way, which must end well and save. Returns the steps done.
fn stop_on_the_way(scratch: &Scratch, out: &str, args: &[&str], signal: &str) -> u64 {
    let started = scratch.start(&small(out, args));
    let run = scratch.at(out);
    wait_for_steps(&run, 5);
    started.signal(signal);
    assert_eq!(started.code(), Some(0), "{signal}");
    let summary = run.summary();
    let steps = summary["steps"].as_u64().unwrap();
    assert!((5..120).contains(&steps), "{signal} after {steps} steps");
    assert_eq!(summary["stopped_early"], "asked to stop");
    assert_eq!(run.lines().len() as u64, steps, "{signal}: the step was finished");
    assert_eq!(names(&run.checkpoints()), [format!("step-{steps}")], "{signal}: and saved");
    steps
}

/// Everything that a run computes is there, bit for bit.
#[track_caller]
fn assert_same(run: &Run, other: &Run, step: u64) {
    assert_eq!(run.timeless(), other.timeless());
    for file in ["model.safetensors", "optimizer.safetensors"] {
        assert!(run.checkpoint_file(step, file) == other.checkpoint_file(step, file), "{file}");
    }
    let [ours, theirs] = [run, other].map(Run::summary);
    for name in ["tokens", "final_loss", "val_loss", "val_bits_per_byte", "bigram_bits_per_byte"] {
        assert!(!ours[name].is_null() && ours[name] == theirs[name], "{name}");
    }
}

#[test]
fn a_signal_stops_a_run_that_goes_on_bit_exactly() {
    let scratch = Scratch::new();
    // Dropout draws random numbers: they must go on too.
    let args = [ALL_AXES, &[STEPS, "--set=model.dropout=0.1"]].concat();
    let whole = scratch.train("whole", &args);
    for signal in ["INT", "TERM", "USR1", "XCPU"] {
        stop_on_the_way(&scratch, signal, &args, signal);
        assert_same(&scratch.resume(signal, &[]), &whole, 120);
    }
}

#[test]
fn a_run_goes_on_in_another_layout() {
    let scratch = Scratch::new();
    let common = [STEPS, "--numerics=reference", "--set=model.layers=4"];
    let whole = scratch.train("whole", &[SERIAL, &common].concat());
    let others: [&[&str]; 2] = [
        &["--tp=1", "--pp=2", "--dp=4", "--schedule=gpipe"],
        // Both ends of the model on the first rank.
        &["--tp=1", "--pp=2", "--dp=4", "--schedule=zb-v"],
    ];
    for (index, other) in others.into_iter().enumerate() {
        let name = format!("moved-{index}");
        let steps = stop_on_the_way(&scratch, &name, &[ALL_AXES, &common].concat(), "TERM");
        let moved = scratch.resume(&name, other);
        assert_same(&moved, &whole, 120);
        assert!(steps < 120 && moved.summary()["layout"] == "dp 4 × pp 2 × tp 1");
    }
}

#[test]
fn a_second_signal_ends_a_run_at_once() {
    let scratch = Scratch::new();
    // Steps long enough for both signals to arrive in one.
    let args = [ALL_AXES, &["--steps=1000", "--set=batch.global=256"]].concat();
    let started = scratch.start(&small("run", &args));
    wait_for_steps(&scratch.at("run"), 1);
    started.signal("INT");
    started.signal("TERM");
    assert_eq!(started.code(), Some(130));
}

#[test]
fn the_metrics_are_cut_back_to_the_checkpoint() {
    let scratch = Scratch::new();
    let args = [ALL_AXES, &["--steps=12", "--set=checkpoint.every=4"]].concat();
    let whole = scratch.train("whole", &args);
    let run = scratch.train("run", &args);
    let lines = run.lines();
    // As if it had been killed after its eleventh step, while it wrote a line.
    fs::remove_dir_all(run.checkpoints().join("step-12")).unwrap();
    let mut metrics = fs::File::create(run.path.join("metrics.jsonl")).unwrap();
    write!(metrics, "{}{{\"step\":12,\"lo", lines[..11].concat()).unwrap();
    scratch.resume("run", &[]);
    assert_same(&run, &whole, 12);
    assert_eq!(run.lines()[..8], lines[..8], "what is kept is not written anew");
    assert_eq!(names(&run.checkpoints()), ["step-12", "step-8"]);
}

#[test]
fn resuming_a_finished_run_changes_nothing() {
    let scratch = Scratch::new();
    let run = scratch.train("run", &[ALL_AXES, &["--steps=8"]].concat());
    let files = ["metrics.jsonl", "config.toml", "summary.json"];
    let read = || files.map(|name| fs::read_to_string(run.path.join(name)).unwrap());
    let before = read();
    let weights = run.checkpoint_file(8, "model.safetensors");
    scratch.resume("run", &[]);
    for ((name, before), after) in files.iter().zip(before).zip(read()) {
        if *name != "summary.json" {
            assert_eq!(before, after, "{name}");
        }
        // Only the activations of the evaluation are measured again.
        let kept = |text: &str| -> Vec<String> {
            text.lines()
                .filter(|line| !line.contains("activation_bytes_max"))
                .map(str::to_owned)
                .collect()
        };
        assert_eq!(kept(&before), kept(&after), "{name}");
    }
    assert!(run.checkpoint_file(8, "model.safetensors") == weights);
    assert_eq!(names(&run.checkpoints()), ["step-8"]);
    // More steps are asked for: it goes on.
    scratch.resume("run", &["--steps=10"]);
    assert_eq!(run.lines().len(), 10);
    assert_eq!(run.summary()["steps"], 10);
}

#[test]
fn a_run_directory_serves_one_process() {
    let scratch = Scratch::new();
    let args = [SERIAL, &["--steps=100000"]].concat();
    let mut started: Started = scratch.start(&small("run", &args));
    wait_for_steps(&scratch.at("run"), 1);
    let output = scratch.trine(&["train", "--resume", "run"]);
    let message = crate::common::text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains("error: run is in use by another process"), "{message}");
    assert!(started.is_running());
    started.kill();
    // A lock does not outlive its process.
    scratch.resume("run", &["--steps=5"]);
}
