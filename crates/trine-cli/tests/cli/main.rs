//! The binary, from outside: one test program, so that it is linked once.

#![expect(clippy::unwrap_used, reason = "a failing call fails the test, in its helpers too")]

mod bad_input;
mod bench_gradients;
mod bench_kernels;
mod bench_layouts;
mod bench_step;
mod commands;
mod common;
mod hostile;
mod plan;
mod plan_models;
mod schema;
mod texts;
mod written;
