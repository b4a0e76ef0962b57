//! Typed, exclusive buffers: the memory that every trine crate passes around.
//!
//! * [`Buf`]: one exclusive allocation. It moves by value: into a communicator while an operation
//!   is in flight, and back. With feature `candle` it becomes a candle tensor without a copy.
//! * [`Slice`] and [`SliceMut`]: borrowed views, what kernels take.
//! * [`Pool`]: recycles buffers of one rank, so that a training step allocates nothing after its
//!   first run, and measures the bytes in use.
//! * [`Act`]: a shared, read-only buffer: an activation that a layer's output, its successor's
//!   input and several saved states may all hold at once.
//! * [`Place`]: where buffers lie: on the host, or on a device, whose memory is behind [`DeviceMemory`].
//! * [`Stamp`]: a point in the work of a place, for times between two of them.
//!
//! A buffer belongs to a queue of work: that of the host, where every call is done when it returns, or the stream of
//! a device that its memory was taken on. What is done to a buffer comes behind all that its queue had to do before.
//! The host reads no element on a device: [`Slice::typed`] is a named error there, and [`Slice::to_host`] copies.
//!
//! ```
//! use trine_buffer::{Buf, DType, Pool};
//!
//! let pool = Pool::new();
//! let mut x = pool.zeros(DType::F32, 4)?;
//! x.typed_mut::<f32>()?[1..3].fill(2.0);
//! assert_eq!(x.slice().range(1..4)?.typed::<f32>()?, [2.0, 2.0, 0.0]);
//! drop(x); // the memory goes back to the pool
//! assert_eq!((pool.stats().bytes_in_use, pool.stats().bytes_idle), (0, 16));
//! # Ok::<(), trine_buffer::BufferError>(())
//! ```

mod buf;
#[cfg(feature = "candle")]
mod candle;
mod device;
mod dtype;
mod pool;
mod slice;
mod stamp;

pub use buf::{Act, Buf};
pub use device::{Allocator, DeviceMemory, DeviceSlice, DeviceSliceMut, Place};
pub use dtype::{DType, Element, Float};
pub use pool::{Pool, PoolStats};
pub use slice::{Slice, SliceMut};
pub use stamp::{DeviceStamp, Stamp};

/// What can go wrong with a buffer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BufferError {
    /// The elements have another type.
    #[error("the buffer holds {held}, not {asked}")]
    Type {
        /// What the buffer holds.
        held: DType,
        /// What was asked for.
        asked: DType,
    },
    /// A range ends beyond the buffer.
    #[error("range {start}..{end} lies outside a buffer of {len} elements")]
    Range {
        /// First element.
        start: usize,
        /// One past the last element.
        end: usize,
        /// Elements in the buffer.
        len: usize,
    },
    /// Two lengths that must agree do not.
    #[error("{left} elements against {right}")]
    Length {
        /// One length in elements.
        left: usize,
        /// The other.
        right: usize,
    },
    /// The host asked for elements that lie on a device.
    #[error("`{name}` lies on a device, where the host does not read or write it; copy it first")]
    OnDevice {
        /// What the memory is for.
        name: String,
    },
    /// A device has refused or failed.
    #[error("{0}")]
    Device(String),
    /// A conversion to or from candle failed.
    #[error("candle: {0}")]
    Candle(String),
}
