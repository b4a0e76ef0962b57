//! `cargo xtask bench gradients`: how far bf16 gradients are from f64, trine's beside PyTorch's.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::Args;
use clap::builder::PossibleValuesParser;
use serde::{Deserialize, Serialize};

use super::cases::{CASES, Case};
use super::process::{Program, Runner, last_line};
use super::runner;
use super::shape::{all_cores, configured};
use super::stats::Quartiles;
use super::torch::{version, write_json};
use crate::trine::build;
use crate::workspace::Workspace;

/// Relative to the root folder.
const SCRIPT: &str = "benches/peers/torch_gradients.py";

/// A step in f64 on a slow machine takes no longer.
const STEP_MAX_S: f64 = 3000.0;

/// By how much the f64 gradients of both sides may differ, relative to their norm: they compute the same function from
/// the same f32 weights, in other orders of sums.
const SAME_FUNCTION_MAX: f64 = 1e-9;

/// Parameters that are listed of a case.
const WORST: usize = 5;

#[derive(Debug, Args)]
pub(crate) struct GradientsArgs {
    /// Python interpreter of an environment with PyTorch
    #[arg(long, value_name = "PATH")]
    python: PathBuf,
    /// Run this case of `bench torch`; can be given more than once [default: all in bf16]
    #[arg(long = "case", value_name = "NAME", value_parser = PossibleValuesParser::new(CASES.iter().map(|case| case.name)))]
    cases: Vec<String>,
    /// Weights and batches that each case is run with
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    seeds: u32,
    /// Threads on both sides; without it, all cores
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    threads: Option<u32>,
    /// Also write every error to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What the script prints: norms of PyTorch's f64 gradient, and of the difference of others from it.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Measured {
    loss: Losses,
    parameters: Vec<Parameter>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Losses {
    /// PyTorch's.
    f64: f64,
    trine: f64,
    torch: f64,
    trine_f64: f64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Parameter {
    name: String,
    norm: f64,
    trine: f64,
    torch: f64,
    trine_f64: f64,
}

/// Relative errors: ‖g − g₆₄‖ / ‖g₆₄‖.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Errors {
    trine: f64,
    torch: f64,
}

#[derive(Debug, Serialize)]
struct Seed {
    seed: u32,
    /// Over all parameters together.
    errors: Errors,
    measured: Measured,
}

#[derive(Debug, Serialize)]
struct Outcome {
    case: &'static str,
    threads: usize,
    torch: String,
    seeds: Vec<Seed>,
    /// Of all seeds.
    medians: Errors,
    reached: bool,
}

/// `cargo xtask bench gradients`.
pub(super) fn run(workspace: &Workspace, args: &GradientsArgs) -> anyhow::Result<ExitCode> {
    let runner = runner(workspace, STEP_MAX_S);
    let torch = version(&args.python, &runner)?;
    let mut outcomes = Vec::new();
    write_json(args.json.as_deref(), &outcomes)?;
    let binary = build(workspace)?;
    let threads = args.threads.map_or_else(all_cores, |threads| threads as usize);
    for case in planned(&args.cases) {
        let mut seeds = Vec::new();
        for seed in 1..=args.seeds {
            let side =
                Side { binary: &binary, python: &args.python, root: &workspace.root, threads };
            let measured = side
                .measure(case, seed, &runner)
                .with_context(|| format!("{}, seed {seed}", case.name))?;
            let errors = measured.errors();
            eprintln!(
                "{}, seed {seed}: trine {:.3e}, PyTorch {:.3e}",
                case.name, errors.trine, errors.torch
            );
            seeds.push(Seed { seed, errors, measured });
        }
        let outcome = Outcome::new(case.name, threads, &torch, seeds)?;
        println!("{}", outcome.text());
        outcomes.push(outcome);
        write_json(args.json.as_deref(), &outcomes)?;
    }
    outcomes.iter().for_each(|outcome| println!("{}", outcome.verdict()));
    Ok(ExitCode::SUCCESS)
}

/// The cases of these names, or all whose target is stated here: those in bf16.
fn planned(names: &[String]) -> impl Iterator<Item = &'static Case> {
    CASES.iter().filter(move |case| match names {
        [] => case.shape.precision == "bf16",
        names => names.iter().any(|name| name == case.name),
    })
}

/// What both programs are started with.
struct Side<'a> {
    binary: &'a Path,
    python: &'a Path,
    root: &'a Path,
    threads: usize,
}

impl Side<'_> {
    /// Runs trine, then PyTorch on what it has written.
    fn measure(&self, case: &Case, seed: u32, runner: &Runner) -> anyhow::Result<Measured> {
        let folder = runner.scratch.join(format!("gradients-{}", std::process::id()));
        let [trine, torch] = self.programs(case, seed, &folder);
        let printed = runner
            .stdout(&trine)
            .context("trine")
            .and_then(|_| runner.stdout(&torch).context("PyTorch"));
        // Gigabytes; the next seed's replace them if they cannot be removed.
        let _ = std::fs::remove_dir_all(&folder);
        let printed = printed?;
        let line = last_line(&printed).unwrap_or("");
        let measured: Measured =
            serde_json::from_str(line).with_context(|| format!("PyTorch: it printed `{line}`"))?;
        measured.check()?;
        Ok(measured)
    }

    fn programs(&self, case: &Case, seed: u32, folder: &Path) -> [Program; 2] {
        let threads = self.threads.to_string();
        let trine = configured(self.binary, self.root, "gradients", &case.shape, self.threads)
            .args(["--seed", &seed.to_string()])
            .args([Path::new("--write"), folder]);
        let torch = Program::new(self.python)
            .args([self.root.join(SCRIPT)])
            .args(["--model", case.shape.model.name, "--threads", &threads])
            .args([Path::new("--written"), folder])
            .env("OMP_NUM_THREADS", threads);
        [trine, torch]
    }
}

impl Measured {
    /// √(Σ of squares) of one quantity over all parameters, relative to that of the gradient.
    fn relative(&self, of: impl Fn(&Parameter) -> f64) -> f64 {
        let norm = |of: &dyn Fn(&Parameter) -> f64| {
            self.parameters.iter().map(|parameter| of(parameter).powi(2)).sum::<f64>().sqrt()
        };
        norm(&of) / norm(&|parameter| parameter.norm)
    }

    fn errors(&self) -> Errors {
        Errors { trine: self.relative(|p| p.trine), torch: self.relative(|p| p.torch) }
    }

    /// Errors mean something only if both sides compute the same function, and if they are errors of something.
    fn check(&self) -> anyhow::Result<()> {
        let Losses { f64: exact, trine_f64, .. } = self.loss;
        let loss = (trine_f64 - exact).abs() / exact.abs();
        ensure!(
            loss <= SAME_FUNCTION_MAX,
            "in f64 trine's loss is {trine_f64} and PyTorch's {exact}: they do not compute the same function"
        );
        for parameter in &self.parameters {
            let difference = parameter.trine_f64 / parameter.norm;
            ensure!(
                difference <= SAME_FUNCTION_MAX,
                "{}: the f64 gradients differ by {difference:.1e} of their norm: they are not of the same function",
                parameter.name
            );
        }
        let Errors { trine, torch } = self.errors();
        ensure!(
            trine > 0.0 && torch > 0.0,
            "an error of {trine} and {torch}: one side has computed in f64"
        );
        Ok(())
    }
}

impl Outcome {
    fn new(
        case: &'static str,
        threads: usize,
        torch: &str,
        seeds: Vec<Seed>,
    ) -> anyhow::Result<Self> {
        let median = |of: fn(&Errors) -> f64| {
            let values: Vec<_> = seeds.iter().map(|seed| of(&seed.errors)).collect();
            Quartiles::of(&values).map(|all| all.median).context("no seed")
        };
        let medians = Errors { trine: median(|e| e.trine)?, torch: median(|e| e.torch)? };
        let reached = medians.trine <= medians.torch;
        Ok(Self { case, threads, torch: torch.to_owned(), seeds, medians, reached })
    }

    /// One line a seed, the medians, and the parameters that trine is worst at beside PyTorch.
    fn text(&self) -> String {
        let mut text = format!(
            "\n{}: {} threads, PyTorch {}\n{:24}  {:>9}  {:>9}  {:>15}  {:>11}\n",
            self.case,
            self.threads,
            self.torch,
            "",
            "trine",
            "PyTorch",
            "trine / PyTorch",
            "f64 differs"
        );
        let mut line = |name: &str, Errors { trine, torch }: Errors, f64: String| {
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "{name:24}  {trine:9.3e}  {torch:9.3e}  {:15.3}  {f64:>11}",
                trine / torch
            );
        };
        for Seed { seed, errors, measured } in &self.seeds {
            line(
                &format!("seed {seed}"),
                *errors,
                format!("{:.1e}", measured.relative(|p| p.trine_f64)),
            );
        }
        line("median", self.medians, String::new());
        for (name, errors) in self.worst() {
            line(&name, errors, String::new());
        }
        text
    }

    /// The parameters with the largest ratio, by the medians of their errors.
    fn worst(&self) -> Vec<(String, Errors)> {
        let mut by_name = BTreeMap::<&str, [Vec<f64>; 2]>::new();
        for parameter in self.seeds.iter().flat_map(|seed| &seed.measured.parameters) {
            let [trine, torch] = by_name.entry(&parameter.name).or_default();
            trine.push(parameter.trine / parameter.norm);
            torch.push(parameter.torch / parameter.norm);
        }
        let mut all: Vec<_> = by_name
            .into_iter()
            .filter_map(|(name, [trine, torch])| {
                let median = |values: &[f64]| Quartiles::of(values).map(|all| all.median);
                Some((name.to_owned(), Errors { trine: median(&trine)?, torch: median(&torch)? }))
            })
            .collect();
        all.sort_by(|(_, a), (_, b)| (b.trine / b.torch).total_cmp(&(a.trine / a.torch)));
        all.truncate(WORST);
        all
    }

    fn verdict(&self) -> String {
        let Errors { trine, torch } = self.medians;
        let word = if self.reached { "reached" } else { "missed" };
        let seeds = self.seeds.len();
        format!(
            "{}  {word}: error {trine:.3e}, {:.3} × PyTorch's; target ≤ 1 × PyTorch's, medians of {seeds} seeds",
            self.case,
            trine / torch
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameter(name: &str, norm: f64, trine: f64, torch: f64) -> Parameter {
        Parameter { name: name.to_owned(), norm, trine, torch, trine_f64: 0.0 }
    }

    fn measured(parameters: Vec<Parameter>) -> Measured {
        Measured { loss: Losses { f64: 4.0, trine: 4.1, torch: 3.9, trine_f64: 4.0 }, parameters }
    }

    /// Norms 3 and 4, which make 5.
    fn example(trine: f64) -> Measured {
        measured(vec![parameter("a", 3.0, 0.3 * trine, 0.3), parameter("b", 4.0, 0.4 * trine, 0.4)])
    }

    #[test]
    fn errors_are_relative_to_the_whole_gradient() {
        let Errors { trine, torch } = example(2.0).errors();
        assert!((trine - 0.2).abs() < 1e-12 && (torch - 0.1).abs() < 1e-12, "{trine} {torch}");
        // A mean of the parameters' own errors would be another number.
        let uneven = measured(vec![parameter("a", 3.0, 3.0, 1.0), parameter("b", 4.0, 0.0, 1.0)]);
        assert!((uneven.errors().trine - 0.6).abs() < 1e-12);
    }

    #[test]
    fn what_is_not_the_same_function_is_refused() {
        assert!(example(1.0).check().is_ok());
        let mut other = example(1.0);
        other.parameters[1].trine_f64 = 4.0 * 1.01 * SAME_FUNCTION_MAX;
        assert!(
            other.check().unwrap_err().to_string().starts_with("b: the f64 gradients differ by")
        );
        other.parameters[1].trine_f64 = f64::NAN;
        assert!(other.check().is_err());
        let mut other = example(1.0);
        other.loss.trine_f64 = 4.0 + 1e-6;
        assert!(other.check().unwrap_err().to_string().contains("trine's loss is 4.000001"));
        assert!(
            example(0.0).check().unwrap_err().to_string().contains("one side has computed in f64")
        );
    }

    fn outcome(trine: &[f64]) -> Outcome {
        let seed = |(at, &trine): (usize, &f64)| {
            let measured = example(trine);
            Seed { seed: at as u32 + 1, errors: measured.errors(), measured }
        };
        Outcome::new("char-12x256-bf16", 2, "2.9.0", trine.iter().enumerate().map(seed).collect())
            .unwrap()
    }

    #[test]
    fn medians_decide() {
        assert_eq!(
            outcome(&[9.0, 0.5, 0.8]).verdict(),
            "char-12x256-bf16  reached: error 8.000e-2, 0.800 × PyTorch's; target ≤ 1 × PyTorch's, medians of 3 seeds"
        );
        let missed = outcome(&[1.5, 0.1, 1.2]);
        assert!(!missed.reached && missed.verdict().contains("missed: error 1.200e-1, 1.200 ×"));
        assert!(Outcome::new("char-12x256-bf16", 2, "2.9.0", Vec::new()).is_err());
    }

    #[test]
    fn the_table_has_every_seed_and_the_worst_parameters_first() {
        let mut outcome = outcome(&[1.0, 2.0, 3.0]);
        for seed in &mut outcome.seeds {
            seed.measured.parameters[1].trine *= 2.0;
        }
        let text = outcome.text();
        let rows: Vec<Vec<_>> =
            text.lines().skip(3).map(|row| row.split_whitespace().collect()).collect();
        assert_eq!(rows[0][..4], ["seed", "1", "1.000e-1", "1.000e-1"]);
        assert_eq!(rows[3], ["median", "2.000e-1", "1.000e-1", "2.000"]);
        assert_eq!(rows[4], ["b", "4.000e-1", "1.000e-1", "4.000"]);
        assert_eq!(rows[5], ["a", "2.000e-1", "1.000e-1", "2.000"]);
        assert_eq!(rows.len(), 6, "{text}");
    }

    #[test]
    fn all_cases_in_bf16_are_run_unless_some_are_named() {
        let names = |names: &[&str]| -> Vec<_> {
            let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
            planned(&names).map(|case| case.name).collect()
        };
        assert_eq!(
            names(&[]).len(),
            CASES.iter().filter(|case| case.name.ends_with("bf16")).count()
        );
        assert_eq!(names(&["char-12x256-f32"]), ["char-12x256-f32"]);
    }

    #[test]
    fn both_sides_get_the_same_folder() {
        let side = Side {
            binary: Path::new("trine"),
            python: Path::new("python"),
            root: Path::new(""),
            threads: 2,
        };
        let args = |program: &Program| {
            let args: Vec<_> = program.args.iter().map(|arg| arg.to_string_lossy()).collect();
            args.join(" ")
        };
        let case = CASES.iter().find(|case| case.name == "gpt2-2x256-bf16").unwrap();
        let [trine, torch] = side.programs(case, 3, Path::new("folder"));
        assert_eq!(
            args(&trine),
            "bench gradients --preset gpt2-124m --tp 1 --pp 1 --dp 1 --set data.seq=256 --set batch.global=2 \
             --set batch.micro=2 --set layout.threads_per_rank=2 --precision bf16 --seed 3 --write folder"
        );
        assert_eq!(
            args(&torch),
            format!("{SCRIPT} --model gpt2-124m --threads 2 --written folder")
        );
    }
}
