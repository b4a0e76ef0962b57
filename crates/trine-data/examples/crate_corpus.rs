//! Prepares the crate corpus of a manifest and prints what it is made of, how long each part took,
//! and the bigram baseline. Standard input holds the manifest's path, the cache folder, and the size
//! of the vocabulary, a line each:
//! `printf '%s\n' corpus.json cache 4096 | cargo run --release -p trine-data --example crate_corpus`.

#![allow(clippy::print_stdout, reason = "a program for people")]

use std::path::Path;
use std::time::Instant;
use trine_data::{
    Bigram, CorpusManifest, DataError, PrepareOptions, Prepared, Source, ValidationWindows, prepare,
};

const THREADS: usize = 2;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let lines = std::io::stdin().lines().collect::<Result<Vec<String>, _>>()?;
    let [manifest, cache, vocab_size] = &lines[..] else {
        return Err(
            "standard input: manifest, cache folder and vocabulary size, a line each".into()
        );
    };
    let prepared = timed_prepare(Path::new(manifest), Path::new(cache), vocab_size.parse()?)?;
    describe(&prepared);
    baseline(&prepared)?;
    Ok(())
}

fn timed_prepare(manifest: &Path, cache: &Path, vocab_size: usize) -> Result<Prepared, DataError> {
    let source = Source::Crates(CorpusManifest::read(manifest)?);
    let start = Instant::now();
    let mut step = String::new();
    let prepared =
        prepare(&source, &PrepareOptions::new(vocab_size, THREADS), cache, &mut |progress| {
            let name = format!("{progress:?}");
            let name = name.split(['(', ' ']).next().unwrap_or_default();
            if step != name {
                println!("{:7.2} s {progress:?}", start.elapsed().as_secs_f64());
                step = name.to_owned();
            }
        })?;
    println!("{:7.2} s done: {}", start.elapsed().as_secs_f64(), prepared.path.display());
    Ok(prepared)
}

fn describe(prepared: &Prepared) {
    let (data, report) = (&prepared.dataset, &prepared.dataset.report);
    println!("corpus {}", report.corpus_hash);
    for (name, documents, stream) in [
        ("train", report.train_documents, &data.train),
        ("validation", report.validation_documents, &data.validation),
    ] {
        println!(
            "{name}: {documents} documents, {:.2} MB, {} tokens, {:.3} bytes a token",
            stream.raw_bytes() as f64 / 1e6,
            stream.len(),
            stream.raw_bytes() as f64 / stream.len() as f64,
        );
    }
    println!("held out: {}", report.held_out.join(", "));
    for (reason, skip) in report.skipped.iter() {
        let (count, bytes) = (skip.count, skip.bytes as f64 / 1e6);
        let examples = skip.examples.join(", ");
        println!("left out: {count} {} ({bytes:.2} MB): {examples}", reason.describe(skip.count));
    }
}

fn baseline(prepared: &Prepared) -> Result<(), DataError> {
    let data = &prepared.dataset;
    let start = Instant::now();
    let model = Bigram::fit(data.tokenizer.vocab_size(), data.train.pairs())?;
    let windows = ValidationWindows::new(data.validation.clone(), 256, false, None)?;
    let bits = model.bits(windows.pairs());
    println!(
        "bigram of the whole split: {:.4} bits per byte, weights {:.3?}, {:.2} s",
        bits / data.validation.raw_bytes() as f64,
        model.weights(),
        start.elapsed().as_secs_f64(),
    );
    Ok(())
}
