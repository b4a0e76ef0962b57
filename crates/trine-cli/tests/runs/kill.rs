//! `kill -9` at any moment: resuming gives what never stopping gives.

use crate::common::{ALL_AXES, Run, Scratch, names, small, wait_for};
use std::thread::sleep;
use std::time::Duration;
use trine_checkpoint::{Check, latest};
use trine_rng::Stream;

const STEPS: u64 = 60;
/// A checkpoint every five steps, two kept.
const ARGS: &[&str] = &["--steps=60", "--set=checkpoint.every=5", "--set=checkpoint.keep_last=2"];

/// A run is killed so often before it may end.
const KILLS_PER_RUN: u64 = 4;

/// What a save has not finished.
fn unfinished(run: &Run) -> usize {
    names(&run.checkpoints()).iter().filter(|name| name.starts_with('.')).count()
}

/// How a process was ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// It came to its end before.
    Own,
    /// Between saves, or before a save left anything behind.
    Killed,
    /// It left half a checkpoint behind.
    KilledSaving,
}

/// Starts or resumes `out` and kills it: `steps` and a little later, or as soon as it saves after
/// that.
fn kill_once(scratch: &Scratch, out: &str, steps: usize, saving: bool, more: Duration) -> End {
    let run = scratch.at(out);
    let mut started = if run.path.join("config.toml").exists() {
        scratch.start(&["train", "--resume", out])
    } else {
        scratch.start(&small(out, &[ALL_AXES, ARGS].concat()))
    };
    // A resumed run first cuts its metrics back: without further steps it is killed as it starts.
    // Two more saves come after the last goal, so that one of them is seen.
    let goal = (run.lines().len() + steps).min(STEPS as usize - 15);
    wait_for("progress", || run.lines().len() >= goal);
    if saving {
        wait_for("a save", || unfinished(&run) > 0 || !started.is_running());
    } else {
        sleep(more);
    }
    if !started.is_running() {
        return End::Own;
    }
    started.kill();
    if unfinished(&run) > 0 { End::KilledSaving } else { End::Killed }
}

/// Kills runs at `moments` seeded moments, half of them while they save, and lets them end.
fn killed_is_whole(moments: u64, seed: u64) {
    let scratch = Scratch::new();
    let whole = scratch.train("whole", &[ALL_AXES, ARGS].concat());
    let draw = Stream::new(seed, "kill");
    let mut ends = Vec::new();
    for index in 0..moments {
        let out = format!("run-{}", index / KILLS_PER_RUN);
        let uniform = |place: u64| f64::from(draw.uniform(2 * index + place));
        let (steps, more) = ((uniform(0) * 12.0) as usize, uniform(1) * 8e-3);
        let saving = index % 2 == 1;
        ends.push(kill_once(&scratch, &out, steps, saving, Duration::from_secs_f64(more)));
        if (index + 1) % KILLS_PER_RUN == 0 {
            check(&scratch.resume(&out, &[]), &whole, seed);
        }
    }
    assert_eq!(ends.len() as u64, moments);
    assert!(!ends.contains(&End::Own), "seed {seed}: each was killed: {ends:?}");
    assert!(ends.contains(&End::KilledSaving), "seed {seed}: no save was interrupted: {ends:?}");
}

fn check(run: &Run, whole: &Run, seed: u64) {
    assert_eq!(run.loss_texts().len() as u64, STEPS);
    assert_eq!(run.timeless(), whole.timeless(), "seed {seed}");
    for file in ["model.safetensors", "optimizer.safetensors"] {
        let same = run.checkpoint_file(STEPS, file) == whole.checkpoint_file(STEPS, file);
        assert!(same, "seed {seed}: {file}");
    }
    // Nothing is left but complete checkpoints, and the usual files.
    assert_eq!(names(&run.checkpoints()), ["step-55", "step-60"], "seed {seed}");
    assert_eq!(names(&run.path), names(&whole.path), "seed {seed}");
    let found = latest(&run.checkpoints(), Check::Checksums).unwrap();
    assert!(found.damaged.is_empty() && found.checkpoint.is_some(), "seed {seed}: {found:?}");
}

#[test]
fn a_run_killed_at_four_moments_loses_nothing() {
    killed_is_whole(4, 1);
}

#[test]
#[ignore = "ten seconds more: part of the long suite"]
fn a_run_killed_at_twenty_moments_loses_nothing() {
    killed_is_whole(20, 2);
}
