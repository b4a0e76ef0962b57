//! GPUs in safe terms, over the tables of `trine-gpu-sys`.
//!
//! * [`Gpus`] opens the driver, a [`Device`] is one GPU.
//! * A [`Stream`] does work in order; an [`Event`] orders work of two streams, or of a stream and the host. A
//!   [`Timestamp`] is a point that tells the time.
//! * [`Memory`] is allocated and freed in the order of its stream. A [`Pool`] recycles it, so that a step
//!   allocates nothing after its first run. [`Pinned`] is memory of the host that devices copy from and to.
//! * A [`Module`] has [`Kernel`]s, whose arguments are known from their text; a launch with others is refused.
//! * [`Stream::place`] makes buffers of `trine-buffer` here; [`Span::of`] is how work gets at them.
//! * A [`Compiler`] makes the text of a module from kernels in C++, without a GPU.
//! * [`Products`] are those of cuBLASLt, with a plan for each shape that is made once.
//! * The ledger ([`Checks`]) keeps what each stream, and the host, knows to be done. An access to bytes that another
//!   stream has touched, and that no event orders, is an [`Unordered`] before it is launched. It needs no help of a
//!   device, so it works on real ones.
//!
//! ```
//! use trine_gpu::{Arg, Checks, Device, Gpus, Grid, GpuError, Priority};
//! use trine_gpu_sys::Search;
//!
//! /// Doubles numbers on a device, by a kernel `void twice(float* y, unsigned n)`.
//! fn twice(device: &Device, ptx: &str, numbers: &mut [f32]) -> Result<(), GpuError> {
//!     let stream = device.stream("compute", Priority::Normal)?;
//!     let bytes = size_of_val(numbers);
//!     let (mut pinned, mut memory) = (device.pinned(bytes)?, stream.alloc("numbers", bytes)?);
//!     pinned.elements::<f32>()?.copy_from_slice(numbers);
//!     stream.upload(memory.span_mut(), &mut pinned, 0..bytes)?;
//!     let kernel = device.module(ptx)?.kernel("twice")?;
//!     let (n, blocks) = (numbers.len() as u32, numbers.len().div_ceil(256) as u32);
//!     let args = [Arg::Write(memory.span_mut()), Arg::U32(n)];
//!     // SAFETY: the kernel touches the first `n` numbers of its memory.
//!     unsafe { stream.launch(&kernel, Grid::line(blocks, 256), &args)? };
//!     stream.download(&mut pinned, 0..bytes, memory.span())?;
//!     numbers.copy_from_slice(pinned.elements()?); // waits for the copy
//!     Ok(())
//! }
//!
//! let nowhere = Search::only(vec!["no/such/folder".into()]);
//! let error = Gpus::open(&nowhere, Checks::default()).unwrap_err();
//! assert!(matches!(error, GpuError::Library(_)));
//! # let _ = twice;
//! ```
//!
//! Memory that is being written is lent to nobody else, and the host has no way to its bytes:
//!
//! ```compile_fail,E0502
//! # fn overlap(stream: &trine_gpu::Stream, memory: &mut trine_gpu::Memory) {
//! let all = memory.span_mut();
//! let error = stream.copy(all, memory.span()); // reads what it writes
//! # }
//! ```

mod block;
mod buffers;
mod compiler;
mod copies;
mod device;
mod error;
mod foreign;
mod launch;
mod ledger;
mod memory;
mod module;
mod pinned;
mod pool;
mod products;
mod ptx;
mod stream;

pub use compiler::Compiler;
pub use device::{Device, Gpus};
pub use error::GpuError;
pub use launch::{Arg, Grid};
pub use ledger::{Checks, Unordered};
pub use memory::{Memory, Span, SpanMut};
pub use module::{Kernel, Module};
pub use pinned::Pinned;
pub use pool::Pool;
pub use products::{Factor, Form, Matrix, Products, Start};
pub use ptx::{Kind, Parameter};
pub use stream::{Event, Priority, Stream, Timestamp};

/// The header that kernels include as `trine.cuh`.
pub const DIALECT: &str = include_str!("trine.cuh");
