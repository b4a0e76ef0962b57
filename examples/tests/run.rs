//! Every example runs, and shows what it says.
#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, helpers outside #[test] included"
)]

use std::path::Path;
use std::process::Command;

/// Lines of an example at most: it is read on one screen.
const LINES_MAX: usize = 60;

#[track_caller]
fn output(program: &str) -> String {
    let output = Command::new(program).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.is_empty(), "{program}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn own_schedule_is_proven_and_the_deadlock_found() {
    let text = output(env!("CARGO_BIN_EXE_own_schedule"));
    assert!(text.starts_with("proven: at most [2, 1] micro-batches in flight"), "{text}");
    assert!(text.contains("the other one is refused: ") && text.contains("F1.2"), "{text}");
}

#[test]
fn all_reduce_explains_the_mistake() {
    let text = output(env!("CARGO_BIN_EXE_all_reduce"));
    assert!(text.contains("rank 3 has [6.0, 4.0]"), "{text}");
    for part in ["barrier \"end of step\" #0", "all_reduce(sum) \"gradient\" #0", "all_reduce.rs"] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
}

#[test]
fn tensor_parallel_agrees_with_one_rank() {
    let text = output(env!("CARGO_BIN_EXE_tensor_parallel"));
    assert_eq!(text.lines().count(), 2);
    for line in text.lines() {
        let off = line.split("within ").nth(1).unwrap().split(' ').next().unwrap();
        assert!(off.parse::<f64>().unwrap() < 1e-13, "{line}");
    }
}

#[test]
fn own_loop_learns() {
    let text = output(env!("CARGO_BIN_EXE_own_loop"));
    let losses = text.lines().map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap());
    let losses: Vec<f64> = losses.collect();
    assert_eq!(losses.len(), 4, "{text}");
    assert!(losses[0] > 4.0 && losses[3] < 0.5 * losses[0], "{text}");
}

#[test]
fn own_model_has_the_gradients_of_one_rank_in_every_layout() {
    let text = output(env!("CARGO_BIN_EXE_own_model"));
    let compared = |kind: &str| -> Vec<f64> {
        let lines = text.lines().filter(|line| line.starts_with(kind));
        let off =
            lines.map(|line| line.split("within ").nth(1).unwrap().split(' ').next().unwrap());
        off.map(|off| off.parse().unwrap()).collect()
    };
    assert_eq!(compared("Reference f32"), [0.0; 5], "{text}");
    for (kind, bound) in [("Fast f32", 1e-5), ("Fast bf16", 0.05)] {
        let off = compared(kind);
        assert!(off.len() == 5 && off.iter().all(|off| *off < bound), "{text}");
        // One rank after the other adds in another order: not all can be equal.
        assert!(off.iter().any(|off| *off > 0.0), "{text}");
    }
    assert_eq!(text.matches("bytes as planned").count(), 8, "{text}");
    assert!(text.contains("to the bit"), "{text}");
    let sampled = text.lines().last().unwrap();
    let (made, right) = sampled.split_once("; the rule gives ").unwrap();
    assert_eq!(made.strip_prefix("sampled "), Some(right), "{text}");
}

#[test]
fn examples_are_short() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bin");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        // A model of one's own is a folder of files.
        if path.is_dir() {
            continue;
        }
        let lines = std::fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines < LINES_MAX, "{}: {lines} lines", path.display());
        seen += 1;
    }
    assert_eq!(seen, 4);
}
