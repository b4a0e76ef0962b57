//! `kill -9` at any moment: resuming gives what never stopping gives.

use crate::common::{ALL_AXES, Run, Scratch, names, small, wait_for};
use std::thread::sleep;
use std::time::Duration;
use trine_checkpoint::{Check, latest};
use trine_rng::Stream;

const STEPS: u64 = 60;
/// A checkpoint every five steps, two kept.
const ARGS: &[&str] = &["--steps=60", "--set=checkpoint.every=5", "--set=checkpoint.keep_last=2"];

/// What a save has not finished.
fn unfinished(run: &Run) -> usize {
    names(&run.checkpoints()).iter().filter(|name| name.starts_with('.')).count()
}

/// Starts or resumes `out` and kills it: `steps` later, or as soon as it saves after that. Returns
/// whether it was saving.
fn kill_once(scratch: &Scratch, out: &str, steps: usize, saving: bool, more: Duration) -> bool {
    let run = scratch.at(out);
    let begun = run.path.join("config.toml").exists();
    let started = if begun {
        scratch.start(&["train", "--resume", out])
    } else {
        scratch.start(&small(out, &[ALL_AXES, ARGS].concat()))
    };
    // A resumed run first cuts its metrics back: only what comes after that is progress.
    let first = run.lines().len();
    let goal = (first + steps).min(STEPS as usize - 8);
    wait_for("progress", || run.lines().len() >= goal);
    if saving {
        wait_for("a save", || unfinished(&run) > 0);
    } else {
        sleep(more);
    }
    started.kill();
    unfinished(&run) > 0
}

/// Kills a run at `moments` seeded moments, half of them while it saves, and lets it end.
fn killed_is_whole(moments: u64, seed: u64) {
    let scratch = Scratch::new();
    let whole = scratch.train("whole", &[ALL_AXES, ARGS].concat());
    let draw = Stream::new(seed, "kill");
    let (mut kills, mut while_saving) = (0, 0);
    // Each run is killed four times.
    for index in 0..moments {
        let out = format!("run-{}", index / 4);
        let uniform = |place: u64| f64::from(draw.uniform(2 * index + place));
        let (steps, more) = ((uniform(0) * 12.0) as usize, uniform(1) * 8e-3);
        let saving = index % 2 == 1;
        let was_saving = kill_once(&scratch, &out, steps, saving, Duration::from_secs_f64(more));
        while_saving += u64::from(was_saving);
        kills += 1;
        if index % 4 == 3 {
            check(&scratch.resume(&out, &[]), &whole, seed);
        }
    }
    assert_eq!(kills, moments);
    assert!(while_saving > 0, "seed {seed}: no save was interrupted");
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
#[ignore = "half a minute: part of the long suite"]
fn a_run_killed_at_twenty_moments_loses_nothing() {
    killed_is_whole(20, 2);
}
