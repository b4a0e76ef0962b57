//! The verifier: proves that a schedule does what it should, without running it.
//!
//! The checks go from the cheap and local to the joint, and each may rely on those before it, so the
//! first error is the one nearest to the cause.

mod error;
mod order;
mod sync;
mod transfers;

pub use error::{VerifyError, VerifyErrorKind};

use crate::engine::{Outcome, run};
use crate::waits::waits;
use crate::{Action, Compute, Delivery, Message, Purpose, Reduction, Schedule, TiedSegment};

/// What a schedule was found to be.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Pairs of stage and micro-batch, each computed once.
    pub pairs: usize,
    /// Messages between ranks, each sent and received once.
    pub messages: usize,
    /// Actions that send and receive at once.
    pub exchanges: usize,
    /// Buckets, each reduced and awaited once.
    pub buckets: usize,
    /// For each rank, the most activations in flight; equal to the declared bound.
    pub in_flight_peak: Vec<usize>,
}

/// Proves a lowered schedule right.
///
/// * Its parts fit together, and every rank has a stage.
/// * Every (stage, micro-batch) has one F and, in training, one B and one W, in this order, on the
///   rank that holds the stage; segments run once each, from last to first.
/// * Every F and B has its input, received or computed on the same rank; nothing is sent before it
///   is computed; every message is sent once and received once, in one order for each pair of ranks.
/// * No deadlock, with buffered and with rendezvous delivery.
/// * The most activations in flight equal the declared bound on each rank.
/// * With a [`crate::SyncPlan`]: every bucket is reduced once, after its last W, and then awaited; a
///   tied bucket after the sum over its copies; ranks order the collectives of overlapping groups
///   alike.
///
/// # Errors
/// The first thing that is wrong, with its place, what was expected, and the grid around it.
pub fn verify(schedule: &Schedule) -> Result<Report, VerifyError> {
    check_shape(schedule)?;
    check_places(schedule)?;
    transfers::check(schedule)?;
    order::check(schedule)?;
    sync::check(schedule)?;
    let in_flight_peak = check_in_flight(schedule)?;
    check_deadlock(schedule, Delivery::Buffered)?;
    check_deadlock(schedule, Delivery::Rendezvous)?;
    let count = |wanted: fn(&Action) -> bool| {
        schedule.actions.iter().flatten().filter(|action| wanted(action)).count()
    };
    let exchanges = count(|action| matches!(action, Action::Message(Message::Exchange { .. })));
    Ok(Report {
        pairs: schedule.stages() * schedule.micro_batches,
        messages: exchanges + count(|action| matches!(action, Action::Message(Message::Send(_)))),
        exchanges,
        buckets: count(|action| matches!(action, Action::Sync(Reduction::ReduceGrad { .. }))),
        in_flight_peak,
    })
}

fn check_shape(schedule: &Schedule) -> Result<(), VerifyError> {
    let checked = schedule.check().and_then(|()| schedule.check_stages());
    checked.map_err(|error| VerifyError {
        kind: VerifyErrorKind::Shape,
        rank: None,
        position: None,
        action: None,
        expected: format!("parts that fit, but {error}"),
        grid: String::new(),
    })
}

/// Every action names things that exist, on the rank that has them.
fn check_places(schedule: &Schedule) -> Result<(), VerifyError> {
    for (rank, list) in schedule.actions.iter().enumerate() {
        for (position, action) in list.iter().enumerate() {
            if let Some((kind, expected)) = misplaced(schedule, rank, action) {
                return Err(VerifyError::at(schedule, kind, (rank, position), expected));
            }
        }
    }
    Ok(())
}

type Finding = (VerifyErrorKind, String);

fn misplaced(schedule: &Schedule, rank: usize, action: &Action) -> Option<Finding> {
    let (send, recv) = action.transfers();
    let stages = std::iter::once(action.stage()).chain(recv.map(|recv| recv.stage));
    for stage in stages {
        if schedule.placement.get(stage) != Some(&rank) {
            let stages: Vec<usize> = schedule.stages_of(rank).take(8).collect();
            let expected = format!("a stage of rank {rank}: it holds {stages:?}, not {stage}");
            return Some((VerifyErrorKind::OutOfPlace, expected));
        }
    }
    match *action {
        Action::Compute(Compute::Forward { micro_batch, .. }) => {
            misplaced_micro_batch(schedule, micro_batch)
        }
        Action::Compute(
            Compute::BackwardInput { stage, micro_batch, segment }
            | Compute::BackwardWeight { stage, micro_batch, segment },
        ) => {
            if schedule.purpose == Purpose::Evaluate {
                let expected = "forwards only, in an evaluation".to_owned();
                return Some((VerifyErrorKind::Unexpected, expected));
            }
            let segments = schedule.segments(stage);
            misplaced_micro_batch(schedule, micro_batch)
                .or_else(|| segment.and_then(|segment| misplaced_segment(segment, segments)))
        }
        Action::Message(_) => {
            let send = send.and_then(|t| misplaced_transfer(schedule, rank, t, t.sent()?.to_stage));
            let from = |t: crate::Transfer| t.received().source_stage();
            send.or_else(|| recv.and_then(|t| misplaced_transfer(schedule, rank, t, from(t)?)))
                .or_else(|| beyond_the_ends(schedule, action))
        }
        Action::Sync(Reduction::ReduceTied { stage }) => misplaced_tied(schedule, stage),
        Action::Sync(
            Reduction::ReduceGrad { stage, segment } | Reduction::AwaitGrad { stage, segment },
        ) => match &schedule.sync {
            None => Some(no_plan()),
            Some(plan) => misplaced_segment(segment, plan.segments[stage]),
        },
    }
}

fn no_plan() -> Finding {
    (VerifyErrorKind::Unexpected, "no reductions, as the schedule has no plan for them".to_owned())
}

fn misplaced_micro_batch(schedule: &Schedule, micro_batch: usize) -> Option<Finding> {
    let count = schedule.micro_batches;
    let expected = || format!("a micro-batch below {count}, not {micro_batch}");
    (micro_batch >= count).then(|| (VerifyErrorKind::OutOfPlace, expected()))
}

fn misplaced_segment(segment: usize, segments: usize) -> Option<Finding> {
    let expected = || format!("a segment below {segments}, not {segment}");
    (segment >= segments).then(|| (VerifyErrorKind::OutOfPlace, expected()))
}

/// The other end of a transfer must be the rank that holds the stage at the other end.
fn misplaced_transfer(
    schedule: &Schedule,
    rank: usize,
    transfer: crate::Transfer,
    other_stage: usize,
) -> Option<Finding> {
    let out = |expected| Some((VerifyErrorKind::OutOfPlace, expected));
    let crate::Transfer { stage, peer, .. } = transfer;
    match schedule.placement.get(other_stage) {
        None => out(format!("no message: stage {stage} has no neighbour on that side")),
        Some(&home) if home == rank => {
            out(format!("no message: stage {other_stage} is on rank {rank} too"))
        }
        Some(&home) if home != peer => out(format!(
            "rank {home} as the peer, which holds stage {other_stage}, not rank {peer}"
        )),
        Some(_) => misplaced_micro_batch(schedule, transfer.micro_batch),
    }
}

/// A transfer beyond the first stage: there is no stage at its other end.
fn beyond_the_ends(schedule: &Schedule, action: &Action) -> Option<Finding> {
    let (send, recv) = action.transfers();
    let no_receiver = send.is_some_and(|t| t.sent().is_none());
    let no_sender = recv.is_some_and(|t| t.received().source_stage().is_none());
    let expected = || format!("neighbours among stages 0 to {}", schedule.stages() - 1);
    (no_receiver || no_sender).then(|| (VerifyErrorKind::OutOfPlace, expected()))
}

fn misplaced_tied(schedule: &Schedule, stage: usize) -> Option<Finding> {
    let Some(plan) = &schedule.sync else { return Some(no_plan()) };
    let rank = schedule.placement[stage];
    let here = |tied: &&TiedSegment| schedule.placement[tied.stage] == rank;
    let lowest = plan.tied.iter().filter(here).map(|tied| tied.stage).min();
    match lowest {
        None => {
            let expected = format!("no tied reduction: rank {rank} holds no tied segment");
            Some((VerifyErrorKind::Unexpected, expected))
        }
        Some(lowest) if lowest != stage => {
            let expected = format!("stage {lowest}, the lowest tied one of rank {rank}");
            Some((VerifyErrorKind::OutOfPlace, expected))
        }
        Some(_) => None,
    }
}

fn check_in_flight(schedule: &Schedule) -> Result<Vec<usize>, VerifyError> {
    let peaks = schedule.in_flight_peaks();
    for (rank, (peak, &bound)) in peaks.iter().zip(&schedule.in_flight_max).enumerate() {
        let kind = match peak.count.cmp(&bound) {
            std::cmp::Ordering::Equal => continue,
            std::cmp::Ordering::Greater => VerifyErrorKind::InFlightAboveBound,
            std::cmp::Ordering::Less => VerifyErrorKind::InFlightBelowBound,
        };
        let expected = format!("a peak of {bound} as declared, not {}", peak.count);
        return Err(match peak.position {
            Some(position) => VerifyError::at(schedule, kind, (rank, position), expected),
            None => VerifyError::missing(schedule, kind, rank, expected),
        });
    }
    Ok(peaks.iter().map(|peak| peak.count).collect())
}

fn check_deadlock(schedule: &Schedule, delivery: Delivery) -> Result<(), VerifyError> {
    let free = |_: usize, _: usize, _: &Action| 0.0;
    let outcome = run(schedule, delivery, &free).expect("invariant: a cost of 0 is valid");
    match outcome {
        Outcome::Done(_) => Ok(()),
        Outcome::Blocked(cells) => {
            let expected = format!("all ranks to finish; {}", waits(schedule, delivery, &cells));
            let kind = VerifyErrorKind::Deadlock(delivery);
            Err(VerifyError::marked(schedule, kind, &cells, expected))
        }
    }
}
