//! A simulated GPU: a library that answers as the CUDA driver, cuBLASLt and NCCL do, computes, and checks every
//! access.
//!
//! [`compile`] makes the library of the simulator's own C++ sources (`cpp`) and of kernels, with g++. A
//! [`Simulator`] is a copy of that library with a state of its own, in a folder where loaders find it.
//!
//! * Streams are queues. Nothing runs before the host waits, and then in an order drawn from a seed: what
//!   no event orders runs in the wrong order sooner or later.
//! * Kernels are compiled for the host, a fiber for each thread of a block, in an order drawn from the seed.
//!   With [`Checks::On`] g++ adds the calls of its thread sanitizer to each access; they end in the simulator.
//! * Each two bytes of memory know who wrote and who read them last. An access outside a buffer, of freed
//!   or unwritten memory, of another device, unaligned, beside another thread's without a barrier, or beside
//!   another stream's without an event, is a line in [`Simulator::reports`].
//! * Products sum in the order of the CPU's kernels, collectives among threads in that of its communicators.
//!
//! [`Installed`] is for programs that a test runs: each of their processes has a machine of its own.
//!
//! It needs g++ and runs on Linux on x86-64; elsewhere [`compile`] is an error.

mod compile;
mod simulator;

pub use compile::{Checks, Source, compile};
pub use simulator::{Counters, Fault, Installed, Settings, Simulator};
