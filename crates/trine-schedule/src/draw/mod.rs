//! Drawings of a simulated step: [`ascii`] for terminals, [`svg`] for documents.

mod ascii;
mod svg;

pub use ascii::ascii;
pub use svg::svg;

use crate::{Action, Compute, Message, Reduction, Timeline};
use trine_mesh::plural;

/// What a piece of a drawing shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Paint {
    Forward,
    BackwardInput,
    BackwardWeight,
    /// Work of a message, an awaited or a tied reduction.
    Communication,
    /// On the lane beside the rank.
    Reduction,
}

/// A piece of work of one rank, from `start` to `end`.
struct Piece {
    paint: Paint,
    start: f64,
    end: f64,
    /// The micro-batch (with several stages on a rank: stage.micro-batch), or stage/segment.
    label: String,
}

/// The work of a rank, and of the lane beside it; waiting is what is left blank.
fn pieces(timeline: &Timeline<'_>, rank: usize) -> Vec<Piece> {
    let many = timeline.schedule.stages_of(rank).count() > 1;
    let list = timeline.schedule.actions[rank].iter().zip(&timeline.spans[rank]);
    list.filter(|(_, span)| span.busy > 0.0)
        .map(|(action, span)| {
            let (paint, label) = look(action, many);
            // A receive waits first and works last; a send has worked before it waits.
            let start = match action {
                Action::Message(Message::Send(_) | Message::Exchange { .. }) => span.start,
                Action::Compute(_) | Action::Message(Message::Recv(_)) | Action::Sync(_) => {
                    span.end - span.busy
                }
            };
            Piece { paint, start, end: start + span.busy, label }
        })
        .collect()
}

fn look(action: &Action, many_stages: bool) -> (Paint, String) {
    let micro_batch = |stage: usize, micro_batch: usize| match many_stages {
        true => format!("{stage}.{micro_batch}"),
        false => micro_batch.to_string(),
    };
    match *action {
        Action::Compute(Compute::Forward { stage, micro_batch: i }) => {
            (Paint::Forward, micro_batch(stage, i))
        }
        Action::Compute(Compute::BackwardInput { stage, micro_batch: i, .. }) => {
            (Paint::BackwardInput, micro_batch(stage, i))
        }
        Action::Compute(Compute::BackwardWeight { stage, micro_batch: i, .. }) => {
            (Paint::BackwardWeight, micro_batch(stage, i))
        }
        Action::Message(_)
        | Action::Sync(Reduction::ReduceTied { .. } | Reduction::AwaitGrad { .. }) => {
            (Paint::Communication, String::new())
        }
        Action::Sync(Reduction::ReduceGrad { stage, segment }) => {
            (Paint::Reduction, format!("{stage}/{segment}"))
        }
    }
}

/// `1f1b: 4 stages on 4 ranks, 8 micro-batches; makespan 33, bubble 27.3 %`.
fn title(timeline: &Timeline<'_>) -> String {
    let schedule = timeline.schedule;
    let counted = |number: usize, noun| format!("{number} {}", plural(number as u64, noun));
    format!(
        "{}: {} on {}, {}; makespan {}, bubble {:.1} %",
        schedule.name,
        counted(schedule.stages(), "stage"),
        counted(schedule.ranks(), "rank"),
        counted(schedule.micro_batches, "micro-batch"),
        time(timeline.makespan),
        100.0 * timeline.bubble_fraction(),
    )
}

/// A time to at most four digits.
fn time(value: f64) -> String {
    let decimals = match value {
        v if v >= 1000.0 || v.fract() == 0.0 => 0,
        v if v >= 100.0 => 1,
        v if v >= 10.0 => 2,
        v if v >= 0.1 => 3,
        _ => return format!("{value:.2e}"),
    };
    format!("{value:.decimals$}")
}

/// The shortest computation of a whole stage, which decides how far a drawing must be stretched.
fn shortest_compute(timeline: &Timeline<'_>) -> f64 {
    let lists = timeline.schedule.actions.iter().flatten().zip(timeline.spans.iter().flatten());
    lists
        .filter(|(action, span)| action.is_whole_compute() && span.busy > 0.0)
        .map(|(_, span)| span.busy)
        .fold(f64::INFINITY, f64::min)
        .min(timeline.makespan.max(f64::MIN_POSITIVE))
}
