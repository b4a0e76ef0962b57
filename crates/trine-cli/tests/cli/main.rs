//! The binary, from outside: one test program, so that it is linked once.

mod bad_input;
mod bench_gradients;
mod bench_kernels;
mod bench_layouts;
mod bench_step;
mod commands;
mod common;
mod hostile;
mod plan;
