//! `cargo xtask`: the commands of this repository that are more than one cargo call.
//!
//! It depends on no local crate, so it builds in seconds and still runs when a library does not compile. It launches
//! programs and reads files; everything about training itself lives in the binary `trine`.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line program talks to its user"
)]

mod bench;
mod ci;
mod counts;
mod fuzz;
mod gpu;
mod interop;
mod parity;
mod sanitize;
mod tidy;
mod trine;
mod workspace;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use bench::Bench;
use gpu::Gpu;
use workspace::Workspace;

#[derive(Debug, Parser)]
#[command(
    name = "xtask",
    bin_name = "cargo xtask",
    about = "Commands of the trine workspace",
    disable_help_subcommand = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build the release binary and train; with no argument, a GPT on the sources of the workspace's dependencies
    #[command(disable_help_flag = true)]
    Train {
        /// Handed to `trine train` as they are; `--help` lists them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
        args: Vec<OsString>,
    },
    /// Build the release binary and measure
    Bench {
        #[command(subcommand)]
        bench: Bench,
    },
    /// Everything that must hold before a change is merged: fmt, tidy, clippy, tests, counts, docs, each crate alone
    Ci {
        /// Also the long suites: the ignored tests, in release
        #[arg(long)]
        full: bool,
    },
    /// The instructions of kernel calls, counted by valgrind, against crates/trine-kernels/counts.toml
    Counts {
        /// Rewrite the file with what was counted
        #[arg(long)]
        bless: bool,
    },
    /// Nearly right inputs for every parser, and for checkpoints and datasets with right checksums
    #[command(disable_help_flag = true)]
    Fuzz {
        /// Handed to the fuzzer as they are; `--help` lists them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
        args: Vec<OsString>,
    },
    /// What the kernels of GPUs are compiled to, and whether a GPU computes what the CPU does
    Gpu {
        #[command(subcommand)]
        gpu: Gpu,
    },
    /// Checkpoints of the binary in the Python library transformers, and in lm-eval if it is installed
    Interop(interop::Args),
    /// Random models in random layouts, each against its serial run
    #[command(disable_help_flag = true)]
    Parity {
        /// Handed to the search as they are; `--help` lists them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
        args: Vec<OsString>,
    },
    /// The tests of trine-kernels under AddressSanitizer
    Sanitize,
    /// The rules of the repository that no lint knows: layering, file headers and lengths, banned words, documents
    Tidy {
        /// Rewrite what is generated from crates.toml instead of comparing it
        #[arg(long)]
        bless: bool,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    let workspace = Workspace::load()?;
    match command {
        Command::Train { args } => trine::train(&workspace, &args),
        Command::Bench { bench } => bench::run(&workspace, &bench),
        Command::Ci { full } => ci::run(&workspace, full),
        Command::Counts { bless } => counts::run(&workspace, bless),
        Command::Fuzz { args } => fuzz::run(&workspace, &args),
        Command::Gpu { gpu } => gpu::run(&workspace, &gpu),
        Command::Interop(args) => interop::run(&workspace, &args),
        Command::Parity { args } => parity::run(&workspace, &args),
        Command::Sanitize => sanitize::run(&workspace),
        Command::Tidy { bless } => tidy::run(&workspace, bless),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn checks_of_gpus_are_passed_through() {
        let typed = ["xtask", "gpu", "check", "--part", "kernels", "--help", "--out=a.json"];
        let Command::Gpu { gpu: Gpu::Check { args } } = Cli::parse_from(typed).command else {
            panic!("not gpu check")
        };
        assert_eq!(args, typed[3..]);
    }

    #[test]
    fn train_passes_everything_through() {
        let typed =
            ["xtask", "train", "--help", "--tp", "2", "config.toml", "--set", "data.seq=-1"];
        let Command::Train { args } = Cli::parse_from(typed).command else { panic!("not train") };
        assert_eq!(args, typed[2..]);
    }
}
