//! Signals to a run: what they save, what they say, and how fast they end it.

use crate::common::{ALL_AXES, Run, SERIAL, Scratch, names, small, wait_for};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Steps that take long enough for something to happen in them.
const LONG_STEPS: &[&str] =
    &["--steps=1000", "--set=batch.global=256", "--set=log.every_seconds=0.01"];

fn said(log: &Path) -> String {
    fs::read_to_string(log).unwrap()
}

/// Waits until a run has done a step.
fn wait_for_a_step(run: &Run) {
    wait_for("a step", || !run.lines().is_empty());
}

/// An end that is asked for within a second; a busy machine gets some more.
#[track_caller]
fn assert_at_once(since: Instant) {
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
}

#[test]
fn a_hang_up_and_a_termination_finish_the_step_and_save() {
    let scratch = Scratch::new();
    for name in ["HUP", "TERM"] {
        let args = [ALL_AXES, LONG_STEPS].concat();
        let (started, log) = scratch.start_logged(&small(name, &args));
        let run = scratch.at(name);
        wait_for_a_step(&run);
        started.signal(name);
        assert_eq!(started.code(), Some(0), "{name}");
        let steps = run.lines().len();
        assert_eq!(names(&run.checkpoints()), [format!("step-{steps}")], "{name}");
        assert_eq!(run.summary()["stopped_early"], "asked to stop");
        // Between two steps, the one just done may be named though the next has been decided on.
        let named = [steps, steps - 1].map(|step| format!("SIG{name}: finishing step {step} "));
        let (told, saving) = (said(&log), format!("SIG{name}: saving"));
        assert!(named.iter().chain([&saving]).any(|line| told.contains(line)), "{told}");
        assert!(told.contains("; again to end at once"), "{told}");
    }
}

/// `nohup` ignores hang-ups for what it starts, and so does the run.
#[test]
fn a_hang_up_that_is_ignored_from_the_start_stays_so() {
    let scratch = Scratch::new();
    let args = small("run", &[SERIAL, &["--steps=60"]].concat());
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_trine")]);
    command.args(args).current_dir(scratch.path(""));
    let log = fs::File::create(scratch.path("log.txt")).unwrap();
    let mut child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
    let run = scratch.at("run");
    wait_for_a_step(&run);
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-HUP", &id]).status().unwrap().success());
    assert!(child.wait().unwrap().success());
    assert_eq!(run.lines().len(), 60);
    assert_eq!(run.summary()["stopped_early"], Value::Null);
}

#[test]
fn a_signal_before_the_first_step_ends_the_run_and_leaves_nothing_half_done() {
    let scratch = Scratch::new();
    // Enough text to be at work on it for a while.
    let text = fs::read_to_string(scratch.path("data/part0000.rs")).unwrap();
    fs::write(scratch.path("data/large.rs"), text.repeat(4000)).unwrap();
    let args = small("run", &[ALL_AXES, &["--steps=2"]].concat());
    let (started, log) = scratch.start_logged(&args);
    wait_for("the data", || said(&log).contains("data: encoding"));
    let since = Instant::now();
    started.signal("INT");
    assert_eq!(started.code(), Some(130));
    assert_at_once(since);
    let told = said(&log);
    assert!(
        told.contains("SIGINT: ended before the first step; there was nothing to save"),
        "{told}"
    );
    assert!(!scratch.path("run/config.toml").exists());
    // The same command trains, on data that is made anew.
    fs::remove_file(scratch.path("data/large.rs")).unwrap();
    scratch.ok(&args);
    assert_eq!(scratch.at("run").lines().len(), 2);
}

#[test]
fn a_signal_while_the_machine_is_measured_says_that_nothing_was_saved() {
    let scratch = Scratch::new();
    let args = small("run", &["--layout=auto", "--set=train.steps=2"]);
    let (started, log) = scratch.start_logged(&args);
    wait_for("the measurement", || said(&log).contains("measuring this machine"));
    started.signal("TERM");
    assert_eq!(started.code(), Some(130));
    let told = said(&log);
    assert!(told.contains("SIGTERM: ended before the first step"), "{told}");
    assert!(!scratch.path("run").exists());
}

#[test]
fn a_long_step_shows_how_far_it_is() {
    let scratch = Scratch::new();
    let (started, log) = scratch.start_logged(&small("run", &[ALL_AXES, LONG_STEPS].concat()));
    let run = scratch.at("run");
    wait_for("progress in a step", || {
        let told = said(&log);
        told.lines().any(|line| line.starts_with("step 1/1000: ") && line.contains(" actions in "))
    });
    started.kill();
    assert!(run.lines().len() < 1000);
}

/// Written as it comes: a run that fails, or is killed, has its trace, as viewers take it.
#[test]
fn a_run_that_fails_has_its_trace() {
    let scratch = Scratch::new();
    let fails = ["--steps=30", "--set=optimizer.lr=1e30", "--trace=t.json"];
    scratch.fails(&small("run", &[ALL_AXES, &fails].concat()), 1, &["is not finite"]);
    let text = fs::read_to_string(scratch.path("t.json")).unwrap();
    let events: Vec<Value> = serde_json::from_str(&(text + "]")).unwrap();
    for rank in 0..8 {
        let own = events.iter().filter(|event| event["ph"] == "X" && event["tid"] == rank);
        assert!(own.count() > 4, "rank {rank}");
    }
}
