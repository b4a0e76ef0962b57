//! When a run saves, what it keeps, and what it says on its last line.

use crate::common::{SERIAL, Scratch, names, small};

#[test]
fn a_run_saves_by_the_clock() {
    let scratch = Scratch::new();
    let args = ["--steps=4", "--set=checkpoint.minutes=1e-9", "--set=checkpoint.keep_last=9"];
    let run = scratch.train("run", &[SERIAL, &args].concat());
    assert_eq!(names(&run.checkpoints()), ["step-1", "step-2", "step-3", "step-4"]);
    let none = ["--steps=4", "--set=checkpoint.minutes=0"];
    let run = scratch.train("none", &[SERIAL, &none].concat());
    assert_eq!(names(&run.checkpoints()), ["step-4"]);
}

#[test]
fn the_best_checkpoint_is_kept() {
    let scratch = Scratch::new();
    let args = [
        "--steps=6",
        "--set=eval.every=2",
        "--set=checkpoint.keep_best=true",
        "--set=checkpoint.keep_last=1",
    ];
    let run = scratch.train("run", &[SERIAL, &args].concat());
    assert_eq!(names(&run.checkpoints()), ["step-6"]);
    let best = run.summary()["best_val_loss"].clone();
    assert_eq!(run.summary()["best_step"], 6);
    // Too fast from here on: the loss rises.
    scratch.resume("run", &["--steps=10", "--set=optimizer.lr=0.5"]);
    assert!(run.summary()["val_loss"].as_f64() > best.as_f64());
    assert_eq!(names(&run.checkpoints()), ["step-10", "step-6"]);
    let summary = run.summary();
    assert_eq!((&summary["best_step"], &summary["best_val_loss"]), (&6.into(), &best));
    let (shown, _) = scratch.ok(&["inspect", "run"]);
    let best_row = shown.lines().find(|line| line.starts_with("step-6 ")).unwrap();
    assert!(best_row.ends_with("; best") && shown.contains(" at step 6, "), "{shown}");
    // It goes on from the newest, and without it from the best.
    scratch.resume("run", &["--steps=11"]);
    assert_eq!(names(&run.checkpoints()), ["step-11", "step-6"]);
}

#[test]
fn the_last_line_and_the_last_metrics_have_the_final_validation() {
    let scratch = Scratch::new();
    let args = [SERIAL, &["--steps=3", "--set=eval.every=1"]].concat();
    let (_, told) = scratch.ok(&small("run", &args));
    let run = scratch.at("run");
    let (last, summary) = (run.metrics().pop().unwrap(), run.summary());
    assert!(last["val_loss"].is_number() && last["val_loss"] == summary["val_loss"]);
    let numbers = ["loss", "val_loss"].map(|name| last[name].as_f64().unwrap());
    let line = format!("step 3/3 · loss {:.3} · val {:.3} ", numbers[0], numbers[1]);
    assert!(told.contains(&line), "{told}");
    // A warm-up that never ends is said once.
    let warmup =
        "lr.warmup_steps = 5 is longer than the run of 3 steps: the rate ends at 60 % of its";
    assert_eq!(told.matches(warmup).count(), 1, "{told}");
}
