//! The end of a run in a few lines, and the commands that go on from there.

use crate::output::{grouped, human_bytes};
use crate::terminal::{Terminal, quoted, quoted_path};
use std::path::{Path, PathBuf};
use trine_trainer::config::Config;
use trine_trainer::run::{RankSummary, Summary};

/// More ranks than this are shown by the fullest.
const RANKS_SHOWN_MAX: usize = 8;

/// What may be typed next, for a shell.
#[derive(Debug, Clone)]
pub(crate) struct NextCommands {
    terminal: Terminal,
    resume_by: String,
    directory: PathBuf,
    prompt: String,
}

impl NextCommands {
    /// `resume_by` and a directory go on with a run.
    pub(crate) fn new(terminal: &Terminal, resume_by: String) -> Self {
        let (directory, prompt) = (PathBuf::new(), String::new());
        Self { terminal: terminal.clone(), resume_by, directory, prompt }
    }

    /// Where the run is.
    pub(crate) fn set_directory(&mut self, directory: &Path) {
        self.directory = directory.to_path_buf();
    }

    /// A prompt that suits the run's text.
    pub(crate) fn set_prompt(&mut self, config: &Config) {
        let own = config.sample.prompts.iter().find(|prompt| !prompt.is_empty());
        self.prompt = own.cloned().unwrap_or_else(|| "The".into());
    }

    /// Where the run is, for people.
    pub(crate) fn directory(&self) -> String {
        self.directory.display().to_string()
    }

    /// Goes on with the run.
    pub(crate) fn resume(&self) -> String {
        format!("{} {}", self.resume_by, quoted_path(&self.directory))
    }

    /// Begins another run with its configuration.
    pub(crate) fn anew(&self) -> String {
        let config = self.terminal.command("train", &self.directory.join("config.toml"));
        format!("{config} --out NEW")
    }

    /// Continues a text with its model.
    pub(crate) fn generate(&self) -> String {
        let command = self.terminal.command("generate --run", &self.directory);
        format!("{command} --prompt {}", quoted(&self.prompt))
    }

    /// Looks at it.
    pub(crate) fn inspect(&self) -> String {
        self.terminal.command("inspect", &self.directory)
    }
}

/// The summary of a run, and what may be typed next.
pub(crate) fn summary(summary: &Summary, next: &NextCommands) -> String {
    let rows = results(summary).into_iter().chain(speeds(summary)).chain(memory(&summary.ranks));
    let rows: String = rows.map(|(name, value)| format!("  {name:<28} {value}\n")).collect();
    format!(
        "\n{rows}\n  resume:   {}\n  generate: {}\n  inspect:  {}\n",
        next.resume(),
        next.generate(),
        next.inspect()
    )
}

type Row = (String, String);

fn row(name: &str, value: String) -> Row {
    (name.into(), value)
}

/// What was trained, and how well.
fn results(summary: &Summary) -> Vec<Row> {
    let steps = match &summary.stopped_early {
        Some(why) => format!("{} ({why})", grouped(summary.steps)),
        None if summary.steps_cut => {
            format!("{} (cut to fit the time limit)", grouped(summary.steps))
        }
        None => grouped(summary.steps),
    };
    let mut rows = vec![
        row("parameters", grouped(summary.params)),
        row("layout", summary.layout.clone()),
        row("steps", steps),
        row("tokens", grouped(summary.tokens)),
        row("loss", format!("{:.4} nats per token", summary.final_loss)),
        row("validation loss", decimals(summary.val_loss)),
        row("validation bits per byte", decimals(summary.val_bits_per_byte)),
        row("  bigram, same tokens", decimals(summary.bigram_bits_per_byte)),
        row("  bigram, whole split", decimals(summary.bigram_full_bits_per_byte)),
    ];
    if let Some((model, bigram)) = summary.val_bits_per_byte.zip(summary.bigram_bits_per_byte) {
        rows.push(row("  model / bigram", format!("{:.3}", model / bigram)));
    }
    rows
}

/// How fast, and how busy the ranks were.
fn speeds(summary: &Summary) -> Vec<Row> {
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let bubble = match summary.bubble_measured {
        Some(share) => format!("{} measured", percent(share)),
        None => "not measured, as ranks share a device".into(),
    };
    let mut rows = Vec::new();
    if summary.steps_before > 0 {
        let (first, last) = (grouped(summary.steps_before + 1), grouped(summary.steps));
        let steps = if first == last {
            format!("of step {last}, done since the resume:")
        } else {
            format!("of steps {first} to {last}, done since the resume:")
        };
        rows.push(row("speed, time and memory", steps));
    }
    rows.extend([
        row("tokens per second", grouped(summary.tokens_per_s as u64)),
        row("model GFLOP/s", flops(summary)),
        row("wall time", format!("{:.0} s", summary.wall_s)),
        row("peak memory", summary.peak_rss_bytes.map_or_else(|| "–".into(), human_bytes)),
        row(
            "bubble",
            format!("{bubble}, {} by the schedule alone", percent(summary.bubble_predicted)),
        ),
    ]);
    rows.extend(summary.utilization.iter().map(|of| {
        let (mfu, hfu) = (percent(of.mfu), percent(of.hfu));
        let shares = if of.hfu > of.mfu { format!("{mfu}, HFU {hfu}") } else { mfu };
        row("MFU", format!("{shares} of {:.1} TFLOP/s: {}", of.peak_flops_per_s / 1e12, of.peak))
    }));
    rows.extend(summary.wait_share.map(|share| row("cores idle", percent(share))));
    rows
}

/// What the model needs, and what was computed where that is more.
fn flops(summary: &Summary) -> String {
    let model = format!("{:.1}", summary.model_flops_per_s / 1e9);
    match summary.hardware_flops_per_s {
        Some(all) if all > summary.model_flops_per_s => {
            format!("{model}, {:.1} with what is computed again", all / 1e9)
        }
        Some(_) | None => model,
    }
}

/// What ranks held.
fn memory(ranks: &[RankSummary]) -> Vec<Row> {
    let at_most = |rank: &&RankSummary| rank.bytes_measured.total() + rank.activation_bytes_max;
    if ranks.len() > RANKS_SHOWN_MAX {
        let fullest = ranks.iter().max_by_key(at_most).map(rank_row);
        let count = row("fullest of the ranks", format!("of {}:", grouped(ranks.len() as u64)));
        return std::iter::once(count).chain(fullest).collect();
    }
    ranks.iter().map(rank_row).collect()
}

fn rank_row(rank: &RankSummary) -> Row {
    let (planned, held) = (rank.bytes_planned.total(), rank.bytes_measured.total());
    let state = if planned == held {
        format!("{} held as planned", human_bytes(held as u64))
    } else {
        format!("{} planned, {} held", human_bytes(planned as u64), human_bytes(held as u64))
    };
    let name = match rank.host.as_str() {
        "" => format!("rank {} ({})", rank.rank, rank.place),
        host => format!("rank {} ({}) on {host}", rank.rank, rank.place),
    };
    let activations = human_bytes(rank.activation_bytes_max as u64);
    (name, format!("{state}, {activations} activations"))
}

fn decimals(value: Option<f64>) -> String {
    value.map_or_else(|| "–".into(), |value| format!("{value:.4}"))
}
