//! The ranks of a run on the GPUs of their host.
//!
//! [`Libraries`] are what computing on GPUs takes: a driver with GPUs that the kernels are compiled for, and cuBLASLt.
//! [`GpuRanks`] gives a run's ranks theirs, as [`Devices`](trine_trainer::run::Devices): each a GPU of its own, between
//! which NCCL exchanges, or all the same one, which NCCL refuses, and on which the threads exchange by themselves.
//!
//! ```
//! use trine_gpu::Checks;
//! use trine_gpu_sys::Search;
//! use trine_trainer::run::Devices;
//! use trine_trainer_gpu::{GpuRanks, Libraries};
//!
//! let nowhere = Search::only(vec!["no/such/folder".into()]);
//! let error = Libraries::find(&nowhere, Checks::default()).map(drop).unwrap_err();
//! assert!(error.to_string().starts_with("the CUDA driver was not found; looked for libcuda.so.1"));
//!
//! /// Where rank 1 of 2 computes.
//! fn second_of_two(libraries: Libraries) -> Result<usize, Box<dyn std::error::Error>> {
//!     Ok(GpuRanks::new(libraries, 2)?.of_rank(1))
//! }
//! # let _ = second_of_two;
//! ```

mod libraries;
mod ranks;

pub use libraries::{Libraries, Unusable};
pub use ranks::{GpuRanks, RanksError};
