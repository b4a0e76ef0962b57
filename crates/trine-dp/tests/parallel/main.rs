//! Ranks as threads against the serial run: gradients, norms, updates, replicas, bytes.

mod failures;
mod norm;
mod reduction;
mod replicas;
mod support;
mod update;
