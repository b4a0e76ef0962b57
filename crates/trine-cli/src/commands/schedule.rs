//! `trine schedule show` and `trine schedule verify`.

use crate::args::{ShowArgs, VerifyArgs};
use crate::failure::Failure;
use crate::output::{self, counted};
use crate::terminal::Terminal;
use crate::written::{Kind, Output};
use anyhow::Context;
use trine_schedule::{
    Delivery, Schedule, ScheduleKind, Shape, UniformCosts, draw, lower, simulate,
};

/// Bytes of the longest schedule that is read: a million actions.
const SCHEDULE_BYTES_MAX: u64 = 32 << 20;

/// The most pairs of stage and micro-batch of a drawing.
const PAIRS_MAX: usize = 1 << 20;

/// Draws a schedule: forward 1, input gradient 1 and weight gradient 1 unit of time, messages free.
pub(crate) fn show(args: &ShowArgs, terminal: &Terminal) -> Result<(), Failure> {
    let kind: ScheduleKind = args.name.parse().map_err(Failure::usage)?;
    let shape = Shape {
        ranks: args.stages,
        chunks: args.r#virtual.unwrap_or(kind.info().chunks_usual),
        micro_batches: args.micro_batches,
    };
    check_drawable(shape)?;
    let order = kind.generate_shape(shape).map_err(Failure::usage)?;
    let schedule = lower(&order, None).context("cannot complete the schedule")?;
    if args.text {
        return output::print(&schedule.to_string());
    }
    let costs = UniformCosts::new(&schedule);
    let timeline = simulate(&schedule, Delivery::Buffered, &costs).context("cannot simulate")?;
    match &args.svg {
        Some(path) => {
            let out = Output { option: "--svg", path, kind: Kind::Svg };
            out.write(&draw::svg(&timeline), &[])?;
            output::print(&format!(
                "{}: {}, {}\n",
                path.display(),
                counted(shape.stages(), "stage"),
                counted(args.micro_batches, "micro-batch"),
            ))
        }
        None => output::print(&draw::ascii(
            &timeline,
            args.columns.unwrap_or_else(|| terminal.output_columns()),
        )),
    }
}

/// Refuses what would be too large to look at, and would take minutes to make.
fn check_drawable(shape: Shape) -> Result<(), Failure> {
    let Shape { ranks, chunks, micro_batches } = shape;
    let pairs = ranks.saturating_mul(chunks).saturating_mul(micro_batches);
    if pairs <= PAIRS_MAX {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "ranks × stages on each × micro-batches = {ranks} × {chunks} × {micro_batches}: {pairs} pairs of stage and \
         micro-batch; a drawing has at most {PAIRS_MAX}"
    )))
}

/// Proves a schedule that was written as text.
pub(crate) fn verify(args: &VerifyArgs) -> Result<(), Failure> {
    let name = args.file.display();
    let text = trine_files::read_text(&args.file, SCHEDULE_BYTES_MAX)
        .map_err(|error| Failure::usage(format!("{name}: cannot read the schedule: {error}")))?;
    let schedule: Schedule =
        text.parse().map_err(|error| Failure::usage(format!("{name}: {error}")))?;
    let report = trine_schedule::verify(&schedule)
        .map_err(|error| Failure::Run(anyhow::anyhow!("{name}: {error}")))?;
    output::print(&format!(
        "{name}: {} is right: {} on {}, {}\n\
         {} of stage and micro-batch, {}, {}, {} reduced\n\
         activations in flight at most {:?}; no deadlock with buffered or rendezvous delivery\n",
        schedule.name,
        counted(schedule.stages(), "stage"),
        counted(schedule.ranks(), "rank"),
        counted(schedule.micro_batches, "micro-batch"),
        counted(report.pairs, "pair"),
        counted(report.messages, "message"),
        counted(report.exchanges, "exchange"),
        counted(report.buckets, "bucket"),
        report.in_flight_peak,
    ))
}
