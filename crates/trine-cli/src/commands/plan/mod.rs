//! `trine plan`: what a run would take, before a device is used.

mod again;
mod calibrate;
mod evaluate;
mod given;
mod measure;
mod runnable;
mod scale;
mod search;
mod source;
mod task;

use crate::failure::Failure;
use crate::plan_args::{PlanArgs, PlanCommand};

/// Dispatches the subcommands; without one, searches.
pub(crate) fn run(args: &PlanArgs) -> Result<(), Failure> {
    match &args.command {
        None if args.search.measure => measure::run(&args.search),
        None => search::run(&args.search),
        Some(PlanCommand::Scale(args)) => scale::run(args),
        Some(PlanCommand::Evaluate(args)) => evaluate::run(args),
        Some(PlanCommand::Calibrate(args)) => calibrate::run(args),
    }
}
