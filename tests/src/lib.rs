//! End-to-end tests that need more than one crate: every layout against the serial run, resume, bad input.
//!
//! A virtual manifest has no `tests/` targets of its own, so they live in this member package.
