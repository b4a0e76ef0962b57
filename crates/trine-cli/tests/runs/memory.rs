//! Runs that need more than they may use: memory, the size of a file.

use crate::common::{SERIAL, Scratch, small, text};
use std::process::{Command, Output};

/// Runs `trine` in a shell that has set a limit.
fn limited(scratch: &Scratch, limit: &str, args: &[&str]) -> Output {
    let script = format!("{limit}; exec \"$@\"");
    Command::new("sh")
        .args(["-c", &script, "sh", env!("CARGO_BIN_EXE_trine")])
        .args(args)
        .current_dir(scratch.path(""))
        .env("RUST_BACKTRACE", "1")
        .output()
        .unwrap()
}

/// What it must say, in one message without a backtrace.
#[track_caller]
fn fails(output: &Output, code: i32, parts: &[&str]) {
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{errors}");
    assert_eq!(errors.matches("error: ").count(), 1, "{errors}");
    for unwanted in ["panicked", "backtrace", "memory allocation of"] {
        assert!(!errors.contains(unwanted), "{errors}");
    }
    for part in parts {
        assert!(errors.contains(part), "{part} is missing in {errors}");
    }
}

/// 151 million parameters: 2.5 GB of weights, gradients, moments and activations.
const LARGE: &[&str] = &["--set=model.hidden=1024", "--set=model.layers=12"];

#[test]
#[cfg(target_os = "linux")]
fn more_memory_than_may_be_used_is_refused_before_the_start() {
    let scratch = Scratch::new();
    let args = small("run", &[SERIAL, LARGE].concat());
    let limit = "ulimit -v 700000";
    let needs = ["needs 2.5 GB of memory for 1 rank, 0.", " GB may be used (ulimit -v)"];
    let parts = [&needs[..], &["train.memory_check = false starts all the same"]].concat();
    fails(&limited(&scratch, limit, &args), 2, &parts);
    assert!(!scratch.path("run").exists());
    // A dry run says the same, and is none the worse for it.
    let dry = limited(&scratch, limit, &[&args[..], &["--dry-run"]].concat());
    let said = text(&dry.stdout);
    assert!(dry.status.success() && needs.iter().all(|part| said.contains(part)), "{said}");
    assert!(said.contains("(ulimit -v): too little"), "{said}");
    // What is enough is enough.
    let enough = small("enough", &[SERIAL, &["--steps=2"]].concat());
    let output = limited(&scratch, limit, &enough);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains(" may be used ("), "{}", text(&output.stderr));
}

#[test]
#[cfg(target_os = "linux")]
fn a_run_that_fits_is_not_ended_by_the_measurement_of_the_machine() {
    let scratch = Scratch::new();
    let args = small("run", &[SERIAL, &["--steps=3"]].concat());
    let output = limited(&scratch, "ulimit -v 300000", &args);
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("no time is planned: to measure this machine takes up to "), "{said}");
}

#[test]
#[cfg(target_os = "linux")]
fn an_allocation_that_fails_names_the_rank_its_place_and_the_plan() {
    let scratch = Scratch::new();
    for (layout, limit) in [(SERIAL, 700_000), (&["--tp=1", "--pp=2", "--dp=1"][..], 1_200_000)] {
        let all_the_same = ["--set=train.memory_check=false"];
        let out = format!("run-{limit}");
        let args = small(&out, &[layout, LARGE, &all_the_same].concat());
        let output = limited(&scratch, &format!("ulimit -v {limit}"), &args);
        let parts = [
            "error: out of memory: ",
            " bytes were refused in rank ",
            " was at: ",
            "; the plan needs 2.5 GB of memory for ",
        ];
        fails(&output, 1, &parts);
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_file_that_may_not_grow_is_an_error_like_a_full_disk() {
    let scratch = Scratch::new();
    let args = |out| small(out, &[SERIAL, &["--steps=2"]].concat());
    // Its data is ready, so that the first large file is that of the weights.
    scratch.ok(&args("first"));
    let output = limited(&scratch, "ulimit -f 40", &args("second"));
    fails(&output, 1, &["model.safetensors", "File too large"]);
}

#[test]
fn absurd_numbers_of_threads_are_refused() {
    let scratch = Scratch::new();
    let args = small("run", &[SERIAL, &["--set=layout.threads_per_rank=100000"]].concat());
    let parts = ["layout.threads_per_rank = 100000", "must be at most 4096"];
    scratch.fails(&args, 2, &parts);
}
