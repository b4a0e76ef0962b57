//! `trine plan --measure`: this machine as a cluster file.

use super::task;
use crate::failure::Failure;
use crate::plan_args::SearchArgs;
use crate::{machine, output};
use anyhow::Context;
use std::fs::File;

/// Measures, and prints or writes.
pub(crate) fn run(args: &SearchArgs) -> Result<(), Failure> {
    let compute = task::measured_type(args.task.precision.as_deref())?;
    if let Some(path) = &args.out {
        // Found out now, and not after the measurement.
        File::options().append(true).create(true).open(path).map_err(|error| {
            Failure::usage(format!("--out {}: cannot write it: {error}", path.display()))
        })?;
    }
    let text = machine::measure(compute)?.to_toml().map_err(|error| Failure::Run(error.into()))?;
    let Some(path) = &args.out else { return output::print(&text) };
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    output::print(&format!(
        "wrote {at}: trine plan --cluster {name} --cluster-file {at}, trine train --machine {at}\n",
        at = path.display(),
        name = machine::THIS_MACHINE
    ))
}
