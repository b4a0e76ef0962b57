//! A run as a person sees it: a bar and a trail of evaluations on a terminal, plain lines elsewhere.

use crate::corpus::{self, Names};
use crate::failure::Failure;
use crate::output::{self, counted, grouped, human_bytes};
use crate::report::{self, NextCommands};
use crate::terminal::{Style, Terminal, Volume};
use crate::width;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::{Duration, Instant};
use trine_data::{CorpusReport, Progress};
use trine_trainer::config::Config;
use trine_trainer::engine::EngineConfig;
use trine_trainer::run::{Completion, DataSummary, Event, MetricsLine, Reporter, Work};

/// How often a live line moves by itself, so that a long step does not look like a dead one.
const TICK: Duration = Duration::from_millis(125);

/// The validation loss after a step.
#[derive(Debug, Clone, Copy)]
struct Evaluation {
    step: u64,
    loss: f64,
}

/// Shows a run's events on standard error; samples and the summary go to standard output.
pub(crate) struct Screen {
    terminal: Terminal,
    live: Option<ProgressBar>,
    every: Duration,
    last: Option<Instant>,
    last_data: Option<Instant>,
    /// Whether a line of the work under way was said.
    work_is_told: bool,
    evaluation: Option<Evaluation>,
    best: Option<Evaluation>,
    first_step: u64,
    started: Instant,
    /// When a time limit ends the run.
    ends_by: Option<Instant>,
    next: NextCommands,
    /// The first failure to print a result.
    failed: Option<Failure>,
}

impl Screen {
    /// Live on a terminal, else a line every `every_seconds`. `resume_by` and a run directory go on
    /// with a run as it was started.
    pub(crate) fn new(terminal: &Terminal, every_seconds: f64, resume_by: String) -> Self {
        let live = terminal.is_live.then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{spinner} {wide_msg}");
            bar.set_style(style.expect("invariant: a valid template"));
            bar.enable_steady_tick(TICK);
            bar
        });
        Self {
            live,
            every: Duration::from_secs_f64(every_seconds),
            last: None,
            last_data: None,
            work_is_told: false,
            evaluation: None,
            best: None,
            first_step: 0,
            started: Instant::now(),
            ends_by: None,
            next: NextCommands::new(terminal, resume_by),
            failed: None,
            terminal: terminal.clone(),
        }
    }

    /// The run is over: takes the live line away, and says whether all results could be printed.
    pub(crate) fn end(self) -> Result<(), Failure> {
        if let Some(bar) = &self.live {
            bar.finish_and_clear();
        }
        self.failed.map_or(Ok(()), Err)
    }

    /// A line that stays.
    fn say(&self, line: &str) {
        match &self.live {
            Some(bar) => {
                let folded = width::folded(line, self.terminal.error_columns());
                bar.println(output::printable(&folded));
            }
            None => output::complain(line),
        }
    }

    /// The same, unless nobody wants to know how it goes.
    fn tell(&self, line: &str) {
        if self.terminal.volume != Volume::Quiet {
            self.say(line);
        }
    }

    /// Prints a part of the result.
    fn print(&mut self, text: &str) {
        if let Err(failure) = output::print_painted(text) {
            self.failed.get_or_insert(failure);
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
                let is_last = bytes == bytes_total;
                let due = is_last || self.last_data.is_none_or(|at| at.elapsed() >= self.every);
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
        self.tell(&text);
    }

    fn start(&mut self, config: &Config, engine: &EngineConfig, data: &CorpusReport) {
        let summary = DataSummary::from(data);
        let names = match self.terminal.volume {
            Volume::Verbose => Names::Some,
            Volume::Normal | Volume::Quiet => Names::None,
        };
        self.tell(&format!("data: {}, corpus {}", corpus::taken(&summary), data.corpus_hash));
        if let Some(left_out) = corpus::left_out(&summary, names) {
            self.tell(&format!("data: {left_out}"));
        }
        self.started = Instant::now();
        self.next.set_prompt(config);
        let from = match self.first_step {
            0 => String::new(),
            step => format!(", from step {step}"),
        };
        self.tell(&format!(
            "run: {} · {} parameters · {} = {} × {} · {} · {} of {} tokens{from}",
            self.next.directory(),
            grouped(engine.model.param_count()),
            engine.degrees,
            counted(engine.degrees.world(), "rank"),
            counted(engine.threads, "thread"),
            engine.compute,
            counted(config.train.steps, "step"),
            grouped(config.tokens_per_step() as u64),
        ));
    }

    /// How far it is with what takes longer than the usual interval.
    fn work(&mut self, work: &Work) {
        match work {
            Work::Measuring => self.tell("times: measuring F, B and W of a stage, and a message"),
            Work::Step { step, steps, actions_done, actions, elapsed }
                if *elapsed >= self.every =>
            {
                self.work_line(
                    format!(
                        "step {step}/{steps}: {actions_done} of {} in {}",
                        counted(*actions, "action"),
                        clock(*elapsed)
                    ),
                    false,
                );
            }
            Work::Evaluating { batches_done, batches } if *batches_done > 0 => {
                let of = counted(*batches as usize, "batch");
                self.work_line(
                    format!("evaluating: {batches_done} of {of}"),
                    batches_done == batches,
                );
            }
            Work::Building | Work::Step { .. } | Work::Evaluating { .. } | Work::Saving { .. } => {}
        }
    }

    /// A line that the next one replaces; elsewhere than on a terminal it is said if it is time, or if it
    /// is the last after one that was said.
    fn work_line(&mut self, line: String, is_last: bool) {
        if let Some(bar) = &self.live {
            bar.set_message(output::printable(&line).into_owned());
            return;
        }
        let is_due = self.last.is_none_or(|last| last.elapsed() >= self.every);
        if is_due || is_last && self.work_is_told {
            self.last = Some(Instant::now());
            self.tell(&line);
        }
        self.work_is_told = !is_last && (is_due || self.work_is_told);
    }

    fn step(&mut self, line: &MetricsLine, steps: u64, rss: Option<u64>) {
        let before = self.evaluation;
        if let Some(loss) = line.val_loss {
            let now = Evaluation { step: line.step, loss };
            self.evaluation = Some(now);
            self.best = self.best.filter(|best| best.loss <= loss).or(Some(now));
        }
        let left = self.left(line.step, steps);
        match &self.live {
            Some(bar) => {
                if line.val_loss.is_some() {
                    let trail = self.trail(line, steps, before);
                    bar.println(trail);
                }
                let columns = self.terminal.error_columns().saturating_sub(2);
                let part = line.step as f64 / steps.max(1) as f64;
                let fields = self.fields(line, steps, left, rss);
                bar.set_message(width::bar_line(&fields, part, columns, self.terminal.errors));
            }
            None => self.plain_step(line, steps, left, rss),
        }
    }

    /// The time that the steps left will take, or what the time limit leaves of it.
    fn left(&self, step: u64, steps: u64) -> Duration {
        let done = (step - self.first_step).max(1);
        let each = self.started.elapsed().as_secs_f64() / done as f64;
        let left = Duration::from_secs_f64(each * steps.saturating_sub(step) as f64);
        let limit = self.ends_by.map(|end| end.saturating_duration_since(Instant::now()));
        limit.map_or(left, |limit| limit.min(left))
    }

    /// A line if it is time, or if it says more than the next one.
    fn plain_step(&mut self, line: &MetricsLine, steps: u64, left: Duration, rss: Option<u64>) {
        let is_due = self.last.is_none_or(|last| last.elapsed() >= self.every);
        let is_wanted = line.val_loss.is_some() || line.step == steps;
        let is_verbose = self.terminal.volume == Volume::Verbose;
        if is_due || is_wanted || is_verbose {
            self.last = Some(Instant::now());
            let mut fields: Vec<String> =
                self.fields(line, steps, left, rss).into_iter().map(|field| field.text).collect();
            if is_verbose {
                fields.push(format!("gradient norm {:.3}", line.grad_norm));
                fields.push(format!("rate {:.3e}", line.lr));
                fields.push(format!("{:.0} ms", line.step_ms));
            }
            self.tell(&fields.join(" · "));
        }
    }

    /// What a step says, most important first where the place is short.
    fn fields(
        &self,
        line: &MetricsLine,
        steps: u64,
        left: Duration,
        rss: Option<u64>,
    ) -> Vec<width::Field> {
        let validation = match self.evaluation {
            None => "val –".into(),
            Some(Evaluation { step, loss }) if step == line.step => format!("val {loss:.3}"),
            Some(Evaluation { step, loss }) => format!("val {loss:.3} (step {step})"),
        };
        let field = |rank, text: String| width::Field { rank, text };
        let mut fields = vec![
            field(0, format!("step {}/{steps}", line.step)),
            field(1, format!("loss {:.3}", line.loss)),
            field(3, validation),
            field(4, format!("{} tokens/s", grouped(line.tokens_per_s as u64))),
            field(2, format!("ETA {}", clock(left))),
        ];
        fields.extend(rss.map(|bytes| field(5, human_bytes(bytes))));
        fields
    }

    /// An evaluation as a line that stays: the loss, and what has become of it.
    fn trail(&self, line: &MetricsLine, steps: u64, before: Option<Evaluation>) -> String {
        let (Some(now), Some(best)) = (self.evaluation, self.best) else { return String::new() };
        let paint = self.terminal.errors;
        let change = before.map_or(0.0, |before| now.loss - before.loss);
        let change = match before {
            None => String::new(),
            Some(_) if best.step == now.step => {
                paint.text(Style::Good, &format!("{change:+.3}, the best"))
            }
            Some(_) => {
                let text = format!("{change:+.3}, best {:.3} at step {}", best.loss, best.step);
                paint.text(Style::Warning, &text)
            }
        };
        let digits = steps.to_string().len();
        let line = format!(
            "{} step {:>digits$}  loss {:.3}  validation {}  {change}",
            paint.text(Style::Faint, &format!("{:>7}", clock(self.started.elapsed()))),
            now.step,
            line.loss,
            paint.text(Style::Validation, &format!("{:.3}", now.loss)),
        );
        line.trim_end().to_owned()
    }

    fn sample(&mut self, completion: &Completion) {
        let paint = self.terminal.output;
        let head = paint.text(Style::Faint, &format!("--- completion of {:?}", completion.prompt));
        let prompt = paint.text(Style::Strong, &completion.prompt);
        self.print(&format!("\n{head}\n{prompt}{}\n", completion.text));
    }
}

/// Minutes and seconds, from an hour on hours too.
pub(crate) fn clock(time: Duration) -> String {
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
            Event::Planned(_) => {}
            Event::Measured(times) => self.tell(&format!("times measured: {times}")),
            Event::Data(progress) => self.data(progress),
            Event::Started { config, engine, data, directory, first_step, ends_by } => {
                (self.first_step, self.ends_by) = (*first_step, *ends_by);
                self.next.set_directory(directory);
                self.start(config, engine, data);
            }
            Event::Devices(said) => self.tell(said),
            Event::Outlook(outlook) => self.tell(&format!("plan    {outlook}")),
            Event::Work(work) => self.work(work),
            Event::Step { line, steps, rss_bytes } => self.step(line, *steps, *rss_bytes),
            Event::PlanChecked(check) if self.live.is_some() => {
                self.say(&crate::plan_check::line(check));
            }
            Event::PlanChecked(check) => self.tell(crate::plan_check::table(check).trim_end()),
            Event::Note(text) => self.say(text),
            Event::Saved { path } => self.tell(&format!("saved {}", path.display())),
            Event::Finished { summary, directory } => {
                if let Some(bar) = &self.live {
                    bar.finish_and_clear();
                }
                self.next.set_directory(directory);
                self.print(&report::summary(summary, &self.next));
            }
            Event::Sample(completion) => self.sample(completion),
            // The trainer may tell more in the future.
            _ => {}
        }
    }
}
