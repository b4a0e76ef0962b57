//! `trine bench layouts`.

use crate::args::BenchLayoutsArgs;
use crate::failure::Failure;
use crate::select;
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
fn alternate(_serial: &Config, _parallel: &Config, _rounds: usize) -> Result<(), Failure> {
    Err(Failure::Run(anyhow::anyhow!("this build of trine cannot measure layouts yet")))
}
