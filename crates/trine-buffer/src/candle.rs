//! Buffers as candle tensors, and back.

use crate::{Buf, BufferError, DType, Element, buf::HostVec};
use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, InplaceOp1, Layout, Shape, Storage, Tensor};
use std::sync::Mutex;

fn failed(error: &candle_core::Error) -> BufferError {
    BufferError::Candle(error.to_string())
}

impl Buf {
    /// The buffer as a candle tensor of `shape`, without a copy.
    ///
    /// # Errors
    /// `shape` has another number of elements, or candle has no such type (`u64`).
    pub fn into_tensor(self, shape: impl Into<Shape>) -> Result<Tensor, BufferError> {
        let shape = shape.into();
        if shape.elem_count() != self.len() {
            return Err(BufferError::Length { left: shape.elem_count(), right: self.len() });
        }
        let storage = match self.into_host()? {
            HostVec::F64(values) => CpuStorage::F64(values),
            HostVec::F32(values) => CpuStorage::F32(values),
            HostVec::Bf16(values) => CpuStorage::BF16(values),
            HostVec::F16(values) => CpuStorage::F16(values),
            HostVec::U32(values) => CpuStorage::U32(values),
            HostVec::U8(values) => CpuStorage::U8(values),
            HostVec::U64(_) => {
                return Err(BufferError::Candle("candle has no u64 tensors".into()));
            }
        };
        Ok(Tensor::from_storage(Storage::Cpu(storage), shape, BackpropOp::none(), false))
    }

    /// Takes the memory out of a tensor, without a copy where the tensor covers its whole storage
    /// in order. Hand in the only handle: other handles to the same storage are left empty, and
    /// candle reports an error when they are used.
    ///
    /// # Errors
    /// The tensor is on a device, or of a type that buffers do not hold.
    pub fn from_tensor(tensor: &Tensor) -> Result<Self, BufferError> {
        let whole = tensor.is_contiguous() && {
            let (storage, layout) = tensor.storage_and_layout();
            let held = match &*storage {
                Storage::Cpu(storage) => storage_len(storage),
                Storage::Cuda(_) | Storage::Metal(_) => None,
            };
            layout.start_offset() == 0 && held == Some(tensor.elem_count())
        };
        let tensor = if whole {
            tensor.detach()
        } else {
            tensor.force_contiguous().map_err(|e| failed(&e))?
        };
        let taker = Taker(Mutex::new(None));
        tensor.inplace_op1(&taker).map_err(|error| failed(&error))?;
        let taken = taker.0.into_inner().ok().flatten();
        let buf = taken.ok_or_else(|| {
            BufferError::Candle(format!("{:?} tensors do not become buffers", tensor.dtype()))
        })?;
        Ok(buf)
    }
}

fn storage_len(storage: &CpuStorage) -> Option<usize> {
    match storage {
        CpuStorage::F64(values) => Some(values.len()),
        CpuStorage::F32(values) => Some(values.len()),
        CpuStorage::BF16(values) => Some(values.len()),
        CpuStorage::F16(values) => Some(values.len()),
        CpuStorage::U32(values) => Some(values.len()),
        CpuStorage::U8(values) => Some(values.len()),
        _ => None,
    }
}

/// An in-place operation that moves the storage's vector out: candle's only public way to it.
struct Taker(Mutex<Option<Buf>>);

impl InplaceOp1 for Taker {
    fn name(&self) -> &'static str {
        "take"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> candle_core::Result<()> {
        fn take<T: Element>(values: &mut Vec<T>) -> Option<Buf> {
            Some(Buf::from_vec(std::mem::take(values)))
        }
        let taken = match storage {
            CpuStorage::F64(values) => take(values),
            CpuStorage::F32(values) => take(values),
            CpuStorage::BF16(values) => take(values),
            CpuStorage::F16(values) => take(values),
            CpuStorage::U32(values) => take(values),
            CpuStorage::U8(values) => take(values),
            _ => None,
        };
        *self.0.lock().expect("invariant: one caller") = taken;
        Ok(())
    }
}

impl TryFrom<DType> for candle_core::DType {
    type Error = BufferError;

    fn try_from(dtype: DType) -> Result<Self, BufferError> {
        Ok(match dtype {
            DType::F64 => Self::F64,
            DType::F32 => Self::F32,
            DType::Bf16 => Self::BF16,
            DType::F16 => Self::F16,
            DType::U32 => Self::U32,
            DType::U8 => Self::U8,
            DType::U64 => return Err(BufferError::Candle("candle has no u64 tensors".into())),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn there_and_back_is_the_same_memory() {
        let buf = Buf::from_vec(vec![1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let address = buf.typed::<f32>().unwrap().as_ptr();
        let tensor = buf.into_tensor((2, 3)).unwrap();
        assert_eq!(tensor.to_vec2::<f32>().unwrap(), [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]);
        let back = Buf::from_tensor(&tensor).unwrap();
        assert_eq!(back.typed::<f32>().unwrap().as_ptr(), address);
    }

    #[test]
    fn views_are_copied_in_order() {
        let tensor = Tensor::arange(0u32, 6, &Device::Cpu).unwrap().reshape((2, 3)).unwrap();
        let transposed = tensor.t().unwrap();
        let buf = Buf::from_tensor(&transposed).unwrap();
        assert_eq!(buf.typed::<u32>().unwrap(), [0, 3, 1, 4, 2, 5]);
        let part = tensor.narrow(0, 1, 1).unwrap();
        assert_eq!(Buf::from_tensor(&part).unwrap().typed::<u32>().unwrap(), [3, 4, 5]);
        assert_eq!(tensor.to_vec2::<u32>().unwrap(), [[0, 1, 2], [3, 4, 5]], "left whole");
    }

    #[test]
    fn what_candle_cannot_hold_is_an_error() {
        assert!(Buf::zeros(DType::U64, 1).into_tensor(1).is_err());
        let error = Buf::zeros(DType::F32, 2).into_tensor(3).unwrap_err();
        assert_eq!(error, BufferError::Length { left: 3, right: 2 });
    }
}
