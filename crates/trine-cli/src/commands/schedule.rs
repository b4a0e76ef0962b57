//! `trine schedule show` and `trine schedule verify`.

use crate::args::{SHOWN_MAX, ScheduleArgs, ShowArgs, VerifyArgs};
use crate::failure::Failure;
use crate::output::{self, counted};
use crate::terminal::Terminal;
use crate::written::{Kind, Output};
use std::ffi::OsStr;
use std::path::Path;
use trine_schedule::{
    Action, Delivery, Order, Schedule, ScheduleError, ScheduleKind, Shape, UniformCosts,
    UniformStage, draw, lower, simulate,
};

/// Bytes of the longest schedule that is read: a million actions.
const SCHEDULE_BYTES_MAX: u64 = 32 << 20;

/// The most pairs of stage and micro-batch of a drawing.
const PAIRS_MAX: usize = 1 << 20;

/// What stands before the path of a file, where a name could stand.
const FILE: &str = "file:";

/// Pipeline ranks and micro-batches of a named schedule, where none are given.
const RANKS_USUAL: usize = 4;
const MICRO_BATCHES_USUAL: usize = 8;

/// What a schedule is asked for. Times are for drawing too; a proof takes those for which a schedule is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Drawing,
    Proof,
}

/// A schedule that was asked for: whole if it reduces gradients, else without its messages or with them.
struct Asked<'a> {
    /// The file that it is from, and its text; `None` of a named one.
    file: Option<(&'a Path, String)>,
    schedule: Schedule,
}

/// The kind of this name.
fn kind(name: &OsStr) -> Result<ScheduleKind, Failure> {
    name.to_string_lossy().parse().map_err(Failure::usage)
}

/// The path behind `file:`.
fn path(name: &OsStr) -> Option<&Path> {
    name.to_str()?.strip_prefix(FILE).map(Path::new)
}

impl<'a> Asked<'a> {
    fn named(args: &ScheduleArgs, purpose: Use) -> Result<Self, Failure> {
        let kind = kind(&args.name)?;
        let shape = Shape {
            ranks: args.stages.unwrap_or(RANKS_USUAL),
            chunks: args.r#virtual.unwrap_or(kind.info().chunks_usual),
            micro_batches: args.micro_batches.unwrap_or(MICRO_BATCHES_USUAL),
        };
        check_pairs(shape.stages(), shape.micro_batches)?;
        let is_made_for = |_: &UniformStage| purpose == Use::Proof || kind.info().takes_times;
        let times = args.times.filter(is_made_for);
        let schedule = Order::Named(kind).generate(shape, times.as_ref());
        Ok(Self { file: None, schedule: schedule.map_err(Failure::usage)? })
    }

    fn read(path: &'a Path, args: &ScheduleArgs) -> Result<Self, Failure> {
        let given = [
            ("--stages", args.stages),
            ("--virtual", args.r#virtual),
            ("--micro-batches", args.micro_batches),
        ];
        if let Some((option, Some(number))) = given.iter().find(|(_, number)| number.is_some()) {
            return Err(Failure::usage(format!(
                "{option} {number}: the shape of a schedule from a file is that of its lists; leave {option}"
            )));
        }
        let name = path.display();
        let text = trine_files::read_text(path, SCHEDULE_BYTES_MAX).map_err(|error| {
            Failure::usage(format!("{name}: cannot read the schedule: {error}"))
        })?;
        let schedule = text
            .parse::<Schedule>()
            .map_err(|error| Failure::usage(format!("{name}: {}", error.in_text(&text))))?;
        let ranks = schedule.ranks();
        if ranks > SHOWN_MAX && schedule.actions.iter().flatten().all(Action::is_compute) {
            return Err(Failure::usage(format!(
                "{name}: lists of {ranks} ranks without messages; those of at most {SHOWN_MAX} are given some"
            )));
        }
        Ok(Self { file: Some((path, text)), schedule })
    }

    /// The schedule with its messages.
    fn whole(&self) -> Result<Schedule, Failure> {
        let is_whole = self.schedule.sync.is_some();
        if is_whole { Ok(self.schedule.clone()) } else { self.right(lower(&self.schedule, None)) }
    }

    /// Says of an error which file it is about, and which line.
    fn right<T>(&self, found: Result<T, ScheduleError>) -> Result<T, Failure> {
        found.map_err(|error| {
            Failure::Run(match &self.file {
                Some((path, text)) => {
                    anyhow::anyhow!("{}: {}", path.display(), error.in_text(text))
                }
                None => anyhow::anyhow!("{error}"),
            })
        })
    }
}

/// Draws a schedule, with the times that are given: forward 1, input gradient 1 and weight gradient 1 unit of time,
/// messages free if none are.
pub(crate) fn show(args: &ShowArgs, terminal: &Terminal) -> Result<(), Failure> {
    let asked = match path(&args.schedule.name) {
        Some(path) => Asked::read(path, &args.schedule)?,
        None => Asked::named(&args.schedule, Use::Drawing)?,
    };
    check_pairs(asked.schedule.stages(), asked.schedule.micro_batches)?;
    let schedule = asked.whole()?;
    if args.text {
        return output::print(&schedule.to_string());
    }
    let costs = match &args.schedule.times {
        Some(times) => UniformCosts::of(&schedule, times),
        None => UniformCosts::new(&schedule),
    };
    let timeline = asked.right(simulate(&schedule, Delivery::Buffered, &costs))?;
    match &args.svg {
        Some(path) => {
            let inputs: Vec<&Path> = asked.file.iter().map(|(path, _)| *path).collect();
            let out = Output { option: "--svg", path, kind: Kind::Svg };
            out.write(&draw::svg(&timeline), &inputs)?;
            output::print(&format!(
                "{}: {}, {}\n",
                path.display(),
                counted(schedule.stages(), "stage"),
                counted(schedule.micro_batches, "micro-batch"),
            ))
        }
        None => output::print(&draw::ascii(
            &timeline,
            args.columns.unwrap_or_else(|| terminal.output_columns()),
        )),
    }
}

/// Refuses what would be too large to look at, and would take minutes to make.
fn check_pairs(stages: usize, micro_batches: usize) -> Result<(), Failure> {
    let pairs = stages.saturating_mul(micro_batches);
    if pairs <= PAIRS_MAX {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "{stages} stages × {micro_batches} micro-batches: {pairs} pairs of stage and micro-batch; at most {PAIRS_MAX} \
         are looked at"
    )))
}

/// Proves a schedule. A path alone is a file too, unless it is a name and there is no such file.
pub(crate) fn verify(args: &VerifyArgs) -> Result<(), Failure> {
    let args = &args.schedule;
    let is_name = kind(&args.name).is_ok() && !Path::new(&args.name).exists();
    let asked = match path(&args.name) {
        Some(path) => Asked::read(path, args)?,
        None if is_name => Asked::named(args, Use::Proof)?,
        None => Asked::read(Path::new(&args.name), args)?,
    };
    if asked.file.is_some() && args.times.is_some() {
        let rule = "--times: a schedule from a file is made already; leave --times, or draw it with `show`";
        return Err(Failure::usage(rule));
    }
    let schedule = asked.whole()?;
    let report = asked.right(trine_schedule::verify(&schedule).map_err(ScheduleError::from))?;
    let source = asked.file.as_ref().map(|(path, _)| format!("{}: ", path.display()));
    output::print(&format!(
        "{}{} is right: {} on {}, {}\n\
         {} of stage and micro-batch, {}, {}, {} reduced\n\
         activations in flight at most {:?}; no deadlock with buffered or rendezvous delivery\n",
        source.unwrap_or_default(),
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
