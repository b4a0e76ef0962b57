//! Every tensor-parallel layer on two and four ranks against itself on one: outputs, input gradients
//! and parameter gradients.
#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, helpers outside #[test] included"
)]

mod attention;
mod crossings;
mod group;
mod linear;
mod replicated;
mod stream;
mod support;
mod vocabulary;
