//! Typed, exclusive buffers: the memory that every trine crate passes around.
//!
//! * [`Buf`]: one exclusive allocation. It moves by value: into a communicator while an operation
//!   is in flight, and back. With feature `candle` it becomes a candle tensor without a copy.
//! * [`Slice`] and [`SliceMut`]: borrowed views, what kernels take.
//! * [`Pool`]: recycles buffers of one rank, so that a training step allocates nothing after its
//!   first run, and measures the bytes in use.
//! * [`Act`]: a shared, read-only buffer: an activation that a layer's output, its successor's
//!   input and several saved states may all hold at once.
//! * [`Queue`]: where work is ordered: the host here, a device stream later.
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
mod dtype;
mod pool;
mod slice;

pub use buf::{Act, Buf};
pub use dtype::{DType, Element, Float};
pub use pool::{Pool, PoolStats};
pub use slice::{Slice, SliceMut};

/// Where work is ordered. Backends with streams add a variant; on the host every call is done when
/// it returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Queue {
    /// The calling thread.
    #[default]
    Host,
}

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
    /// A conversion to or from candle failed.
    #[error("candle: {0}")]
    Candle(String),
}
