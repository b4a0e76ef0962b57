//! The kernels of `Ops` on a GPU.
//!
//! * [`SOURCES`] are the kernels: CUDA C++ in the dialect of `trine.cuh`, for nvcc, NVRTC, clang and the simulated GPU.
//!   A file ends with `.cu` and compiles alone; what files share is in headers. Each kernel is there once for each
//!   combination of types, which its name ends with: `add_f32_bf16`.
//! * [`IMAGES`] are these sources compiled to PTX, which a test holds against the sources by a hash.
//! * [`Kernels`] are those of compiled sources, found by name.
//! * [`GpuOps`] checks arguments as the CPU's kernels do, and launches.
//!
//! No sum depends on the number of blocks or on what else a device does: nothing is added by atomics.

mod attention;
mod elementwise;
mod images;
mod kernels;
mod ops;
mod sources;

pub use attention::{Gradients, Inputs, Rows, RowsMut};
pub use images::{COMPILER, IMAGES, Image, OPTIONS, compiled, headers, source_hash};
pub use kernels::Kernels;
pub use ops::GpuOps;
pub use sources::SOURCES;
