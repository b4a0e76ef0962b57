//! `cargo xtask bench`: what `trine bench` measures, and trine against its peers.

mod cases;
mod contest;
mod gradients;
mod llm_c;
mod process;
mod shape;
mod stats;
mod torch;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::trine;
use crate::workspace::Workspace;
use process::Runner;

/// A process that takes longer than this beside the time it measures hangs: the slowest, `torch.compile` with nothing
/// in its cache, takes minutes.
const HANGS_AFTER: Duration = Duration::from_secs(600);

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
    /// Planning: layouts evaluated in a second, simulated steps of a large pipeline
    #[command(disable_help_flag = true)]
    Plan(Passed),
    /// The bubble of every schedule, as it is executed and as it is simulated
    #[command(disable_help_flag = true)]
    Schedules(Passed),
    /// Ranks among each other: bandwidth, overlap on a slow link, the cost of the flight recorder
    #[command(disable_help_flag = true)]
    Comm(Passed),
    /// trine against PyTorch at the same steps, in alternating processes, with targets
    Torch(torch::TorchArgs),
    /// How far gradients in bf16 are from f64: trine's beside PyTorch's from the same weights and tokens
    Gradients(gradients::GradientsArgs),
    /// trine against karpathy's llm.c at the shape that it trains
    LlmC(llm_c::LlmCArgs),
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
        Bench::Plan(passed) => trine::bench(workspace, "plan", &passed.args),
        Bench::Schedules(passed) => trine::bench(workspace, "schedules", &passed.args),
        Bench::Comm(passed) => trine::bench(workspace, "comm", &passed.args),
        Bench::Torch(args) => torch::run(workspace, args),
        Bench::Gradients(args) => gradients::run(workspace, args),
        Bench::LlmC(args) => llm_c::run(workspace, args),
    }
}

/// The limits of processes that measure for `seconds`.
fn runner(workspace: &Workspace, seconds: f64) -> Runner {
    let time_max = HANGS_AFTER + Duration::from_secs_f64(seconds);
    Runner { time_max, scratch: workspace.target.join("trine").join("bench") }
}

/// `--seconds`, within the limits of `trine bench step`.
fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.0..=3600.0).contains(&seconds) => Ok(seconds),
        Ok(_) | Err(_) => Err("must be a number from 0 to 3600".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[test]
    fn seconds_are_checked() {
        assert_eq!(seconds("2.5"), Ok(2.5));
        for wrong in ["-1", "3601", "NaN", "inf", "1 s", ""] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }

    fn parsed(args: &[&str]) -> Result<Bench, String> {
        let typed = ["xtask", "bench"].iter().chain(args);
        match crate::Cli::try_parse_from(typed).map_err(|error| error.to_string())?.command {
            crate::Command::Bench { bench } => Ok(bench),
            other => panic!("not bench: {other:?}"),
        }
    }

    #[test]
    fn what_trine_measures_itself_is_passed_through() {
        for (at, name) in
            ["layouts", "step", "kernels", "plan", "comm", "schedules"].iter().enumerate()
        {
            let name = *name;
            let typed = [name, "--help", "a.toml", "--set", "data.seq=-1"];
            let (found, passed) = match parsed(&typed).unwrap() {
                Bench::Layouts(passed) => (0, passed),
                Bench::Step(passed) => (1, passed),
                Bench::Kernels(passed) => (2, passed),
                Bench::Plan(passed) => (3, passed),
                Bench::Comm(passed) => (4, passed),
                Bench::Schedules(passed) => (5, passed),
                other => panic!("{name} became {other:?}"),
            };
            assert_eq!((found, passed.args), (at, typed[1..].iter().map(Into::into).collect()));
        }
    }

    #[test]
    fn contests_have_options_of_their_own() {
        assert!(matches!(parsed(&["llm-c", "--path", "llm.c"]), Ok(Bench::LlmC(_))));
        let torch = ["torch", "--python", "python", "--isa", "avx512-bf16", "--seconds", "0"];
        assert!(matches!(parsed(&torch), Ok(Bench::Torch(_))));
        let gradients = ["gradients", "--python", "python", "--case", "char-12x256-bf16"];
        assert!(matches!(parsed(&gradients), Ok(Bench::Gradients(_))));
        for (wrong, named) in [(["--seeds", "0"], "1.."), (["--case", "char"], "char-12x256-bf16")]
        {
            let error = parsed(&[&gradients[..3], &wrong].concat()).unwrap_err();
            assert!(error.contains(wrong[1]) && error.contains(named), "{error}");
        }
        for (wrong, named) in [
            (["--case", "gpt2-2x256-f16"], "gpt2-2x256-bf16"),
            (["--isa", "avx3"], "avx512-bf16"),
            (["--seconds", "3601"], "0 to 3600"),
            (["--rounds", "0"], "1.."),
            (["--turns-of-a-process", "0"], "1.."),
            (["--threads", "0"], "1.."),
        ] {
            let error = parsed(&[&torch[..3], &wrong].concat()).unwrap_err();
            assert!(error.contains(wrong[1]) && error.contains(named), "{error}");
        }
    }
}
