//! `cargo xtask bench`: what `trine bench` measures.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::trine;
use crate::workspace::Workspace;

#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// Tokens per second of one rank with all threads against the default layout, in alternation
    #[command(disable_help_flag = true)]
    Layouts(Passed),
    /// Training steps on synthetic tokens: tokens per second, where the time goes
    #[command(disable_help_flag = true)]
    Step(Passed),
    /// The kernels one by one
    #[command(disable_help_flag = true)]
    Kernels(Passed),
}

#[derive(Debug, Args)]
pub(crate) struct Passed {
    /// Handed to the command of `trine bench` as they are; `--help` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
    args: Vec<OsString>,
}

pub(crate) fn run(workspace: &Workspace, bench: &Bench) -> anyhow::Result<ExitCode> {
    match bench {
        Bench::Layouts(passed) => trine::bench(workspace, "layouts", &passed.args),
        Bench::Step(passed) => trine::bench(workspace, "step", &passed.args),
        Bench::Kernels(passed) => trine::bench(workspace, "kernels", &passed.args),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn parsed(args: &[&str]) -> Result<Bench, String> {
        let typed = ["xtask", "bench"].iter().chain(args);
        match crate::Cli::try_parse_from(typed).map_err(|error| error.to_string())?.command {
            crate::Command::Bench { bench } => Ok(bench),
            other => panic!("not bench: {other:?}"),
        }
    }

    #[test]
    fn what_trine_measures_itself_is_passed_through() {
        for (name, at) in [("layouts", 0), ("step", 1), ("kernels", 2)] {
            let typed = [name, "--help", "a.toml", "--set", "data.seq=-1"];
            let (found, passed) = match parsed(&typed).unwrap() {
                Bench::Layouts(passed) => (0, passed),
                Bench::Step(passed) => (1, passed),
                Bench::Kernels(passed) => (2, passed),
                other => panic!("{name} became {other:?}"),
            };
            assert_eq!((found, passed.args), (at, typed[1..].iter().map(Into::into).collect()));
        }
    }
}
