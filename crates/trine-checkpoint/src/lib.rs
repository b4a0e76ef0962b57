//! Checkpoints without a layout: whole tensors under Hugging Face names, verified, replaced whole.
//!
//! A checkpoint is a directory `step-N/`:
//!
//! * `model.safetensors`: the master weights, padding left out, as `transformers` opens them;
//! * `optimizer.safetensors`: the optimizer's moments, as `NAME.exp_avg` and so on;
//! * `config.json`, `generation_config.json`: the model, as `transformers` describes it; `tokenizer.json`
//!   and `tokenizer_config.json`, if there is a tokenizer;
//! * `manifest.json`: the model, how far the run was, and size and checksum of every file.
//!
//! [`save`] writes it under a temporary name, syncs everything, and renames it: whatever happens
//! meanwhile, the checkpoints that were there before are intact, and what is called `step-N` is
//! whole and has only finite values. [`prune`] removes old ones. [`latest`] finds the newest one, and
//! [`Checkpoint::load_bucket`] reads any rank's part of it in any layout. [`open_hf`] reads weights that others have
//! published.
//!
//! ```
//! use trine_buffer::{Buf, DType};
//! use trine_checkpoint::{Check, Disk, RunState, SaveRequest, WEIGHTS, latest, save};
//! use trine_comm::SelfComm;
//! use trine_mesh::{Degrees, Mesh};
//! use trine_spec::{ModelSpec, RankLayout, RankRequest, StagePieces, presets};
//!
//! # let scratch = tempfile::tempdir()?;
//! # let dir = scratch.path();
//! let gpt2 = presets::find("gpt2-124m")?.model;
//! let model = ModelSpec { hidden: 24, head_dim: 2, layers: 2, ffn: 96, vocab: 100, ..gpt2 }.parts(1)?;
//! let stages = [StagePieces::whole(&model)];
//! let layout = RankLayout::new(&RankRequest::serial(&model, &stages))?;
//! let run = RunState {
//!     step: 10, consumed_samples: 80, seed: 1, data_hash: "5eed".into(), tokenizer_hash: None,
//!     trainer: Default::default(),
//! };
//! let request = SaveRequest {
//!     dir, model: &model, mesh: &Mesh::new(Degrees::SERIAL, 1)?, ranks: &[vec![layout.clone()]],
//!     dtype: DType::F32, moments: &[], run: &run, tokenizer: None, storage: &Disk,
//! };
//! let weights = vec![0.5f32; layout.buckets[0].len];
//! save(&request, &*SelfComm::new(), &mut |_, _| Ok(Buf::from_vec(weights.clone())))?;
//!
//! let checkpoint = latest(dir, Check::Checksums)?.checkpoint.expect("just saved");
//! assert_eq!(checkpoint.manifest().run, run);
//! let mut loaded = Buf::zeros(DType::F32, layout.buckets[0].len);
//! checkpoint.load_bucket(WEIGHTS, &layout, 0, loaded.slice_mut())?;
//! assert_eq!(loaded.typed::<f32>()?[0], 0.5);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod checksum;
mod error;
mod folder;
mod hf;
mod load;
mod manifest;
mod plan;
mod request;
mod save;
mod storage;
mod table;
mod tensors;
mod writer;

pub use error::{BoxError, CheckpointError};
pub use folder::{Check, Keep, Latest, latest, list, prune};
pub use hf::{HfWeights, model_from_config, open_hf};
pub use load::Checkpoint;
pub use manifest::{FileRecord, Manifest, OwnParam, OwnRecord, RunState};
pub use plan::estimate_bytes;
pub use request::{SaveRequest, TokenizerFile};
pub use save::{BucketSource, save};
pub use storage::{Disk, FailingDisk, Storage, StorageFile};

/// The quantity that every checkpoint holds: the master weights.
pub const WEIGHTS: &str = "weights";

/// The weights.
const MODEL_FILE: &str = "model.safetensors";

/// The optimizer's moments.
const OPTIMIZER_FILE: &str = "optimizer.safetensors";

/// The model as `transformers` describes it.
const CONFIG_FILE: &str = "config.json";

/// The tokenizer.
const TOKENIZER_FILE: &str = "tokenizer.json";
