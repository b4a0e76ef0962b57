//! `trine plan --measure`: this machine as a cluster file.

use super::task;
use crate::failure::Failure;
use crate::plan_args::SearchArgs;
use crate::written::{Kind, Output};
use crate::{machine, output};

/// Measures, and prints or writes.
pub(crate) fn run(args: &SearchArgs) -> Result<(), Failure> {
    let compute = task::measured_type(args.task.precision.as_deref())?;
    let out = args.out.as_deref();
    let out = out.map(|path| Output { option: "--out", path, kind: Kind::Machine });
    // Found out now, and not after the measurement.
    let _claimed = out.map(|out| out.claim(&[])).transpose()?;
    let text = task::measured(&args.task, compute)?
        .to_toml()
        .map_err(|error| Failure::Run(error.into()))?;
    let Some(out) = out else { return output::print(&text) };
    out.write(&text, &[])?;
    output::print(&format!(
        "wrote {at}: trine plan --cluster {name} --cluster-file {at}, trine train --machine {at}\n",
        at = out.path.display(),
        name = machine::THIS_MACHINE
    ))
}
