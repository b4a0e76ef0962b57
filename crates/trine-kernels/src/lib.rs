//! Forward and backward kernels over views of buffers, and [`Ops`], the seam between devices.
//!
//! [`CpuOps`] computes on the host: SIMD found at run time ([`Isa`]), threads handed in ([`Team`]),
//! no global state. Layers hold an `&dyn Ops` and never learn which device is behind it.
//!
//! *What the numbers depend on.* Every output element has one order of summation. The shapes of the
//! mathematics fix it: the length of a row, of a chain, of a head. Tiles, threads and the number of
//! rows of a call do not. See [`Ops`].
//!
//! ```
//! use trine_buffer::{Buf, Slice};
//! use trine_kernels::{CpuOps, MatMut, MatRef, Ops, Product, Team};
//!
//! let ops = CpuOps::new(Team::new(1));
//! let x = [1.0f32, 2.0, 3.0, 4.0]; // [2 tokens, 2 features]
//! let w = [1.0f32, 0.0, 0.0, 1.0, 1.0, 1.0]; // [3 outputs, 2 features]
//! let mut y = Buf::from_vec(vec![0.0f32; 6]);
//! ops.matmul(
//!     Product::Nt,
//!     false,
//!     MatRef::new(Slice::new(&x), 2, 2),
//!     MatRef::new(Slice::new(&w), 3, 2),
//!     MatMut::new(y.slice_mut(), 2, 3),
//! )?;
//! assert_eq!(y.typed::<f32>()?, [1.0, 2.0, 3.0, 3.0, 4.0, 7.0]);
//! # Ok::<(), trine_kernels::KernelError>(())
//! ```

mod activation;
mod affinity;
mod alloc;
mod attention;
pub mod ceiling;
mod check;
pub mod checks;
mod cpu;
mod elementwise;
mod embedding;
mod error;
mod gemm;
mod isa;
mod loss;
mod mask;
mod methods;
mod norm;
mod num;
mod ops;
mod optim;
mod profiled;
mod rms;
mod rope;
mod scratch;
mod shapes;
mod softcap;
mod team;
mod timing;
mod view;

pub use affinity::{Pinned, allowed_cpus};
pub use alloc::LargeBlocks;
pub use attention::{AttentionDropout, AttentionShape};
pub use cpu::CpuOps;
pub use error::KernelError;
pub use isa::Isa;
pub use ops::Ops;
pub use optim::AdamWConstants;
pub use profiled::{KernelTime, Profiled};
pub use rope::{rope_frequencies, rope_table};
pub use shapes::{
    AdamW, Dropout, DropoutPlace, Function, IGNORE, LossShape, NormShape, Product, RmsShape,
    RopeShape, Sgd,
};
pub use team::Team;
pub use timing::Times;
pub use view::{GateUpMut, MatMut, MatRef, Qkv, QkvMut};
