//! trine in one dependency: each of its libraries under a short name.
//!
//! A module is a crate, and a feature of the same name takes it with what it needs. All are on by default, except for
//! `mpi` (ranks as processes, as `comm_mpi`) and `candle` (layers written in candle), which need more than Rust.
//! trine is in no registry yet: a project depends on it by git, or by the path of a clone
//! (`path = "../trine/crates/trine"`). This takes one part of it:
//!
//! ```toml
//! trine = { git = "https://github.com/trine-rs/trine", default-features = false, features = ["schedule"] }
//! ```
//!
//! Programs start at one of these:
//!
//! * `trainer`: a whole run from a configuration, or one rank of it in a loop of one's own (`trainer::engine`).
//! * `schedule`: pipeline schedules as data, generated or written by hand, proven, simulated and drawn.
//! * `comm`: collectives and messages between ranks, with errors that explain themselves.
//! * `shard`, `dp`, `pipeline`: one kind of parallelism each; none needs the others.
//! * `plan`: what a run takes, before it is started.
//!
//! ```
//! # #[cfg(all(feature = "schedule", feature = "comm"))] {
//! use trine::comm::{Buf, CommError, ReduceOp, threads};
//! use trine::schedule::{ScheduleKind, lower, verify};
//!
//! // Four pipeline stages, eight micro-batches: the first stage keeps at most four of them in flight.
//! let schedule = lower(&ScheduleKind::OneFOneB.generate(4, 8)?, None)?;
//! assert_eq!(verify(&schedule)?.in_flight_peak, [4, 3, 2, 1]);
//!
//! // Four ranks add up their numbers.
//! let sums = threads::run(4, &Default::default(), |comm| {
//!     let mine = Buf::from_vec(vec![comm.rank() as f32]);
//!     Ok::<_, CommError>(comm.all_reduce(mine, ReduceOp::Sum, "ranks")?.typed::<f32>()?[0])
//! })?;
//! assert_eq!(sums, [6.0; 4]);
//! # }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#[cfg(feature = "buffer")]
pub use trine_buffer as buffer;
#[cfg(feature = "checkpoint")]
pub use trine_checkpoint as checkpoint;
#[cfg(feature = "comm")]
pub use trine_comm as comm;
#[cfg(feature = "mpi")]
pub use trine_comm_mpi as comm_mpi;
#[cfg(feature = "comm-nccl")]
pub use trine_comm_nccl as comm_nccl;
#[cfg(feature = "data")]
pub use trine_data as data;
#[cfg(feature = "dp")]
pub use trine_dp as dp;
#[cfg(feature = "files")]
pub use trine_files as files;
#[cfg(feature = "generate")]
pub use trine_generate as generate;
#[cfg(feature = "gpu")]
pub use trine_gpu as gpu;
#[cfg(feature = "gpu-sys")]
pub use trine_gpu_sys as gpu_sys;
#[cfg(feature = "kernels")]
pub use trine_kernels as kernels;
#[cfg(feature = "kernels-gpu")]
pub use trine_kernels_gpu as kernels_gpu;
#[cfg(feature = "mesh")]
pub use trine_mesh as mesh;
#[cfg(feature = "models")]
pub use trine_models as models;
#[cfg(feature = "nn")]
pub use trine_nn as nn;
#[cfg(feature = "optim")]
pub use trine_optim as optim;
#[cfg(feature = "pipeline")]
pub use trine_pipeline as pipeline;
#[cfg(feature = "plan")]
pub use trine_plan as plan;
#[cfg(feature = "rendezvous")]
pub use trine_rendezvous as rendezvous;
#[cfg(feature = "rng")]
pub use trine_rng as rng;
#[cfg(feature = "schedule")]
pub use trine_schedule as schedule;
#[cfg(feature = "shard")]
pub use trine_shard as shard;
#[cfg(feature = "spec")]
pub use trine_spec as spec;
#[cfg(feature = "trainer")]
pub use trine_trainer as trainer;
#[cfg(feature = "trainer-gpu")]
pub use trine_trainer_gpu as trainer_gpu;
