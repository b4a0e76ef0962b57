//! Runs the binary and looks at what it says.

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// Bad input ends within this time.
const PATIENCE: Duration = Duration::from_secs(2);

/// A model and a batch that every machine has trained in a moment.
pub(crate) const TINY: &[&str] = &[
    "--set=model.layers=2",
    "--set=model.hidden=32",
    "--set=model.heads=2",
    "--set=model.seq_max=16",
    "--set=data.seq=16",
    "--set=batch.global=4",
    "--set=batch.micro=1",
];

/// Runs `trine` in a folder, with backtraces switched on to see that none appears.
pub(crate) fn trine(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_trine"))
        .args(args)
        .current_dir(folder)
        .env("RUST_BACKTRACE", "1")
        .output()
        .expect("the binary was built with this test")
}

/// Runs `trine`, which must succeed, and returns its standard output.
#[track_caller]
pub(crate) fn ok(folder: &Path, args: &[&str]) -> String {
    let output = trine(folder, args);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.is_empty(), "{args:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs `trine`, which must fail at once with `code` and one message that holds all `parts`.
#[track_caller]
pub(crate) fn fails(folder: &Path, args: &[&str], code: i32, parts: &[&str]) -> String {
    let started = Instant::now();
    let output = trine(folder, args);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(started.elapsed() < PATIENCE, "{args:?} took {:?}", started.elapsed());
    assert_eq!(output.status.code(), Some(code), "{args:?}: {errors}");
    assert!(
        output.stdout.is_empty(),
        "{args:?} printed {}",
        String::from_utf8_lossy(&output.stdout)
    );
    assert_eq!(errors.matches("error: ").count(), 1, "{args:?}: {errors}");
    assert!(errors.starts_with("error: "), "{args:?}: {errors}");
    for unwanted in ["panicked", "backtrace", "Stack"] {
        assert!(!errors.contains(unwanted), "{args:?}: {errors}");
    }
    for part in parts {
        assert!(errors.contains(part), "{args:?}: {errors}\n  expected: {part}");
    }
    errors
}
