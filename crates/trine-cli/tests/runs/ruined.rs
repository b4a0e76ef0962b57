//! Updates that ruin the weights: the run ends, and what it had saved stays.

use crate::common::{ALL_AXES, SERIAL, Scratch, names, small};
use std::fs;

/// After an update with this rate weights are finite, and no product with them is.
const RUINOUS: &str = "--set=optimizer.lr=1e30";

#[test]
fn an_evaluation_that_is_not_finite_ends_the_run_before_the_save() {
    let scratch = Scratch::new();
    for (out, layout) in [("serial", SERIAL), ("split", ALL_AXES)] {
        let every = ["--set=checkpoint.every=1", "--set=checkpoint.keep_last=1", "--steps=9"];
        let run = scratch.train(out, &[layout, &every].concat());
        let args = ["train", "--resume", out, "--steps=12", RUINOUS, "--set=eval.every=1"];
        let told = scratch.fails(&args, 1, &["step 10: the validation loss is", "are not saved"]);
        assert!(!told.contains("step 11"), "{told}");
        assert_eq!(names(&run.checkpoints()), ["step-9"]);
        scratch.resume(out, &["--steps=12"]);
        assert_eq!(names(&run.checkpoints()), ["step-12"]);
    }
}

#[test]
fn a_last_step_that_ruins_the_weights_is_a_failure() {
    let scratch = Scratch::new();
    for layout in [SERIAL, ALL_AXES] {
        let args = [layout, &["--steps=1", RUINOUS]].concat();
        let out = format!("run-{}", layout.join(""));
        scratch.fails(&small(&out, &args), 1, &["step 1: the validation loss is"]);
        assert_eq!(names(&scratch.at(&out).checkpoints()), ["none-yet"]);
        assert!(!scratch.at(&out).path.join("summary.json").exists());
    }
}

#[test]
fn the_checkpoint_before_stays_until_the_new_one_is_shown_good() {
    let scratch = Scratch::new();
    let every = ["--set=checkpoint.every=1", "--set=checkpoint.keep_last=1"];
    let run = scratch.train("run", &[SERIAL, &every, &["--steps=9"]].concat());
    let output = scratch.trine(&["train", "--resume", "run", "--steps=12", RUINOUS]);
    let told = crate::common::text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("step 11: the gradient of"), "{told}");
    let kept = "checkpoints of run: step-10, step-9; --resume takes the newest whole one: move step-10 away";
    assert!(told.contains(kept), "{told}");
    assert_eq!(names(&run.checkpoints()), ["step-10", "step-9"]);
    fs::remove_dir_all(run.checkpoints().join("step-10")).unwrap();
    scratch.resume("run", &["--steps=12", "--set=optimizer.lr=1e-3"]);
    assert_eq!(names(&run.checkpoints()), ["step-12"]);
}
