//! `cargo xtask bench torch`: trine against PyTorch, in alternating processes, with targets.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use clap::builder::PossibleValuesParser;
use serde::Serialize;

use super::cases::{CASES, Case, Variant, Verdict, plan};
use super::contest::{Contestant, Rounds, Score, alternate, is_open, parse_json, table};
use super::process::{Program, Runner};
use super::shape::{Isa, Shape, Terms, all_cores, trine};
use super::{runner, seconds};
use crate::trine::build;
use crate::workspace::Workspace;

/// Relative to the root folder.
const SCRIPT: &str = "benches/peers/torch_step.py";

/// Time in which any Python imports PyTorch.
const IMPORT_MAX: Duration = Duration::from_secs(120);

#[derive(Debug, Args)]
pub(crate) struct TorchArgs {
    /// Python interpreter of an environment with PyTorch
    #[arg(long, value_name = "PATH")]
    python: PathBuf,
    /// Turns that each contestant has
    #[arg(long, value_name = "N", default_value_t = 11, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Start all programs anew after so many turns: in between they wait for their next one, in memory
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    turns_of_a_process: u32,
    /// Time steps for so many seconds a turn, and one at least
    #[arg(long, value_name = "S", default_value = "4", value_parser = seconds)]
    seconds: f64,
    /// Run this case only; can be given more than once
    #[arg(long = "case", value_name = "NAME", value_parser = PossibleValuesParser::new(CASES.iter().map(|case| case.name)))]
    cases: Vec<String>,
    /// What both sides may use, for all cases; without it, what the targets are stated for
    #[arg(long, value_enum)]
    isa: Option<Isa>,
    /// Threads on both sides; without it, all cores
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    threads: Option<u32>,
    /// Also write every measurement to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What was measured in a case.
#[derive(Debug, Serialize)]
struct Outcome {
    case: &'static str,
    isa: Isa,
    threads: usize,
    torch: String,
    /// trine's first.
    scores: Vec<Score>,
    verdicts: Vec<Verdict>,
}

/// PyTorch on this machine.
#[derive(Debug)]
struct Torch {
    python: PathBuf,
    script: PathBuf,
    /// Folder for what it compiles.
    caches: PathBuf,
    version: String,
}

/// `cargo xtask bench torch`.
pub(super) fn run(workspace: &Workspace, args: &TorchArgs) -> anyhow::Result<ExitCode> {
    let runner = runner(workspace, args.seconds);
    // What can be wrong is found out before minutes of building and hours of measuring.
    let torch = Torch::find(workspace, &args.python, &runner)?;
    let mut outcomes = Vec::new();
    write_json(args.json.as_deref(), &outcomes)?;
    let binary = build(workspace)?;
    let rounds =
        Rounds { all: args.rounds as usize, of_a_process: args.turns_of_a_process as usize };
    let threads = args.threads.map_or_else(all_cores, |threads| threads as usize);
    for (case, isa) in plan(&args.cases, args.isa) {
        let terms = Terms { isa, threads, seconds: args.seconds };
        let mut contestants = vec![trine(&binary, &workspace.root, &case.shape, terms)];
        contestants.extend(Variant::ALL.map(|variant| torch.peer(&case.shape, variant, terms)));
        let title = title(case.name, isa);
        let scores = alternate(&title, &contestants, rounds, &runner);
        let version = &torch.version;
        println!("\n{title}: {threads} threads, PyTorch {version}, {} rounds", args.rounds);
        println!("{}", table(&scores));
        outcomes.push(Outcome::new(case, terms, version, scores));
        write_json(args.json.as_deref(), &outcomes)?;
    }
    print!("{}", summary(&outcomes));
    let is_measured = outcomes.iter().all(|outcome| is_open(&outcome.scores));
    Ok(if is_measured { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Outcome {
    fn new(case: &'static Case, terms: Terms, torch: &str, scores: Vec<Score>) -> Self {
        let Terms { isa, threads, .. } = terms;
        let targets = case.targets.iter().filter(|target| target.isa == isa);
        let verdicts = targets.map(|target| target.judge(&scores)).collect();
        Self { case: case.name, isa, threads, torch: torch.to_owned(), scores, verdicts }
    }
}

impl Torch {
    fn find(workspace: &Workspace, python: &Path, runner: &Runner) -> anyhow::Result<Self> {
        Ok(Self {
            version: version(python, runner)?,
            python: python.to_owned(),
            script: workspace.root.join(SCRIPT),
            caches: runner.scratch.clone(),
        })
    }

    /// PyTorch in one of its variants.
    fn peer(&self, shape: &Shape, variant: Variant, terms: Terms) -> Contestant {
        let Terms { isa, threads, seconds } = terms;
        let options = [
            ("--model", shape.model.name.to_owned()),
            ("--batch", shape.batch.to_string()),
            ("--seq", shape.seq.to_string()),
            ("--precision", shape.precision.to_owned()),
            ("--threads", threads.to_string()),
            ("--seconds", seconds.to_string()),
        ];
        let mut program = Program::new(&self.python)
            .args([&self.script])
            .args(["--turns"])
            .args(options.into_iter().flat_map(|(name, value)| [name.to_owned(), value]))
            .env("OMP_NUM_THREADS", threads.to_string());
        if variant.is_compiled() {
            // What was compiled for other instructions or other threads must not be found again.
            let cache = self.caches.join(format!("inductor-{}-{threads}", isa.name()));
            program = program.args(["--compile"]).env("TORCHINDUCTOR_CACHE_DIR", cache);
        }
        program.env.extend(variant.env().iter().chain(mask(isa)).map(|&(k, v)| (k, v.into())));
        Contestant { name: variant.name(), program, threads, parse: parse_json }
    }
}

/// Asks `python` which PyTorch it has.
pub(super) fn version(python: &Path, runner: &Runner) -> anyhow::Result<String> {
    let runner = Runner { time_max: IMPORT_MAX, ..runner.clone() };
    let program = Program::new(python).args(["-c", "import torch; print(torch.__version__)"]);
    let version = runner.stdout(&program).with_context(|| {
        format!(
            "--python {}: cannot import torch; give the interpreter of an environment in which \
             `pip install torch numpy` was run",
            python.display()
        )
    })?;
    Ok(version.trim().to_owned())
}

/// A case, and the instruction set where it is not each side's best.
fn title(case: &str, isa: Isa) -> String {
    match isa {
        Isa::Best => case.to_owned(),
        Isa::Avx512Bf16 | Isa::Avx2 => format!("{case} with {}", isa.name()),
    }
}

/// What keeps PyTorch and the libraries below it from using better instructions.
fn mask(isa: Isa) -> &'static [(&'static str, &'static str)] {
    match isa {
        Isa::Best => &[],
        Isa::Avx512Bf16 => &[("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")],
        Isa::Avx2 => &[
            ("ONEDNN_MAX_CPU_ISA", "AVX2"),
            ("ATEN_CPU_CAPABILITY", "avx2"),
            ("MKL_ENABLE_INSTRUCTIONS", "AVX2"),
        ],
    }
}

/// One line a target, and one for each case without.
fn summary(outcomes: &[Outcome]) -> String {
    let titles: Vec<_> = outcomes.iter().map(|each| title(each.case, each.isa)).collect();
    let width = titles.iter().map(String::len).max().unwrap_or(0);
    let mut text = String::new();
    for (title, Outcome { scores, verdicts, .. }) in titles.iter().zip(outcomes) {
        let lines = match (is_open(scores), verdicts.is_empty()) {
            (false, _) => vec!["nothing to compare, see above".to_owned()],
            (true, true) => vec!["no target with these instructions".to_owned()],
            (true, false) => verdicts.iter().map(Verdict::text).collect(),
        };
        lines.iter().for_each(|line| text += &format!("{title:width$}  {line}\n"));
    }
    text
}

/// `--json FILE`.
pub(super) fn write_json<T: Serialize>(path: Option<&Path>, outcomes: &[T]) -> anyhow::Result<()> {
    let Some(path) = path else { return Ok(()) };
    std::fs::write(path, serde_json::to_string_pretty(outcomes)? + "\n")
        .with_context(|| format!("--json {}: cannot write", path.display()))
}

#[cfg(test)]
mod tests {
    use super::super::process::TUNING;
    use super::*;

    const TERMS: Terms = Terms { isa: Isa::Best, threads: 2, seconds: 4.0 };

    fn peer(case: &str, variant: Variant, isa: Isa) -> Program {
        let torch = Torch {
            python: "python".into(),
            script: "torch_step.py".into(),
            caches: "caches".into(),
            version: "2.9.0".to_owned(),
        };
        let case = CASES.iter().find(|known| known.name == case).unwrap();
        torch.peer(&case.shape, variant, Terms { isa, ..TERMS }).program
    }

    /// Environment variables and their values, as a shell has them.
    fn env(program: &Program) -> Vec<String> {
        let value = |value: &std::ffi::OsString| value.to_string_lossy().into_owned();
        program.env.iter().map(|(name, text)| format!("{name}={}", value(text))).collect()
    }

    #[test]
    fn eager_runs_as_it_comes() {
        let program = peer("llama-4x512-bf16", Variant::Eager, Isa::Best);
        let expected = "torch_step.py --turns --model llama-110m --batch 4 --seq 512 --precision bf16 \
                        --threads 2 --seconds 4";
        assert_eq!(program.path, Path::new("python"));
        assert_eq!(program.args, expected.split_whitespace().collect::<Vec<_>>());
        assert_eq!(env(&program), ["OMP_NUM_THREADS=2"]);
    }

    #[test]
    fn variants_differ_in_an_option_and_in_the_environment() {
        let compiled = peer("char-12x256-f32", Variant::Compiled, Isa::Best);
        assert_eq!(compiled.args.last().unwrap(), "--compile");
        assert!(env(&compiled)[1].ends_with("inductor-best-2"), "{:?}", env(&compiled));
        let malloc = [
            "MALLOC_MMAP_THRESHOLD_=1073741824",
            "MALLOC_TRIM_THRESHOLD_=4294967296",
            "MALLOC_TOP_PAD_=67108864",
        ];
        let tuned = peer("char-12x256-f32", Variant::EagerMalloc, Isa::Best);
        assert_eq!(env(&tuned)[1..], malloc);
        assert!(!tuned.args.contains(&"--compile".into()));
        let both = peer("char-12x256-f32", Variant::CompiledMalloc, Isa::Best);
        assert_eq!(both.args, compiled.args);
        assert_eq!(env(&both)[2..], malloc);
    }

    #[test]
    fn instruction_sets_are_masked_by_variables_that_nothing_else_sets() {
        let masked = |isa| env(&peer("gpt2-2x256-f32", Variant::Eager, isa))[1..].to_vec();
        assert_eq!(masked(Isa::Avx512Bf16), ["ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16"]);
        assert_eq!(
            masked(Isa::Avx2),
            ["ONEDNN_MAX_CPU_ISA=AVX2", "ATEN_CPU_CAPABILITY=avx2", "MKL_ENABLE_INSTRUCTIONS=AVX2"]
        );
        let malloc = Variant::EagerMalloc.env().iter();
        for (name, _) in malloc.chain(mask(Isa::Avx512Bf16)).chain(mask(Isa::Avx2)) {
            assert!(TUNING.contains(name), "{name} of the user's environment would stay");
        }
    }

    #[test]
    fn the_script_takes_these_options() {
        let root = Workspace::load().unwrap().root;
        let script = std::fs::read_to_string(root.join(SCRIPT)).unwrap();
        let program = peer("gpt2-2x256-bf16", Variant::Compiled, Isa::Best);
        let options = program.args.iter().map(|arg| arg.to_string_lossy());
        let mut checked = 0;
        for option in options.filter(|arg| arg.starts_with("--")) {
            assert!(script.contains(&format!("add_argument(\"{option}\"")), "no {option}");
            checked += 1;
        }
        assert_eq!(checked, 8);
    }

    fn outcome(case: usize, isa: Isa, failed: Option<&str>) -> Outcome {
        let score = |name, speed, failed: Option<&str>| {
            let failed = failed.map(str::to_owned);
            Score { name, isa: None, tokens_per_s: vec![speed; 3], failed }
        };
        let scores = vec![score("trine", 300.0, None), score("eager", 150.0, failed)];
        Outcome::new(&CASES[case], Terms { isa, ..TERMS }, "2.9.0", scores)
    }

    #[test]
    fn the_summary_has_every_target() {
        let outcomes = [
            outcome(0, Isa::Best, None),
            outcome(0, Isa::Avx2, None),
            outcome(2, Isa::Best, Some("hung")),
        ];
        assert_eq!(
            summary(&outcomes).lines().collect::<Vec<_>>(),
            [
                "gpt2-2x256-bf16            reached: 2.000 × eager; target ≥ 1.60 × the better of eager and compiled",
                "gpt2-2x256-bf16            not measured; target ≥ 1.40 × eager, malloc tuned",
                "gpt2-2x256-bf16 with avx2  no target with these instructions",
                "gpt2-2x1024-bf16           nothing to compare, see above",
            ]
        );
    }

    #[test]
    fn every_measurement_is_in_the_json() {
        let json = serde_json::to_value(outcome(0, Isa::Best, None)).unwrap();
        assert_eq!(json["case"], "gpt2-2x256-bf16");
        assert_eq!(json["scores"][0]["tokens_per_s"].as_array().unwrap().len(), 3);
        assert_eq!(json["verdicts"][0]["ratio"]["median"], 2.0);
        assert_eq!(json["verdicts"][1]["reached"], serde_json::Value::Null);
    }

    #[test]
    fn a_python_without_pytorch_is_an_error_with_a_way_out() {
        let workspace = Workspace::load().unwrap();
        let scratch = workspace.target.join("xtask-torch-test");
        let runner = Runner { time_max: IMPORT_MAX, scratch };
        let error = Torch::find(&workspace, Path::new("no-such-python"), &runner).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.starts_with("--python no-such-python: cannot import torch"), "{text}");
        assert!(text.contains("pip install torch numpy"), "{text}");
    }

    #[test]
    fn a_json_file_that_cannot_be_written_is_named() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("no-such-folder").join("a.json");
        let error = write_json::<Outcome>(Some(&path), &[]).unwrap_err().to_string();
        assert!(error.contains("a.json: cannot write"), "{error}");
        assert!(write_json::<Outcome>(None, &[]).is_ok());
    }
}
