//! The state of a world of threads: who has posted what, who waits for whom.
//!
//! One lock guards it, so that a rank that starts to wait sees a consistent picture of all others
//! and finds a circle at once. Under the lock only small records move; elements are combined and
//! copied outside. `slots.rs` has the part for collectives, `channels.rs` that for messages.

use super::channels::Channel;
use super::deadlock::Waits;
use super::record::Record;
use super::slots::Slot;
use crate::collective::Payload;
use crate::{Call, Cause, CommError, Done, Group, Missing, Name, Operation, RankState, Site};
use std::collections::{HashMap, VecDeque};

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
    pub(super) needs: Needs,
    /// Directions (of an exchange) or collectives still open.
    open: u8,
    done: Done,
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

#[derive(Debug, Default)]
pub(super) struct Rank {
    finished: bool,
    /// Tickets that its threads wait for: one, as a rule.
    waits: Vec<usize>,
    pub(super) latest: Option<Record>,
}

/// Why the world stopped, and whom that concerns directly.
#[derive(Debug)]
struct Failure {
    error: CommError,
    concerned: Vec<usize>,
    cause: Cause,
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
    pub(super) ranks: Vec<Rank>,
    tickets: Vec<Option<Ticket>>,
    free: Vec<usize>,
    failure: Option<Failure>,
}

impl Board {
    pub(super) fn new(world: Group) -> Self {
        Self {
            ranks: (0..world.size()).map(|_| Rank::default()).collect(),
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
        self.failure.get_or_insert(Failure { error, concerned, cause });
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

    fn call(&self, record: &Record) -> Call {
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
        }
    }

    // ---- tickets ----

    pub(super) fn issue(&mut self, record: Record, needs: Needs, open: u8) -> usize {
        let ticket = Ticket { record, needs, open, done: Done::default(), abandoned: false };
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
    pub(super) fn fetch(&mut self, id: usize) -> Option<Done> {
        if !self.is_done(id) {
            return None;
        }
        self.free.push(id);
        self.tickets[id].take().map(|ticket| ticket.done)
    }

    /// Leaves a ticket's buffers with the board until the operation is over; those of an operation
    /// that is over are handed out to be dropped.
    pub(super) fn abandon(&mut self, id: usize) -> Option<Done> {
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
        self.ranks[rank].waits.push(id);
    }

    pub(super) fn end_wait(&mut self, rank: usize, id: usize) {
        self.ranks[rank].waits.retain(|other| *other != id);
    }

    pub(super) fn finish(&mut self, rank: usize) {
        self.ranks[rank].finished = true;
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

    /// Fails the world because a rank waited too long for ticket `id`.
    pub(super) fn fail_deadline(&mut self, rank: usize, id: usize, waited: std::time::Duration) {
        let missing = self.missing(id).into_iter();
        let missing = missing.map(|rank| Missing { rank, state: self.state(rank) }).collect();
        let call = Box::new(self.call(&self.ticket(id).record));
        self.fail(rank, CommError::Deadline { call, waited, missing }, vec![rank]);
    }

    fn state(&self, rank: usize) -> RankState {
        let Rank { finished, waits, latest } = &self.ranks[rank];
        match (finished, waits.first()) {
            (true, _) => RankState::Finished,
            (false, Some(id)) => RankState::Waiting(Box::new(self.call(&self.ticket(*id).record))),
            (false, None) => {
                RankState::Running(latest.as_ref().map(|record| Box::new(self.call(record))))
            }
        }
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
