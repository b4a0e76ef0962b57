//! The communicator on NCCL, on simulated GPUs: the conformance suite, and each fault by its name.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![expect(clippy::unwrap_used, reason = "a failing call fails the test, in its helpers too")]

mod faults;
mod machine;
mod suite;
