//! What can go wrong in a kernel call.

use trine_buffer::{BufferError, DType};

/// A kernel refused its arguments. Nothing has been written then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// An argument holds elements of the wrong type.
    #[error("{op}: `{argument}` holds {held}, it must hold {expected}")]
    Type {
        /// The operation.
        op: &'static str,
        /// The argument's name.
        argument: &'static str,
        /// What it holds.
        held: DType,
        /// What it must hold.
        expected: DType,
    },
    /// Kernels compute in f64, f32 or bf16 only.
    #[error("{op}: `{argument}` holds {held}; kernels compute in f64, f32 or bf16")]
    NotComputable {
        /// The operation.
        op: &'static str,
        /// The argument's name.
        argument: &'static str,
        /// What it holds.
        held: DType,
    },
    /// A GPU computes in fewer types than the host.
    #[error("{op}: a GPU computes in f32 and bf16, not in {held}")]
    NotOnGpu {
        /// The operation.
        op: &'static str,
        /// The type that was asked for.
        held: DType,
    },
    /// An argument has the wrong number of elements.
    #[error("{op}: `{argument}` has {held} elements, {dims} needs {expected}")]
    Length {
        /// The operation.
        op: &'static str,
        /// The argument's name.
        argument: &'static str,
        /// Its length.
        held: usize,
        /// The length that fits.
        expected: usize,
        /// The dimensions of the call.
        dims: String,
    },
    /// Dimensions contradict each other.
    #[error("{op}: {message}")]
    Dims {
        /// The operation.
        op: &'static str,
        /// Which dimensions, and what they should be.
        message: String,
    },
    /// The instruction set was asked for by name and this processor lacks it.
    #[error("this processor has no {isa}; it supports up to {best}")]
    Isa {
        /// What was asked for.
        isa: &'static str,
        /// What [`crate::Isa::detect`] finds.
        best: &'static str,
    },
    /// A view could not be taken.
    #[error(transparent)]
    Buffer(#[from] BufferError),
}
