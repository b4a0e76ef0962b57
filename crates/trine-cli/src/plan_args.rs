//! The options of `trine plan`.

use clap::{Args, Subcommand};
use std::fmt::Display;
use std::path::PathBuf;
use std::str::FromStr;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct PlanArgs {
    #[command(subcommand)]
    pub(crate) command: Option<PlanCommand>,
    #[command(flatten)]
    pub(crate) search: SearchArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PlanCommand {
    /// Weak and strong scaling of the best layout, or of the one that is given, up to many devices
    Scale(Box<ScaleArgs>),
    /// Hold predicted time and memory against published runs
    Evaluate(EvaluateArgs),
    /// Fit the constants again on a quarter of the published runs, and test them on the rest
    Calibrate(CalibrateArgs),
}

#[derive(Debug, Args)]
pub(crate) struct EvaluateArgs {
    /// Published runs, with the columns of runs.csv [default: those that come with trine]
    #[arg(long, value_name = "FILE.csv")]
    pub(crate) runs: Option<PathBuf>,
    /// More machines, in the format of the built-in ones (docs/planning.md)
    #[arg(long, value_name = "FILE")]
    pub(crate) cluster_file: Option<PathBuf>,
    /// Other constants, as `trine plan calibrate --out` writes them
    #[arg(long, value_name = "FILE")]
    pub(crate) constants: Option<PathBuf>,
    /// Every row, with its layout and where its time and memory go
    #[arg(long)]
    pub(crate) by_row: bool,
    /// Print one JSON object
    #[arg(long, conflicts_with = "markdown")]
    pub(crate) json: bool,
    /// Print the tables of docs/planning-rows.md
    #[arg(long)]
    pub(crate) markdown: bool,
    /// Draw predicted against published to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct CalibrateArgs {
    /// Write the constants to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Also fit without each source in turn, and say how well its rows are then predicted
    #[arg(long)]
    pub(crate) leave_one_source_out: bool,
}

/// What is planned, and where.
#[derive(Debug, Args)]
pub(crate) struct TaskArgs {
    /// Configuration whose model, batch, sequence and precision are planned, on this machine unless --cluster says
    /// otherwise
    #[arg(value_name = "CONFIG.toml", conflicts_with = "model")]
    pub(crate) config: Option<PathBuf>,
    /// Model: a preset (see `trine presets`), a configuration that has one, or the config.json of a Hugging Face GPT-2
    /// or Llama, or its folder [default: frontier-1t; rust-default on this-machine]
    #[arg(long, value_name = "NAME|PATH")]
    pub(crate) model: Option<String>,
    /// Machine: frontier, lumi, a100-80gb, h100, h200, gb200, tpu-v4, tpu-v5p, this-machine (a device is a core or
    /// a GPU; measured if --cluster-file does not have it) or one of --cluster-file [default: frontier]
    #[arg(long, value_name = "NAME")]
    pub(crate) cluster: Option<String>,
    /// More machines, in the format of the built-in ones (docs/planning.md)
    #[arg(long, value_name = "FILE")]
    pub(crate) cluster_file: Option<PathBuf>,
    /// What this-machine is, where it is measured: its GPUs (cuda), its cores (cpu), or its GPUs if it has some (auto)
    #[arg(long, value_name = "NAME", default_value = "auto")]
    pub(crate) device: String,
    /// Look for the libraries of GPUs here and nowhere else, as `trine doctor` does; may be given again
    #[arg(long, value_name = "DIR")]
    pub(crate) gpu_libraries: Vec<PathBuf>,
    /// Software [default: megatron-deepspeed on MI250X, trine on this-machine, else megatron-core]
    #[arg(long, value_name = "NAME")]
    pub(crate) stack: Option<String>,
    /// Devices [default: 3072; on this-machine all cores]
    #[arg(long, value_name = "N", value_parser = whole(1, DEVICES_MAX), allow_negative_numbers = true)]
    pub(crate) gpus: Option<usize>,
    /// Sequences of a step [default: about 16 Mi tokens; on this-machine those of the configuration]
    #[arg(long, value_name = "N", value_parser = whole(1, BATCH_MAX), allow_negative_numbers = true)]
    pub(crate) global_batch: Option<usize>,
    /// Tokens of a sequence [default: the model's longest; on this-machine those of the configuration]
    #[arg(long, value_name = "N", value_parser = whole(1, SEQ_MAX), allow_negative_numbers = true)]
    pub(crate) seq: Option<usize>,
    /// Share of each device's memory that stays free
    #[arg(long, value_name = "SHARE", default_value = "0.1", value_parser = share, allow_negative_numbers = true)]
    pub(crate) memory_headroom: f64,
    /// Type of products: bf16, f16, f32 or fp8 [default: bf16; that of the configuration]
    #[arg(long, value_name = "TYPE")]
    pub(crate) precision: Option<String>,
    /// Only this tensor-parallel degree
    #[arg(long, value_name = "N", value_parser = whole(1, DEGREE_MAX), allow_negative_numbers = true)]
    pub(crate) tp: Option<usize>,
    /// Only so many pipeline ranks
    #[arg(long, value_name = "N", value_parser = whole(1, DEGREE_MAX), allow_negative_numbers = true)]
    pub(crate) pp: Option<usize>,
    /// Only this context-parallel degree
    #[arg(long, value_name = "N", value_parser = whole(1, DEGREE_MAX), allow_negative_numbers = true)]
    pub(crate) cp: Option<usize>,
    /// Only so many stages of each pipeline rank
    #[arg(long, value_name = "V", value_parser = whole(1, DEGREE_MAX), allow_negative_numbers = true)]
    pub(crate) r#virtual: Option<usize>,
    /// Only this pipeline schedule
    #[arg(long, value_name = "NAME")]
    pub(crate) schedule: Option<String>,
    /// Only so many sequences of a micro-batch
    #[arg(long, value_name = "N", value_parser = whole(1, BATCH_MAX), allow_negative_numbers = true)]
    pub(crate) micro_batch: Option<usize>,
    /// Only this ZeRO stage, 0 to 3
    #[arg(long, value_name = "STAGE", value_parser = zero_stage, allow_negative_numbers = true)]
    pub(crate) zero: Option<u8>,
    /// Only this recompute: none, selective, elementwise, half (of the blocks) or full
    #[arg(long, value_name = "WHAT")]
    pub(crate) recompute: Option<String>,
    /// Only with (true) or without (false) sequence parallelism
    #[arg(long, value_name = "BOOL")]
    pub(crate) sequence_parallel: Option<bool>,
    /// Only layouts that trine itself runs
    #[arg(long)]
    pub(crate) runnable: bool,
}

impl TaskArgs {
    /// The files that are read: a name is one too where a file is called so, or a folder that has one.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let model = self.model.as_ref().map(PathBuf::from);
        let in_folder = model.as_ref().map(|folder| folder.join("config.json"));
        let files = [self.config.clone(), model, in_folder, self.cluster_file.clone()];
        files.into_iter().flatten().collect()
    }
}

/// The most devices that can be asked for.
const DEVICES_MAX: usize = 1 << 24;
/// The largest numbers of a configuration (`trine train`): sequences of a batch, tokens of a sequence, ranks of an
/// axis.
const BATCH_MAX: usize = 1 << 19;
const SEQ_MAX: usize = 1 << 22;
const DEGREE_MAX: usize = 1 << 16;
/// Lines of a table.
const LINES_MAX: usize = 1 << 16;

/// Reads a whole number from `least` to `most`.
pub(crate) fn whole<N>(least: N, most: N) -> impl Fn(&str) -> Result<N, String> + Clone
where
    N: Copy + PartialOrd + Display + FromStr,
{
    move |text| {
        let number = text.parse::<N>().ok().filter(|number| (least..=most).contains(number));
        number.ok_or_else(|| format!("must be a whole number, {least} to {most}"))
    }
}

fn zero_stage(text: &str) -> Result<u8, String> {
    let stage = text.parse::<u8>().ok().filter(|stage| *stage <= 3);
    stage.ok_or_else(|| "ZeRO has stages 0 to 3".to_owned())
}

/// Reads a share of the memory.
fn share(text: &str) -> Result<f64, String> {
    let share = text.parse::<f64>().ok().filter(|share| (0.0..1.0).contains(share));
    share.ok_or_else(|| "a share of the memory, at least 0 and below 1".to_owned())
}

/// Reads `300B`, `1.4T` or plain digits.
fn tokens(text: &str) -> Result<f64, String> {
    let units = [("k", 1e3), ("M", 1e6), ("B", 1e9), ("T", 1e12), ("", 1.0)];
    let parse = |(unit, factor): (&str, f64)| -> Option<f64> {
        Some(text.strip_suffix(unit)?.parse::<f64>().ok()? * factor)
    };
    let tokens = units.into_iter().find_map(parse);
    tokens
        .filter(|tokens| tokens.is_finite() && *tokens > 0.0)
        .ok_or_else(|| "must be a positive number such as 300B or 20T".to_owned())
}

#[derive(Debug, Args)]
pub(crate) struct SearchArgs {
    #[command(flatten)]
    pub(crate) task: TaskArgs,
    /// Tokens to train on, such as 300B or 20T [default: 20 for each parameter]
    #[arg(long, value_name = "N", value_parser = tokens, allow_negative_numbers = true)]
    pub(crate) tokens: Option<f64>,
    /// Layouts to show
    #[arg(long, value_name = "N", default_value = "10", value_parser = whole(1, LINES_MAX), allow_negative_numbers = true)]
    pub(crate) top: usize,
    /// Break time and memory of the best layout down
    #[arg(long)]
    pub(crate) explain: bool,
    /// Rank the choices by how much they move throughput
    #[arg(long)]
    pub(crate) sensitivity: bool,
    /// Draw timeline and memory of the best layout into an SVG file
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
    /// Write the configuration of the best layout that trine itself runs
    #[arg(long, value_name = "FILE", alias = "config")]
    pub(crate) write_config: Option<PathBuf>,
    /// Print as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Measure this machine or its GPUs (--device), print it as a cluster for --cluster-file, and stop; kernels in
    /// --precision
    #[arg(long, conflicts_with_all = [
        "config", "model", "cluster", "cluster_file", "stack", "gpus", "global_batch", "seq", "memory_headroom", "tp",
        "pp", "cp", "virtual", "schedule", "micro_batch", "zero", "recompute", "sequence_parallel", "runnable",
        "tokens", "top", "explain", "sensitivity", "svg", "write_config", "json",
    ])]
    pub(crate) measure: bool,
    /// Write the measured machine to this file
    #[arg(long, value_name = "FILE", requires = "measure")]
    pub(crate) out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct ScaleArgs {
    #[command(flatten)]
    pub(crate) task: TaskArgs,
    /// The largest number of devices
    #[arg(long, value_name = "N", default_value = "100000", value_parser = whole(1, DEVICES_MAX), allow_negative_numbers = true)]
    pub(crate) to: usize,
    /// Draw the curves to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
    /// Print as JSON
    #[arg(long)]
    pub(crate) json: bool,
}
