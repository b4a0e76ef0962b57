//! `trine generate`.

use crate::args::GenerateArgs;
use crate::failure::Failure;
use crate::machine::cores;
use crate::{output, select};
use std::path::Path;
use trine_data::Tokenizer;
use trine_trainer::config::Config;
use trine_trainer::run::{complete, open_latest};

/// Runs the command.
pub(crate) fn run(args: &GenerateArgs) -> Result<(), Failure> {
    let config = select::of_generate(args)?;
    generate(&config, &args.run, &args.prompt)
}

/// Continues `prompt` with the last checkpoint of the run in `run`, as `config.sample` says.
fn generate(config: &Config, run: &Path, prompt: &str) -> Result<(), Failure> {
    let (checkpoint, damaged) = open_latest(run)?;
    if !damaged.is_empty() {
        let damaged: Vec<String> = damaged.iter().map(ToString::to_string).collect();
        let used = checkpoint.dir().display();
        output::complain(&format!("{}; {used} is used", damaged.join("; ")));
    }
    let tokenizer = Tokenizer::load(&checkpoint.dir().join("tokenizer.json"))
        .map_err(|error| Failure::Run(error.into()))?;
    let mut shown = Ok(());
    complete(&checkpoint, &tokenizer, prompt, config, cores(), &mut |text| {
        if shown.is_ok() {
            shown = output::print_data(text);
        }
    })?;
    shown?;
    output::print("\n")
}
