//! Each operation on a simulated GPU against the CPU's.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![expect(clippy::unwrap_used, reason = "a failing call fails the test, in its helpers too")]

mod attention;
mod cases;
mod elementwise;
mod images;
mod loss;
mod machine;
mod norm;
mod optim;
mod order;
mod positions;
mod products;
mod refusals;
