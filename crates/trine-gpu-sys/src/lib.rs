//! The libraries of GPUs, opened at run time: the CUDA driver, cuBLASLt, NCCL and NVRTC.
//!
//! Nothing here is linked: a program that uses this crate is built and starts where there is no CUDA.
//! [`load`] looks for a [`Library`] in the places of a [`Search`] and fills the table of its functions.
//! What is missing, too old or incomplete is a [`LoadError`] that says what was looked for and where;
//! a call that fails is a [`CallError`] with the function, the code, its name and its text. Nothing
//! panics.
//!
//! ```
//! use trine_gpu_sys::{Driver, LoadError, Search, driver, load};
//!
//! let nowhere = Search { system: false, folders: vec!["no/such/folder".into()] };
//! let error = load::<Driver>(&driver::CUDA, &nowhere).unwrap_err();
//! assert!(matches!(error, LoadError::Missing { .. }));
//! assert_eq!(
//!     error.to_string(),
//!     "the CUDA driver was not found; looked for libcuda.so.1 and libcuda.so in no/such/folder",
//! );
//! ```
//!
//! A table is declared once, with a name, a symbol and a signature for each function. A `Library` is
//! data: the same table is filled from a library that calls its functions otherwise.
//!
//! Types and constants are those of CUDA 12.0 (`cuda.h`, `cublasLt.h`, `nvrtc.h`) and NCCL 2.18
//! (`nccl.h`). Codes and attributes are plain integers: a newer library may answer with one that is
//! not known here. Tests hold signatures and constants against the bindings of `cudarc`.

#[macro_use]
mod table;

pub mod cublaslt;
pub mod driver;
mod error;
mod gpus;
mod library;
pub mod nccl;
pub mod nvrtc;
mod open;
mod search;

pub use cublaslt::CublasLt;
pub use driver::Driver;
pub use error::{CallError, LoadError, Refused, Version};
pub use gpus::Gpu;
pub use library::{Library, Loaded, Lookup, Table, load};
pub use nccl::Nccl;
pub use nvrtc::Nvrtc;
pub use search::Search;
