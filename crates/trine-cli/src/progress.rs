//! A run as a person sees it: a live line on a terminal, plain lines elsewhere.

use crate::corpus;
use crate::output::{self, grouped, human_bytes};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::path::Path;
use std::time::{Duration, Instant};
use trine_data::Progress;
use trine_trainer::run::{DataSummary, Event, MetricsLine, Reporter, Summary, Work};

/// Shows a run's events on standard error; samples and the summary go to standard output.
pub(crate) struct Screen {
    live: Option<ProgressBar>,
    every: Duration,
    last: Option<Instant>,
    last_data: Option<Instant>,
    val_loss: Option<f64>,
    first_step: u64,
    started: Instant,
    resume_by: &'static str,
}

impl Screen {
    /// Live on a terminal, else a line every `every_seconds`. `resume_by` and a run directory go on
    /// with a run as it was started.
    pub(crate) fn new(every_seconds: f64, resume_by: &'static str) -> Self {
        let live = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.set_style(
                ProgressStyle::with_template("{wide_msg}").expect("invariant: a valid template"),
            );
            bar
        });
        Self {
            live,
            every: Duration::from_secs_f64(every_seconds),
            last: None,
            last_data: None,
            val_loss: None,
            first_step: 0,
            started: Instant::now(),
            resume_by,
        }
    }

    /// A line that stays.
    fn say(&self, line: &str) {
        match &self.live {
            Some(bar) => bar.println(output::printable(line)),
            None => output::complain(line),
        }
    }

    /// A line that the next one replaces; elsewhere than on a terminal it is said if it is time.
    fn show(&mut self, line: String) {
        if let Some(bar) = &self.live {
            bar.set_message(output::printable(&line).into_owned());
            bar.tick();
        } else if self.last.is_none_or(|last| last.elapsed() >= self.every) {
            self.last = Some(Instant::now());
            self.say(&line);
        }
    }

    fn data(&mut self, progress: &Progress<'_>) {
        let text = match progress {
            Progress::Reading => "data: reading sources".to_owned(),
            Progress::Waiting => "data: another process prepares the same data; waiting".to_owned(),
            Progress::Reusing(path) => format!("data: using {}", path.display()),
            Progress::Damaged(path) => {
                format!("data: {} is damaged and is made again", path.display())
            }
            Progress::Selecting => "data: removing copies, holding out validation text".to_owned(),
            Progress::TrainingTokenizer { bytes } => {
                format!("data: training the tokenizer on {}", human_bytes(*bytes))
            }
            Progress::Encoding { bytes, bytes_total } => {
                let due = self.last_data.is_none_or(|last| last.elapsed() >= self.every);
                if !due && self.live.is_none() {
                    return;
                }
                self.last_data = Some(Instant::now());
                let line = format!(
                    "data: encoding {} of {}",
                    human_bytes(*bytes),
                    human_bytes(*bytes_total)
                );
                if let Some(bar) = &self.live {
                    bar.set_message(line);
                    return;
                }
                line
            }
            Progress::Writing => "data: writing tokens".to_owned(),
            // The data crate may tell more in the future.
            _ => return,
        };
        self.say(&text);
    }

    /// How far it is with what takes longer than the usual interval.
    fn work(&mut self, work: &Work) {
        match work {
            Work::Step { step, steps, actions_done, actions, elapsed }
                if *elapsed >= self.every =>
            {
                self.show(format!(
                    "step {step}/{steps}: {actions_done} of {actions} actions in {}",
                    clock(*elapsed)
                ));
            }
            Work::Evaluating { batches_done, batches } if *batches_done > 0 => {
                self.show(format!("evaluating: {batches_done} of {batches} batches"));
            }
            Work::Building | Work::Step { .. } | Work::Evaluating { .. } | Work::Saving { .. } => {}
        }
    }

    fn step(&mut self, line: &MetricsLine, steps: u64, rss: Option<u64>) {
        self.val_loss = line.val_loss.or(self.val_loss);
        let done = (line.step - self.first_step).max(1);
        let each = self.started.elapsed().as_secs_f64() / done as f64;
        let eta = Duration::from_secs_f64(each * (steps - line.step) as f64);
        let val = self.val_loss.map_or_else(|| "–".into(), |loss| format!("{loss:.3}"));
        let memory = rss.map_or_else(String::new, |bytes| format!(" · {}", human_bytes(bytes)));
        let text = format!(
            "step {}/{} · loss {:.3} · val {val} · {} tokens/s · ETA {}{memory}",
            line.step,
            steps,
            line.loss,
            grouped(line.tokens_per_s as u64),
            clock(eta),
        );
        if line.step == steps && self.live.is_none() {
            self.last = None;
        }
        self.show(text);
    }
}

fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    if seconds < 3600 {
        format!("{}:{:02}", seconds / 60, seconds % 60)
    } else {
        format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
    }
}

impl Reporter for Screen {
    fn event(&mut self, event: &Event<'_>) {
        match event {
            Event::Data(progress) => self.data(progress),
            Event::Started { config, engine, data, directory, first_step } => {
                self.first_step = *first_step;
                self.started = Instant::now();
                let summary = DataSummary::from(*data);
                self.say(&format!(
                    "data: {}, corpus {}",
                    corpus::taken(&summary),
                    data.corpus_hash
                ));
                if let Some(left_out) = corpus::left_out(&summary) {
                    self.say(&format!("data: {left_out}"));
                }
                let from = if *first_step > 0 {
                    format!(", from step {first_step}")
                } else {
                    String::new()
                };
                self.say(&format!(
                    "run: {} · {} parameters · {} = {} ranks × {} thread(s) · {} · {} steps of {} tokens{from}",
                    directory.display(),
                    grouped(engine.model.param_count()),
                    engine.degrees,
                    engine.degrees.world(),
                    engine.threads,
                    engine.compute,
                    config.train.steps,
                    grouped(config.tokens_per_step() as u64),
                ));
            }
            Event::Outlook(outlook) => self.say(&format!("plan    {outlook}")),
            Event::Work(work) => self.work(work),
            Event::Step { line, steps, rss_bytes } => self.step(line, *steps, *rss_bytes),
            Event::PlanChecked(check) => self.say(crate::plan_check::table(check).trim_end()),
            Event::Note(text) => self.say(text),
            Event::Saved { path } => self.say(&format!("saved {}", path.display())),
            Event::Finished { summary, directory } => {
                if let Some(bar) = &self.live {
                    bar.finish_and_clear();
                }
                // A closed standard output is no failure of the run.
                let _ = output::print(&summary_text(summary, directory, self.resume_by));
            }
            Event::Sample(completion) => {
                let text = format!(
                    "\n--- completion of {:?}\n{}{}\n",
                    completion.prompt, completion.prompt, completion.text
                );
                let _ = output::print(&text);
            }
            // The trainer may tell more in the future.
            _ => {}
        }
    }
}

fn summary_text(summary: &Summary, directory: &Path, resume_by: &str) -> String {
    let optional = |value: Option<f64>| value.map_or_else(|| "–".into(), |v| format!("{v:.4}"));
    let mut text = String::from("\n");
    let mut line = |name: &str, value: String| text.push_str(&format!("  {name:<28} {value}\n"));
    line("parameters", grouped(summary.params));
    line("layout", summary.layout.clone());
    line(
        "steps",
        match &summary.stopped_early {
            Some(why) => format!("{} ({why})", grouped(summary.steps)),
            None if summary.steps_cut => {
                format!("{} (cut to fit the time limit)", grouped(summary.steps))
            }
            None => grouped(summary.steps),
        },
    );
    line("tokens", grouped(summary.tokens));
    line("loss", format!("{:.4} nats per token", summary.final_loss));
    line("validation loss", optional(summary.val_loss));
    line("validation bits per byte", optional(summary.val_bits_per_byte));
    line("  bigram, same tokens", optional(summary.bigram_bits_per_byte));
    line("  bigram, whole split", optional(summary.bigram_full_bits_per_byte));
    if let Some((model, bigram)) = summary.val_bits_per_byte.zip(summary.bigram_bits_per_byte) {
        line("  model / bigram", format!("{:.3}", model / bigram));
    }
    line("tokens per second", grouped(summary.tokens_per_s as u64));
    line("model GFLOP/s", format!("{:.1}", summary.model_flops_per_s / 1e9));
    line("wall time", format!("{:.0} s", summary.wall_s));
    line("peak memory", summary.peak_rss_bytes.map_or_else(|| "–".into(), human_bytes));
    line(
        "bubble",
        format!(
            "{:.1} % measured, {:.1} % predicted",
            100.0 * summary.bubble_measured,
            100.0 * summary.bubble_predicted
        ),
    );
    line("cores idle", format!("{:.1} %", 100.0 * summary.wait_share));
    for rank in &summary.ranks {
        let (planned, measured) = (rank.bytes_planned.total(), rank.bytes_measured.total());
        line(
            &match rank.host.as_str() {
                "" => format!("rank {} ({})", rank.rank, rank.place),
                host => format!("rank {} ({}) on {host}", rank.rank, rank.place),
            },
            format!(
                "{} planned, {} held, {} activations at most",
                human_bytes(planned as u64),
                human_bytes(measured as u64),
                human_bytes(rank.activation_bytes_max as u64),
            ),
        );
    }
    let run = directory.display();
    text.push_str(&format!(
        "\n  resume:   {resume_by} {run}\n  generate: trine generate --run {run} --prompt \"fn main() {{\"\n  inspect:  trine inspect {run}\n"
    ));
    text
}
