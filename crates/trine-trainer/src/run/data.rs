//! The data of a run: prepared once, read by every rank.

use crate::TrainError;
use crate::config::{Config, Source};
use crate::engine::{Batch, EngineConfig};
use crate::run::directory::io;
use crate::run::events::report;
use crate::run::{Event, Reporter};
use std::path::Path;
use std::sync::Mutex;
use trine_checkpoint::TokenizerFile;
use trine_data::{
    BatchOptions, Batches, Bigram, CorpusManifest, CorpusReport, Dataset, PrepareOptions,
    Selection, Share, Tokenizer, ValidationWindows, prepare,
};
use trine_files::TEXT_BYTES_MAX;

/// Tokens of the beginning of a document that is completed.
const BEGINNING_TOKENS: usize = 8;

/// Tokens, batches and validation windows.
#[derive(Debug)]
pub(crate) struct RunData {
    dataset: Dataset,
    batches: Batches,
    all_windows: ValidationWindows,
    some_windows: ValidationWindows,
    seq: usize,
    /// Of its file: the cache may be emptied while the run goes on.
    tokenizer_text: String,
}

impl RunData {
    pub(crate) fn open(
        config: &Config,
        threads: usize,
        reporter: &Mutex<dyn Reporter + '_>,
    ) -> Result<Self, TrainError> {
        let source = match &config.data.source {
            Source::Path(path) => trine_data::Source::at(path)?,
            Source::Crates if config.data.manifest.as_os_str().is_empty() => {
                return Err(TrainError::NoManifest);
            }
            Source::Crates => {
                trine_data::Source::Crates(CorpusManifest::read(&config.data.manifest)?)
            }
        };
        let limit = config.data.file_bytes_max;
        let options = PrepareOptions {
            tokenizer: given_tokenizer(config).map(Path::to_owned),
            selection: Selection {
                file_bytes_max: (limit > 0).then_some(limit),
                ..Selection::default()
            },
            ..PrepareOptions::new(config.data.vocab, threads)
        };
        let cache: &Path = &config.data.cache;
        let prepared = prepare(&source, &options, cache, &mut |progress| {
            report(reporter, &Event::Data(progress));
        })?;
        let path = prepared.path.join("tokenizer.json");
        let tokenizer_text =
            trine_files::read_text(&path, TEXT_BYTES_MAX).map_err(io("read", &path))?;
        let dataset = prepared.dataset;
        let vocab = dataset.tokenizer.vocab_size();
        if vocab > config.model.vocab {
            return Err(TrainError::Vocabulary { tokenizer: vocab, model: config.model.vocab });
        }
        if let Some(note) = unused_rows(vocab, config.model.vocab) {
            report(reporter, &Event::Note(note));
        }
        let (seq, document_mask) = (config.data.seq, config.data.document_mask);
        let options = BatchOptions {
            seq,
            global_batch: config.batch.global,
            seed: config.seed,
            document_mask,
        };
        let batches = Batches::new(dataset.train.clone(), options)?;
        let windows = |max: usize| {
            let max = (max > 0).then_some(max);
            ValidationWindows::new(dataset.validation.clone(), seq, document_mask, max)
        };
        let (all_windows, some_windows) =
            (windows(config.eval.final_windows_max)?, windows(config.eval.windows_max)?);
        Ok(Self { batches, all_windows, some_windows, seq, tokenizer_text, dataset })
    }

    pub(crate) fn report(&self) -> &CorpusReport {
        &self.dataset.report
    }

    pub(crate) fn tokenizer(&self) -> &Tokenizer {
        &self.dataset.tokenizer
    }

    /// What identifies the text of one file by its tokens alone, so that the file may get another name.
    /// Of several files the names count too: they decide the order, and what is held out.
    pub(crate) fn tokens_hash(&self) -> Option<String> {
        let is_one_file = self.dataset.report.train_documents == 1;
        let hashes = || self.dataset.train.hash() + &self.dataset.validation.hash();
        is_one_file.then(hashes)
    }

    /// The tokenizer's file, and how texts end in it.
    pub(crate) fn tokenizer_file(&self) -> TokenizerFile<'_> {
        let tokenizer = self.tokenizer();
        TokenizerFile {
            text: &self.tokenizer_text,
            end_of_text: tokenizer.end_of_text(),
            end_of_text_name: tokenizer.end_of_text_name(),
        }
    }

    /// The first words of the first `count` validation documents.
    pub(crate) fn beginnings(&self, count: usize) -> Vec<String> {
        let (stream, tokenizer) = (&self.dataset.validation, self.tokenizer());
        let beginning = |start: &u64| {
            let tokens = stream.iter().skip(*start as usize).take(BEGINNING_TOKENS);
            let own = tokens.take_while(|token| *token != tokenizer.end_of_text());
            tokenizer.decode(&own.collect::<Vec<_>>())
        };
        stream.document_starts().iter().take(count).map(beginning).collect()
    }

    /// One data-parallel rank's samples of the step that begins with sample `first_sample` of the run.
    pub(crate) fn batch(
        &self,
        first_sample: u64,
        engine: &EngineConfig,
        dp_rank: usize,
    ) -> Result<Batch, TrainError> {
        let share = Share { dp_rank, dp: engine.degrees.dp, micro_batches: 1 };
        Ok(converted(self.batches.micro_batch_from(first_sample, share, 0)?))
    }

    /// One data-parallel rank's first micro-batch of a run.
    pub(crate) fn first_micro_batch(
        &self,
        engine: &EngineConfig,
        dp_rank: usize,
    ) -> Result<Batch, TrainError> {
        let (dp, micro_batches) = (engine.degrees.dp, engine.micro_batches());
        let share = Share { dp_rank, dp, micro_batches };
        Ok(converted(self.batches.micro_batch(0, share, 0)?))
    }

    /// The validation windows: those of the end of a run, or those used on the way.
    pub(crate) fn windows(&self, last: bool) -> &ValidationWindows {
        if last { &self.all_windows } else { &self.some_windows }
    }

    /// One data-parallel rank's part of the `round`-th global batch of validation windows.
    pub(crate) fn validation(
        &self,
        last: bool,
        round: u64,
        engine: &EngineConfig,
        dp_rank: usize,
    ) -> Batch {
        let each = (engine.global_batch / engine.degrees.dp) as u64;
        let first = round * engine.global_batch as u64 + dp_rank as u64 * each;
        converted(self.windows(last).batch(first..first + each))
    }

    /// Bytes of text that the windows' targets stand for.
    pub(crate) fn validation_bytes(&self, last: bool) -> u64 {
        self.windows(last).raw_bytes(&self.dataset.tokenizer.byte_lengths())
    }

    /// Bits per byte on the final windows of two bigram models: one fitted on the tokens of the
    /// first `samples` samples, one on the whole training split.
    pub(crate) fn bigram_bits_per_byte(&self, samples: u64) -> Result<(f64, f64), TrainError> {
        let vocab = self.dataset.tokenizer.vocab_size();
        let bytes = self.validation_bytes(true) as f64;
        let seen = Bigram::fit(vocab, self.batches.seen_pairs(samples))?;
        let full = Bigram::fit(vocab, self.dataset.train.pairs())?;
        let bits = |bigram: &Bigram| bigram.bits(self.all_windows.pairs()) / bytes;
        Ok((bits(&seen), bits(&full)))
    }

    /// Tokens of so many samples.
    pub(crate) fn tokens(&self, samples: u64) -> u64 {
        samples * self.seq as u64
    }

    /// Tokens of a step.
    pub(crate) fn tokens_per_step(&self, engine: &EngineConfig) -> u64 {
        (engine.global_batch * self.seq) as u64
    }
}

/// The tokenizer that the configuration names.
fn given_tokenizer(config: &Config) -> Option<&Path> {
    Some(config.data.tokenizer.as_path()).filter(|path| !path.as_os_str().is_empty())
}

/// Part of a model's vocabulary that may stay unused without a word: rounding up to a multiple, and
/// a text that gives fewer merges than asked for.
const UNUSED_ROWS_SHARE_MAX: f64 = 0.1;

/// A note on a tokenizer that is much smaller than the model's vocabulary.
fn unused_rows(tokenizer: usize, model: usize) -> Option<String> {
    let share = 1.0 - tokenizer as f64 / model as f64;
    (share > UNUSED_ROWS_SHARE_MAX).then(|| {
        format!(
            "note: the tokenizer has {tokenizer} entries and model.vocab is {model}, so {:.0} % of the \
             embedding's rows can never be used; --set model.vocab={tokenizer} leaves them out, and \
             data.tokenizer takes the tokenizer.json of a larger vocabulary",
            // Down: not all rows are unused, however few are left.
            (100.0 * share).floor()
        )
    })
}

/// The same before the data is made, where the size of the tokenizer is known then.
///
/// # Errors
/// A tokenizer that cannot be read.
pub fn unused_rows_planned(config: &Config) -> Result<Option<String>, TrainError> {
    if let Some(path) = given_tokenizer(config) {
        let entries = Tokenizer::load(path)?.vocab_size();
        return Ok(unused_rows(entries, config.model.vocab));
    }
    let brings_its_own = match &config.data.source {
        Source::Path(path) => {
            // A dry run may stand on a machine without the text.
            matches!(trine_data::Source::at(path), Ok(trine_data::Source::Prepared(_)))
        }
        Source::Crates => false,
    };
    Ok(if brings_its_own { None } else { unused_rows(config.data.vocab, config.model.vocab) })
}

fn converted(batch: trine_data::Batch) -> Batch {
    Batch { inputs: batch.inputs, targets: batch.targets, document_start: batch.document_start }
}
