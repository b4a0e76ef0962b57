//! Faults that are planted in the crate's own kernels: each is found by its name.

use crate::machine::Machine;
use trine_gpu_sim::Source;
use trine_kernels_gpu::SOURCES;
use trine_testkit::ops::cases;

/// What is reported of the norms in parts whose source has `new` in place of `old`, which is there once in `file`.
fn reports(file: &str, old: &str, new: &str) -> Vec<String> {
    let texts: Vec<_> = SOURCES
        .iter()
        .filter(|(name, _)| name.ends_with(".cuh") || *name == "rms.cu")
        .map(|&(name, text)| {
            let count = if name == file { text.matches(old).count() } else { 1 };
            assert_eq!(count, 1, "{file} has `{old}` so often");
            (name, if name == file { text.replace(old, new) } else { text.to_owned() })
        })
        .collect();
    let sources: Vec<_> = texts.iter().map(|(name, text)| Source { name, text }).collect();
    let machine = Machine::of_sources(&sources);
    for case in cases().iter().filter(|case| case.method().starts_with("rms_s")) {
        case.on(&machine.ops).unwrap_or_else(|error| panic!("{case:?}: {error}"));
    }
    machine.sim.reports()
}

#[track_caller]
fn each_has(reports: &[String], kernel: &str, words: &[&str]) {
    assert!(!reports.is_empty());
    for report in reports {
        let is_named = words.iter().any(|words| report.contains(words));
        assert!(report.starts_with(kernel) && is_named, "{report}");
    }
}

#[test]
fn a_norm_without_a_barrier_before_its_sum_is_overwritten() {
    let found = reports("rms.cu", "trine_barrier(); // all threads have read the sum", "");
    each_has(&found, "`rms_scale_", &["it, and no barrier orders the two"]);
}

#[test]
fn a_sum_over_a_block_without_its_barrier() {
    let kept = "parts[thread / TRINE_WARP] = value;";
    let found = reports("trine.cuh", &format!("{kept}\n    trine_barrier();"), kept);
    let words = ["it, and no barrier orders the two", "shared memory that nothing has written"];
    each_has(&found, "`rms_squares_", &words);
}

#[test]
fn a_norm_with_too_little_shared_memory() {
    let found = reports("rms.cu", "of_blocks, BLOCKS_MAX", "of_blocks, 1");
    each_has(&found, "`rms_squares_", &["touches shared memory beyond what the block has"]);
}

#[test]
fn a_norm_that_goes_on_into_the_next_group() {
    let row = "EACH_COLUMN_OF_THREAD(c, of.group)\n            narrow(y[";
    let found = reports("rms.cu", row, &row.replace("of.group", "of.group + 1"));
    each_has(
        &found,
        "`rms_scale_",
        &["another block writes it", "it ends before", "another thread"],
    );
}
