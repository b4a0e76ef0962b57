//! Misuse of placements that must not compile. Nothing here needs code to be generated, so the
//! dependencies are only checked.

#[test]
fn placements_cannot_be_mixed_up() {
    let cases = trybuild::TestCases::new();
    for misuse in [
        "partial_is_not_a_stream",
        "partial_cannot_be_copied",
        "partial_is_not_dropped",
        "split_is_not_whole",
        "stream_is_not_split",
        "whole_is_not_a_stream",
    ] {
        cases.compile_fail(format!("tests/compile/{misuse}.rs"));
    }
}
