//! `trine bench step`: training steps by themselves.

use crate::args::BenchStepArgs;
use crate::commands::bench_kernels::isa;
use crate::commands::train::cores;
use crate::failure::Failure;
use crate::output::{Align, Table};
use crate::{output, select};
use std::io::stdin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use trine_kernels::Isa;
use trine_trainer::bench::{StepRequest, StepTimes, Turn, steps, steps_in_turns};
use trine_trainer::config::Config;

/// Steps that are timed at least.
const STEPS_MIN: u64 = 1;

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
    if args.json {
        return in_turns(&config, request, args.turns);
    }
    let times = steps(&config, request)?;
    output::print(&as_text(&config, &times))
}

/// An object for each turn: one, or with `more` as many as there are lines of input, and one more.
fn in_turns(config: &Config, request: StepRequest, more: bool) -> Result<(), Failure> {
    let printed = Mutex::new(Ok(()));
    steps_in_turns(config, request, &|turn| {
        let result = output::print(&as_json(&turn));
        let is_next = result.is_ok() && more && matches!(stdin().lines().next(), Some(Ok(_)));
        *printed.lock().unwrap_or_else(PoisonError::into_inner) = result;
        is_next
    })?;
    printed.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn as_json(times: &Turn<'_>) -> String {
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
         median of {} step(s): {:.1} ms, {:.0} tokens/s, {:.0} GFLOP/s of model FLOPs\n",
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
