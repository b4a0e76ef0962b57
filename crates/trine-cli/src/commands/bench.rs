//! `trine bench`: layouts against each other, and a step by itself.

use crate::args::{BenchLayoutsArgs, BenchStepArgs};
use crate::commands::bench_kernels::isa;
use crate::commands::train::cores;
use crate::failure::Failure;
use crate::output::{Align, Table};
use crate::{output, select};
use std::time::Duration;
use trine_kernels::Isa;
use trine_trainer::bench::{StepRequest, StepTimes, steps};
use trine_trainer::config::{Config, Setting};

/// Optimizer steps of a turn, unless the options say otherwise.
const STEPS: &str = "train.steps=10";

/// Runs the command.
pub(crate) fn layouts(args: &BenchLayoutsArgs) -> Result<(), Failure> {
    if args.rounds == 0 {
        return Err(Failure::usage("--rounds 0: must be at least 1; nearest valid: 1"));
    }
    let (serial, parallel) = contestants(args)?;
    alternate(&serial, &parallel, args.rounds)
}

/// The same run on one rank, and in the layout asked for.
fn contestants(args: &BenchLayoutsArgs) -> Result<(Config, Config), Failure> {
    let mut typed = select::typed(&args.config)?;
    typed.settings.insert(0, Setting::set(STEPS));
    let parallel = Config::load(&typed)?;
    let mut serial = parallel.clone();
    (serial.layout.dp, serial.layout.pp, serial.layout.tp) = (1, 1, 1);
    serial.layout.sequence_parallel = false;
    serial.layout.layers = Vec::new();
    serial.check()?;
    Ok((serial, parallel))
}

/// Lets the two take turns, so that a machine that slows down slows both.
fn alternate(serial: &Config, parallel: &Config, rounds: usize) -> Result<(), Failure> {
    let cores = cores();
    output::print(&format!(
        "one rank with {cores} thread(s) against {}, {} steps of {} tokens a turn, {rounds} turns each\n",
        parallel.degrees(),
        serial.train.steps,
        serial.tokens_per_step(),
    ))?;
    let (steps_min, time_min) = (serial.train.steps as u64, Duration::ZERO);
    let request = StepRequest { cores, steps_min, time_min, isa: None, profile: false };
    let mut ratios = Vec::new();
    for round in 1..=rounds {
        let one = steps(serial, request)?.tokens_per_second();
        let many = steps(parallel, request)?.tokens_per_second();
        ratios.push(many / one);
        output::print(&format!(
            "turn {round}: {one:.0} tokens/s on one rank, {many:.0} in the layout, ratio {:.3}\n",
            many / one
        ))?;
    }
    ratios.sort_by(f64::total_cmp);
    let at = |part: f64| ratios[(part * (ratios.len() - 1) as f64).round() as usize];
    output::print(&format!(
        "median ratio {:.3} (quartiles {:.3} and {:.3})\n",
        at(0.5),
        at(0.25),
        at(0.75)
    ))
}

/// Steps that are timed at least.
const STEPS_MIN: u64 = 3;

/// `trine bench step`: training steps on synthetic tokens.
pub(crate) fn step(args: &BenchStepArgs) -> Result<(), Failure> {
    if !(args.seconds >= 0.0 && args.seconds <= 3600.0) {
        let seconds = args.seconds;
        return Err(Failure::usage(format!("--seconds {seconds}: must be 0 to 3600")));
    }
    let config = Config::load(&select::typed(&args.config)?)?;
    let request = StepRequest {
        cores: cores(),
        steps_min: STEPS_MIN,
        time_min: Duration::from_secs_f64(args.seconds),
        isa: args.isa.as_deref().map(|name| isa(name, Isa::detect())).transpose()?,
        profile: args.profile,
    };
    let times = steps(&config, request)?;
    let text = if args.json { as_json(&times) } else { as_text(&config, &times) };
    output::print(&text)
}

fn as_json(times: &StepTimes) -> String {
    let median_s = times.median_s();
    let object = serde_json::json!({
        "isa": times.isa.name(),
        "threads": times.threads,
        "steps": times.steps.len(),
        "step_ms": median_s * 1e3,
        "tokens_per_s": times.tokens as f64 / median_s,
        "model_gflops_per_s": times.flops / median_s / 1e9,
        "loss": times.loss,
    });
    format!("{object}\n")
}

fn as_text(config: &Config, times: &StepTimes) -> String {
    let median_s = times.median_s();
    let mut text = format!(
        "{}, {} in {}, {} tokens a step, {} thread(s) a rank, {}\n\
         median of {} steps: {:.1} ms, {:.0} tokens/s, {:.0} GFLOP/s of model FLOPs\n",
        config.name,
        config.degrees(),
        config.train.precision.dtype(),
        times.tokens,
        times.threads,
        times.isa.name(),
        times.steps.len(),
        median_s * 1e3,
        times.tokens as f64 / median_s,
        times.flops / median_s / 1e9,
    );
    if !times.kernels.is_empty() {
        text += "\n";
        text += &profile(config, times);
    }
    text
}

/// Time a step by kernel, the longest first; ranks are added up.
fn profile(config: &Config, times: &StepTimes) -> String {
    let steps = times.steps.len() as f64;
    let step_ms = times.steps.iter().sum::<Duration>().as_secs_f64() * 1e3 / steps;
    let all_ms = step_ms * config.world() as f64;
    let mut table = Table::new(&[
        ("kernel", Align::Left),
        ("calls a step", Align::Right),
        ("ms a step", Align::Right),
        ("share", Align::Right),
        ("GFLOP/s", Align::Right),
    ]);
    let mut kernels: Vec<_> = times.kernels.iter().collect();
    kernels.sort_by_key(|(_, time)| std::cmp::Reverse(time.time));
    let mut rest_ms = all_ms;
    let mut row = |name: &str, calls: String, ms: f64, speed: String| {
        let share = format!("{:.1} %", 100.0 * ms / all_ms);
        table.row([name.to_owned(), calls, format!("{ms:.2}"), share, speed]);
    };
    for (name, time) in kernels {
        let ms = time.time.as_secs_f64() * 1e3 / steps;
        rest_ms -= ms;
        let gflops = time.flops / time.time.as_secs_f64() / 1e9;
        let speed = if time.flops > 0.0 { format!("{gflops:.0}") } else { String::new() };
        row(name, format!("{:.0}", time.calls as f64 / steps), ms, speed);
    }
    row("outside kernels", String::new(), rest_ms, String::new());
    table.render()
}
