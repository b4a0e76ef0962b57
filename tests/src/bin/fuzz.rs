//! `cargo xtask fuzz`: reads nearly right inputs for a while, and says what became of them.
#![allow(clippy::print_stdout, reason = "a command-line program talks to its user")]

use anyhow::Context;
use clap::Parser;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use trine_tests::fuzz::{Budget, Failure, Found, Target, run, targets};

/// Nearly right inputs for every parser and for checkpoints and datasets with right checksums.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask fuzz", args_override_self = true)]
struct Args {
    /// Time of all targets together
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u64,
    /// Where the inputs come from: the same seed gives the same ones
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// This target alone
    #[arg(long, value_name = "NAME")]
    target: Option<String>,
    /// Folder of inputs that failed
    #[arg(long, value_name = "DIR", default_value = "target/fuzz")]
    save: PathBuf,
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let chosen = chosen(args.target.as_deref())?;
    let budget = Budget {
        seed: args.seed,
        inputs_max: u64::MAX,
        time: Duration::from_secs(args.seconds) / chosen.len() as u32,
        input_time_max: Duration::from_secs(10),
        growth_bytes_max: 1 << 30,
    };
    let mut failures = 0;
    for target in chosen {
        let name = target.name;
        let found = run(target, &budget);
        let Found { accepted, refused, failure } = &found;
        let inputs = accepted + refused + u64::from(failure.is_some());
        println!("{name:18} {inputs:>9} inputs: {accepted:>9} accepted, {refused:>9} refused");
        if let Some(failure) = failure {
            failures += 1;
            let path = save(&args.save, name, args.seed, failure)?;
            println!("  input {} {}; it is in {}", failure.index, failure.why, path.display());
        }
    }
    Ok(if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn chosen(name: Option<&str>) -> anyhow::Result<Vec<Target>> {
    let mut all = targets();
    let Some(name) = name else { return Ok(all) };
    let names: Vec<&str> = all.iter().map(|target| target.name).collect();
    let names = names.join(", ");
    all.retain(|target| target.name == name);
    anyhow::ensure!(!all.is_empty(), "no target is called {name:?}; there are {names}");
    Ok(all)
}

fn save(folder: &Path, name: &str, seed: u64, failure: &Failure) -> anyhow::Result<PathBuf> {
    let path = folder.join(format!("{name}-{seed}-{}", failure.index));
    let cannot = || format!("cannot write {}", path.display());
    fs::create_dir_all(folder).with_context(cannot)?;
    fs::write(&path, &failure.input).with_context(cannot)?;
    Ok(path)
}
