//! Ranks as processes, on one host or several: the communicator on MPI.
//!
//! Without the feature `mpi` this crate is empty, so that a workspace that has it builds where there
//! is no MPI. With it, `mpicc` and libclang must be there.
//!
//! A process joins its world with `World::join`, talks through `World::comm`, and leaves with
//! `World::leave`. It was started by `mpirun` or `srun`; MPI tells it its rank.
//!
//! * Progress is made by polling: whenever an operation is posted, looked at or waited for, everything
//!   under way moves on. A rank that computes does not move anything on.
//! * Every wait polls, with pauses that grow, until a deadline. No call of MPI blocks after `MPI_Init`.
//! * Reductions gather and add in the order of [`trine_comm::tree_fold`], as the threads' do, so the
//!   bits are the same.
//! * Ahead of each payload goes an envelope with the operation, its name and its call site. Ranks
//!   that disagree get an error that names both.
//!
//! Hosts are taken to be alike: one byte order, one version of the program.

#[cfg(feature = "mpi")]
mod comm;
#[cfg(feature = "mpi")]
mod engine;
#[cfg(feature = "mpi")]
mod envelope;
#[cfg(feature = "mpi")]
mod options;
#[cfg(feature = "mpi")]
mod plan;
#[cfg(feature = "mpi")]
mod raw;
#[cfg(feature = "mpi")]
mod world;

#[cfg(feature = "mpi")]
pub use options::MpiOptions;
#[cfg(feature = "mpi")]
pub use world::{JoinError, World, library};
