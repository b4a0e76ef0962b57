//! Ranks as threads against the serial run: gradients, norms, updates, replicas, bytes.
#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, helpers outside #[test] included"
)]

mod failures;
mod norm;
mod reduction;
mod replicas;
mod support;
mod update;
