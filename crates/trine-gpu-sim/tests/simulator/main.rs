//! The simulator by the functions of the driver: what is sound computes and has no report, and each fault is named.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![expect(clippy::unwrap_used, reason = "a failing call fails the test, in its helpers too")]

mod collectives;
mod driver;
mod faults;
mod gpu;
mod kernels;
mod order;
mod products;
