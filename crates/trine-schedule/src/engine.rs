//! The one machine that executes schedules in thought: the simulator asks it for times, the verifier
//! whether it ends.
//!
//! Every rank does its list in order. Where an action begins depends only on the rank's own past and
//! on the messages between ordered pairs of ranks, each a queue with one writer and one reader, so
//! the times do not depend on the order in which the machine visits ranks.

use std::collections::{HashMap, VecDeque};

use crate::{Action, Message, Reduction, Schedule, ScheduleError, Transfer};

/// When a send completes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Delivery {
    /// At once: the message waits for its receiver in a buffer.
    Buffered,
    /// When the receiver has it (as large messages of MPI do).
    Rendezvous,
}

/// What actions cost, in any one unit of time. Costs are finite and not negative.
///
/// Every `Fn(rank, position, &Action) -> f64` is a `Costs` without latency: that is how *measured*
/// durations are replayed.
pub trait Costs {
    /// The time a rank itself works on the action at `position` of its list, without waiting.
    ///
    /// The time of a [`crate::Reduction::ReduceGrad`] passes on a lane of its own beside the rank.
    fn duration(&self, rank: usize, position: usize, action: &Action) -> f64;

    /// The time from the end of a send to the arrival of its message.
    fn latency(&self, rank: usize, send: &Transfer) -> f64 {
        let _ = (rank, send);
        0.0
    }
}

impl<F: Fn(usize, usize, &Action) -> f64> Costs for F {
    fn duration(&self, rank: usize, position: usize, action: &Action) -> f64 {
        self(rank, position, action)
    }
}

/// When an action ran: posted or begun at `start`, done at `end`, `busy` of it work, the rest waiting.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Span {
    /// When the action was begun.
    pub start: f64,
    /// When it was done.
    pub end: f64,
    /// The part that was work.
    pub busy: f64,
}

/// What the machine found: the spans of each rank, or where ranks wait for ever.
pub(crate) enum Outcome {
    Done(Vec<Vec<Span>>),
    /// `(rank, position)` of every rank that did not reach its end.
    Blocked(Vec<(usize, usize)>),
}

/// A communication action that is posted and not yet complete.
#[derive(Clone, Copy)]
struct Posted {
    start: f64,
    busy: f64,
    /// Rendezvous only: the receiver, and the latency of the message.
    sending: Option<(usize, f64)>,
    receiving: Option<usize>,
    /// The time at which the parts that are complete were so.
    end: f64,
}

struct RankState {
    now: f64,
    spans: Vec<Span>,
    posted: Option<Posted>,
    /// Arrival times of buffered messages, a queue for each sender.
    inbox: Vec<(usize, VecDeque<f64>)>,
    /// When the lane that carries posted reductions is free.
    lane_free: f64,
    reductions: HashMap<(usize, usize), f64>,
    /// How many tied reductions this rank has joined.
    tied_joined: usize,
    waits_for_tied: bool,
}

/// The k-th tied reduction of all ranks that have one.
#[derive(Clone, Default)]
struct Tied {
    missing: usize,
    /// When the last of those who have joined did so.
    ready: f64,
    busy_max: f64,
    /// Those who have joined, with the work of each.
    members: Vec<(usize, f64)>,
}

struct Engine<'a, C: ?Sized> {
    schedule: &'a Schedule,
    delivery: Delivery,
    costs: &'a C,
    ranks: Vec<RankState>,
    tied: Vec<Tied>,
    awake: Vec<usize>,
}

/// Executes a schedule whose parts fit together (see [`Schedule::check`]); peers must be ranks.
pub(crate) fn run<C: Costs + ?Sized>(
    schedule: &Schedule,
    delivery: Delivery,
    costs: &C,
) -> Result<Outcome, ScheduleError> {
    let ranks = schedule.actions.iter().map(|list| RankState {
        now: 0.0,
        spans: Vec::with_capacity(list.len()),
        posted: None,
        inbox: Vec::new(),
        lane_free: 0.0,
        reductions: HashMap::new(),
        tied_joined: 0,
        waits_for_tied: false,
    });
    let mut engine = Engine {
        schedule,
        delivery,
        costs,
        ranks: ranks.collect(),
        tied: tied_reductions(schedule),
        awake: (0..schedule.ranks()).rev().collect(),
    };
    while let Some(rank) = engine.awake.pop() {
        while engine.step(rank)? {}
    }
    Ok(engine.outcome())
}

fn tied_reductions(schedule: &Schedule) -> Vec<Tied> {
    let mut tied: Vec<Tied> = Vec::new();
    for list in &schedule.actions {
        let count =
            list.iter().filter(|a| matches!(a, Action::Sync(Reduction::ReduceTied { .. }))).count();
        tied.resize(tied.len().max(count), Tied::default());
        tied[..count].iter_mut().for_each(|one| one.missing += 1);
    }
    tied
}

impl<C: Costs + ?Sized> Engine<'_, C> {
    fn outcome(self) -> Outcome {
        let position = |(rank, state): (usize, &RankState)| {
            let position = state.spans.len();
            (position < self.schedule.actions[rank].len()).then_some((rank, position))
        };
        let blocked: Vec<_> = self.ranks.iter().enumerate().filter_map(position).collect();
        if blocked.is_empty() {
            Outcome::Done(self.ranks.into_iter().map(|state| state.spans).collect())
        } else {
            Outcome::Blocked(blocked)
        }
    }

    /// Completes or posts the next action of a rank; false if it has to wait or is at its end.
    fn step(&mut self, rank: usize) -> Result<bool, ScheduleError> {
        let position = self.ranks[rank].spans.len();
        let Some(&action) = self.schedule.actions[rank].get(position) else { return Ok(false) };
        if self.ranks[rank].posted.is_some() {
            return Ok(self.complete(rank, &action));
        }
        if self.ranks[rank].waits_for_tied {
            return Ok(false);
        }
        let busy = self.costs.duration(rank, position, &action);
        let busy = checked(rank, position, busy)?;
        match action {
            Action::Compute(_) => {
                let start = self.ranks[rank].now;
                self.finish(rank, Span { start, end: start + busy, busy });
            }
            Action::Message(_) => {
                self.post(rank, position, &action, busy)?;
                return Ok(self.complete(rank, &action));
            }
            Action::Sync(Reduction::ReduceTied { .. }) => return Ok(self.join_tied(rank, busy)),
            Action::Sync(Reduction::ReduceGrad { stage, segment }) => {
                let state = &mut self.ranks[rank];
                let start = state.now.max(state.lane_free);
                state.lane_free = start + busy;
                state.reductions.insert((stage, segment), start + busy);
                // The rank itself goes on at once.
                state.spans.push(Span { start, end: start + busy, busy });
            }
            Action::Sync(Reduction::AwaitGrad { stage, segment }) => {
                let state = &self.ranks[rank];
                let reduced = state.reductions.get(&(stage, segment)).copied().unwrap_or(0.0);
                let (start, end) = (state.now, state.now.max(reduced) + busy);
                self.finish(rank, Span { start, end, busy });
            }
        }
        Ok(true)
    }

    fn finish(&mut self, rank: usize, span: Span) {
        let state = &mut self.ranks[rank];
        state.now = span.end;
        state.spans.push(span);
    }

    /// Posts a send, a receive or both.
    fn post(
        &mut self,
        rank: usize,
        position: usize,
        action: &Action,
        busy: f64,
    ) -> Result<(), ScheduleError> {
        let start = self.ranks[rank].now;
        let (send, recv) = action.transfers();
        let mut posted = Posted {
            start,
            busy,
            sending: None,
            receiving: recv.map(|recv| recv.peer),
            end: start,
        };
        if let Some(send) = send {
            posted.end = start + busy;
            let latency = self.costs.latency(rank, &send);
            let latency = checked(rank, position, latency)?;
            match self.delivery {
                Delivery::Buffered => self.arrive(rank, send.peer, posted.end + latency),
                Delivery::Rendezvous => posted.sending = Some((send.peer, latency)),
            }
        }
        self.ranks[rank].posted = Some(posted);
        Ok(())
    }

    /// Puts a buffered message into the receiver's queue.
    fn arrive(&mut self, from: usize, to: usize, time: f64) {
        let inbox = &mut self.ranks[to].inbox;
        match inbox.iter_mut().find(|(sender, _)| *sender == from) {
            Some((_, queue)) => queue.push_back(time),
            None => inbox.push((from, VecDeque::from([time]))),
        }
        let waits = |posted: &Posted| posted.receiving == Some(from);
        if self.ranks[to].posted.as_ref().is_some_and(waits) {
            self.awake.push(to);
        }
    }

    /// Completes what can be completed of a posted action; true if that is all of it.
    fn complete(&mut self, rank: usize, action: &Action) -> bool {
        match self.delivery {
            Delivery::Buffered => self.take_from_inbox(rank),
            Delivery::Rendezvous => self.meet(rank),
        }
        let Some(posted) = self.ranks[rank].posted else { return false };
        if posted.sending.is_some() || posted.receiving.is_some() {
            return false;
        }
        // The work of a receive follows its message; that of a send came before it.
        let after =
            if matches!(action, Action::Message(Message::Recv(_))) { posted.busy } else { 0.0 };
        self.ranks[rank].posted = None;
        let span = Span { start: posted.start, end: posted.end + after, busy: posted.busy };
        self.finish(rank, span);
        true
    }

    fn take_from_inbox(&mut self, rank: usize) {
        let state = &mut self.ranks[rank];
        let Some(posted) = &mut state.posted else { return };
        let Some(from) = posted.receiving else { return };
        let queue = state.inbox.iter_mut().find(|(sender, _)| *sender == from);
        if let Some(arrival) = queue.and_then(|(_, queue)| queue.pop_front()) {
            posted.receiving = None;
            posted.end = posted.end.max(arrival);
        }
    }

    /// Matches both halves of what a rank has posted with what its peers have posted.
    fn meet(&mut self, rank: usize) {
        let Some(posted) = self.ranks[rank].posted else { return };
        if let Some((to, _)) = posted.sending {
            self.transfer(rank, to);
        }
        if let Some(from) = posted.receiving {
            self.transfer(from, rank);
        }
    }

    /// A rendezvous: the message moves once both ends are there, and both are busy until it has.
    fn transfer(&mut self, from: usize, to: usize) {
        let (Some(sender), Some(receiver)) = (self.ranks[from].posted, self.ranks[to].posted)
        else {
            return;
        };
        let Some((_, latency)) = sender.sending.filter(|&(peer, _)| peer == to) else { return };
        if receiver.receiving != Some(from) {
            return;
        }
        let end = (sender.start + sender.busy).max(receiver.start) + latency;
        if let Some(posted) = &mut self.ranks[from].posted {
            posted.sending = None;
            posted.end = posted.end.max(end);
        }
        if let Some(posted) = &mut self.ranks[to].posted {
            posted.receiving = None;
            posted.end = posted.end.max(end);
        }
        self.awake.extend([from, to]);
    }

    /// Joins the next tied reduction; the last to join releases all.
    fn join_tied(&mut self, rank: usize, busy: f64) -> bool {
        let index = self.ranks[rank].tied_joined;
        self.ranks[rank].tied_joined += 1;
        let start = self.ranks[rank].now;
        self.ranks[rank].waits_for_tied = true;
        let tied = &mut self.tied[index];
        tied.missing -= 1;
        tied.ready = tied.ready.max(start);
        tied.busy_max = tied.busy_max.max(busy);
        tied.members.push((rank, busy));
        if tied.missing > 0 {
            return false;
        }
        // It begins when the last rank has joined and lasts as long as the slowest works.
        let end = tied.ready + tied.busy_max;
        for (member, busy) in std::mem::take(&mut tied.members) {
            let start = self.ranks[member].now;
            self.ranks[member].waits_for_tied = false;
            self.finish(member, Span { start, end, busy });
            self.awake.push(member);
        }
        true
    }
}

fn checked(rank: usize, position: usize, value: f64) -> Result<f64, ScheduleError> {
    if value.is_finite() && value >= 0.0 {
        Ok(value)
    } else {
        Err(ScheduleError::Cost { rank, position, value })
    }
}
