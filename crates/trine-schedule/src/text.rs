//! The text form, writing side. The grammar is in `docs/schedule.md`.

use std::fmt;

use crate::{Action, Compute, Message, Payload, Reduction, Schedule, Transfer};

/// Lines of actions are broken before this column.
const COLUMNS_MAX: usize = 100;

/// A segment behind a slash; all of them need no word.
struct Segment(Option<usize>);

impl fmt::Display for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(segment) => write!(f, "/{segment}"),
            None => Ok(()),
        }
    }
}

fn write_transfer(f: &mut fmt::Formatter<'_>, verb: char, transfer: &Transfer) -> fmt::Result {
    let Transfer { payload, stage, micro_batch, peer } = transfer;
    let payload = match payload {
        Payload::Activation => 'A',
        Payload::Gradient => 'G',
    };
    let direction = if verb == 'S' { '>' } else { '<' };
    write!(f, "{verb}{payload}{stage}.{micro_batch}{direction}{peer}")
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::Compute(compute) => compute.fmt(f),
            Action::Message(message) => message.fmt(f),
            Action::Sync(reduction) => reduction.fmt(f),
        }
    }
}

impl fmt::Display for Compute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Compute::Forward { stage, micro_batch } => write!(f, "F{stage}.{micro_batch}"),
            Compute::BackwardInput { stage, micro_batch, segment } => {
                write!(f, "B{stage}.{micro_batch}{}", Segment(segment))
            }
            Compute::BackwardWeight { stage, micro_batch, segment } => {
                write!(f, "W{stage}.{micro_batch}{}", Segment(segment))
            }
        }
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Message::Send(send) => write_transfer(f, 'S', send),
            Message::Recv(recv) => write_transfer(f, 'R', recv),
            Message::Exchange { send, recv } => {
                write_transfer(f, 'S', send)?;
                f.write_str("+")?;
                write_transfer(f, 'R', recv)
            }
        }
    }
}

impl fmt::Display for Reduction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reduction::ReduceTied { stage } => write!(f, "T{stage}"),
            Reduction::ReduceGrad { stage, segment } => write!(f, "G{stage}/{segment}"),
            Reduction::AwaitGrad { stage, segment } => write!(f, "A{stage}/{segment}"),
        }
    }
}

fn write_numbers(f: &mut fmt::Formatter<'_>, key: &str, numbers: &[usize]) -> fmt::Result {
    f.write_str(key)?;
    for number in numbers {
        write!(f, " {number}")?;
    }
    f.write_str("\n")
}

fn write_rank(f: &mut fmt::Formatter<'_>, rank: usize, list: &[Action]) -> fmt::Result {
    writeln!(f, "rank {rank}")?;
    let mut column = 0;
    for action in list {
        let token = action.to_string();
        if column > 0 && column + 1 + token.len() > COLUMNS_MAX {
            f.write_str("\n")?;
            column = 0;
        }
        f.write_str(if column == 0 { "  " } else { " " })?;
        f.write_str(&token)?;
        column += token.len() + if column == 0 { 2 } else { 1 };
    }
    if column > 0 { f.write_str("\n") } else { Ok(()) }
}

impl fmt::Display for Schedule {
    /// The text form; it can be read back when [`Schedule::check`] passes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "schedule {}", self.name)?;
        writeln!(f, "purpose {}", self.purpose.word())?;
        writeln!(f, "micro-batches {}", self.micro_batches)?;
        write_numbers(f, "placement", &self.placement)?;
        write_numbers(f, "in-flight", &self.in_flight_max)?;
        if let Some(plan) = &self.sync {
            write_numbers(f, "segments", &plan.segments)?;
            if !plan.tied.is_empty() {
                f.write_str("tied")?;
                for tied in &plan.tied {
                    write!(f, " {}/{}", tied.stage, tied.segment)?;
                }
                f.write_str("\n")?;
            }
        }
        for (rank, list) in self.actions.iter().enumerate() {
            write_rank(f, rank, list)?;
        }
        Ok(())
    }
}
