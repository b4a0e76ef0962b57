//! `cargo xtask parity`: draws cases, and holds each against its serial run.
#![allow(clippy::print_stdout, reason = "a command-line program talks to its user")]

use clap::Parser;
use std::process::ExitCode;
use std::time::Instant;
use trine_tests::Mutation;
use trine_tests::compare::Finding;
use trine_tests::search::{Case, Report, Space, table};

/// Cases from which on every value of every option must have been drawn.
const CASES_OF_ALL_VALUES: u64 = 40;

/// Random models in random layouts, each against its serial run: gradients, loss and norm.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask parity", args_override_self = true)]
struct Args {
    /// Cases to draw
    #[arg(long, value_name = "N", default_value_t = CASES_OF_ALL_VALUES)]
    fuzz: u64,
    /// Where the cases come from: the same seed gives the same ones
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// The case of this number alone
    #[arg(long, value_name = "I")]
    number: Option<usize>,
    /// This case alone: a JSON object of options, as a failing case is printed
    #[arg(long, value_name = "JSON", conflicts_with = "number")]
    case: Option<Case>,
    /// Make a failing case smaller: one option after another back to a simpler value while it fails
    #[arg(long)]
    shrink: bool,
    /// What is promised of each option, and what is refused: the tables of docs/numerics.md
    #[arg(long)]
    table: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let space = Space::default();
    if args.table {
        println!("{}", table::promised(&space));
        return Ok(ExitCode::SUCCESS);
    }
    let numbered = |number| space.cases(args.seed).nth(number).map(|drawn| drawn.case);
    let ok = match args.case.clone().or_else(|| args.number.and_then(numbered)) {
        Some(case) => run_one(&space, &args, &case)?,
        None => run_all(&space, &args),
    };
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Compares one case; says whether it agrees with its serial run.
fn run_one(space: &Space, args: &Args, case: &Case) -> anyhow::Result<bool> {
    let refused = |reason| anyhow::anyhow!("{case} is refused: {reason}");
    space.setup(case).and_then(|setup| setup.plan()).map_err(refused)?;
    let found = space.compare(case, &Mutation::NONE);
    tell(space, args, case, &found);
    Ok(found.is_empty())
}

fn run_all(space: &Space, args: &Args) -> bool {
    let began = Instant::now();
    let report = space.search(args.seed, args.fuzz, &Mutation::NONE, &mut |number, case, found| {
        if !found.is_empty() {
            println!("case {number} of seed {} fails", args.seed);
            tell(space, args, case, found);
        }
    });
    counts(space, &report);
    let (compared, failed) = (report.compared, report.failures.len());
    println!("{compared} cases in {:.0} s, {failed} fail", began.elapsed().as_secs_f64());
    let never = space.never_drawn(&report);
    let lacks = args.fuzz >= CASES_OF_ALL_VALUES && !never.is_empty();
    if lacks {
        println!("never drawn: {}", never.join(", "));
    }
    failed == 0 && !lacks
}

/// Prints a case with what it fails, and a smaller one that fails, if that is asked for.
fn tell(space: &Space, args: &Args, case: &Case, found: &[Finding]) {
    println!("  --case '{case}'");
    found.iter().for_each(|finding| println!("  {finding}"));
    if found.is_empty() {
        println!("  agrees with the serial run");
    } else if args.shrink {
        let fails = |case: &Case| !space.compare(case, &Mutation::NONE).is_empty();
        let smallest = space.shrink(case, &fails);
        println!("  smaller: --case '{smallest}'");
        let found = space.compare(&smallest, &Mutation::NONE);
        found.iter().for_each(|finding| println!("  {finding}"));
    }
}

/// Prints how often each value was drawn, and why others were refused.
fn counts(space: &Space, report: &Report) {
    println!("drawn:");
    for (row, counts) in space.rows.iter().zip(&report.drawn) {
        let counts =
            row.values.iter().zip(counts).map(|(value, count)| format!("{value} {count}×"));
        println!("  {:17} {}", row.name, counts.collect::<Vec<_>>().join(", "));
    }
    println!("refused beside what was drawn before:");
    for (reason, count) in &report.refused {
        println!("  {count:>5}× {reason}");
    }
}
