//! `cargo xtask bench llm-c`: trine against karpathy's llm.c at the shape that it trains.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;

use super::contest::{Contestant, Measurement, Rounds, alternate, is_open, table};
use super::process::Program;
use super::runner;
use super::shape::{GPT2, Isa, Shape, Terms, all_cores, trine};
use super::stats::Quartiles;
use crate::trine::build;
use crate::workspace::Workspace;

/// `B` and `T` of `train_gpt2.c`.
const SHAPE: Shape = Shape { model: GPT2, batch: 4, seq: 64, precision: "f32" };

/// Steps that are not timed: memory is first touched there. trine warms up for as many.
const WARM_UP_STEPS: usize = 3;

/// Time that trine's steps are measured for in a turn; llm.c always makes 41 steps.
const SECONDS: f64 = 10.0;

/// What `train_gpt2` needs in its folder: any of the files of a row.
const NEEDED: &[&[&str]] = &[
    &["train_gpt2"],
    &["gpt2_124M.bin"],
    &[
        "dev/data/tinyshakespeare/tiny_shakespeare_train.bin",
        "dev/data/tinystories/TinyStories_train.bin",
    ],
];

#[derive(Debug, Args)]
pub(crate) struct LlmCArgs {
    /// Folder of llm.c, in which `make train_gpt2` was run
    #[arg(long, value_name = "DIR")]
    path: PathBuf,
    /// Turns that each contestant has
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
}

/// `cargo xtask bench llm-c`.
pub(super) fn run(workspace: &Workspace, args: &LlmCArgs) -> anyhow::Result<ExitCode> {
    check_folder(&args.path)?;
    // It runs there, where a relative path to it would mean another.
    let folder = std::path::absolute(&args.path).context("the current folder is gone")?;
    let terms = Terms { isa: Isa::Best, threads: all_cores(), seconds: SECONDS };
    let contestants =
        [trine(&build(workspace)?, &workspace.root, &SHAPE, terms), peer(&folder, terms.threads)];
    let title = "gpt2-4x64-f32";
    // llm.c trains to its end and cannot wait in between.
    let rounds = Rounds { all: args.rounds as usize, of_a_process: 1 };
    let scores = alternate(title, &contestants, rounds, &runner(workspace, SECONDS));
    println!("\n{title}: {} threads, {} rounds", terms.threads, args.rounds);
    print!("{}", table(&scores));
    Ok(if is_open(&scores) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn check_folder(folder: &Path) -> anyhow::Result<()> {
    for row in NEEDED {
        if !row.iter().any(|name| folder.join(name).is_file()) {
            bail!(
                "--path {}: there is no {}; in a clone of https://github.com/karpathy/llm.c, run \
                 `./dev/download_starter_pack.sh` and `make train_gpt2`, and give its folder",
                folder.display(),
                row.join(" or "),
            );
        }
    }
    Ok(())
}

fn peer(folder: &Path, threads: usize) -> Contestant {
    let mut program =
        Program::new(folder.join("train_gpt2")).env("OMP_NUM_THREADS", threads.to_string());
    program.folder = Some(folder.to_owned());
    Contestant { name: "llm.c", program, threads, parse }
}

/// The median of the steps after the first few.
fn parse(stdout: &str) -> anyhow::Result<Measurement> {
    let steps: Vec<_> = stdout.lines().filter_map(parse_step).collect();
    let times: Vec<_> = steps.iter().skip(WARM_UP_STEPS).map(|step| step.ms).collect();
    let (Some(step), Some(ms)) = (steps.last(), Quartiles::of(&times)) else {
        bail!(
            "it printed {} lines `step N: train loss L (took T ms)`, needed are {} at least",
            steps.len(),
            WARM_UP_STEPS + 1
        );
    };
    let tokens_per_s = (SHAPE.batch * SHAPE.seq) as f64 / ms.median * 1e3;
    // It does not say how many threads it used.
    Ok(Measurement { tokens_per_s, threads: None, isa: None, loss: step.loss })
}

#[derive(Debug, PartialEq)]
struct Step {
    loss: f64,
    ms: f64,
}

/// `step 0: train loss 5.356086 (took 1077.123 ms)`; llm.c prints other lines too, and the text that its model writes.
fn parse_step(line: &str) -> Option<Step> {
    let (number, rest) = line.strip_prefix("step ")?.split_once(": train loss ")?;
    number.parse::<u32>().ok()?;
    let (loss, rest) = rest.split_once(" (took ")?;
    let ms = rest.strip_suffix(" ms)")?;
    Some(Step { loss: loss.parse().ok()?, ms: ms.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = "\
[GPT-2]
max_seq_len: 1024
num_parameters: 124439808
train dataset num_batches: 1192
num_activations: 73323776
val loss 5.252026
step 0: train loss 5.356086 (took 1452.121000 ms)
step 1: train loss 4.301069 (took 1288.673000 ms)
step 2: train loss 4.623322 (took 1369.394000 ms)
step 3: train loss 4.600470 (took 1280.000000 ms)
step 4: train loss 4.616786 (took 1270.000000 ms)
val loss 4.107781
generating:
---
step by step: train loss (took long
---
step 5: train loss 4.231482 (took 1300.000000 ms)
";

    #[test]
    fn steps_after_the_warm_up_are_timed() {
        let measured = parse(PRINTED).unwrap();
        assert_eq!(measured.tokens_per_s, 256.0 / 1.28);
        assert_eq!(measured.loss, 4.231482);
    }

    #[test]
    fn a_step_is_a_whole_line() {
        let line = "step 40: train loss 3.970751 (took 1323.779000 ms)";
        assert_eq!(parse_step(line), Some(Step { loss: 3.970751, ms: 1323.779 }));
        for other in [
            "",
            "val loss 4.107781",
            "step 40: train loss 3.970751 (took",
            "step x: train loss 3.970751 (took 1 ms)",
            "The step 40: train loss 3.970751 (took 1 ms)",
        ] {
            assert_eq!(parse_step(other), None, "{other}");
        }
    }

    #[test]
    fn too_few_steps_are_an_error() {
        let printed: Vec<_> = PRINTED.lines().take(9).collect();
        let error = parse(&printed.join("\n")).unwrap_err().to_string();
        assert!(error.contains("printed 3 lines") && error.contains("4 at least"), "{error}");
    }

    #[test]
    fn a_folder_without_llm_c_says_how_to_build_it() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
        let error = check_folder(folder).unwrap_err().to_string();
        assert!(error.contains("there is no train_gpt2;"), "{error}");
        assert!(error.contains("make train_gpt2") && !error.contains('\n'), "{error}");
    }

    #[test]
    fn it_runs_in_its_folder() {
        let peer = peer(Path::new("llm.c"), 2);
        assert_eq!(peer.program.path, Path::new("llm.c").join("train_gpt2"));
        assert_eq!(peer.program.folder.as_deref(), Some(Path::new("llm.c")));
        assert_eq!(peer.program.env, [("OMP_NUM_THREADS", "2".into())]);
    }
}
