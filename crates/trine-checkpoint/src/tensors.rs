//! safetensors files: their headers, and parts of their tensors as numbers.

use crate::CheckpointError;
use crate::error::During;
use crate::table::{Room, Table};
use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use trine_buffer::{DType, Float};
use trine_spec::RankLayout;

// Files are little-endian, and buffers are written as they lie in memory.
#[cfg(target_endian = "big")]
compile_error!("trine-checkpoint writes buffers as they are, which needs a little-endian machine");

/// A header holds at most this many bytes; the library refuses longer ones.
const HEADER_BYTES_MAX: u64 = 100_000_000;

/// Elements read at a time: 4 MiB of f32.
const BLOCK_ELEMENTS: usize = 1 << 20;

/// The header of a file that holds `quantities` one after the other, each with all tensors of the
/// table: the length, the description, and spaces up to a multiple of 8 bytes.
///
/// # Errors
/// An element type that is no float.
pub(crate) fn header(
    table: &Table,
    quantities: &[&str],
    dtype: DType,
) -> Result<Vec<u8>, CheckpointError> {
    let stored = match dtype {
        DType::F64 => Dtype::F64,
        DType::F32 => Dtype::F32,
        DType::Bf16 | DType::F16 | DType::U64 | DType::U32 | DType::U8 => {
            let why = format!("checkpoints hold f32 or f64 values, not {dtype}");
            return Err(CheckpointError::Layout(why));
        }
    };
    let mut tensors = Vec::with_capacity(quantities.len() * table.tensors.len());
    let mut start = 0;
    for quantity in quantities {
        for tensor in &table.tensors {
            let end = start + tensor.len() * dtype.bytes();
            let shape = tensor.shape();
            let info = TensorInfo { dtype: stored, shape, data_offsets: (start, end) };
            tensors.push((key(&tensor.name, quantity), info));
            start = end;
        }
    }
    // transformers refuses files that do not say for whom they were written.
    let about = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let metadata =
        Metadata::new(Some(about), tensors).expect("invariant: the tensors lie one behind another");
    let mut text = serde_json::to_vec(&metadata).expect("invariant: texts and numbers become JSON");
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut text);
    Ok(bytes)
}

/// The name of one quantity of a tensor: weights have the plain name.
pub(crate) fn key(tensor: &str, quantity: &str) -> String {
    if quantity == crate::WEIGHTS { tensor.into() } else { format!("{tensor}.{quantity}") }
}

/// The header of a file on disk.
#[derive(Debug)]
pub(crate) struct TensorFile {
    path: PathBuf,
    metadata: Metadata,
    data_start: u64,
}

impl TensorFile {
    /// Reads the header and checks that the file has the size that it says.
    pub(crate) fn open(path: &Path) -> Result<Self, CheckpointError> {
        let malformed = |why: String| CheckpointError::Malformed { path: path.into(), why };
        let mut file = trine_files::open(path).during("opening", path)?;
        let found = file.metadata().during("reading", path)?.len();
        let mut length = [0; 8];
        if found < 8 {
            return Err(malformed(format!("{found} B are too few for a safetensors file")));
        }
        file.read_exact(&mut length).during("reading", path)?;
        let length = u64::from_le_bytes(length);
        if length > HEADER_BYTES_MAX || length > found - 8 {
            return Err(malformed(format!("its header of {length} bytes does not fit")));
        }
        let mut text = vec![0; length as usize];
        file.read_exact(&mut text).during("reading", path)?;
        let metadata: Metadata =
            serde_json::from_slice(&text).map_err(|error| malformed(error.to_string()))?;
        let data_start = 8 + length;
        let expected = data_start.saturating_add(metadata.data_len() as u64);
        if found != expected {
            return Err(CheckpointError::Size { path: path.into(), expected, found });
        }
        Ok(Self { path: path.into(), metadata, data_start })
    }

    /// What a table of this file can hold: no element has fewer than two bytes.
    pub(crate) fn room(&self) -> Room {
        let tensors = self.metadata.offset_keys().len();
        Room { tensors, elements: self.metadata.data_len() / DType::F16.bytes() }
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.metadata.info(name).is_some()
    }
}

/// Where every tensor of a table lies in one file, for one quantity.
#[derive(Debug)]
pub(crate) struct Located {
    path: PathBuf,
    /// First byte and element type, by tensor.
    places: Vec<(u64, DType)>,
}

impl Located {
    /// Finds all tensors of the table, called `name(tensor)` in the file.
    pub(crate) fn new(
        file: &TensorFile,
        table: &Table,
        name: impl Fn(&str) -> String,
    ) -> Result<Self, CheckpointError> {
        let path = file.path.clone();
        let mut places = Vec::with_capacity(table.tensors.len());
        for tensor in &table.tensors {
            let name = name(&tensor.name);
            let Some(info) = file.metadata.info(&name) else {
                return Err(CheckpointError::Missing { path, tensor: name });
            };
            let expected = tensor.shape();
            let dtype = float(info.dtype).filter(|_| info.shape == expected);
            let Some(dtype) = dtype else {
                let expected = format!("a float of shape {expected:?}");
                let found = format!("{:?} {:?}", info.dtype, info.shape);
                return Err(CheckpointError::Tensor { path, tensor: name, expected, found });
            };
            places.push((file.data_start + info.data_offsets.0 as u64, dtype));
        }
        Ok(Self { path, places })
    }

    /// Fills a bucket from the parts of the file that belong in it; everything else becomes zero.
    pub(crate) fn load<T: Float>(
        &self,
        table: &Table,
        layout: &RankLayout,
        bucket: usize,
        out: &mut [T],
    ) -> Result<(), CheckpointError> {
        out.fill(T::from_f64(0.0));
        let mut file = trine_files::open(&self.path).during("opening", &self.path)?;
        let mut bytes = Vec::new();
        for &index in &layout.buckets[bucket].params {
            let param = &layout.params[index];
            let region = table.region(param).map_err(CheckpointError::Layout)?;
            let (start, dtype) = self.places[region.tensor];
            let read = |from: usize, values: &mut [T]| {
                file.seek(SeekFrom::Start(start + (from * dtype.bytes()) as u64))?;
                if dtype == T::DTYPE {
                    return file.read_exact(bytemuck::cast_slice_mut(values));
                }
                bytes.resize(values.len() * dtype.bytes(), 0);
                file.read_exact(&mut bytes)?;
                decode(dtype, &bytes, values);
                Ok(())
            };
            let part = &mut out[param.span()];
            let zero = T::from_f64(0.0);
            table.tensors[region.tensor]
                .get(&region, part, zero, BLOCK_ELEMENTS, read)
                .during("reading", &self.path)?;
        }
        Ok(())
    }
}

/// The type of a tensor's elements, if they are floats that are understood.
fn float(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::F64 => Some(DType::F64),
        Dtype::F32 => Some(DType::F32),
        Dtype::BF16 => Some(DType::Bf16),
        Dtype::F16 => Some(DType::F16),
        _ => None,
    }
}

/// Little-endian floats as numbers.
fn decode<T: Float>(dtype: DType, bytes: &[u8], out: &mut [T]) {
    fn each<T: Float, const N: usize>(bytes: &[u8], out: &mut [T], value: impl Fn([u8; N]) -> f64) {
        for (bytes, out) in bytes.as_chunks::<N>().0.iter().zip(out) {
            *out = T::from_f64(value(*bytes));
        }
    }
    match dtype {
        DType::F64 => each(bytes, out, f64::from_le_bytes),
        DType::F32 => each(bytes, out, |b| f64::from(f32::from_le_bytes(b))),
        DType::Bf16 => each(bytes, out, |b| bf16::from_le_bytes(b).to_f64()),
        DType::F16 => each(bytes, out, |b| f16::from_le_bytes(b).to_f64()),
        DType::U64 | DType::U32 | DType::U8 => {
            unreachable!("invariant: tensors of integers are refused when a file is opened")
        }
    }
}
