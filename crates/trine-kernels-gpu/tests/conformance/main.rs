//! Each operation on a simulated GPU against the CPU's.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![expect(clippy::unwrap_used, reason = "a failing call fails the test, in its helpers too")]

mod attention;
mod cases;
mod faults;
mod images;
mod machine;
mod order;
mod refusals;
