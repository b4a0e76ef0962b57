//! A communicator that explains itself.
//!
//! Ranks exchange buffers through a [`Communicator`]: messages between two ranks, collectives among
//! all ranks of a group, and subgroups by [`split`](trait.Communicator.html#method.split). Every
//! operation carries its group, its sequence number, its type and length, a [`Name`] and its call
//! site. So ranks that disagree, or wait for each other in a circle, get an error that says who is
//! where, instead of a hang.
//!
//! * A [`Request`] owns its buffers; a [`Pending`] operation holds them and gives them back.
//! * [`Groups`] are the communicators of a run, by the axes of its mesh.
//! * [`SelfComm`] is the group of one rank: free, for every axis of degree 1.
//! * [`threads`] runs ranks as threads of one process: the reference for every other backend.
//! * [`wrap::Tap`] puts a closure in front of a communicator: to delay, drop, alter or fail.
//! * Every rank has a [`Recorder`]: its latest operations and where in the run it is. A run that
//!   fails leaves a [`Diagnosis`] of the first cause and the [`FlightRecord`]s of its ranks.
//! * Feature `conformance` exports the suite that every backend's test runs.
//! * [`tree_fold`] is the order of every reduction.
//!
//! ```
//! use trine_buffer::Buf;
//! use trine_comm::{CommError, Name, ReduceOp, threads};
//!
//! // Two ranks that agree.
//! let losses = threads::run(2, &Default::default(), |comm| {
//!     let mine = Buf::from_vec(vec![comm.rank() as f32]);
//!     Ok::<_, CommError>(comm.all_reduce(mine, ReduceOp::Mean, "loss")?.typed::<f32>()?[0])
//! });
//! assert_eq!(losses.unwrap(), [0.5, 0.5]);
//!
//! // Two ranks that do not: both are told what the other one did, and where.
//! let error = threads::run(2, &Default::default(), |comm| {
//!     let name = Name::new("grad").with("bucket", comm.rank() as u64);
//!     comm.all_reduce(Buf::from_vec(vec![1.0f32]), ReduceOp::Sum, name)
//! });
//! let text = error.unwrap_err().to_string();
//! assert!(text.contains("\"grad bucket 0\" #0") && text.contains("\"grad bucket 1\" #0"));
//! ```

mod collective;
mod communicator;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod device;
mod diagnosis;
mod error;
mod group;
mod groups;
mod local;
mod name;
mod pending;
mod place;
mod recorder;
mod request;
pub mod threads;
mod tree;
pub mod wrap;

pub use collective::reduce;
pub use communicator::Communicator;
pub use device::{Mark, SharedDevice};
pub use diagnosis::{
    Beat, Diagnosis, Doing, FlightEntry, FlightRecord, Meeting, PostMortem, Sighting, judge,
};
pub use error::{Cause, CommError, Missing, RankState, Stuck};
pub use group::Group;
pub use groups::Groups;
pub use local::SelfComm;
pub use name::Name;
pub use pending::{Done, Pending, Progress};
pub use place::{ActionText, Phase, Place};
pub use recorder::{OPERATIONS_KEPT, Recorder};
pub use request::{Call, Extent, Operation, Peers, ReduceOp, Request, Seal, Site, checksum};
pub use threads::Delivery;
pub use tree::tree_fold;
// What the interface above names, so that a user of it needs no second dependency.
pub use trine_buffer::{Buf, BufferError, DType, Element, Slice, SliceMut};
pub use trine_mesh::{AxisSet, Degrees, Mesh};
