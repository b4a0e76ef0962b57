//! Whole runs of the binary: what they compute, what they leave behind, and how they are stopped,
//! killed, resumed and refused. One test program, so that it is linked once.

#![expect(clippy::unwrap_used, reason = "a failing call fails the test, in its helpers too")]

mod auto;
mod bytes;
mod changed;
mod common;
mod contents;
mod data;
mod failures;
mod fixtures;
mod frozen;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod gpu;
mod groups;
mod kill;
mod layouts;
mod memory;
#[cfg(feature = "mpi")]
mod mpi;
mod own_schedule;
mod planned;
mod printed;
mod removed;
mod resume;
mod ruined;
mod saves;
mod signals;
