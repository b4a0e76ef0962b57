//! `trine data`: text to a dataset in a folder of its own.

use crate::args::DataBuildArgs;
use crate::corpus::{self, Names};
use crate::failure::Failure;
use crate::machine::cores;
use crate::output::{self, counted, grouped};
use crate::progress::Screen;
use crate::terminal::Terminal;
use trine_data::{Dataset, PrepareOptions, Selection, Source};
use trine_trainer::TrainError;
use trine_trainer::run::{DataSummary, Event, Reporter};

/// Seconds between two lines where there is no terminal.
const LINE_EVERY_S: f64 = 5.0;

/// `trine data build`: makes the folder and says what is in it.
pub(crate) fn build(args: &DataBuildArgs, terminal: &Terminal) -> Result<(), Failure> {
    let source = match args.sources.as_slice() {
        [only] => Source::at(only).map_err(TrainError::from)?,
        several => Source::Several(several.to_vec()),
    };
    let selection =
        Selection { validation_share: args.validation, seed: args.seed, ..Selection::default() };
    let options = PrepareOptions {
        tokenizer: args.tokenizer.clone(),
        selection,
        ..PrepareOptions::new(args.vocab, cores())
    };
    let mut screen = Screen::new(terminal, LINE_EVERY_S, String::new());
    let dataset = trine_data::build(&source, &options, &args.out, &mut |progress| {
        screen.event(&Event::Data(progress));
    });
    screen.end()?;
    output::print(&report(args, &dataset.map_err(TrainError::from)?, terminal))
}

fn report(args: &DataBuildArgs, dataset: &Dataset, terminal: &Terminal) -> String {
    let data = DataSummary::from(&dataset.report);
    let left_out =
        corpus::left_out(&data, Names::Some).map_or_else(String::new, |text| format!("{text}\n"));
    let entries = dataset.tokenizer.vocab_size();
    format!(
        "{}\n{left_out}{} training and {} validation tokens, {}, corpus {}\n\
         {} --set model.vocab={entries}\n",
        corpus::taken(&data),
        grouped(dataset.train.len()),
        grouped(dataset.validation.len()),
        counted(entries, "entry"),
        dataset.report.corpus_hash,
        terminal.command("train --data", &args.out),
    )
}
