//! The files of a checkpoint, written by one rank under a temporary name.

use crate::error::During;
use crate::manifest::{FileRecord, MANIFEST, Manifest};
use crate::plan::{Plan, Round, owned};
use crate::storage::StorageFile;
use crate::tensors::header;
use crate::{
    CheckpointError, MODEL_FILE, OPTIMIZER_FILE, SaveRequest, TOKENIZER_FILE, TokenizerFile,
};
use crate::{checksum, estimate_bytes, folder, hf};
use std::io::SeekFrom;
use std::path::{Path, PathBuf};
use trine_buffer::{Buf, DType, Element};
use trine_spec::RankLayout;
use xxhash_rust::xxh3::Xxh3;

/// Bytes after which a file is synced while it grows: one sync of everything at the end could keep
/// the other ranks waiting beyond their deadline.
const SYNC_EVERY_BYTES: u64 = 256 << 20;

/// A file in the making, with its checksum so far.
struct OutFile {
    name: &'static str,
    path: PathBuf,
    file: Box<dyn StorageFile>,
    hasher: Box<Xxh3>,
    /// Bytes from the start that are written and in the checksum.
    hashed: u64,
    /// Whether everything was written front to back.
    in_order: bool,
    /// Bytes written since the last sync.
    unsynced: u64,
}

impl OutFile {
    fn create(
        request: &SaveRequest<'_>,
        dir: &Path,
        name: &'static str,
    ) -> Result<Self, CheckpointError> {
        let path = dir.join(name);
        let file = request.storage.create(&path).during("creating", &path)?;
        Ok(Self {
            name,
            path,
            file,
            hasher: Box::default(),
            hashed: 0,
            in_order: true,
            unsynced: 0,
        })
    }

    fn write(&mut self, at: u64, bytes: &[u8]) -> Result<(), CheckpointError> {
        if at == self.hashed {
            self.hasher.update(bytes);
            self.hashed += bytes.len() as u64;
        } else {
            self.in_order = false;
        }
        self.file.seek(SeekFrom::Start(at)).during("writing", &self.path)?;
        self.file.write_all(bytes).during("writing", &self.path)?;
        self.unsynced += bytes.len() as u64;
        if self.unsynced >= SYNC_EVERY_BYTES {
            self.file.sync().during("syncing", &self.path)?;
            self.unsynced = 0;
        }
        Ok(())
    }

    /// Syncs the file and describes it.
    fn finish(mut self) -> Result<FileRecord, CheckpointError> {
        self.file.sync().during("syncing", &self.path)?;
        let bytes = self.file.seek(SeekFrom::End(0)).during("reading", &self.path)?;
        let xxh3_128 = if self.in_order {
            checksum::text(self.hasher.digest128())
        } else {
            self.file.seek(SeekFrom::Start(0)).during("reading", &self.path)?;
            checksum::of_reader(&mut self.file).during("reading", &self.path)?
        };
        Ok(FileRecord { name: self.name.into(), bytes, xxh3_128 })
    }
}

/// A file of tensors, for one quantity or several.
struct TensorsOut {
    file: OutFile,
    data_start: u64,
}

/// A checkpoint in the making.
pub(crate) struct Writer<'a> {
    request: &'a SaveRequest<'a>,
    plan: &'a Plan<'a>,
    dir: PathBuf,
    model: TensorsOut,
    /// Where there are moments.
    optimizer: Option<TensorsOut>,
}

impl<'a> Writer<'a> {
    /// Makes room and creates the files.
    pub(crate) fn begin(
        request: &'a SaveRequest<'a>,
        plan: &'a Plan<'a>,
    ) -> Result<Self, CheckpointError> {
        let (storage, home) = (request.storage, request.dir);
        storage.create_dir(home).during("creating", home)?;
        folder::tidy(storage, home)?;
        check_space(request)?;
        let dir = home.join(folder::temporary_name(request.run.step));
        storage.create_dir(&dir).during("creating", &dir)?;
        let tensors = |name, quantities: &[&str]| -> Result<TensorsOut, CheckpointError> {
            let header = header(&plan.table, quantities, request.dtype)?;
            let mut file = OutFile::create(request, &dir, name)?;
            file.write(0, &header)?;
            Ok(TensorsOut { file, data_start: header.len() as u64 })
        };
        let (weights, moments) = plan.quantities.split_at(1);
        let model = tensors(MODEL_FILE, weights)?;
        let optimizer =
            if moments.is_empty() { None } else { Some(tensors(OPTIMIZER_FILE, moments)?) };
        Ok(Self { request, plan, dir, model, optimizer })
    }

    /// Writes what a round has brought: one buffer from each tensor rank that owns something.
    pub(crate) fn write(
        &mut self,
        round: Round,
        parts: &[Option<Buf>],
    ) -> Result<(), CheckpointError> {
        let layouts = &self.request.ranks[round.pp];
        let whole = match self.request.dtype {
            DType::F64 => assemble::<f64>(self.plan, layouts, round.bucket, parts)?,
            DType::F32 => assemble::<f32>(self.plan, layouts, round.bucket, parts)?,
            DType::Bf16 | DType::F16 | DType::U64 | DType::U32 | DType::U8 => {
                unreachable!("invariant: the header was written for floats only")
            }
        };
        let (out, before) = match (round.quantity, &mut self.optimizer) {
            (0, _) | (_, None) => (&mut self.model, 0),
            (moment, Some(optimizer)) => (optimizer, (moment - 1) * self.plan.table.len()),
        };
        for (tensor, values) in whole {
            check_finite(self.plan, round.quantity, tensor, &values)?;
            let start = before + self.plan.table.tensors[tensor].start;
            let at = out.data_start + (start * values.dtype().bytes()) as u64;
            out.file.write(at, values.slice().bytes()?)?;
        }
        Ok(())
    }

    /// Writes the small files, the manifest last, and gives the directory its name.
    pub(crate) fn finish(self) -> Result<(), CheckpointError> {
        let request = self.request;
        let mut files = vec![self.model.file.finish()?];
        if let Some(optimizer) = self.optimizer {
            files.push(optimizer.file.finish()?);
        }
        let small = |name, bytes: &[u8]| {
            let mut file = OutFile::create(request, &self.dir, name)?;
            file.write(0, bytes)?;
            file.finish()
        };
        let tokenizer = request.tokenizer.as_ref();
        for (name, text) in hf::descriptions(request.model, request.dtype, tokenizer) {
            files.push(small(name, text.as_bytes())?);
        }
        if let Some(TokenizerFile { text, .. }) = tokenizer {
            files.push(small(TOKENIZER_FILE, text.as_bytes())?);
        }
        let (quantities, written_by) = (&self.plan.quantities, request.mesh.degrees());
        let mut manifest = Manifest::new(
            request.model,
            request.dtype,
            quantities,
            request.run.clone(),
            written_by,
        );
        manifest.files = files;
        small(MANIFEST, manifest.to_text().as_bytes())?;
        let (storage, step) = (request.storage, request.run.step);
        storage.sync_dir(&self.dir).during("syncing", &self.dir)?;
        folder::publish(storage, request.dir, step)?;
        Ok(())
    }
}

/// Refuses values with which no run could go on: they would take the place of good ones.
fn check_finite(
    plan: &Plan<'_>,
    quantity: usize,
    tensor: usize,
    values: &Buf,
) -> Result<(), CheckpointError> {
    let found = match values.dtype() {
        DType::F64 => values.typed::<f64>()?.iter().position(|value| !value.is_finite()),
        DType::F32 => values.typed::<f32>()?.iter().position(|value| !value.is_finite()),
        DType::Bf16 | DType::F16 | DType::U64 | DType::U32 | DType::U8 => None,
    };
    found.map_or(Ok(()), |element| {
        Err(CheckpointError::NotFinite {
            quantity: plan.quantities[quantity].into(),
            tensor: plan.table.tensors[tensor].name.clone(),
            element,
        })
    })
}

/// Refuses to begin what cannot end.
fn check_space(request: &SaveRequest<'_>) -> Result<(), CheckpointError> {
    let path = request.dir;
    let mut needed = estimate_bytes(request.model, request.dtype, request.moments)?;
    needed += request.tokenizer.map_or(0, |TokenizerFile { text, .. }| text.len() as u64);
    let free = request.storage.free_bytes(path).during("measuring the free space of", path)?;
    if free < needed {
        return Err(CheckpointError::Space { needed, free, path: path.into() });
    }
    Ok(())
}

/// Joins the parts of a bucket that the tensor ranks hold to whole tensors, in file order.
fn assemble<T: Element>(
    plan: &Plan<'_>,
    layouts: &[RankLayout],
    bucket: usize,
    parts: &[Option<Buf>],
) -> Result<Vec<(usize, Buf)>, CheckpointError> {
    let mut whole: Vec<(usize, Buf)> = Vec::new();
    for (layout, part) in layouts.iter().zip(parts) {
        let Some(part) = part else { continue };
        let values = part.typed::<T>()?;
        for param in owned(layout, bucket) {
            let region = plan.table.region(param).map_err(CheckpointError::Layout)?;
            let tensor = &plan.table.tensors[region.tensor];
            let at = match whole.binary_search_by_key(&region.tensor, |(tensor, _)| *tensor) {
                Ok(at) => at,
                Err(at) => {
                    whole.insert(at, (region.tensor, Buf::zeros(T::DTYPE, tensor.len())));
                    at
                }
            };
            tensor.put(whole[at].1.typed_mut::<T>()?, &region, &values[param.span()]);
        }
    }
    Ok(whole)
}
