//! Opening a checkpoint, and loading any rank's part of it.

use crate::error::During;
use crate::manifest::{FileRecord, MANIFEST, Manifest, OwnParam, OwnRecord};
use crate::table::Table;
use crate::tensors::{Located, TensorFile, key};
use crate::{CheckpointError, MODEL_FILE, OPTIMIZER_FILE, WEIGHTS, checksum};
use std::path::{Path, PathBuf};
use trine_buffer::{DType, SliceMut};
use trine_spec::{ModelParts, ModelSpec, Piece, RankLayout};

/// An open checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    manifest: Manifest,
    table: Table,
    /// In the order of the manifest's quantities.
    located: Vec<Located>,
}

impl Checkpoint {
    /// Opens the checkpoint at `dir`: reads its manifest, compares the sizes of all files, and
    /// looks up all tensors. Contents are compared by [`Checkpoint::verify`].
    ///
    /// # Errors
    /// Not a checkpoint, one of another version, or a damaged one.
    pub fn open(dir: &Path) -> Result<Self, CheckpointError> {
        let manifest = Manifest::read(dir)?;
        for record in &manifest.files {
            check_size(dir, record)?;
        }
        manifest.model.check().map_err(|error| {
            let (path, why) = (dir.join(MANIFEST), error.to_string());
            CheckpointError::Malformed { path, why }
        })?;
        let model = TensorFile::open(&dir.join(MODEL_FILE))?;
        let table = Table::within(manifest.pieces(), model.room());
        let mut located = Vec::with_capacity(manifest.quantities.len());
        let moments = manifest.quantities.len() > 1;
        let optimizer =
            if moments { Some(TensorFile::open(&dir.join(OPTIMIZER_FILE))?) } else { None };
        for quantity in &manifest.quantities {
            let file =
                if quantity == WEIGHTS { &model } else { optimizer.as_ref().unwrap_or(&model) };
            located.push(Located::new(file, &table, |tensor| key(tensor, quantity))?);
        }
        Ok(Self { dir: dir.into(), manifest, table, located })
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What the checkpoint holds.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The model, as one tensor-parallel rank has it. Of pieces of one's own it has what files need: parameters.
    pub fn parts(&self) -> ModelParts {
        let (spec, pieces) = (self.manifest.model.clone(), self.manifest.pieces().collect());
        ModelParts { spec, tp: 1, pieces }
    }

    /// Compares the checksums of all files with the manifest. Reads everything: usually a task for
    /// one rank.
    ///
    /// # Errors
    /// The first file that was altered.
    pub fn verify(&self) -> Result<(), CheckpointError> {
        for record in &self.manifest.files {
            check_size(&self.dir, record)?;
            let path = place(&self.dir, record)?;
            let mut file = trine_files::open(&path).during("opening", &path)?;
            let found = checksum::of_reader(&mut file).during("reading", &path)?;
            if found != record.xxh3_128 {
                let expected = record.xxh3_128.clone();
                return Err(CheckpointError::Altered { path, expected, found });
            }
        }
        Ok(())
    }

    /// Refuses a checkpoint of a model other than `ours`. What only concerns training (dropout,
    /// initialisation) may differ.
    ///
    /// # Errors
    /// The first field that differs, or all blocks of one's own that only one of them has.
    pub fn check_model(&self, model: &ModelParts) -> Result<(), CheckpointError> {
        let ours = &model.spec;
        let theirs = fields(&self.manifest.model);
        for ((field, ours), (_, theirs)) in fields(ours).into_iter().zip(theirs) {
            if ours != theirs {
                let path = self.dir.clone();
                return Err(CheckpointError::OtherModel { path, field, ours, theirs });
            }
        }
        let mut pieces = Vec::new();
        for part in &model.pieces {
            let theirs = self.manifest.own.iter().find(|own| Piece::Block(own.block) == part.piece);
            pieces.extend(difference(part.piece, theirs, OwnRecord::of(part).as_ref()));
        }
        if !pieces.is_empty() {
            return Err(CheckpointError::OtherPieces { path: self.dir.clone(), pieces });
        }
        Ok(())
    }

    /// Fills `out` with one quantity of a whole bucket of `layout`, which may be any layout of the
    /// model: [`WEIGHTS`], or a name from [`Manifest::quantities`]. Padding becomes zero; a tied
    /// output layer gets the embedding's values. Every rank may call it for itself.
    ///
    /// # Errors
    /// A quantity that is not there, an `out` of another length than the bucket or that is neither
    /// f32 nor f64, a layout of another model, an unreadable file.
    pub fn load_bucket(
        &self,
        quantity: &str,
        layout: &RankLayout,
        bucket: usize,
        out: SliceMut<'_>,
    ) -> Result<(), CheckpointError> {
        let held = &self.manifest.quantities;
        let Some(index) = held.iter().position(|name| name == quantity) else {
            let (path, held) = (self.dir.clone(), held.clone());
            return Err(CheckpointError::Quantity { path, quantity: quantity.into(), held });
        };
        load(&self.located[index], &self.table, quantity, layout, bucket, out)
    }
}

/// Fills a bucket of either float type.
pub(crate) fn load(
    located: &Located,
    table: &Table,
    quantity: &str,
    layout: &RankLayout,
    bucket: usize,
    out: SliceMut<'_>,
) -> Result<(), CheckpointError> {
    let (found, found_len) = (out.dtype(), out.len());
    let len = layout.buckets.get(bucket).map_or(0, |bucket| bucket.len);
    let refused = CheckpointError::Bucket {
        quantity: quantity.into(),
        bucket,
        expected: if found == DType::F64 { found } else { DType::F32 },
        len,
        found,
        found_len,
    };
    if bucket >= layout.buckets.len() || len != found_len {
        return Err(refused);
    }
    match found {
        DType::F64 => located.load::<f64>(table, layout, bucket, out.typed()?),
        DType::F32 => located.load::<f32>(table, layout, bucket, out.typed()?),
        DType::Bf16 | DType::F16 | DType::U64 | DType::U32 | DType::U8 => Err(refused),
    }
}

/// Where a listed file lies: in the checkpoint, whatever its name says.
fn place(dir: &Path, record: &FileRecord) -> Result<PathBuf, CheckpointError> {
    let manifest = dir.join(MANIFEST);
    trine_files::inside(dir, &record.name).during("reading the names of", &manifest)
}

fn check_size(dir: &Path, record: &FileRecord) -> Result<(), CheckpointError> {
    let path = place(dir, record)?;
    let file = trine_files::open(&path).during("opening", &path)?;
    let found = file.metadata().during("reading", &path)?.len();
    if found != record.bytes {
        return Err(CheckpointError::Size { path, expected: record.bytes, found });
    }
    Ok(())
}

/// What a piece is in a checkpoint and in the model to load, where that differs.
fn difference(
    piece: Piece,
    theirs: Option<&OwnRecord>,
    ours: Option<&OwnRecord>,
) -> Option<String> {
    let kind = |own: Option<&OwnRecord>| {
        own.map_or("of the zoo".to_owned(), |own| format!("\"{}\"", own.kind))
    };
    let ((Some(theirs), Some(ours)), true) =
        ((theirs, ours), theirs.map(|own| &own.kind) == ours.map(|own| &own.kind))
    else {
        let differs = theirs.is_some() || ours.is_some();
        return differs
            .then(|| format!("{piece} is {} there and {} here", kind(theirs), kind(ours)));
    };
    let without = |some: &OwnRecord, other: &OwnRecord| -> Vec<String> {
        let lacks = |param: &&OwnParam| !other.params.contains(param);
        some.params
            .iter()
            .filter(lacks)
            .map(|param| format!("{} {:?}", param.name, param.shape))
            .collect()
    };
    let (there, here) = (without(theirs, ours), without(ours, theirs));
    (!(there.is_empty() && here.is_empty()))
        .then(|| format!("{piece} has {there:?} there and {here:?} here"))
}

/// What decides whether weights fit and mean the same, by name.
fn fields(model: &ModelSpec) -> Vec<(&'static str, String)> {
    let ModelSpec {
        family,
        hidden,
        layers,
        heads,
        kv_heads,
        head_dim,
        ffn,
        vocab,
        seq_max,
        tied,
        norm_eps,
        rope_theta,
        dropout: _,
        init_std: _,
        ..
    } = model;
    // Without learned positions nothing that is stored depends on the longest sequence.
    let positions = if model.learned_positions() { *seq_max } else { 0 };
    // Without rotary positions nothing depends on their base.
    let is_turned = (0..*layers).any(|block| model.turned(block) > 0);
    let theta = if is_turned { *rope_theta } else { 0.0 };
    let sizes = [
        ("family", family.to_string()),
        ("hidden", hidden.to_string()),
        ("layers", layers.to_string()),
        ("heads", heads.to_string()),
        ("kv_heads", kv_heads.to_string()),
        ("head_dim", head_dim.to_string()),
        ("ffn", ffn.to_string()),
        ("vocab", vocab.to_string()),
        ("seq_max", positions.to_string()),
        ("tied", tied.to_string()),
        ("norm_eps", norm_eps.to_string()),
        ("rope_theta", theta.to_string()),
    ];
    sizes.into_iter().chain(model.traits()).collect()
}
