//! `trine generate`.

use crate::args::GenerateArgs;
use crate::failure::Failure;
use crate::select;
use std::path::Path;
use trine_trainer::config::Config;

/// Runs the command.
pub(crate) fn run(args: &GenerateArgs) -> Result<(), Failure> {
    let config = select::of_generate(args)?;
    generate(&config, &args.run, &args.prompt)
}

/// Continues `prompt` with the last checkpoint of the run in `run`, as `config.sample` says.
fn generate(_: &Config, _run: &Path, _prompt: &str) -> Result<(), Failure> {
    Err(Failure::Run(anyhow::anyhow!("this build of trine cannot generate yet")))
}
