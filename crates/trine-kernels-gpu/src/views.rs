//! Views of buffers as a launch takes them, and the errors of a device as those of a call.

use trine_buffer::{BufferError, DType, Slice, SliceMut};
use trine_gpu::{GpuError, Span, SpanMut};
use trine_kernels::{KernelError, MatMut, MatRef};

/// What a device refuses or fails at.
pub(crate) fn failed(error: GpuError) -> KernelError {
    BufferError::from(error).into()
}

/// The elements of a view, to be read.
pub(crate) fn read(slice: Slice<'_>) -> Result<Span<'_>, KernelError> {
    Span::of(slice).map_err(failed)
}

/// The elements of a view, to be written.
pub(crate) fn write(slice: SliceMut<'_>) -> Result<SpanMut<'_>, KernelError> {
    SpanMut::of(slice).map_err(failed)
}

/// A kernel for these types: `add`, f32 and bf16 give `add_f32_bf16`.
///
/// # Errors
/// If a GPU does not compute in one of them.
pub(crate) fn named(
    op: &'static str,
    kernel: &str,
    types: &[DType],
) -> Result<String, KernelError> {
    let mut name = kernel.to_owned();
    for dtype in types {
        match dtype {
            DType::F32 | DType::Bf16 => name = format!("{name}_{dtype}"),
            DType::F64 | DType::F16 | DType::U64 | DType::U32 | DType::U8 => {
                return Err(KernelError::NotOnGpu { op, held: *dtype });
            }
        }
    }
    Ok(name)
}

/// Numbers of a struct as a kernel lays it out.
pub(crate) fn bytes_of<T: bytemuck::Pod, const N: usize>(fields: &[T; N]) -> &[u8] {
    bytemuck::cast_slice(fields)
}

/// Rows, columns and stride of a matrix, as numbers of a kernel. One row has any stride.
pub(crate) trait Shape {
    /// Its elements' type.
    fn dtype(&self) -> DType;
    /// Rows, columns, stride.
    fn dims(&self) -> [usize; 3];
}

impl Shape for MatRef<'_> {
    fn dtype(&self) -> DType {
        self.data.dtype()
    }
    fn dims(&self) -> [usize; 3] {
        let stride = if self.rows <= 1 { self.stride.max(self.cols) } else { self.stride };
        [self.rows, self.cols, stride]
    }
}

impl Shape for MatMut<'_> {
    fn dtype(&self) -> DType {
        self.data.dtype()
    }
    fn dims(&self) -> [usize; 3] {
        self.as_ref().dims()
    }
}
