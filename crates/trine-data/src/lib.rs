//! Text to tokens to indexed files to batches.
//!
//! [`prepare`] takes a [`Source`] (a text file, a folder, Rust crates, or tokens made earlier) to a
//! [`Dataset`]: documents are selected, split into training and validation text, and encoded by a
//! byte-level BPE [`Tokenizer`] that is trained on them or given. The result is cached. [`Batches`]
//! and [`ValidationWindows`] say which tokens a rank computes on; both are pure functions of global
//! numbers, so that every layout of a run sees the same data (contract C1). [`Bigram`] is the
//! baseline that a trained model must beat, in bits per byte of raw text.
//!
//! No communicator here: two integers say which part of a batch is meant.
//!
//! ```
//! use trine_data::{
//!     BatchOptions, Batches, Bigram, PrepareOptions, Share, Source, ValidationWindows, prepare, toy,
//! };
//!
//! let folder = tempfile::tempdir()?;
//! let file = folder.path().join("text.rs");
//! std::fs::write(&file, toy::text(100_000))?;
//! let options = PrepareOptions::new(512, 2);
//! let prepared = prepare(&Source::at(&file)?, &options, &folder.path().join("cache"), &mut |_| {})?;
//! let data = prepared.dataset;
//!
//! let options = BatchOptions { seq: 64, global_batch: 8, seed: 0, document_mask: false };
//! let batches = Batches::new(data.train.clone(), options)?;
//! let share = Share { dp_rank: 1, dp: 2, micro_batches: 2 };
//! let batch = batches.micro_batch(0, share, 0)?;
//! assert_eq!((batch.rows.clone(), batch.inputs.len()), (4..6, 2 * 64));
//!
//! let windows = ValidationWindows::new(data.validation.clone(), 64, false, None)?;
//! let baseline = Bigram::fit(data.tokenizer.vocab_size(), data.train.pairs())?;
//! let bits_per_byte = baseline.bits(windows.pairs()) / data.validation.raw_bytes() as f64;
//! assert!(bits_per_byte < 2.0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod batches;
mod bigram;
mod build;
mod copies;
mod crates;
mod dataset;
mod encode;
mod error;
mod files;
mod formats;
mod index;
mod library;
mod near;
mod prepare;
mod report;
mod source;
mod split;
mod text;
mod tokenizer;
mod tokens;
pub mod toy;
mod validation;
mod walk;
mod window;
mod words;

pub use batches::{BatchOptions, Batches, Share};
pub use bigram::Bigram;
pub use build::build;
pub use crates::{CorpusManifest, CratePackage};
pub use dataset::Dataset;
pub use error::DataError;
pub use prepare::{PrepareOptions, Prepared, Progress, prepare};
pub use report::{Corpus, CorpusReport, Document, SkipCount, SkipReason, Skips};
pub use source::{Selection, Source};
pub use tokenizer::{END_OF_TEXT, Tokenizer};
pub use tokens::TokenStream;
pub use validation::ValidationWindows;
pub use window::{Batch, IGNORE};
