//! `trine bench step`: what it prints of a tiny model, and its turns.

use crate::common::{TINY, fails, ok};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

fn args<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["bench", "step"], TINY, &["--precision=f32", "--seconds=0"], more].concat()
}

/// The objects that it prints when its input has so many lines and then ends.
fn objects(args: &[&str], lines: usize) -> Vec<serde_json::Value> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_trine"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary was built with this test");
    let mut stdin = child.stdin.take().expect("it is piped");
    stdin.write_all("\n".repeat(lines).as_bytes()).expect("so few bytes fit into a pipe");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends with its input");
    assert!(output.status.success(), "{args:?}: {:?}", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(|line| serde_json::from_str(line).expect("a line is an object")).collect()
}

#[test]
fn every_line_of_the_input_is_a_turn_more() {
    let one_rank = ["--tp=1", "--pp=1", "--dp=1", "--json", "--turns"];
    for (layout, lines) in [(&one_rank[..], 0), (&one_rank, 3), (&["--json", "--turns"], 2)] {
        let turns = objects(&args(layout), lines);
        assert_eq!(turns.len(), lines + 1);
        let losses: Vec<_> = turns.iter().map(|turn| turn["loss"].as_f64().unwrap()).collect();
        // The training goes on where the turn before has left it.
        assert!(losses.windows(2).all(|pair| pair[1] < pair[0]), "{losses:?}");
        for turn in &turns {
            assert_eq!(turn["steps"], 1);
            assert!(turn["ceiling_gflops_per_s"].is_null(), "{turn}");
            assert!(turn["tokens_per_s"].as_f64().unwrap() > 0.0, "{turn}");
        }
    }
}

#[test]
fn without_turns_the_input_is_left_alone() {
    let once = objects(&args(&["--json"]), 3);
    assert_eq!(once.len(), 1);
    let number = |name: &str| once[0][name].as_f64().unwrap();
    assert!(number("ceiling_gflops_per_s") > number("model_gflops_per_s"), "{once:?}");
    let text = ok(Path::new("."), &args(&["--profile"]));
    for part in ["median of 1 step:", "that multiply-adds in registers reach", "outside kernels"] {
        assert!(text.contains(part), "no `{part}` in {text}");
    }
}

#[test]
fn turns_are_of_objects() {
    fails(Path::new("."), &args(&["--turns"]), 2, &["--json"]);
    fails(
        Path::new("."),
        &["bench", "step", "--seconds=3601"],
        2,
        &["--seconds 3601", "0 to 3600"],
    );
}
