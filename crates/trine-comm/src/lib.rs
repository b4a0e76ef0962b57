//! A communicator that explains itself.
//!
//! Ranks exchange buffers through a [`Communicator`]: messages between two ranks, collectives among
//! all ranks of a group, and subgroups by [`split`](trait.Communicator.html#method.split). Every
//! operation carries its group, its sequence number, its type and length, a [`Name`] and its call
//! site, so that ranks that disagree, or that wait for each other in a circle, get an error that
//! says who is where, instead of a hang.
//!
//! * A [`Request`] owns its buffers; a [`Pending`] operation holds them and gives them back.
//! * [`SelfComm`] is the group of one rank: free, for every axis of degree 1.
//!
//! ```
//! use trine_buffer::Buf;
//! use trine_comm::{ReduceOp, SelfComm};
//!
//! let comm = SelfComm::new();
//! let sum = comm.all_reduce(Buf::from_vec(vec![1.0f32]), ReduceOp::Sum, "loss")?;
//! assert_eq!(sum.typed::<f32>()?, [1.0]);
//! # Ok::<(), trine_comm::CommError>(())
//! ```

mod communicator;
mod error;
mod group;
mod local;
mod pending;
mod request;
mod tree;

pub use communicator::Communicator;
pub use error::{Cause, CommError, Missing, RankState, Stuck};
pub use group::Group;
pub use local::SelfComm;
pub use pending::{Done, Pending, Progress};
pub use request::{Call, Extent, Name, Operation, ReduceOp, Request, Site};
pub use tree::tree_fold;
