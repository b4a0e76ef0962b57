//! The manifest: what a checkpoint is, written last and read first.

use crate::error::During;
use crate::{
    CONFIG_FILE, CheckpointError, MODEL_FILE, OPTIMIZER_FILE, TOKENIZER_FILE, WEIGHTS, checksum,
};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::io::ErrorKind;
use std::path::Path;
use trine_buffer::DType;
use trine_files::TEXT_BYTES_MAX;
use trine_mesh::Degrees;
use trine_spec::{Init, ModelParts, ModelSpec, OwnBody, OwnPiece, ParamSpec, Piece, PieceParts};

/// The manifest's file name.
pub(crate) const MANIFEST: &str = "manifest.json";

/// What a manifest says it is.
const FORMAT: &str = "trine-checkpoint";

/// The version that is written, and the only one that is read.
const VERSION: u64 = 1;

/// Before the checksum, the last value of a manifest. It covers every byte before itself.
const BEFORE_CHECKSUM: &str = ",\n  \"checksum\": \"";

/// Behind the checksum.
const AFTER_CHECKSUM: &str = "\"\n}\n";

/// How far the run was, in the trainer's terms. Nothing here is interpreted by this crate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    /// Optimizer steps taken.
    pub step: u64,
    /// Samples consumed by them.
    pub consumed_samples: u64,
    /// The run's seed.
    pub seed: u64,
    /// What identifies the data.
    pub data_hash: String,
    /// What identifies the tokenizer, where there is one.
    pub tokenizer_hash: Option<String>,
    /// Whatever else the trainer needs to go on, such as the state of the learning-rate schedule.
    /// Floats come back to the last bit.
    pub trainer: serde_json::Value,
}

/// A file of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Its name within the checkpoint.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Its checksum, as `xxh128sum` prints it.
    pub xxh3_128: String,
}

/// What a checkpoint holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    format: String,
    version: u64,
    /// The model, but for pieces of its own.
    pub model: ModelSpec,
    /// Its blocks that the zoo does not have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub own: Vec<OwnRecord>,
    /// The type of all elements.
    pub dtype: DType,
    /// What is stored of each parameter: the weights, then the optimizer's moments.
    pub quantities: Vec<String>,
    /// How far the run was.
    pub run: RunState,
    /// The layout that wrote it. For information: any layout loads it.
    pub written_by: Degrees,
    /// All files but the manifest.
    pub files: Vec<FileRecord>,
}

/// A block that the zoo does not have: what a file needs to know of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnRecord {
    /// The block's index.
    pub block: usize,
    /// What kind of piece it is.
    pub kind: String,
    /// Its parameters, in order.
    pub params: Vec<OwnParam>,
}

/// A parameter of a block that the zoo does not have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnParam {
    /// Its name, and its tensor's.
    pub name: String,
    /// Its shape, padding left out.
    pub shape: Vec<usize>,
}

impl OwnRecord {
    pub(crate) fn of(part: &PieceParts) -> Option<Self> {
        let (Piece::Block(block), Some(kind)) = (part.piece, part.own_name()) else { return None };
        let param = |spec: &ParamSpec| {
            let rest = spec.shape.iter().skip(1).copied();
            let shape = std::iter::once(spec.valid_rows).chain(rest).collect();
            OwnParam { name: spec.name.clone(), shape }
        };
        let params = part.params.iter().map(param).collect();
        Some(Self { block, kind: kind.into(), params })
    }

    fn part(&self) -> PieceParts {
        let param = |param: &OwnParam| ParamSpec::new(&param.name, &param.shape, Init::Zeros);
        let params = self.params.iter().map(param).collect();
        let body = OwnBody { name: self.kind.clone(), ..OwnBody::default() };
        OwnPiece { params, body, flops_per_token: 0.0 }.at(self.block)
    }
}

/// What every version of the format has.
#[derive(Deserialize)]
struct Head {
    format: String,
    version: u64,
}

impl Manifest {
    /// A manifest without files.
    pub(crate) fn new(
        model: &ModelParts,
        dtype: DType,
        quantities: &[&str],
        run: RunState,
        written_by: Degrees,
    ) -> Self {
        let quantities = quantities.iter().map(ToString::to_string).collect();
        let (format, version) = (FORMAT.into(), VERSION);
        let own = model.pieces.iter().filter_map(OwnRecord::of).collect();
        let (model, files) = (model.spec.clone(), Vec::new());
        Self { format, version, model, own, dtype, quantities, run, written_by, files }
    }

    /// The model's pieces, as one rank has them.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = PieceParts> + '_ {
        self.model.pieces().map(|piece| {
            let own = self.own.iter().find(|own| Piece::Block(own.block) == piece);
            own.map_or_else(|| self.model.part(piece, 1), OwnRecord::part)
        })
    }

    /// The bytes of `manifest.json`.
    pub(crate) fn to_text(&self) -> String {
        let text = serde_json::to_string_pretty(self).expect("invariant: a manifest becomes JSON");
        let body = text.strip_suffix("\n}").expect("invariant: an object ends with a brace");
        let checksum = checksum::of_bytes(body.as_bytes());
        format!("{body}{BEFORE_CHECKSUM}{checksum}{AFTER_CHECKSUM}")
    }

    /// Reads the manifest of the checkpoint at `dir`.
    pub(crate) fn read(dir: &Path) -> Result<Self, CheckpointError> {
        let path = dir.join(MANIFEST);
        let bytes = match trine_files::read(&path, TEXT_BYTES_MAX) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let why = format!("it has no {MANIFEST}");
                return Err(CheckpointError::NotACheckpoint { path: dir.into(), why });
            }
            read => read.during("reading", &path)?,
        };
        let manifest = Self::parse(dir, &bytes)?;
        let checked = manifest.check_complete(dir.join(TOKENIZER_FILE).exists());
        checked.map_err(|why| CheckpointError::Malformed { path, why })?;
        Ok(manifest)
    }

    /// A manifest vouches for all that is read of its checkpoint, or says nothing.
    fn check_complete(&self, tokenizer_exists: bool) -> Result<(), String> {
        let mut quantities = HashSet::new();
        if let Some(twice) = self.quantities.iter().find(|name| !quantities.insert(*name)) {
            return Err(format!("it lists the quantity \"{twice}\" twice"));
        }
        if self.quantities.first().is_none_or(|first| first != WEIGHTS) {
            return Err(format!("its first quantity is not \"{WEIGHTS}\""));
        }
        let (mut blocks, mut params) = (HashSet::new(), HashSet::new());
        for own in &self.own {
            let names = || own.params.iter().map(|param| &param.name);
            if let Some(twice) = names().find(|name| !params.insert(*name)) {
                return Err(format!("it lists the parameter \"{twice}\" twice"));
            }
            let shapes = own.params.iter().map(|param| &param.shape);
            if own.kind.trim().is_empty() {
                return Err(format!("block {} is its own and of no kind", own.block));
            }
            if own.block >= self.model.layers || !blocks.insert(own.block) {
                return Err(format!("block {} is not one more of its own", own.block));
            }
            if shapes.into_iter().any(|shape| !(1..=2).contains(&shape.len())) {
                return Err(format!("block {} has a parameter of no known shape", own.block));
            }
        }
        let mut files = HashSet::new();
        if let Some(twice) = self.files.iter().find(|file| !files.insert(file.name.as_str())) {
            return Err(format!("it lists \"{}\" twice", twice.name));
        }
        let needed = [
            (MODEL_FILE, true),
            (OPTIMIZER_FILE, self.quantities.len() > 1),
            (CONFIG_FILE, true),
            (TOKENIZER_FILE, tokenizer_exists || self.run.tokenizer_hash.is_some()),
        ];
        for (name, is_needed) in needed {
            if is_needed && !files.contains(name) {
                return Err(format!("it has no checksum of {name}; use another checkpoint"));
            }
        }
        Ok(())
    }

    fn parse(dir: &Path, bytes: &[u8]) -> Result<Self, CheckpointError> {
        let path = dir.join(MANIFEST);
        let malformed = |why: String| CheckpointError::Malformed { path: path.clone(), why };
        // A version of its own may protect itself in a way of its own, so it is looked at first.
        let head = serde_json::from_slice::<Head>(bytes).map_err(|e| malformed(e.to_string()))?;
        if head.format != FORMAT {
            let why = format!("{MANIFEST} says \"{}\"", head.format);
            return Err(CheckpointError::NotACheckpoint { path: dir.into(), why });
        }
        if head.version != VERSION {
            let (found, known) = (head.version, VERSION);
            return Err(CheckpointError::Version { path, found, known });
        }
        check_itself(&path, bytes)?;
        serde_json::from_slice(bytes).map_err(|error| malformed(error.to_string()))
    }
}

/// Compares the checksum of a manifest with its contents.
fn check_itself(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    let malformed = |why: &str| CheckpointError::Malformed { path: path.into(), why: why.into() };
    let text = str::from_utf8(bytes).map_err(|_| malformed("it is not UTF-8"))?;
    let (body, rest) =
        text.rsplit_once(BEFORE_CHECKSUM).ok_or_else(|| malformed("it does not end as written"))?;
    let expected =
        rest.strip_suffix(AFTER_CHECKSUM).ok_or_else(|| malformed("it does not end as written"))?;
    let found = checksum::of_bytes(body.as_bytes());
    if found != expected {
        let expected = expected.into();
        return Err(CheckpointError::Altered { path: path.into(), expected, found });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use trine_spec::presets;

    fn manifest() -> Manifest {
        let model = presets::find("gpt2-124m").unwrap().model;
        let run = RunState {
            step: 7,
            consumed_samples: 56,
            seed: u64::MAX,
            data_hash: "d\"h".into(),
            tokenizer_hash: None,
            trainer: serde_json::json!({ "lr": 0.1 + 0.2, "decay": 1.0 / 3.0 }),
        };
        let model = model.parts(1).unwrap();
        Manifest::new(&model, DType::F32, &["weights", "exp_avg"], run, Degrees::SERIAL)
    }

    fn read(text: &[u8]) -> Result<Manifest, CheckpointError> {
        Manifest::parse(Path::new("step-7"), text)
    }

    #[test]
    fn it_comes_back_to_the_last_bit() {
        assert_eq!(read(manifest().to_text().as_bytes()).unwrap(), manifest());
    }

    #[test]
    fn blocks_of_its_own_come_back_and_a_model_without_any_says_nothing_of_them() {
        assert!(!manifest().to_text().contains("\"own\""));
        let mut model = manifest().model.parts(2).unwrap();
        let table = ParamSpec::new("own.table", &[40, 8], Init::Ones).split(0, 40);
        let params = vec![
            ParamSpec::new("own.gain", &[768], Init::Ones),
            ParamSpec { valid_rows: 37, ..table },
        ];
        let body = OwnBody { name: "a \"kind\"".into(), ..OwnBody::default() };
        model.replace(7, OwnPiece { params, body, flops_per_token: 1.5 }).unwrap();
        let written =
            Manifest::new(&model, DType::F32, &["weights"], manifest().run, Degrees::SERIAL);
        let own = |name: &str, shape: &[usize]| OwnParam { name: name.into(), shape: shape.into() };
        let params = vec![own("own.gain", &[768]), own("own.table", &[37, 8])];
        let expected = OwnRecord { block: 7, kind: "a \"kind\"".into(), params };
        assert_eq!(written.own, [expected]);
        let back = read(written.to_text().as_bytes()).unwrap();
        assert_eq!(back, written);
        let parts: Vec<PieceParts> = back.pieces().collect();
        assert_eq!(parts.len(), 14);
        assert_eq!(parts.iter().filter_map(OwnRecord::of).collect::<Vec<_>>(), written.own);
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let text = manifest().to_text().into_bytes();
        let mut cases = 0;
        for byte in 0..text.len() {
            let mut altered = text.clone();
            altered[byte] ^= 1 << (byte % 8);
            for damaged in [&altered[..], &text[..byte]] {
                assert!(read(damaged).is_err(), "byte {byte}");
                cases += 1;
            }
        }
        assert!(cases > 1000, "{cases}");
    }

    #[test]
    fn other_versions_and_formats_are_named() {
        let text = manifest().to_text();
        let newer = text.replace("\"version\": 1", "\"version\": 12");
        let error = read(newer.as_bytes()).unwrap_err();
        assert!(matches!(error, CheckpointError::Version { found: 12, known: 1, .. }), "{error}");
        let other = text.replace("trine-checkpoint", "something");
        let error = read(other.as_bytes()).unwrap_err();
        assert!(matches!(error, CheckpointError::NotACheckpoint { .. }), "{error}");
        let error = Manifest::read(Path::new("nowhere")).unwrap_err();
        assert!(matches!(error, CheckpointError::NotACheckpoint { .. }), "{error}");
    }
}
