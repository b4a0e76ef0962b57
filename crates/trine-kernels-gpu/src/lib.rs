//! The kernels of `Ops` on a GPU.
//!
//! * [`SOURCES`] are the kernels: CUDA C++ in the dialect of `trine.cuh`, for nvcc, NVRTC, clang and the simulated GPU.
//!   A file ends with `.cu` and compiles alone; what files share is in headers. Each kernel is there once for each
//!   combination of types, which its name ends with: `add_f32_bf16`.
//! * [`IMAGES`] are these sources compiled to PTX, which a test holds against the sources by a hash.
//! * [`Kernels`] are those of compiled sources, found by name.
//! * [`GpuOps`] checks arguments as the CPU's kernels do, and launches.
//! * [`Exchanges`] are copies and reductions between ranks that share a GPU.
//!
//! No sum depends on the number of blocks or on what else a device does: nothing is added by atomics.

mod activation;
mod attention;
mod elementwise;
mod embedding;
mod exchanges;
mod gpu;
mod images;
mod kernels;
mod loss;
mod mask;
mod norm;
mod ops;
mod optim;
mod products;
mod reference;
mod rms;
mod rope;
mod softcap;
mod sources;
mod views;

pub use exchanges::Exchanges;
pub use gpu::GpuOps;
pub use images::{COMPILER, IMAGES, Image, OPTIONS, compiled, headers, source_hash};
pub use kernels::Kernels;
pub use sources::SOURCES;
