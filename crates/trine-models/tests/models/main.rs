//! Whole models against a plain implementation, finite differences, and their own memory plan.
#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, helpers outside #[test] included"
)]

mod golden;
mod gradients;
mod memory;
mod plain;
mod recompute;
mod stages;
mod support;
