//! The exclusive buffer and the shared activation.

use crate::{
    BufferError, DType, DeviceMemory, DeviceSlice, DeviceSliceMut, Element, Float, Pool, Slice,
    SliceMut,
};
use half::{bf16, f16};
use std::sync::Arc;

/// The host memory of a buffer.
#[derive(Debug)]
#[doc(hidden)]
pub enum HostVec {
    F64(Vec<f64>),
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
    U64(Vec<u64>),
    U32(Vec<u32>),
    U8(Vec<u8>),
}

impl HostVec {
    pub(crate) fn zeros(dtype: DType, len: usize) -> Self {
        match dtype {
            DType::F64 => Self::F64(vec![0.0; len]),
            DType::F32 => Self::F32(vec![0.0; len]),
            DType::Bf16 => Self::Bf16(bytemuck::allocation::zeroed_vec(len)),
            DType::F16 => Self::F16(bytemuck::allocation::zeroed_vec(len)),
            DType::U64 => Self::U64(vec![0; len]),
            DType::U32 => Self::U32(vec![0; len]),
            DType::U8 => Self::U8(vec![0; len]),
        }
    }

    pub(crate) fn slice(&self) -> Slice<'_> {
        match self {
            Self::F64(values) => Slice::F64(values),
            Self::F32(values) => Slice::F32(values),
            Self::Bf16(values) => Slice::Bf16(values),
            Self::F16(values) => Slice::F16(values),
            Self::U64(values) => Slice::U64(values),
            Self::U32(values) => Slice::U32(values),
            Self::U8(values) => Slice::U8(values),
        }
    }

    fn slice_mut(&mut self) -> SliceMut<'_> {
        match self {
            Self::F64(values) => SliceMut::F64(values),
            Self::F32(values) => SliceMut::F32(values),
            Self::Bf16(values) => SliceMut::Bf16(values),
            Self::F16(values) => SliceMut::F16(values),
            Self::U64(values) => SliceMut::U64(values),
            Self::U32(values) => SliceMut::U32(values),
            Self::U8(values) => SliceMut::U8(values),
        }
    }
}

/// What holds the elements of a buffer.
#[derive(Debug)]
pub(crate) enum Storage {
    Host(HostVec),
    Device { memory: Box<dyn DeviceMemory>, dtype: DType, len: usize },
}

impl Storage {
    /// Of a buffer that has given its memory away.
    fn nothing() -> Self {
        Self::Host(HostVec::U8(Vec::new()))
    }

    pub(crate) fn slice(&self) -> Slice<'_> {
        match self {
            Self::Host(host) => host.slice(),
            Self::Device { memory, dtype, len } => {
                Slice::Device(DeviceSlice::new(&**memory, *dtype, *len))
            }
        }
    }

    fn slice_mut(&mut self) -> SliceMut<'_> {
        match self {
            Self::Host(host) => host.slice_mut(),
            Self::Device { memory, dtype, len } => {
                SliceMut::Device(DeviceSliceMut::new(&mut **memory, *dtype, *len))
            }
        }
    }

    pub(crate) fn size_bytes(&self) -> usize {
        let slice = self.slice();
        slice.len() * slice.dtype().bytes()
    }
}

/// One exclusive allocation of `len` elements. It has no shape: shapes belong to whoever gives the
/// elements a meaning. Dropping a buffer that came from a [`Pool`] gives its memory back to it.
#[derive(Debug)]
pub struct Buf {
    storage: Storage,
    pool: Option<Pool>,
}

impl Buf {
    /// A buffer of zeros on the host, outside any pool. [`Place::zeros`](crate::Place::zeros) makes one anywhere.
    pub fn zeros(dtype: DType, len: usize) -> Self {
        Self { storage: Storage::Host(HostVec::zeros(dtype, len)), pool: None }
    }

    /// Takes over a vector, without a copy.
    pub fn from_vec<T: Element>(values: Vec<T>) -> Self {
        Self { storage: Storage::Host(T::wrap(values)), pool: None }
    }

    /// Memory of a device as a buffer of `len` elements.
    pub(crate) fn on_device(memory: Box<dyn DeviceMemory>, dtype: DType, len: usize) -> Self {
        Self { storage: Storage::Device { memory, dtype, len }, pool: None }
    }

    /// Gives the vector back, without a copy.
    ///
    /// # Errors
    /// If the elements are of another type, or on a device.
    pub fn into_vec<T: Element>(self) -> Result<Vec<T>, BufferError> {
        let held = self.dtype();
        T::unwrap(self.into_host()?).ok_or(BufferError::Type { held, asked: T::DTYPE })
    }

    pub(crate) fn pooled(storage: Storage, pool: Pool) -> Self {
        Self { storage, pool: Some(pool) }
    }

    /// Moves the host's memory out; the pool, if any, no longer counts it.
    pub(crate) fn into_host(mut self) -> Result<HostVec, BufferError> {
        if let Slice::Device(device) = self.slice() {
            return Err(device.refused());
        }
        let storage = self.take();
        if let Some(pool) = self.pool.take() {
            pool.forget(&storage);
        }
        match storage {
            Storage::Host(host) => Ok(host),
            Storage::Device { .. } => unreachable!("invariant: refused above"),
        }
    }

    fn take(&mut self) -> Storage {
        std::mem::replace(&mut self.storage, Storage::nothing())
    }

    /// Elements in the buffer.
    pub fn len(&self) -> usize {
        self.slice().len()
    }

    /// Whether the buffer has no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements' type.
    pub fn dtype(&self) -> DType {
        self.slice().dtype()
    }

    /// Size in bytes.
    pub fn size_bytes(&self) -> usize {
        self.storage.size_bytes()
    }

    /// The whole buffer as a view.
    pub fn slice(&self) -> Slice<'_> {
        self.storage.slice()
    }

    /// The whole buffer as a writable view.
    pub fn slice_mut(&mut self) -> SliceMut<'_> {
        self.storage.slice_mut()
    }

    /// The elements, if they are of type `T`.
    ///
    /// # Errors
    /// If they are of another type, or on a device.
    pub fn typed<T: Element>(&self) -> Result<&[T], BufferError> {
        self.slice().typed()
    }

    /// The elements, writable, if they are of type `T`.
    ///
    /// # Errors
    /// If they are of another type, or on a device.
    pub fn typed_mut<T: Element>(&mut self) -> Result<&mut [T], BufferError> {
        self.slice_mut().typed()
    }

    /// Every element as f64, on a device behind a wait: for tests, reports and comparisons. Exact for floats.
    ///
    /// # Errors
    /// If work of the device has failed.
    pub fn to_f64_vec(&self) -> Result<Vec<f64>, BufferError> {
        Ok(match self.slice() {
            Slice::F64(values) => values.to_vec(),
            Slice::F32(values) => values.iter().map(|v| f64::from(*v)).collect(),
            Slice::Bf16(values) => values.iter().map(|v| Float::to_f64(*v)).collect(),
            Slice::F16(values) => values.iter().map(|v| Float::to_f64(*v)).collect(),
            Slice::U64(values) => values.iter().map(|v| *v as f64).collect(),
            Slice::U32(values) => values.iter().map(|v| f64::from(*v)).collect(),
            Slice::U8(values) => values.iter().map(|v| f64::from(*v)).collect(),
            Slice::Device(_) => return self.slice().to_host()?.to_f64_vec(),
        })
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take() {
            let storage = self.take();
            pool.recycle(storage);
        }
    }
}

/// An activation: a buffer that is written once and then shared read-only. Cloning is cheap; the
/// memory is free again when the last holder drops it, so what the schedule drops early is early
/// available.
#[derive(Debug, Clone)]
pub struct Act(Arc<Buf>);

impl Act {
    /// Shares a finished buffer.
    pub fn new(buf: Buf) -> Self {
        Self(Arc::new(buf))
    }

    /// Takes the buffer back if nobody else holds it.
    ///
    /// # Errors
    /// Gives the activation back when it is still shared.
    pub fn try_into_buf(self) -> Result<Buf, Self> {
        Arc::try_unwrap(self.0).map_err(Self)
    }

    /// The buffer for writing, if nobody else holds it: lets a layer work in place.
    pub fn get_mut(&mut self) -> Option<&mut Buf> {
        Arc::get_mut(&mut self.0)
    }

    /// The buffer itself, copied through `pool` only if somebody else still holds it.
    ///
    /// # Errors
    /// As [`Pool::alloc`].
    pub fn into_buf(self, pool: &Pool) -> Result<Buf, BufferError> {
        self.try_into_buf().or_else(|shared| pool.copy_of(shared.slice()))
    }
}

impl std::ops::Deref for Act {
    type Target = Buf;

    fn deref(&self) -> &Buf {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_goes_in_and_comes_out_without_a_copy() {
        let values = vec![1.0f32, 2.0];
        let address = values.as_ptr();
        let buf = Buf::from_vec(values);
        assert_eq!((buf.len(), buf.dtype(), buf.size_bytes()), (2, DType::F32, 8));
        let back: Vec<f32> = buf.into_vec().unwrap();
        assert_eq!(back.as_ptr(), address);
    }

    #[test]
    fn wrong_types_ranges_and_lengths_are_errors() {
        let mut buf = Buf::zeros(DType::F32, 4);
        let error = buf.typed::<u32>().unwrap_err();
        assert_eq!(error, BufferError::Type { held: DType::F32, asked: DType::U32 });
        assert!(matches!(buf.slice().range(2..5), Err(BufferError::Range { end: 5, len: 4, .. })));
        let other = Buf::zeros(DType::F32, 3);
        let error = buf.slice_mut().copy_from(other.slice()).unwrap_err();
        assert_eq!(error, BufferError::Length { left: 4, right: 3 });
    }

    #[test]
    fn an_activation_is_exclusive_again_when_the_other_holders_are_gone() {
        let mut act = Act::new(Buf::from_vec(vec![1u32]));
        let saved = act.clone();
        assert!(act.get_mut().is_none());
        drop(saved);
        act.get_mut().unwrap().typed_mut::<u32>().unwrap()[0] = 7;
        assert_eq!(act.try_into_buf().unwrap().typed::<u32>().unwrap(), [7]);
    }
}
