//! Every kernel against a plain f64 reference, on awkward shapes, in all types, on all instruction
//! sets of the machine and several numbers of threads; gradients against finite differences.

#![expect(clippy::unwrap_used, reason = "a failing call fails the test")]

mod attention;
mod elementwise;
mod loss;
mod matmul;
mod norm;
mod optim;
mod parts;
mod rms;
mod support;
