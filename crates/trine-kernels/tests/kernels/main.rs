//! Every kernel against a plain f64 reference, on awkward shapes, in all types, on all instruction
//! sets of the machine and several numbers of threads; gradients against finite differences.

mod attention;
mod elementwise;
mod loss;
mod matmul;
mod norm;
mod optim;
mod support;
