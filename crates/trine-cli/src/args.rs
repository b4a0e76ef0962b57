//! The command line.

use crate::examples;
use crate::plan_args::whole;
use crate::terminal::Volume;
use clap::{Args, Parser, Subcommand};
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;
use trine_schedule::UniformStage;
use trine_trainer::config::Times;

#[derive(Debug, Parser)]
#[command(
    name = "trine",
    version,
    about = "Trains transformers with tensor, pipeline and data parallelism",
    after_help = examples::TRINE
)]
pub(crate) struct Cli {
    /// Say no progress: standard error has notes and errors only. Results go to standard output as ever, those of a run
    /// too: its summary and its completions
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Say more, where a command has more to say: a run has a line for each step and its ranks' memory
    #[arg(short, long, global = true)]
    verbose: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Cli {
    /// How much is to be said.
    pub(crate) fn volume(&self) -> Volume {
        match (self.quiet, self.verbose) {
            (true, _) => Volume::Quiet,
            (false, true) => Volume::Verbose,
            (false, false) => Volume::Normal,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Train a model
    #[command(after_help = examples::TRAIN)]
    Train(Box<TrainArgs>),
    /// Start the processes of a run by mpirun, and watch over them
    #[command(after_help = examples::LAUNCH)]
    Launch(LaunchArgs),
    /// Find the best layout of a model on a machine: time, memory, days and cost, before a device is used
    #[command(after_help = examples::PLAN)]
    Plan(Box<crate::plan_args::PlanArgs>),
    /// Make datasets
    #[command(subcommand, after_help = examples::DATA)]
    Data(DataCommand),
    /// List what can be trained: parameters, shapes, sane layouts
    #[command(after_help = examples::PRESETS)]
    Presets(PresetsArgs),
    /// Look at pipeline schedules
    #[command(subcommand, after_help = examples::SCHEDULE)]
    Schedule(ScheduleCommand),
    /// Continue a text with a trained model
    #[command(after_help = examples::GENERATE)]
    Generate(GenerateArgs),
    /// Say what is in a run directory
    #[command(after_help = examples::INSPECT)]
    Inspect(InspectArgs),
    /// Say what this machine has and lacks, and check its numbers: every kernel, and a layout
    #[command(after_help = examples::DOCTOR)]
    Doctor(DoctorArgs),
    /// Measure
    #[command(subcommand, after_help = examples::BENCH)]
    Bench(Bench),
    /// Print what completes commands and options in a shell
    #[command(after_help = examples::COMPLETIONS)]
    Completions(CompletionsArgs),
    /// Print the JSON schema of a configuration, for editors
    #[command(after_help = examples::SCHEMA)]
    Schema,
    /// Print the manual page, or write those of all commands
    #[command(after_help = examples::MAN)]
    Man(ManArgs),
}

/// What makes a configuration. Values are texts here: the configuration checks them all alike.
#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    /// Configuration file; what it does not give comes from its preset
    #[arg(value_name = "CONFIG.toml")]
    pub(crate) config: Option<PathBuf>,
    /// Where everything not given comes from (see `trine presets`) [default: rust-default]
    #[arg(long, value_name = "NAME")]
    pub(crate) preset: Option<String>,
    /// Text file, folder or prepared dataset (data.source)
    #[arg(long, value_name = "PATH")]
    pub(crate) data: Option<String>,
    /// Set any key, such as --set train.clip_norm=0.5; the options below win over it
    #[arg(long, value_name = "KEY.PATH=VALUE")]
    pub(crate) set: Vec<String>,
    /// Tensor-parallel shards (layout.tp)
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) tp: Option<String>,
    /// Pipeline stages (layout.pp)
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) pp: Option<String>,
    /// Data-parallel replicas (layout.dp)
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) dp: Option<String>,
    /// Pipeline schedule: 1f1b, gpipe, interleaved, breadth-first, zb-h1, zb-h2, zb-v or dualpipe-v; or file:PATH, one
    /// of your own as text (layout.schedule)
    #[arg(long, value_name = "NAME|file:PATH")]
    pub(crate) schedule: Option<String>,
    /// Times of F, B, W and a message in any one unit, for which zb-h1, zb-h2 and zb-v are made; measured: the ranks of
    /// a run measure them when it starts (layout.times)
    #[arg(long, value_name = "F,B,W,M|measured", value_parser = times_text, allow_hyphen_values = true)]
    pub(crate) times: Option<String>,
    /// Stages of the pipeline on each rank, for schedules that take several (layout.virtual)
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) r#virtual: Option<String>,
    /// Micro-batches of a rank in a step (sets batch.micro)
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) micro_batches: Option<String>,
    /// Type to compute with: f32, bf16 or f64 (train.precision)
    #[arg(long, value_name = "TYPE")]
    pub(crate) precision: Option<String>,
    /// Order of sums: fast or reference (train.numerics)
    #[arg(long, value_name = "MODE")]
    pub(crate) numerics: Option<String>,
    /// Optimizer steps (train.steps)
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) steps: Option<String>,
    /// Seed of weights, dropout and data order (seed)
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) seed: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct TrainArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    /// Run directory (output.dir) [default: runs/NAME]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<String>,
    /// Continue the run of this directory, from its last checkpoint and with its configuration
    #[arg(long, value_name = "DIR", conflicts_with_all = ["config", "preset"])]
    pub(crate) resume: Option<PathBuf>,
    /// Who decides dp, pp and tp: auto, the fastest layout that fits this machine, or preset (layout.degrees)
    #[arg(long, value_name = "NAME", overrides_with = "layout")]
    pub(crate) layout: Option<String>,
    /// What ranks compute on: auto, cpu or cuda (train.device)
    #[arg(long, value_name = "NAME")]
    pub(crate) device: Option<String>,
    /// Look for the libraries of GPUs here and nowhere else, as `trine doctor` does; may be given again
    #[arg(long, value_name = "DIR")]
    pub(crate) gpu_libraries: Vec<PathBuf>,
    /// What ranks are: threads of this process, or processes that mpirun or srun has started (mpi);
    /// auto: as this process was started
    #[arg(long, value_name = "NAME", default_value = "auto")]
    pub(crate) backend: String,
    /// Address of the interface for heartbeats, where rank 0 collects them itself
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) interface: Option<IpAddr>,
    /// Write a Chrome/Perfetto trace with a track per rank
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
    /// The machine that the plan is for, as `trine plan --measure --out` writes it [default: measured at the start]
    #[arg(long, value_name = "FILE")]
    pub(crate) machine: Option<PathBuf>,
    /// Print the resolved configuration, the layout, parameters and bytes per rank, with --machine the time of a step,
    /// and stop
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print the keys of a configuration with their defaults and rules, and stop; only those that contain WORD
    #[arg(long, value_name = "WORD", num_args = 0..=1, default_missing_value = "")]
    pub(crate) help_config: Option<String>,
    /// The packages behind data.source = "crates" (data.manifest)
    #[arg(long, value_name = "FILE", hide = true)]
    pub(crate) corpus_manifest: Option<String>,
    /// Folder for tokenizers and tokens (data.cache)
    #[arg(long, value_name = "DIR", hide = true)]
    pub(crate) cache: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct LaunchArgs {
    /// Processes [default: the ranks of the layout]
    #[arg(short = 'n', long, value_name = "N", value_parser = whole(1, RANKS_MAX), allow_negative_numbers = true)]
    pub(crate) ranks: Option<usize>,
    /// Go on from the last whole checkpoint after a failure, so many times at most
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = whole(0, u32::MAX), allow_negative_numbers = true)]
    pub(crate) restarts: u32,
    /// Address of this host's interface for heartbeats; the ranks of all hosts must reach it
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub(crate) interface: IpAddr,
    /// The program that starts MPI processes
    #[arg(long, value_name = "PROGRAM", default_value = "mpirun")]
    pub(crate) mpirun: PathBuf,
    /// One more argument for it, such as --mpirun-arg=--hostfile=hosts; may be given several times
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    pub(crate) mpirun_arg: Vec<OsString>,
    /// Arguments of `trine train`
    #[arg(last = true, value_name = "ARGS")]
    pub(crate) train: Vec<OsString>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DataCommand {
    /// Turn text into a dataset: a folder of tokens that `trine train --data` reads
    Build(DataBuildArgs),
}

#[derive(Debug, Args)]
pub(crate) struct DataBuildArgs {
    /// Text files and folders
    #[arg(value_name = "SOURCE", required = true)]
    pub(crate) sources: Vec<PathBuf>,
    /// Folder to make
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// A tokenizer.json to use, byte-level as GPT-2's [default: one is trained on the text]
    #[arg(long, value_name = "FILE", conflicts_with = "vocab")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// Entries of the tokenizer that is trained
    #[arg(long, value_name = "N", default_value = "4096", value_parser = whole(257, VOCAB_MAX), allow_negative_numbers = true)]
    pub(crate) vocab: usize,
    /// Part of the bytes to hold out for validation
    #[arg(long, value_name = "SHARE", default_value_t = 0.05, allow_negative_numbers = true)]
    pub(crate) validation: f64,
    /// Seed of the choice of what is held out
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = whole(0, u64::MAX), allow_negative_numbers = true)]
    pub(crate) seed: u64,
}

#[derive(Debug, Args)]
pub(crate) struct PresetsArgs {
    /// As JSON, with the whole model
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ScheduleCommand {
    /// Draw the timeline of a schedule
    Show(ShowArgs),
    /// Prove that a schedule is complete, in order and free of deadlock
    Verify(VerifyArgs),
}

/// Entries of the largest vocabulary of a model.
const VOCAB_MAX: usize = 1 << 22;

/// Processes that are started at most.
pub(crate) const RANKS_MAX: usize = 1 << 16;

/// Stages and micro-batches of the largest schedule that is shown: the time to lower one grows with their square.
pub(crate) const SHOWN_MAX: usize = 4096;

/// Ranks that sleep: each is a thread.
const ASLEEP_MAX: usize = 256;

/// The widest drawing.
const COLUMNS_MAX: usize = 1 << 20;

/// Turns of a measurement.
const ROUNDS_MAX: usize = 1 << 20;

/// A schedule by name, with its shape, or from a file, which has its own.
#[derive(Debug, Args)]
pub(crate) struct ScheduleArgs {
    /// Its name: gpipe, 1f1b, interleaved, breadth-first, zb-h1, zb-h2, zb-v, dualpipe-v or forward-only; or file:PATH,
    /// a schedule as text
    #[arg(value_name = "NAME|file:PATH")]
    pub(crate) name: OsString,
    /// Pipeline ranks, with one stage each unless the schedule has virtual ones [default: 4]
    #[arg(long, value_name = "N", value_parser = whole(1, SHOWN_MAX), allow_negative_numbers = true)]
    pub(crate) stages: Option<usize>,
    /// Virtual stages of each rank [default: 2 of interleaved, breadth-first, zb-v and dualpipe-v, else 1]
    #[arg(long, value_name = "V", value_parser = whole(1, SHOWN_MAX), allow_negative_numbers = true)]
    pub(crate) r#virtual: Option<usize>,
    /// Micro-batches [default: 8]
    #[arg(long, value_name = "M", value_parser = whole(1, SHOWN_MAX), allow_negative_numbers = true)]
    pub(crate) micro_batches: Option<usize>,
    /// Times of F, B, W and a message in any one unit, for which zb-h1, zb-h2 and zb-v are made, and any is drawn
    /// [default: 1,1,1,0]
    #[arg(long, value_name = "F,B,W,M", value_parser = stage_times, allow_hyphen_values = true)]
    pub(crate) times: Option<UniformStage>,
}

/// Such times as they are typed, or the word for those that a run measures.
fn times_text(text: &str) -> Result<String, String> {
    if text != Times::MEASURED {
        stage_times(text).map_err(|rule| format!("{rule}; or the word {}", Times::MEASURED))?;
    }
    Ok(text.to_owned())
}

/// Reads `1,1.5,0.5,0.1`.
fn stage_times(text: &str) -> Result<UniformStage, String> {
    let numbers: Result<Vec<f64>, _> =
        text.split(',').map(|number| number.trim().parse()).collect();
    let numbers = numbers.ok().and_then(|numbers| <[f64; 4]>::try_from(numbers).ok());
    let numbers = numbers.ok_or("must be four numbers, such as 1,1.5,0.5,0.1")?;
    UniformStage::new(numbers).map_err(|error| error.to_string())
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    #[command(flatten)]
    pub(crate) schedule: ScheduleArgs,
    /// Draw into an SVG file instead
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
    /// Print it as text instead, to be changed and verified
    #[arg(long, conflicts_with = "svg")]
    pub(crate) text: bool,
    /// Width of the drawing in characters [default: the terminal's, else 120]
    #[arg(long, value_name = "N", value_parser = whole(1, COLUMNS_MAX), allow_negative_numbers = true)]
    pub(crate) columns: Option<usize>,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    pub(crate) schedule: ScheduleArgs,
}

#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    /// Run directory
    #[arg(long, value_name = "DIR")]
    pub(crate) run: PathBuf,
    /// Text to continue
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) prompt: String,
    /// Tokens to add (sample.tokens)
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) tokens: Option<String>,
    /// 1 draws from the model's distribution, less sharpens it, 0 takes the likeliest (sample.temperature)
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub(crate) temperature: Option<String>,
    /// Draw from this many likeliest tokens, 0 from all (sample.top_k)
    #[arg(long, value_name = "K", allow_negative_numbers = true)]
    pub(crate) top_k: Option<String>,
    /// Draw from the fewest tokens with this probability together (sample.top_p)
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub(crate) top_p: Option<String>,
    /// Seed of the draws (seed)
    #[arg(long, value_name = "S", allow_negative_numbers = true)]
    pub(crate) seed: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// Run directory
    #[arg(value_name = "RUN_DIR")]
    pub(crate) run: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    pub(crate) shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// Write a page of each command into this folder instead
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Only what the machine has; check no numbers
    #[arg(long)]
    pub(crate) quick: bool,
    /// Look for the libraries of GPUs here and nowhere else; may be given again [default: where the
    /// system, CUDA_HOME, CUDA_PATH, VIRTUAL_ENV and CONDA_PREFIX have them, and the usual folders]
    #[arg(long, value_name = "DIR")]
    pub(crate) gpu_libraries: Vec<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// Tokens per second of one rank with all threads against layouts, in alternation, and what the
    /// difference goes to
    Layouts(Box<BenchLayoutsArgs>),
    /// Training steps on synthetic tokens: tokens per second, model FLOP/s, where the time goes
    Step(Box<BenchStepArgs>),
    /// The gradients of one step on synthetic tokens, in the run's type and in f64, written to files
    Gradients(Box<BenchGradientsArgs>),
    /// The kernels one by one, beside what the machine can do at best
    Kernels(BenchKernelsArgs),
    /// Planning: layouts evaluated in a second, simulated steps of a large pipeline
    Plan(BenchPlanArgs),
    /// The bubble of every schedule, as it is executed and as it is simulated, on stages that sleep
    Schedules(BenchSchedulesArgs),
    /// Ranks among each other: bandwidth, overlap on a slow link, the cost of the flight recorder
    Comm(BenchCommArgs),
}

#[derive(Debug, Args)]
pub(crate) struct BenchSchedulesArgs {
    /// Pipeline ranks
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = whole(1, ASLEEP_MAX), allow_negative_numbers = true)]
    pub(crate) ranks: usize,
    /// Micro-batches
    #[arg(long, value_name = "M", default_value_t = 8, value_parser = whole(1, SHOWN_MAX), allow_negative_numbers = true)]
    pub(crate) micro_batches: usize,
    /// How long F, B and W of a stage sleep
    #[arg(long, value_name = "MS", default_value_t = 20, value_parser = whole(1, 10_000_u64), allow_negative_numbers = true)]
    pub(crate) milliseconds: u64,
    /// Measure so many times and keep the shortest step
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = whole(1, ROUNDS_MAX), allow_negative_numbers = true)]
    pub(crate) rounds: usize,
}

#[derive(Debug, Args)]
pub(crate) struct BenchPlanArgs {
    /// Measure so many times and keep the best
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = whole(0, ROUNDS_MAX), allow_negative_numbers = true)]
    pub(crate) rounds: usize,
}

#[derive(Debug, Args)]
pub(crate) struct BenchCommArgs {
    /// Time each row for so many seconds
    #[arg(long, value_name = "S", default_value_t = 2.0, allow_negative_numbers = true)]
    pub(crate) seconds: f64,
    /// How often two that are compared take turns
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = whole(0, ROUNDS_MAX), allow_negative_numbers = true)]
    pub(crate) rounds: usize,
}

#[derive(Debug, Args)]
pub(crate) struct BenchKernelsArgs {
    /// Threads that share each call [default: all cores]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) threads: Option<usize>,
    /// A poorer instruction set than the best: portable, neon, avx2, avx512, avx512-bf16 or amx
    #[arg(long, value_name = "NAME")]
    pub(crate) isa: Option<String>,
    /// Type to compute with: bf16, f32, f64 or all of them
    #[arg(long, value_name = "TYPE", default_value = "bf16")]
    pub(crate) precision: String,
    /// Call each kernel for so long, and twice at least: the first call does not count
    #[arg(long, value_name = "MS", default_value_t = 200, allow_negative_numbers = true)]
    pub(crate) milliseconds: u64,
    /// Only the rows whose name and shape contain this; may be given several times
    #[arg(long, value_name = "NAME")]
    pub(crate) filter: Vec<String>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct BenchStepArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    /// Time steps for so many seconds, and one at least
    #[arg(long, value_name = "S", default_value_t = 5.0, allow_negative_numbers = true)]
    pub(crate) seconds: f64,
    /// A poorer instruction set than the best: portable, neon, avx2, avx512, avx512-bf16 or amx
    #[arg(long, value_name = "NAME")]
    pub(crate) isa: Option<String>,
    /// Time each kernel too
    #[arg(long)]
    pub(crate) profile: bool,
    /// Print one JSON object
    #[arg(long, conflicts_with = "profile")]
    pub(crate) json: bool,
    /// Then time steps again for every line of the input, and print another object
    #[arg(long, requires = "json")]
    pub(crate) turns: bool,
}

#[derive(Debug, Args)]
pub(crate) struct BenchGradientsArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    /// Folder for what is written: a checkpoint of each type with the gradients, and step.json
    #[arg(long, value_name = "DIR")]
    pub(crate) write: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct BenchLayoutsArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    /// Degrees of a layout; may be given several times, the turns then go round [default: the
    /// configuration's]
    #[arg(long, value_name = "DPxPPxTP")]
    pub(crate) layout: Vec<String>,
    /// How often they take turns
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = whole(0, ROUNDS_MAX), allow_negative_numbers = true)]
    pub(crate) rounds: usize,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// A line for every argument of a command and of those below it.
    fn list(command: &clap::Command, path: &str, lines: &mut Vec<String>) {
        let name = format!("{path}{}", command.get_name());
        for argument in command.get_arguments() {
            // Options of every command are listed once.
            if argument.is_global_set() && !path.is_empty() {
                continue;
            }
            let value = argument.get_value_names().map(|names| format!(" {}", names[0]));
            let takes_value = argument.get_num_args().is_none_or(|n| n.takes_values());
            let value = value.filter(|_| takes_value).unwrap_or_default();
            let flag = argument.get_long().map_or_else(String::new, |long| format!(" --{long}"));
            let hidden = if argument.is_hide_set() { " (hidden)" } else { "" };
            lines.push(format!("{name}{flag}{value}{hidden}"));
        }
        for below in command.get_subcommands() {
            list(below, &format!("{name} "), lines);
        }
    }

    /// The examples of a command and of those below it.
    fn examples(command: &clap::Command, found: &mut Vec<String>) {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let lines = help.lines().filter_map(|line| line.strip_prefix("  "));
        // What it does stands behind two spaces, a shell's part behind these signs.
        let command_of = |line: &str| {
            let line = line.split("  ").next().unwrap_or_default();
            line.split(['|', '>']).next().unwrap_or_default().trim().to_owned()
        };
        found.extend(lines.map(command_of));
        command.get_subcommands().for_each(|below| examples(below, found));
    }

    #[test]
    fn the_examples_are_commands() {
        let command = Cli::command();
        let mut found = Vec::new();
        examples(&command, &mut found);
        for line in &found {
            let words = line.split(' ').map(|word| word.trim_matches('\''));
            let parsed =
                Cli::try_parse_from(words.filter(|word| *word != "main()" && *word != "{"));
            assert!(
                parsed.is_ok(),
                "{line}: {}",
                parsed.err().map_or_else(String::new, |e| e.to_string())
            );
        }
        let commands = command.get_subcommands().filter(|one| one.get_name() != "help");
        for one in commands {
            let name = format!("trine {}", one.get_name());
            assert!(found.iter().any(|line| line.starts_with(&name)), "{name} has no example");
        }
        assert!(found.len() > 25, "{}", found.len());
    }

    /// Options are promises: each is added or removed on purpose.
    #[test]
    fn the_options_are_those_of_the_golden_list() {
        let mut command = Cli::command();
        command.build();
        let mut lines = Vec::new();
        list(&command, "", &mut lines);
        lines.retain(|line| !line.ends_with(" --help") && !line.ends_with(" --version"));
        let found = lines.join("\n") + "\n";
        let golden = include_str!("../tests/golden/options.txt");
        assert_eq!(found, golden, "tests/golden/options.txt must read:\n{found}");
        assert!(lines.len() > 40, "{}", lines.len());
    }
}
