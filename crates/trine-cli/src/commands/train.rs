//! `trine train`.

use crate::args::TrainArgs;
use crate::failure::Failure;
use crate::{dry_run, output, select};
use std::path::Path;
use trine_trainer::config::{self, Config};

/// Runs the command.
pub(crate) fn run(args: &TrainArgs) -> Result<(), Failure> {
    if args.help_config {
        return output::print(&key_list());
    }
    let config = select::of_train(args)?;
    if args.dry_run {
        return output::print(&dry_run::report(&config)?);
    }
    train(&config, args.resume.as_deref(), args.trace.as_deref())
}

/// Trains: a new run, or on from the last checkpoint of the run in `resume`.
fn train(_: &Config, _resume: Option<&Path>, _trace: Option<&Path>) -> Result<(), Failure> {
    Err(Failure::Run(anyhow::anyhow!("this build of trine cannot train yet; --dry-run works")))
}

/// Every key with its type, its default and its rule.
fn key_list() -> String {
    let mut text = String::from(
        "# Every key of a configuration, as TOML with the defaults of preset rust-default.\n",
    );
    let mut section = "";
    for key in config::keys() {
        let (own, name) = key.path.split_once('.').unwrap_or(("", key.path));
        if own != section {
            text.push_str(&format!("\n[{own}]\n"));
            section = own;
        }
        let (about, kind) = (key.about.trim(), key.kind.describe());
        text.push_str(&format!("# {about}\n#   {kind}; rule: {}\n", key.rule));
        // Shorthands stand for other keys, so they have no default of their own.
        match config::default_value(key.path) {
            Some(value) => text.push_str(&format!("{name} = {value}\n")),
            None => text.push_str(&format!("# {name} = …\n")),
        }
    }
    text
}
