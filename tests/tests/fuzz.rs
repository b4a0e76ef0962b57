//! A short run of the fuzzer: every reader accepts what is right, refuses much, and never fails.

use std::time::Duration;
use trine_tests::fuzz::{Budget, run, targets};

/// The same inputs in every run. `cargo xtask fuzz` tries others, for as long as one likes.
const BUDGET: Budget = Budget {
    seed: 17,
    inputs_max: 120,
    time: Duration::from_millis(400),
    // For a machine that has much else to do.
    input_time_max: Duration::from_secs(30),
    growth_bytes_max: 1 << 30,
};

#[test]
fn what_is_read_is_accepted_or_refused() {
    let (mut accepted, mut refused, mut names) = (0, 0, 0);
    for target in targets() {
        let name = target.name;
        let found = run(target, &BUDGET);
        if let Some(failure) = found.failure {
            let input = String::from_utf8_lossy(&failure.input);
            panic!("{name}: input {} {}:\n{input}", failure.index, failure.why);
        }
        // The first input of each is right.
        assert!(found.accepted > 0 && found.accepted + found.refused > 5, "{name}");
        accepted += found.accepted;
        refused += found.refused;
        names += 1;
    }
    assert_eq!(names, 18);
    assert!(accepted > 100 && refused > 100, "{accepted} accepted, {refused} refused");
}
