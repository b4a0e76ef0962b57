//! Who waits for whom, in the words of error messages.

use std::collections::BTreeMap;

use crate::grid::grid;
use crate::{Action, Compute, Delivery, Reduction, Schedule, ScheduleError};

/// Ranks that are named.
const RANKS_MAX: usize = 8;

/// What a rank waits for: an action of another list, or of its own, or one that no list has.
enum Awaited {
    Cell(usize, usize),
    Nowhere(Action),
}

/// The error of ranks that wait at these cells for ever.
pub(crate) fn stuck(schedule: &Schedule, cells: &[(usize, usize)], what: String) -> ScheduleError {
    let action =
        |&(rank, position): &(usize, usize)| Some((rank, *schedule.actions[rank].get(position)?));
    ScheduleError::Stuck {
        what,
        first: cells.iter().find_map(action).map(Box::new),
        grid: grid(schedule, cells),
    }
}

/// The error of compute lists whose ranks wait at these cells for ever.
pub(crate) fn stuck_inputs(schedule: &Schedule, waiting: &[(usize, usize)]) -> ScheduleError {
    let waits = waits(schedule, Delivery::Buffered, waiting);
    stuck(schedule, waiting, format!("every rank waits for an input: {waits}"))
}

/// `rank 0 at step 3 (SA0.1>1) waits for rank 1 at step 5 (RA1.1<0); …`, for the first few of the cells
/// (rank, position) at which ranks wait.
pub(crate) fn waits(schedule: &Schedule, delivery: Delivery, cells: &[(usize, usize)]) -> String {
    let waiting: BTreeMap<usize, usize> = cells.iter().copied().collect();
    let one = |&at: &(usize, usize)| {
        let awaited = awaited(schedule, delivery, &waiting, at);
        let named = awaited.iter().map(|awaited| match awaited {
            Awaited::Cell(rank, position) => place(schedule, (*rank, *position)),
            Awaited::Nowhere(action) => format!("`{action}`, which is in no list"),
        });
        let named: Vec<String> = named.collect();
        let place = place(schedule, at);
        if named.is_empty() { place } else { format!("{place} waits for {}", named.join(" and ")) }
    };
    let shown: Vec<String> = cells.iter().take(RANKS_MAX).map(one).collect();
    let more = if cells.len() > RANKS_MAX { "; …" } else { "" };
    format!("{}{more}", shown.join("; "))
}

/// `rank 0 at step 3 (F0.1)`.
fn place(schedule: &Schedule, (rank, position): (usize, usize)) -> String {
    match schedule.actions[rank].get(position) {
        Some(action) => format!("rank {rank} at step {position} ({action})"),
        None => format!("rank {rank} at its end"),
    }
}

fn awaited(
    schedule: &Schedule,
    delivery: Delivery,
    waiting: &BTreeMap<usize, usize>,
    (rank, position): (usize, usize),
) -> Vec<Awaited> {
    let Some(action) = schedule.actions[rank].get(position) else { return vec![] };
    match action {
        Action::Compute(compute) => {
            maker(schedule, compute).map(|maker| found(schedule, maker)).into_iter().collect()
        }
        Action::Message(message) => {
            let (send, recv) = message.transfers();
            let send = send.filter(|_| delivery == Delivery::Rendezvous);
            // What its peer has reached already is done.
            let is_ahead = |peer: usize, at: usize| waiting.get(&peer).is_some_and(|now| at > *now);
            let other_end = |peer: usize, is_it: &dyn Fn(&Action) -> bool| {
                let at = schedule.actions.get(peer)?.iter().position(is_it)?;
                is_ahead(peer, at).then_some(Awaited::Cell(peer, at))
            };
            let receive = send.and_then(|send| {
                other_end(send.peer, &|action| {
                    let recv = action.transfers().1.filter(|recv| recv.peer == rank);
                    recv.is_some_and(|recv| Some(recv.received()) == send.sent())
                })
            });
            let source = recv.and_then(|recv| {
                other_end(recv.peer, &|action| {
                    let send = action.transfers().0.filter(|send| send.peer == rank);
                    send.is_some_and(|send| send.sent() == Some(recv.received()))
                })
            });
            receive.into_iter().chain(source).collect()
        }
        Action::Sync(Reduction::ReduceTied { .. }) => {
            let index = tied(&schedule.actions[rank][..position]).count();
            let others = waiting.iter().filter_map(|(&other, &now)| {
                let at = tied(&schedule.actions[other]).nth(index)?;
                (at > now).then_some(Awaited::Cell(other, at))
            });
            others.collect()
        }
        Action::Sync(Reduction::ReduceGrad { .. } | Reduction::AwaitGrad { .. }) => vec![],
    }
}

/// The positions of the tied reductions in a list.
fn tied(list: &[Action]) -> impl Iterator<Item = usize> {
    let is_tied = |action: &Action| matches!(action, Action::Sync(Reduction::ReduceTied { .. }));
    list.iter().enumerate().filter(move |(_, action)| is_tied(action)).map(|(at, _)| at)
}

/// The action of another stage that makes the input of a whole one.
fn maker(schedule: &Schedule, compute: &Compute) -> Option<Action> {
    match *compute {
        Compute::Forward { stage, micro_batch } => {
            let stage = stage.checked_sub(1)?;
            Some(Compute::Forward { stage, micro_batch }.into())
        }
        Compute::BackwardInput { stage, micro_batch, segment } => {
            let stage = stage.checked_add(1)?;
            Some(match schedule.keeps_backward_whole() {
                true => Compute::BackwardWeight { stage, micro_batch, segment }.into(),
                false => Compute::BackwardInput { stage, micro_batch, segment }.into(),
            })
        }
        Compute::BackwardWeight { .. } => None,
    }
}

/// Where an action stands.
fn found(schedule: &Schedule, wanted: Action) -> Awaited {
    let at = |list: &Vec<Action>| list.iter().position(|action| *action == wanted);
    let mut places = schedule.actions.iter().map(at).enumerate();
    match places.find_map(|(rank, at)| Some((rank, at?))) {
        Some((rank, position)) => Awaited::Cell(rank, position),
        None => Awaited::Nowhere(wanted),
    }
}
