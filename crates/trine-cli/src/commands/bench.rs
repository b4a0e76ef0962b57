//! `trine bench step`: training steps by themselves.

use crate::args::BenchStepArgs;
use crate::commands::bench_kernels::isa;
use crate::failure::Failure;
use crate::machine::cores;
use crate::output::{Align, Table, counted};
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
        // Who takes turns with another one measures nothing else.
        ceiling: !args.turns,
    };
    if args.turns {
        return in_turns(&config, request);
    }
    let times = steps(&config, request)?;
    let text =
        if args.json { as_json(times.turn(), times.ceiling) } else { as_text(&config, &times) };
    output::print(&text)
}

/// An object for the first turn, and one for each line of the input.
fn in_turns(config: &Config, request: StepRequest) -> Result<(), Failure> {
    let printed = Mutex::new(Ok(()));
    steps_in_turns(config, request, &|turn| {
        let result = output::print(&as_json(turn, None));
        let is_next = result.is_ok() && matches!(stdin().lines().next(), Some(Ok(_)));
        *printed.lock().unwrap_or_else(PoisonError::into_inner) = result;
        is_next
    })?;
    printed.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn as_json(turn: Turn<'_>, ceiling: Option<f64>) -> String {
    let median_s = turn.median_s();
    let object = serde_json::json!({
        "isa": turn.isa.name(),
        "threads": turn.threads,
        "steps": turn.steps.len(),
        "step_ms": median_s * 1e3,
        "tokens_per_s": turn.tokens as f64 / median_s,
        "model_gflops_per_s": turn.flops / median_s / 1e9,
        "ceiling_gflops_per_s": ceiling.map(|flops| flops / 1e9),
        "loss": turn.loss,
    });
    format!("{object}\n")
}

fn as_text(config: &Config, times: &StepTimes) -> String {
    let median_s = times.median_s();
    let mut text = format!(
        "{}, {} in {}, {} tokens a step, {} a rank, {}\n\
         median of {}: {:.1} ms, {:.0} tokens/s, {:.0} GFLOP/s of model FLOPs\n",
        config.name,
        config.degrees(),
        config.train.precision.dtype(),
        times.tokens,
        counted(times.threads, "thread"),
        times.isa.name(),
        counted(times.steps.len(), "step"),
        median_s * 1e3,
        times.tokens as f64 / median_s,
        times.flops / median_s / 1e9,
    );
    if let Some(ceiling) = times.ceiling {
        // Averages of the same time on both sides.
        let flops = times.flops * times.tokens_per_second() / times.tokens as f64;
        text += &format!(
            "mean of all steps: {:.0} GFLOP/s, {:.1} % of the {:.0} that multiply-adds in registers \
             reach between them\n",
            flops / 1e9,
            100.0 * flops / ceiling,
            ceiling / 1e9,
        );
    }
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
