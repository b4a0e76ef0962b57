//! `trine bench layouts`.

use crate::args::BenchLayoutsArgs;
use crate::commands::train::cores;
use crate::failure::Failure;
use crate::{output, select};
use trine_trainer::bench::tokens_per_second;
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
    let steps = serial.train.steps as u64;
    let mut ratios = Vec::new();
    for round in 1..=rounds {
        let one = tokens_per_second(serial, cores, steps)?;
        let many = tokens_per_second(parallel, cores, steps)?;
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
