//! `trine inspect`: what a run directory holds, for people and for programs.

mod checkpoints;
mod curve;
mod history;
mod state;

use crate::args::InspectArgs;
use crate::corpus::{self, Names};
use crate::dry_run::named;
use crate::failure::Failure;
use crate::output::{self, counted, grouped};
use crate::progress::clock;
use crate::report::NextCommands;
use crate::select;
use crate::terminal::{Style, Terminal};
use crate::width;
use anyhow::Context;
use checkpoints::Saved;
use history::History;
use serde_json::{Value, json};
use state::{State, Told};
use std::path::Path;
use std::time::{Duration, SystemTime};
use trine_mesh::plural;
use trine_trainer::config::{Config, Source, Typed};
use trine_trainer::run::{DataSummary, has_nothing_to_lose, in_use_since};

/// Columns and rows of the curve at most.
const CURVE_COLUMNS_MAX: usize = 100;
const CURVE_ROWS: usize = 12;

/// Everything that is known of a run.
struct Inspected<'a> {
    directory: &'a Path,
    config: Config,
    history: History,
    state: State,
    /// The step that it has come to.
    done: u64,
    /// When the process that works in it took it, if one does.
    held_since: Option<SystemTime>,
    /// What the run came to, if a process has come to its end.
    told: Told,
    checkpoints: Vec<Saved>,
    /// What could not be read.
    notes: Vec<String>,
}

/// Runs the command.
pub(crate) fn run(args: &InspectArgs, terminal: &Terminal) -> Result<(), Failure> {
    let inspected = Inspected::read(&args.run)?;
    let mut next = NextCommands::new(terminal, format!("{} train --resume", terminal.program()));
    next.set_directory(&args.run);
    next.set_prompt(&inspected.config);
    if args.json {
        let value = inspected.as_json(&next)?;
        let text = serde_json::to_string_pretty(&value).context("cannot write JSON")?;
        return output::print_data(&(text + "\n"));
    }
    output::print_painted(&inspected.as_text(&next, terminal))
}

impl<'a> Inspected<'a> {
    fn read(directory: &'a Path) -> Result<Self, Failure> {
        let file = Some(select::run_config(directory)?);
        let config = Config::load(&Typed { file, is_stored: true, ..Typed::default() })?;
        let history = History::read(&directory.join("metrics.jsonl"))?;
        let mut notes = history.notes();
        let told = state::told(directory, &mut notes)?;
        let checkpoints = checkpoints::read(directory, &history)?;
        let whole = checkpoints.iter().rfind(|saved| saved.is_whole()).map_or(0, Saved::step);
        let done = history.lines.last().map_or(0, |line| line.step).max(whole);
        if history.lines.last().map_or(0, |line| line.step) < whole {
            notes.push(format!("metrics.jsonl does not reach the checkpoint of step {whole}"));
        }
        if let Some(last) = checkpoints.last().filter(|last| !last.is_whole() && whole > 0) {
            let step = last.step();
            notes.push(format!("step-{step} is damaged: generate and --resume take step-{whole}"));
        }
        if let Some(last) = checkpoints.iter().rfind(|saved| !saved.own().is_empty()) {
            let (step, own) = (last.step(), last.own().join("; "));
            notes.push(format!("step-{step} needs the program that has its pieces: {own}"));
        }
        let held_since = in_use_since(directory);
        let state = match held_since {
            Some(_) => State::Running,
            None => State::of(directory, done, &told),
        };
        Ok(Self { directory, config, history, state, done, held_since, told, checkpoints, notes })
    }

    fn as_text(&self, next: &NextCommands, terminal: &Terminal) -> String {
        let columns = terminal.folded_columns();
        let paint = terminal.output;
        let mut rows = vec![("run", self.directory.display().to_string())];
        rows.push(("state", paint.text(self.state.style(), &self.progress())));
        rows.extend(configured(&self.config));
        rows.extend(self.text().map(|text| ("text", text)));
        let mut text = listed(&rows, columns);
        let curve_columns = columns.min(CURVE_COLUMNS_MAX);
        if let Some(curve) = curve::draw(&self.history, curve_columns, CURVE_ROWS, paint) {
            text.push_str(&format!("\n{curve}"));
        }
        let reached = self.reached();
        if !reached.is_empty() {
            text.push_str(&format!("\n{}", listed(&reached, columns)));
        }
        text.push_str(&format!("\n{}", checkpoints::table(&self.checkpoints)));
        for note in &self.notes {
            let note = width::folded(&format!("note: {note}"), columns);
            text.push_str(&format!("\n{}\n", paint.text(Style::Warning, &note)));
        }
        if let Some(how) = self.how_to_go_on(next) {
            text.push_str(&format!("\n{:<10} {how}\n", "resume"));
        }
        if self.checkpoints.iter().any(Saved::is_usable) {
            text.push_str(&format!("{:<10} {}\n", "generate", next.generate()));
        }
        text
    }

    /// Whether `--resume` takes it, once no process works in it.
    fn can_go_on(&self) -> bool {
        let is_begun_only = self.checkpoints.is_empty() && has_nothing_to_lose(self.directory);
        let is_usable = self.checkpoints.iter().any(Saved::is_usable);
        is_usable || (is_begun_only && self.held_since.is_none())
    }

    /// How to go on; while it works and has saved nothing there is nothing to say.
    fn how_to_go_on(&self, next: &NextCommands) -> Option<String> {
        if self.can_go_on() {
            return Some(next.resume());
        }
        let anew = || format!("there is no whole checkpoint; to begin anew: {}", next.anew());
        let is_lost = !self.checkpoints.iter().any(Saved::is_whole) && self.held_since.is_none();
        is_lost.then(anew)
    }

    /// What is left of the time limit of the process that works in it.
    fn time_left(&self) -> Option<Duration> {
        let minutes = self.config.train.minutes_max;
        let limit = Duration::try_from_secs_f64(60.0 * minutes).ok().filter(|_| minutes > 0.0)?;
        Some(limit.saturating_sub(self.held_since?.elapsed().unwrap_or_default()))
    }

    /// The state, and how far the run has come.
    fn progress(&self) -> String {
        let (done, steps) = (self.done, self.steps());
        let (of, noun) = (grouped(steps), plural(steps, "step"));
        let mut text = format!("{}; {} of {of} {noun}", self.state, grouped(done));
        if let (State::Running, Some(speed)) = (&self.state, self.history.speed()) {
            let left = steps.saturating_sub(done) as f64 * speed.step_s;
            let left = Duration::from_secs_f64(left);
            let left = self.time_left().map_or(left, |limit| limit.min(left));
            text.push_str(&format!(", about {} left", clock(left)));
        }
        text
    }

    /// Steps that the run has when nothing stops it.
    fn steps(&self) -> u64 {
        let total = self.told.summary().and_then(|summary| summary["steps_total"].as_u64());
        total
            .filter(|_| !matches!(self.state, State::Running))
            .unwrap_or(self.config.train.steps as u64)
    }

    /// What the steps so far have brought.
    fn reached(&self) -> Vec<(&'static str, String)> {
        let Some(last) = self.history.lines.last() else { return Vec::new() };
        let mut rows = vec![(
            "last step",
            format!(
                "{}: loss {:.4}, gradient norm {:.3}, rate {:.3e}",
                last.step, last.loss, last.grad_norm, last.lr
            ),
        )];
        rows.extend(self.validation().map(|text| ("validation", text)));
        if let Some(speed) = self.history.speed() {
            let wall: f64 = self.history.lines.iter().map(|line| line.step_ms / 1e3).sum();
            rows.push((
                "speed",
                format!(
                    "{} tokens/s, {:.3} s a step (medians of the last {}); {} tokens in {} of steps",
                    grouped(speed.tokens_per_s as u64),
                    speed.step_s,
                    speed.steps,
                    grouped(last.tokens),
                    clock(Duration::from_secs_f64(wall)),
                ),
            ));
        }
        rows
    }

    /// What was taken of the data, and what was not; summaries of older versions do not say.
    fn text(&self) -> Option<String> {
        let data = self.told.summary()?["data"].clone();
        let data = serde_json::from_value::<DataSummary>(data).ok()?;
        let left_out = corpus::left_out(&data, Names::Some).map(|text| format!("; {text}"));
        Some(corpus::taken(&data) + &left_out.unwrap_or_default())
    }

    fn validation(&self) -> Option<String> {
        let of_summary = |name: &str| self.told.summary().and_then(|all| all[name].as_f64());
        let mut parts = Vec::new();
        if let Some((step, loss)) = self.history.evaluations().next_back() {
            parts.push(format!("{loss:.4} at step {step}"));
        }
        if let Some((step, loss)) = self.history.best() {
            parts.push(format!("best {loss:.4} at step {step}"));
        }
        parts.extend(of_summary("val_loss").map(|loss| format!("{loss:.4} at the end")));
        parts
            .extend(of_summary("val_bits_per_byte").map(|bits| format!("{bits:.3} bits per byte")));
        parts.extend(of_summary("bigram_bits_per_byte").map(|bits| format!("a bigram {bits:.3}")));
        (!parts.is_empty()).then(|| parts.join(", "))
    }

    fn as_json(&self, next: &NextCommands) -> Result<Value, Failure> {
        let config = serde_json::to_value(&self.config).context("cannot write JSON")?;
        let last = serde_json::to_value(self.history.lines.last()).context("cannot write JSON")?;
        let evaluation = |(step, loss): (u64, f64)| json!({"step": step, "val_loss": loss});
        let evaluations: Vec<Value> = self.history.evaluations().map(evaluation).collect();
        Ok(json!({
            "directory": self.directory.to_string_lossy(),
            "state": self.state.word(),
            "why": self.state.why(),
            "steps": self.steps(),
            "steps_done": self.done,
            "last": last,
            "evaluations": evaluations,
            "best": self.history.best().map(evaluation),
            "tokens_per_s": self.history.speed().map(|speed| speed.tokens_per_s),
            "step_s": self.history.speed().map(|speed| speed.step_s),
            "checkpoints": self.checkpoints.iter().map(Saved::as_json).collect::<Vec<_>>(),
            "config": config,
            "summary": self.told.summary(),
            "notes": self.notes,
            "resume": self.can_go_on().then(|| next.resume()),
        }))
    }
}

/// Rows of a name and a text, which goes on under itself.
fn listed(rows: &[(&str, String)], columns: usize) -> String {
    let row = |(name, text): &(&str, String)| {
        let text = width::folded(text, columns.saturating_sub(11).max(20));
        format!("{name:<10} {}\n", text.replace('\n', "\n         "))
    };
    rows.iter().map(row).collect()
}

/// The configuration in a few lines.
fn configured(config: &Config) -> Vec<(&'static str, String)> {
    let Config { model, train, lr, batch, data, eval, checkpoint, .. } = config;
    let every = |steps: usize| match steps {
        0 => "at the end".to_owned(),
        1 => "after every step".to_owned(),
        steps => format!("every {steps} steps"),
    };
    let source = match &data.source {
        Source::Crates => "crates (Rust sources of dependencies)".to_owned(),
        Source::Path(path) => path.display().to_string(),
    };
    let minutes = match train.minutes_max {
        0.0 => String::new(),
        minutes => format!(" or {minutes} minutes"),
    };
    let family = named(model);
    let numerics = format!("{:?}", train.numerics).to_lowercase();
    vec![
        (
            "model",
            format!(
                "{family}, {} parameters: {}, hidden {}, {} ({} KV), vocabulary {}",
                grouped(model.param_count()),
                counted(model.layers, "layer"),
                model.hidden,
                counted(model.heads, "head"),
                model.kv_heads,
                model.vocab,
            ),
        ),
        (
            "layout",
            format!(
                "{}: {}; {}, ZeRO-{}; {}, {numerics} numerics",
                counted(config.world(), "rank"),
                config.degrees(),
                config.order_of_work(),
                train.zero,
                train.precision,
            ),
        ),
        (
            "data",
            format!(
                "{source}; a step has {} of {}, {}",
                counted(batch.global, "sequence"),
                data.seq,
                counted(config.tokens_per_step(), "token"),
            ),
        ),
        (
            "steps",
            format!(
                "{}{minutes}; {:?} rate, peak {} after {}; validation {}, checkpoints {}",
                grouped(train.steps as u64),
                lr.kind,
                config.optimizer.lr,
                counted(lr.warmup_steps, "step"),
                every(eval.every),
                every(checkpoint.every),
            )
            .to_lowercase(),
        ),
    ]
}
