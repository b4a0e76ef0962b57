//! The state of a world of threads: who has posted what, who waits for whom.
//!
//! One lock guards it, so that a rank that starts to wait sees a consistent picture of all others
//! and finds a circle at once. Under the lock only small records move; elements are combined and
//! copied outside. `slots.rs` has the part for collectives, `channels.rs` that for messages.

use super::channels::Channel;
use super::deadlock::Waits;
use super::record::Record;
use super::slots::Slot;
use crate::device::Payload;
use crate::{
    Beat, Call, Cause, CommError, Diagnosis, Doing, Group, Missing, Name, Operation, RankState,
    Recorder, Site,
};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// What a posted operation still waits for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Needs {
    /// Every member of its group.
    Group,
    /// The receiver of its message, the sender of the one it wants, as world ranks.
    Peers { to: Option<usize>, from: Option<usize> },
    /// Nobody: it is over, or a rank that has everything works on it.
    Nobody,
}

/// A posted operation that its rank may wait for.
#[derive(Debug)]
pub(super) struct Ticket {
    pub(super) record: Record,
    /// Its number in the rank's recorder.
    pub(super) number: u64,
    pub(super) needs: Needs,
    /// Directions (of an exchange) or collectives still open.
    open: u8,
    done: Payload,
    /// Nobody will fetch the buffers.
    abandoned: bool,
}

#[derive(Debug)]
pub(super) struct GroupState {
    pub(super) group: Group,
    pub(super) slots: VecDeque<Slot>,
    /// Sequence number of the first slot.
    pub(super) first: u64,
    /// Sequence number of each member's next collective.
    pub(super) next: Vec<u64>,
    channels: Vec<Channel>,
    /// Slots to use again.
    pub(super) spare: Vec<Slot>,
}

impl GroupState {
    fn new(group: Group) -> Self {
        let size = group.size();
        Self {
            slots: VecDeque::new(),
            first: 0,
            next: vec![0; size],
            channels: (0..size * size).map(|_| Channel::default()).collect(),
            spare: Vec::new(),
            group,
        }
    }

    pub(super) fn channel(&mut self, from: usize, to: usize) -> &mut Channel {
        let size = self.group.size();
        &mut self.channels[from * size + to]
    }
}

#[derive(Debug)]
struct Rank {
    finished: bool,
    /// Tickets that its threads wait for: one, as a rule.
    waits: Vec<usize>,
    recorder: Arc<Recorder>,
}

/// Why the world stopped, and whom that concerns directly.
#[derive(Debug)]
struct Failure {
    error: CommError,
    concerned: Vec<usize>,
    cause: Cause,
    /// What all ranks did at that moment.
    beats: Vec<Beat>,
}

/// A subgroup that some of its members have joined.
#[derive(Debug)]
struct Forming {
    id: usize,
    name: String,
    joined: usize,
}

#[derive(Debug)]
pub(super) struct Board {
    pub(super) groups: Vec<GroupState>,
    forming: HashMap<(usize, u64, u64), Forming>,
    ranks: Vec<Rank>,
    tickets: Vec<Option<Ticket>>,
    free: Vec<usize>,
    failure: Option<Failure>,
}

impl Board {
    pub(super) fn new(world: Group, recorders: &[Arc<Recorder>]) -> Self {
        let rank = |recorder: &Arc<Recorder>| Rank {
            finished: false,
            waits: Vec::new(),
            recorder: recorder.clone(),
        };
        Self {
            ranks: recorders.iter().map(rank).collect(),
            groups: vec![GroupState::new(world)],
            forming: HashMap::new(),
            tickets: Vec::new(),
            free: Vec::new(),
            failure: None,
        }
    }

    // ---- failures ----

    /// The world's failure as `rank` sees it.
    pub(super) fn check(&self, rank: usize) -> Result<(), CommError> {
        match &self.failure {
            None => Ok(()),
            Some(failure) if failure.concerned.contains(&rank) => Err(failure.error.clone()),
            Some(failure) => Err(CommError::Aborted { cause: failure.cause.clone() }),
        }
    }

    /// Stops the world, unless it has failed already. `concerned` ranks get the error itself.
    pub(super) fn fail(&mut self, rank: usize, error: CommError, concerned: Vec<usize>) {
        let cause = match &error {
            CommError::Aborted { cause } => cause.clone(),
            other => Cause { rank, message: other.to_string().into() },
        };
        if self.failure.is_none() {
            let beats = self.beats();
            self.failure = Some(Failure { error, concerned, cause, beats });
        }
    }

    /// What all ranks do, with exactly the ranks that those that wait lack.
    fn beats(&self) -> Vec<Beat> {
        let beat = |rank: &Rank| {
            let mut beat = rank.recorder.beat();
            if let (Doing::Waiting { waits_for, .. }, Some(id)) =
                (&mut beat.doing, rank.waits.first())
            {
                *waits_for = self.missing(*id);
            }
            beat
        };
        self.ranks.iter().map(beat).collect()
    }

    /// The first cause as it is to be told, if the world has failed.
    pub(super) fn diagnosis(&self) -> Option<Diagnosis> {
        self.failure.as_ref().map(|failure| Diagnosis {
            rank: failure.error.blamed().unwrap_or(failure.cause.rank),
            failure: failure.cause.message.to_string(),
            beats: failure.beats.clone(),
        })
    }

    /// The same for a world that did not fail until all ranks had returned.
    pub(super) fn diagnosis_of(&self, rank: usize, failure: String) -> Diagnosis {
        Diagnosis { rank, failure, beats: self.beats() }
    }

    pub(super) fn cause(&self) -> Option<&Cause> {
        self.failure.as_ref().map(|failure| &failure.cause)
    }

    pub(super) fn fail_mismatch(&mut self, records: &[Record], concerned: Vec<usize>) {
        let last = records[records.len() - 1];
        let error = CommError::Mismatch {
            group: self.groups[last.group].group.to_string(),
            sequence: last.sequence,
            calls: records.iter().map(|record| self.call(record)).collect(),
        };
        self.fail(last.rank, error, concerned);
    }

    pub(super) fn call(&self, record: &Record) -> Call {
        let group = &self.groups[record.group].group;
        let index = group.ranks().iter().position(|rank| *rank == record.rank);
        let group = index.and_then(|index| group.seen_by(index));
        Call {
            rank: record.rank,
            operation: record.operation,
            name: record.name,
            sequence: record.sequence,
            send: record.send,
            recv: record.recv,
            group: group.expect("invariant: records are made by members"),
            site: record.site,
            sealed: record.seal.map(|seal| seal.number(record.operation)),
            place: record.place,
        }
    }

    /// Tells the rank's recorder of a posted operation.
    pub(super) fn note(&self, record: &Record) -> u64 {
        self.ranks[record.rank].recorder.post(self.call(record))
    }

    // ---- tickets ----

    pub(super) fn issue(&mut self, record: Record, number: u64, needs: Needs, open: u8) -> usize {
        let done = Payload::default();
        let ticket = Ticket { record, number, needs, open, done, abandoned: false };
        match self.free.pop() {
            Some(id) => {
                self.tickets[id] = Some(ticket);
                id
            }
            None => {
                self.tickets.push(Some(ticket));
                self.tickets.len() - 1
            }
        }
    }

    pub(super) fn ticket(&self, id: usize) -> &Ticket {
        self.tickets[id].as_ref().expect("invariant: a ticket lives until it is fetched")
    }

    pub(super) fn ticket_mut(&mut self, id: usize) -> &mut Ticket {
        self.tickets[id].as_mut().expect("invariant: a ticket lives until it is fetched")
    }

    pub(super) fn is_done(&self, id: usize) -> bool {
        self.ticket(id).open == 0
    }

    /// Takes a ticket's buffers out, if it is done.
    pub(super) fn fetch(&mut self, id: usize) -> Option<Payload> {
        if !self.is_done(id) {
            return None;
        }
        self.free.push(id);
        self.tickets[id].take().map(|ticket| ticket.done)
    }

    /// Leaves a ticket's buffers with the board until the operation is over; those of an operation
    /// that is over are handed out to be dropped.
    pub(super) fn abandon(&mut self, id: usize) -> Option<Payload> {
        let done = self.fetch(id);
        if done.is_none() {
            self.ticket_mut(id).abandoned = true;
        }
        done
    }

    /// Notes that (one direction of) an operation is over; the rank to wake, if it waits for it.
    pub(super) fn close(&mut self, id: usize, payload: Payload) -> Option<usize> {
        let ticket = self.ticket_mut(id);
        ticket.open -= 1;
        ticket.done.send = payload.send.or(ticket.done.send.take());
        ticket.done.recv = payload.recv.or(ticket.done.recv.take());
        if ticket.open > 0 {
            return None;
        }
        ticket.needs = Needs::Nobody;
        let (rank, abandoned) = (ticket.record.rank, ticket.abandoned);
        if abandoned {
            self.fetch(id);
        }
        self.ranks[rank].waits.contains(&id).then_some(rank)
    }

    // ---- groups ----

    /// Joins the subgroup of `colour` that the `split`th division of `parent` makes.
    pub(super) fn join(
        &mut self,
        (parent, split, colour): (usize, u64, u64),
        group: &Group,
        site: Site,
    ) -> Result<usize, CommError> {
        let rank = group.world_rank();
        self.check(rank)?;
        let groups = &mut self.groups;
        let forming = self.forming.entry((parent, split, colour)).or_insert_with(|| {
            groups.push(GroupState::new(group.clone()));
            Forming { id: groups.len() - 1, name: group.name().to_owned(), joined: 0 }
        });
        forming.joined += 1;
        let (id, name) = (forming.id, forming.name.clone());
        if forming.joined == group.size() {
            self.forming.remove(&(parent, split, colour));
        }
        if name != group.name() {
            self.fail_names(group, id, site);
            self.check(rank)?;
        }
        Ok(id)
    }

    fn fail_names(&mut self, group: &Group, id: usize, site: Site) {
        let call = |group: Group| Call {
            rank: group.world_rank(),
            operation: Operation::AllGather,
            name: Name::new("split"),
            sequence: 0,
            send: None,
            recv: None,
            group,
            site,
            sealed: None,
            place: Default::default(),
        };
        let first = self.groups[id].group.clone();
        let error = CommError::Mismatch {
            group: first.to_string(),
            sequence: 0,
            calls: vec![call(first), call(group.clone())],
        };
        self.fail(group.world_rank(), error, group.ranks().to_vec());
    }

    // ---- waiting ----

    pub(super) fn begin_wait(&mut self, rank: usize, id: usize) {
        self.ranks[rank].recorder.wait(self.ticket(id).number);
        self.ranks[rank].waits.push(id);
    }

    /// Whether the rank of a ticket waits for it now.
    pub(super) fn is_awaited(&self, id: usize) -> bool {
        self.ranks[self.ticket(id).record.rank].waits.contains(&id)
    }

    pub(super) fn end_wait(&mut self, rank: usize, id: usize) {
        self.ranks[rank].waits.retain(|other| *other != id);
    }

    pub(super) fn finish(&mut self, rank: usize) {
        self.ranks[rank].finished = true;
        self.ranks[rank].recorder.end();
    }

    /// World ranks that must act before ticket `id` can be over.
    pub(super) fn missing(&self, id: usize) -> Vec<usize> {
        let ticket = self.ticket(id);
        match ticket.needs {
            Needs::Nobody => Vec::new(),
            Needs::Peers { to, from } => to.into_iter().chain(from).collect(),
            Needs::Group => {
                let state = &self.groups[ticket.record.group];
                let slot = &state.slots[(ticket.record.sequence - state.first) as usize];
                let arrivals = state.group.ranks().iter().zip(&slot.arrivals);
                arrivals.filter(|(_, a)| a.is_none()).map(|(rank, _)| *rank).collect()
            }
        }
    }

    /// Stops the world if some rank can never go on. Called when `rank` starts to wait or ends.
    pub(super) fn fail_if_stuck(&mut self, rank: usize) {
        if self.failure.is_none()
            && let Some(error) = self.find_deadlock(rank)
        {
            let CommError::Deadlock { stuck, .. } = &error else { return };
            let concerned = stuck.iter().map(|stuck| stuck.call.rank).collect();
            self.fail(rank, error, concerned);
        }
    }

    fn find_deadlock(&self, rank: usize) -> Option<CommError> {
        super::deadlock::find(self, rank)
    }

    /// The ranks that run and that ticket `id` waits for, directly or by way of ranks that wait.
    fn awaited(&self, id: usize) -> Vec<usize> {
        let (mut seen, mut next) = (vec![false; self.ranks.len()], self.missing(id));
        let mut running = Vec::new();
        while let Some(rank) = next.pop() {
            if std::mem::replace(&mut seen[rank], true) {
                continue;
            }
            match self.ranks[rank].waits.first() {
                Some(wait) => next.extend(self.missing(*wait)),
                None => running.push(rank),
            }
        }
        running
    }

    /// How much longer `rank`, which has waited in vain for `waited`, waits for ticket `id`, and for
    /// whom: a rank that makes progress, or is in a phase that may take longer, is waited for.
    pub(super) fn time_left(
        &self,
        (rank, id): (usize, usize),
        waited: Duration,
        deadline: Duration,
    ) -> (Duration, Option<usize>) {
        let phase = |rank: usize| self.ranks[rank].recorder.place().phase.deadline;
        let allowed = deadline.max(phase(rank).unwrap_or_default());
        let left = |rank: usize| {
            let quiet = self.ranks[rank].recorder.quiet().min(waited);
            allowed.max(phase(rank).unwrap_or_default()).saturating_sub(quiet)
        };
        let first = self.awaited(id).into_iter().map(|rank| (left(rank), Some(rank))).min();
        // Nobody is missing: a rank that has everything works on it.
        first.unwrap_or((deadline, None))
    }

    /// Fails the world because a rank waited too long for ticket `id`, in the end for `late`.
    pub(super) fn fail_deadline(
        &mut self,
        (rank, id): (usize, usize),
        late: usize,
        waited: Duration,
    ) {
        let latest = self.ranks[late].recorder.latest().map(Box::new);
        let missing = vec![Missing { rank: late, state: RankState::Running(latest) }];
        let call = Box::new(self.call(&self.ticket(id).record));
        self.fail(rank, CommError::Deadline { call, waited, missing }, vec![rank]);
    }

    /// Operations that nobody matched, once all ranks have finished.
    pub(super) fn unmatched(&self) -> Vec<Call> {
        let mut records: Vec<Record> = Vec::new();
        for state in &self.groups {
            let slots = state.slots.iter().flat_map(|slot| slot.arrivals.iter().flatten());
            records.extend(slots.map(|arrival| arrival.record));
            for channel in &state.channels {
                records.extend(channel.sends.iter().map(|send| send.record));
                records.extend(channel.recvs.iter().map(|recv| recv.record));
            }
        }
        records.iter().map(|record| self.call(record)).collect()
    }
}

impl Waits for Board {
    fn ranks(&self) -> usize {
        self.ranks.len()
    }
    fn is_finished(&self, rank: usize) -> bool {
        self.ranks[rank].finished
    }
    fn waits(&self, rank: usize) -> &[usize] {
        &self.ranks[rank].waits
    }
    fn missing(&self, wait: usize) -> Vec<usize> {
        Board::missing(self, wait)
    }
    fn call(&self, wait: usize) -> Call {
        Board::call(self, &self.ticket(wait).record)
    }
}
