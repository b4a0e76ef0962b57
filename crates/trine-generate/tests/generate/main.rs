//! Sampling by itself, decoding against whole passes, and the generator against a loop of both.
#![expect(clippy::unwrap_used, reason = "a failing call fails the test, in its helpers too")]

mod decode;
mod generator;
mod sampling;
mod support;
