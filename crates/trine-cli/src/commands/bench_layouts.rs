//! `trine bench layouts`: one rank with all threads against layouts, and what the difference goes to.

use crate::args::BenchLayoutsArgs;
use crate::failure::Failure;
use crate::machine::cores;
use crate::output::{self, Align, Table, counted};
use crate::select;
use std::time::Duration;
use trine_trainer::bench::{CoreTime, Overhead, Part, StepRequest, StepTimes, steps};
use trine_trainer::config::{Config, Setting};

/// Optimizer steps of a turn, unless the options say otherwise.
const STEPS: &str = "train.steps=10";

/// Runs the command.
pub(crate) fn run(args: &BenchLayoutsArgs) -> Result<(), Failure> {
    if args.rounds == 0 {
        return Err(Failure::usage("--rounds 0: must be at least 1; nearest valid: 1"));
    }
    let layouts = layouts(args)?;
    let serial = on_one_rank(&layouts[0])?;
    let head = head(&serial, &layouts, args);
    if !args.json {
        output::print(&head)?;
    }
    let (mut one, mut many) = (Vec::new(), vec![Vec::new(); layouts.len()]);
    for round in 1..=args.rounds {
        one.push(turn(&serial)?);
        for (config, turns) in layouts.iter().zip(&mut many) {
            turns.push(turn(config)?);
            if !args.json {
                let (single, own) = (&one[round - 1], &turns[round - 1]);
                output::print(&line(round, config, single, own))?;
            }
        }
    }
    let results: Vec<_> = layouts
        .iter()
        .zip(&many)
        .map(|(config, turns)| Contest::new(config, &one, turns))
        .collect();
    if args.json {
        return output::print(&as_json(&serial, &results));
    }
    results.iter().try_for_each(|result| output::print(&result.as_text()))
}

/// The run in each layout asked for: everything else is the same.
fn layouts(args: &BenchLayoutsArgs) -> Result<Vec<Config>, Failure> {
    let mut typed = select::typed(&args.config)?;
    typed.settings.insert(0, Setting::set(STEPS));
    if args.layout.is_empty() {
        return Ok(vec![Config::load(&typed)?]);
    }
    let one = |text: &String| {
        let [dp, pp, tp] = degrees(text)?;
        let mut typed = typed.clone();
        let degrees = [("dp", dp), ("pp", pp), ("tp", tp)];
        typed
            .settings
            .extend(degrees.map(|(axis, degree)| Setting::set(&format!("layout.{axis}={degree}"))));
        Ok(Config::load(&typed)?)
    };
    args.layout.iter().map(one).collect()
}

/// `2x1x4`: dp, pp and tp.
fn degrees(text: &str) -> Result<[usize; 3], Failure> {
    let numbers: Option<Vec<usize>> = text.split('x').map(|part| part.parse().ok()).collect();
    numbers.and_then(|numbers| numbers.try_into().ok()).ok_or_else(|| {
        Failure::usage(format!(
            "--layout {text}: must be the degrees dp, pp and tp, three numbers with x between; \
             for example: 2x2x2"
        ))
    })
}

/// The same run on one rank: the same batch, micro-batches and recompute.
fn on_one_rank(config: &Config) -> Result<Config, Failure> {
    let mut serial = config.clone();
    (serial.layout.dp, serial.layout.pp, serial.layout.tp) = (1, 1, 1);
    serial.layout.layers = Vec::new();
    serial.check()?;
    Ok(serial)
}

/// The steps of one turn.
fn turn(config: &Config) -> Result<StepTimes, Failure> {
    let request = StepRequest::plain(cores(), config.train.steps as u64, Duration::ZERO);
    Ok(steps(config, request)?)
}

fn head(serial: &Config, layouts: &[Config], args: &BenchLayoutsArgs) -> String {
    let names: Vec<String> = layouts.iter().map(|config| config.degrees().to_string()).collect();
    format!(
        "{} in {}: one rank with {} against {}, {} of {} a turn in \
         micro-batches of {} × {}, recompute {}, {} turns each\n",
        serial.name,
        serial.train.precision.dtype(),
        counted(cores(), "thread"),
        names.join(", "),
        counted(serial.train.steps, "step"),
        counted(serial.tokens_per_step(), "token"),
        serial.batch.micro,
        serial.data.seq,
        serial.train.recompute,
        args.rounds,
    )
}

fn line(round: usize, config: &Config, one: &StepTimes, many: &StepTimes) -> String {
    let (one, many) = (one.tokens_per_second(), many.tokens_per_second());
    format!(
        "turn {round}: {one:.0} tokens/s on one rank, {many:.0} in {}, ratio {:.3}\n",
        config.degrees(),
        many / one
    )
}

/// A layout beside the single rank, over all turns.
#[derive(Debug)]
struct Contest<'a> {
    config: &'a Config,
    /// tokens/s of the layout over the single rank's, turn by turn, in ascending order.
    ratios: Vec<f64>,
    tokens_per_s: [f64; 2],
    /// Seconds of all cores in a step: the single rank, the layout.
    core_time: [CoreTime; 2],
}

impl<'a> Contest<'a> {
    fn new(config: &'a Config, one: &[StepTimes], many: &[StepTimes]) -> Self {
        let speed = StepTimes::tokens_per_second;
        let pairs = one.iter().zip(many);
        let mut ratios: Vec<f64> = pairs.map(|(one, many)| speed(many) / speed(one)).collect();
        ratios.sort_by(f64::total_cmp);
        let each = [one, many].map(|turns| {
            let steps: usize = turns.iter().map(|turn| turn.steps.len()).sum();
            let time = turns.iter().fold(CoreTime::default(), |sum, turn| sum.and(&turn.core_time));
            let wall: f64 =
                turns.iter().flat_map(|turn| &turn.steps).map(Duration::as_secs_f64).sum();
            let tokens: usize = turns.iter().map(|turn| turn.tokens * turn.steps.len()).sum();
            (tokens as f64 / wall, time.times(1.0 / steps as f64))
        });
        let [(one_speed, one_time), (many_speed, many_time)] = each;
        Self {
            config,
            ratios,
            tokens_per_s: [one_speed, many_speed],
            core_time: [one_time, many_time],
        }
    }

    /// The median ratio and its quartiles.
    fn quartiles(&self) -> [f64; 3] {
        let last = (self.ratios.len() - 1) as f64;
        [0.25, 0.5, 0.75].map(|part| self.ratios[(part * last).round() as usize])
    }

    /// How much more of a part the layout has, as a share of all its core time.
    fn share(&self, part: Part) -> f64 {
        let [one, many] = &self.core_time;
        (many.of(part) - one.of(part)) / many.total()
    }

    fn overhead(&self, overhead: Overhead) -> f64 {
        let parts = Part::ALL.into_iter().filter(|part| part.overhead() == overhead);
        parts.map(|part| self.share(part)).sum()
    }

    /// What is missing to the single rank's speed: all overheads together.
    fn loss(&self) -> f64 {
        let [one, many] = &self.core_time;
        1.0 - one.total() / many.total()
    }

    fn as_text(&self) -> String {
        let [low, median, high] = self.quartiles();
        let percent = |share: f64| decimal(100.0 * share) + " %";
        let mut text = format!(
            "\n{}: median ratio {median:.3} (quartiles {low:.3} and {high:.3})\n",
            self.config.degrees()
        );
        let overheads =
            Overhead::ALL.map(|kind| format!("{} {}", kind.name(), percent(self.overhead(kind))));
        text += &format!(
            "loss over all turns {} = {}\n\n",
            percent(self.loss()),
            overheads.join(" + ")
        );
        let mut table = Table::new(&[
            ("time of all cores in a step", Align::Left),
            ("one rank ms", Align::Right),
            ("layout ms", Align::Right),
            ("more ms", Align::Right),
            ("share", Align::Right),
            ("", Align::Left),
        ]);
        let [one, many] = &self.core_time;
        let mut row = |name: &str, one: f64, many: f64, share: f64, kind: &str| {
            let more = many - one;
            let [one, many, more] = [one, many, more].map(|seconds| decimal(seconds * 1e3));
            table.row([name.to_owned(), one, many, more, percent(share), kind.to_owned()]);
        };
        for part in Part::ALL {
            row(part.name(), one.of(part), many.of(part), self.share(part), part.overhead().name());
        }
        row("all", one.total(), many.total(), self.loss(), "");
        text + &table.render()
    }

    fn as_json(&self) -> serde_json::Value {
        let [low, median, high] = self.quartiles();
        let degrees = self.config.degrees();
        let [one, many] = &self.core_time;
        let parts = Part::ALL.into_iter().map(|part| {
            serde_json::json!({
                "part": part.name(),
                "overhead": part.overhead().name(),
                "one_rank_ms": one.of(part) * 1e3,
                "layout_ms": many.of(part) * 1e3,
                "share": self.share(part),
            })
        });
        let overheads = Overhead::ALL.into_iter().map(|overhead| {
            (overhead.name().replace(' ', "_"), serde_json::json!(self.overhead(overhead)))
        });
        serde_json::json!({
            "dp": degrees.dp,
            "pp": degrees.pp,
            "tp": degrees.tp,
            "tokens_per_s": self.tokens_per_s[1],
            "ratio": { "median": median, "quartiles": [low, high] },
            "loss": self.loss(),
            "overheads": overheads.collect::<serde_json::Map<_, _>>(),
            "parts": parts.collect::<Vec<_>>(),
        })
    }
}

/// One decimal, and no sign before nothing.
fn decimal(number: f64) -> String {
    let text = format!("{number:.1}");
    if text == "-0.0" { "0.0".to_owned() } else { text }
}

fn as_json(serial: &Config, results: &[Contest<'_>]) -> String {
    let layouts: Vec<_> = results.iter().map(Contest::as_json).collect();
    let object = serde_json::json!({
        "name": serial.name,
        "precision": serial.train.precision.to_string(),
        "cores": cores(),
        "tokens_per_step": serial.tokens_per_step(),
        "micro_batch": serial.batch.micro,
        "seq": serial.data.seq,
        "recompute": serial.train.recompute,
        "rounds": results.first().map_or(0, |result| result.ratios.len()),
        "one_rank_tokens_per_s": results.first().map(|result| result.tokens_per_s[0]),
        "layouts": layouts,
    });
    format!("{object}\n")
}
