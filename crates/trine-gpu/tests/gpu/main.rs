//! The crate on simulated GPUs: what is sound computes without a report, and each fault is named.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![expect(clippy::unwrap_used, reason = "a failing call fails the test, in its helpers too")]

mod buffers;
mod compiler;
mod device;
mod kernels;
mod launches;
mod ledger;
mod machine;
mod memory;
mod products;
mod random;
