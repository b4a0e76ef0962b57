//! `trine`: trains transformers with tensor, pipeline and data parallelism, and looks at what that takes.
//!
//! ```sh
//! trine presets                                        # what can be trained
//! trine train --preset gpt2-124m --dry-run             # what a run would do, and what each rank would hold
//! trine schedule show 1f1b --stages 4 --micro-batches 8
//! ```
//!
//! Every command is a file in `commands`: it turns arguments into values, calls one library
//! function, and prints. Exit codes: 0 done, 1 something failed, 2 the arguments or the
//! configuration are wrong.

mod args;
mod commands;
mod corpus;
#[cfg(test)]
mod documented;
mod dry_run;
mod examples;
mod failure;
mod foreign;
mod gpus;
mod launcher;
mod layout;
mod machine;
mod memory;
mod mpirun;
mod out_of_memory;
mod output;
mod parse;
mod plan_args;
mod plan_check;
mod progress;
mod report;
mod select;
#[cfg(feature = "mpi")]
mod side;
mod signals;
mod supervised;
mod terminal;
mod width;
mod written;

use anyhow::Context;
use args::{Bench, Command, DataCommand, ScheduleCommand};
use failure::Failure;
use out_of_memory::OutOfMemory;
use signal_hook::consts::SIGXFSZ;
use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use terminal::Terminal;
use trine_kernels::LargeBlocks;

#[global_allocator]
static BLOCKS: LargeBlocks = LargeBlocks::new();

fn main() -> ExitCode {
    let memory = Arc::new(OutOfMemory::new());
    let end = memory.clone();
    BLOCKS.when_refused(move |bytes| end.end(bytes));
    let words: Vec<OsString> = std::env::args_os().collect();
    let cli = match parse::parse(&words) {
        Ok(cli) => cli,
        Err(error) => return parse::report(&error),
    };
    let env = |name: &str| std::env::var(name).ok();
    let terminal = Terminal::new(words.first().map(OsString::as_os_str), cli.volume(), &env);
    match heed_file_sizes().and_then(|()| run(&cli.command, &terminal, &memory)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => output::fail(&failure, terminal.errors),
    }
}

/// A file that may not grow (`ulimit -f`) is an error of the call that writes it, not the end of the process.
fn heed_file_sizes() -> Result<(), Failure> {
    let heeded = signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)));
    heeded.context("cannot watch signals")?;
    Ok(())
}

fn run(command: &Command, terminal: &Terminal, memory: &OutOfMemory) -> Result<(), Failure> {
    match command {
        Command::Train(args) => commands::train::run(args, terminal, memory),
        Command::Launch(args) => commands::launch::run(args, terminal),
        Command::Plan(args) => commands::plan::run(args),
        Command::Data(DataCommand::Build(args)) => commands::data::build(args, terminal),
        Command::Presets(args) => commands::presets::run(args),
        Command::Schedule(ScheduleCommand::Show(args)) => commands::schedule::show(args, terminal),
        Command::Schedule(ScheduleCommand::Verify(args)) => commands::schedule::verify(args),
        Command::Generate(args) => commands::generate::run(args),
        Command::Inspect(args) => commands::inspect::run(args, terminal),
        Command::Doctor(args) => commands::doctor::run(args, &|name| std::env::var_os(name)),
        Command::Completions(args) => commands::shell::completions(args),
        Command::Schema => commands::schema::run(),
        Command::Man(args) => commands::shell::man(args),
        Command::Bench(Bench::Layouts(args)) => commands::bench_layouts::run(args),
        Command::Bench(Bench::Step(args)) => commands::bench::step(args),
        Command::Bench(Bench::Comm(args)) => commands::bench_comm::run(args),
        Command::Bench(Bench::Gradients(args)) => commands::bench_gradients::run(args),
        Command::Bench(Bench::Kernels(args)) => commands::bench_kernels::run(args),
        Command::Bench(Bench::Plan(args)) => commands::bench_plan::run(args),
        Command::Bench(Bench::Schedules(args)) => commands::bench_schedules::run(args),
    }
}
