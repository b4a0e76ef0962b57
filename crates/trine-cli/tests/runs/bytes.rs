//! The bytes that a plan promises are the bytes that ranks hold, to the last one.

use crate::common::Scratch;
use serde_json::Value;

/// Frontier's 22B with two layers of `hidden`, on two stages of two shards, twice.
fn planned_is_measured(hidden: usize) {
    let scratch = Scratch::new();
    let hidden = format!("--set=model.hidden={hidden}");
    let mut cases = 0;
    for precision in ["f32", "bf16"] {
        for zero in [0, 1] {
            let out = format!("{precision}-{zero}");
            let (precision, zero) =
                (format!("--precision={precision}"), format!("--set=train.zero={zero}"));
            let shape = [
                "train",
                "--preset=frontier-22b",
                "--data=data",
                "--set=data.cache=cache",
                "--set=model.layers=2",
                "--set=model.heads=8",
                "--set=model.vocab=301",
                "--set=data.vocab=300",
                "--set=model.seq_max=32",
                "--set=data.seq=16",
                "--set=batch.global=4",
                "--set=batch.micro=1",
                "--set=eval.final_windows_max=4",
                "--set=sample.prompts=[]",
                "--tp=2",
                "--pp=2",
                "--dp=2",
                "--steps=2",
            ];
            scratch.ok(&[&shape[..], &[&hidden, &precision, &zero, "--out", &out]].concat());
            let summary = scratch.at(&out).summary();
            let ranks = summary["ranks"].as_array().unwrap();
            assert_eq!(ranks.len(), 8);
            for rank in ranks {
                check(rank, &out);
            }
            std::fs::remove_dir_all(scratch.path(&out)).unwrap();
            cases += 1;
        }
    }
    assert_eq!(cases, 4);
}

/// Planned are measured, and both are what the precision and the ZeRO stage make of the weights.
fn check(rank: &Value, case: &str) {
    assert_eq!(rank["bytes_planned"], rank["bytes_measured"], "{case}");
    let bytes = |name: &str| rank["bytes_measured"][name].as_u64().unwrap();
    let (weights, gradients) = (bytes("weights"), bytes("gradients"));
    assert!(weights > 0, "{case}");
    let (is_f32, shards) = (case.starts_with("f32"), if case.ends_with('1') { 2 } else { 1 });
    assert_eq!(gradients, weights * if is_f32 { 1 } else { 2 }, "{case}: gradients are in f32");
    let master = if is_f32 { 0 } else { gradients / shards };
    assert_eq!(bytes("master"), master, "{case}: f32 weights are their own masters");
    assert_eq!(bytes("moments"), 2 * gradients / shards, "{case}");
}

#[test]
fn planned_bytes_are_held_bytes() {
    planned_is_measured(192);
}

#[test]
#[ignore = "57 million parameters take minutes without optimisation; with --release it is quick"]
fn planned_bytes_are_held_bytes_with_1536_hidden() {
    planned_is_measured(1536);
}
