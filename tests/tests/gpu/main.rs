//! Runs on simulated GPUs against those on the processor.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![expect(clippy::unwrap_used, reason = "a failing call fails the test, in its helpers too")]

mod check;
mod faults;
mod runs;
