//! `trine bench layouts`: what it prints of a tiny model, and what it refuses.

use crate::common::{TINY, fails, ok};
use std::path::Path;

fn args<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["bench", "layouts"], TINY, &["--set=train.recompute=true", "--steps=2", "--rounds=2"], more]
        .concat()
}

const OVERHEADS: [&str; 3] = ["extra_passes", "collectives", "waiting"];

#[test]
fn the_shares_of_all_overheads_are_the_loss() {
    let layouts = ["--layout=2x2x2", "--layout=2x1x1", "--layout=1x2x1", "--layout=1x1x2"];
    let text = ok(Path::new("."), &args(&[&layouts[..], &["--json"]].concat()));
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (&report["rounds"], &report["tokens_per_step"], &report["micro_batch"]),
        (&2.into(), &64.into(), &1.into()),
        "{text}"
    );
    assert_eq!(report["recompute"], true);
    let number = |value: &serde_json::Value| value.as_f64().unwrap();
    let results = report["layouts"].as_array().unwrap();
    for (result, degrees) in results.iter().zip([[2, 2, 2], [2, 1, 1], [1, 2, 1], [1, 1, 2]]) {
        let found = ["dp", "pp", "tp"].map(|axis| result[axis].as_u64().unwrap());
        assert_eq!(found, degrees);
        let loss = number(&result["loss"]);
        let overheads: f64 = OVERHEADS.iter().map(|kind| number(&result["overheads"][kind])).sum();
        assert!((overheads - loss).abs() < 1e-9, "{result}");
        let parts = result["parts"].as_array().unwrap();
        let shares: f64 = parts.iter().map(|part| number(&part["share"])).sum();
        assert!((shares - loss).abs() < 1e-9, "{result}");
        // The loss is that of the speeds, over all turns.
        let speeds = number(&result["tokens_per_s"]) / number(&report["one_rank_tokens_per_s"]);
        assert!((1.0 - speeds - loss).abs() < 1e-6, "{result}");
        let of = |name: &str, side: &str| {
            number(&parts.iter().find(|part| part["part"] == name).unwrap()[side])
        };
        // Every side has passes; only a layout has work between ranks, and messages only a pipeline.
        for side in ["one_rank_ms", "layout_ms"] {
            for pass in ["forward", "backward", "gradients, update"] {
                assert!(of(pass, side) > 0.0, "{pass}: {result}");
            }
        }
        assert!(of("collectives", "layout_ms") > of("collectives", "one_rank_ms"), "{result}");
        assert_eq!(of("messages", "layout_ms") > 0.0, degrees[1] == 2, "{result}");
        assert_eq!(of("messages", "one_rank_ms"), 0.0);
        let [low, high] = [0, 1].map(|at| number(&result["ratio"]["quartiles"][at]));
        assert!(low <= high && low > 0.0, "{result}");
    }
    assert_eq!(results.len(), 4);
}

#[test]
fn people_get_a_table() {
    let text = ok(Path::new("."), &args(&["--dp=2", "--pp=1", "--tp=1", "--set=threads.pin=auto"]));
    for part in [
        "against dp 2 × pp 1 × tp 1, 2 steps of 64 tokens a turn in micro-batches of 1 × 16, recompute true, 2 turns each",
        "turn 2: ",
        "dp 2 × pp 1 × tp 1: median ratio ",
        "loss over all turns ",
        " = extra passes ",
        "waiting for other ranks",
        "gradients, update",
        "idle otherwise",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn degrees_that_are_none_are_refused() {
    for (layout, says) in [
        ("2x2", "--layout 2x2: must be the degrees dp, pp and tp"),
        ("2x2xa", "for example: 2x2x2"),
        ("1x1x6", "layout.tp = 6"),
        ("1x0x1", "layout.pp = 0"),
    ] {
        fails(Path::new("."), &args(&["--layout", layout]), 2, &[says]);
    }
}
