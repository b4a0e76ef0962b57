//! Programs with one thing each that the libraries do. `cargo run -p trine-examples --bin NAME`:
//!
//! * `own_schedule`: a pipeline schedule written by hand, proven and drawn; and a mistake that the proof finds.
//! * `all_reduce`: four ranks as threads add up numbers; and what they are told when one of them does something else.
//! * `tensor_parallel`: a layer on two ranks beside the same layer on one.
//! * `own_loop`: a Llama in 3D parallelism, in a training loop of one's own.
//! * `own_model`: blocks that trine does not have, one of them in candle, in several layouts.

/// The program of the tutorial: it compiles, runs and holds what it asserts.
#[cfg(doctest)]
#[doc = include_str!("../../docs/tutorials/own-model.md")]
struct OwnModel;
