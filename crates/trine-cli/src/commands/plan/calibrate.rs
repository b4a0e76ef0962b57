//! `trine plan calibrate`: fits the constants and says how good they are.

use crate::failure::Failure;
use crate::output::{self, counted};
use crate::plan_args::CalibrateArgs;
use crate::written::{Kind, Output};
use trine_plan::calibrate::{Fit, fit_rows, leave_one_source_out};
use trine_plan::evaluate::{Compared, World, quantile};
use trine_plan::published::{self, PublishedRun};
use trine_plan::{Constants, clusters, stacks};

/// Runs the command.
pub(crate) fn run(args: &CalibrateArgs) -> Result<(), Failure> {
    let out = args.out.as_deref();
    let out = out.map(|path| Output { option: "--out", path, kind: Kind::Constants });
    out.map_or(Ok(()), |out| out.check(&[]))?;
    let clusters = clusters(&[]).map_err(Failure::usage)?;
    let stacks = stacks().map_err(Failure::usage)?;
    let rows = published::built_in(&clusters, &stacks).map_err(Failure::usage)?;
    let start = Constants::priors().map_err(Failure::usage)?;
    let chosen = fit_rows(&rows, &clusters);
    let fit = Fit { clusters: &clusters, stacks: &stacks, start: &start };
    let on: Vec<&PublishedRun> =
        rows.iter().zip(&chosen).filter(|(_, fit)| **fit).map(|(row, _)| row).collect();
    let constants = fit.run(&on).map_err(Failure::usage)?;
    let mut text = format!(
        "{} of {} rows are for the fit (FNV-1a of row_id mod 4 = 0; equal layouts by their smallest row_id)\n",
        on.len(),
        rows.len()
    );
    let world = World { clusters: &clusters, stacks: &stacks, constants: &constants };
    let compared = world.compare(&rows).map_err(Failure::usage)?;
    for (side, name) in [(true, "in the fit"), (false, "outside")] {
        let of = |error: fn(&Compared<'_>) -> Option<f64>| -> Vec<f64> {
            let rows = compared.iter().zip(&chosen).filter(|(_, fit)| **fit == side);
            rows.filter_map(|(row, _)| error(row)).map(f64::abs).collect()
        };
        text += &line(&format!("time, {name}"), &of(|row| row.time_error()));
        text += &line(&format!("memory, {name}"), &of(|row| row.memory_error()));
    }
    if args.leave_one_source_out {
        text += "time, each source without its own rows in the fit:\n";
        let left = leave_one_source_out(&fit, &rows, &chosen).map_err(Failure::usage)?;
        let all: Vec<f64> = left.iter().flat_map(|(_, errors)| errors.clone()).collect();
        for (source, errors) in &left {
            text += &line(source, errors);
        }
        text += &line("all of them", &all);
    }
    match out {
        Some(out) => {
            out.write(&constants.to_toml(), &[])?;
            text += &format!("constants: {}\n", out.path.display());
        }
        None => text += &constants.to_toml(),
    }
    output::print(&text)
}

fn line(name: &str, errors: &[f64]) -> String {
    let percent = |share: f64| {
        quantile(errors, share).map_or("-".into(), |value| format!("{:.1} %", 100.0 * value))
    };
    let rows = counted(errors.len(), "row");
    format!("{name}: {rows}, median {}, p90 {}\n", percent(0.5), percent(0.9))
}
