//! The state of a world of threads: who has posted what, who waits for whom.
//!
//! One lock guards it, so that a rank that starts to wait sees a consistent picture of all others
//! and finds a circle at once. Under the lock only small records move; elements are combined and
//! copied outside.

use super::deadlock::Waits;
use crate::collective::Payload;
use crate::{
    Call, Cause, CommError, Done, Extent, Group, Missing, Name, Operation, RankState, Request, Site,
};
use std::collections::{HashMap, VecDeque};

/// A posted operation without its buffers: what is compared and reported.
#[derive(Debug, Clone, Copy)]
pub(super) struct Record {
    pub(super) rank: usize,
    pub(super) group: usize,
    operation: Operation,
    name: Name,
    sequence: u64,
    send: Option<Extent>,
    recv: Option<Extent>,
    site: Site,
}

impl Record {
    pub(super) fn new(rank: usize, group: usize, request: &Request) -> Self {
        Self {
            rank,
            group,
            operation: request.operation,
            name: request.name,
            sequence: 0,
            send: request.send.as_ref().map(Extent::of),
            recv: request.recv.as_ref().map(Extent::of),
            site: request.site,
        }
    }

    /// Whether both call the same collective.
    fn agrees(&self, other: &Self) -> bool {
        self.operation == other.operation
            && self.name == other.name
            && self.send == other.send
            && self.recv == other.recv
    }
}

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

/// A member's contribution to a collective. The last arriver needs no ticket.
#[derive(Debug)]
struct Arrival {
    record: Record,
    ticket: Option<usize>,
    payload: Payload,
}

/// One collective of a group while its members arrive.
#[derive(Debug, Default)]
struct Slot {
    arrivals: Vec<Option<Arrival>>,
    arrived: usize,
}

/// A collective that everybody has posted, on its way to be executed.
#[derive(Debug)]
pub(super) struct Complete {
    pub(super) operation: Operation,
    pub(super) payloads: Vec<Payload>,
    tickets: Vec<Option<usize>>,
    group: usize,
}

/// How a member's arrival ended.
#[derive(Debug)]
pub(super) enum Posted {
    /// Others are missing; here is the ticket.
    Ticket(usize),
    /// It was the last one.
    Complete(Complete),
}

#[derive(Debug)]
struct Outgoing {
    record: Record,
    /// `None`: a staged copy whose sender went on.
    ticket: Option<usize>,
    buf: trine_buffer::Buf,
}

#[derive(Debug)]
struct Incoming {
    record: Record,
    ticket: usize,
    buf: trine_buffer::Buf,
}

/// The messages from one member to another, matched in the order of posting.
#[derive(Debug, Default)]
struct Channel {
    sends_posted: u64,
    recvs_posted: u64,
    sends: VecDeque<Outgoing>,
    recvs: VecDeque<Incoming>,
}

/// A matched message, on its way to be copied.
#[derive(Debug)]
pub(super) struct Transfer {
    send: Outgoing,
    recv: Incoming,
}

impl Transfer {
    pub(super) fn execute(&mut self) -> Result<(), CommError> {
        Ok(self.recv.buf.slice_mut().copy_from(self.send.buf.slice())?)
    }
}

#[derive(Debug)]
struct GroupState {
    group: Group,
    slots: VecDeque<Slot>,
    /// Sequence number of the first slot.
    first: u64,
    /// Sequence number of each member's next collective.
    next: Vec<u64>,
    channels: Vec<Channel>,
    /// Slots to use again.
    spare: Vec<Slot>,
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

    fn channel(&mut self, from: usize, to: usize) -> &mut Channel {
        let size = self.group.size();
        &mut self.channels[from * size + to]
    }
}

#[derive(Debug, Default)]
struct Rank {
    finished: bool,
    /// Tickets that its threads wait for: one, as a rule.
    waits: Vec<usize>,
    latest: Option<Record>,
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
    groups: Vec<GroupState>,
    forming: HashMap<(usize, u64, u64), Forming>,
    ranks: Vec<Rank>,
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

    fn fail_mismatch(&mut self, records: &[Record], concerned: Vec<usize>) {
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

    fn issue(&mut self, record: Record, needs: Needs, open: u8) -> usize {
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

    fn ticket(&self, id: usize) -> &Ticket {
        self.tickets[id].as_ref().expect("invariant: a ticket lives until it is fetched")
    }

    fn ticket_mut(&mut self, id: usize) -> &mut Ticket {
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
    fn close(&mut self, id: usize, payload: Payload) -> Option<usize> {
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

    // ---- collectives ----

    /// Posts a member's side of its group's next collective.
    pub(super) fn arrive(
        &mut self,
        mut record: Record,
        member: usize,
        payload: Payload,
    ) -> Result<Posted, CommError> {
        self.check(record.rank)?;
        let state = &mut self.groups[record.group];
        let size = state.group.size();
        record.sequence = state.next[member];
        state.next[member] += 1;
        let at = (record.sequence - state.first) as usize;
        if at == state.slots.len() {
            let mut slot = state.spare.pop().unwrap_or_default();
            slot.arrivals.resize_with(size, || None);
            state.slots.push_back(slot);
        }
        let slot = &mut state.slots[at];
        slot.arrived += 1;
        let last = slot.arrived == size;
        let agrees = slot.arrivals.iter().flatten().next().is_none_or(|a| a.record.agrees(&record));
        slot.arrivals[member] = Some(Arrival { record, ticket: None, payload });
        self.ranks[record.rank].latest = Some(record);
        if !agrees {
            self.disagree(record, at);
            self.check(record.rank)?;
        }
        if last {
            return Ok(Posted::Complete(self.take_front(record.group)));
        }
        let id = self.issue(record, Needs::Group, 1);
        if let Some(arrival) = &mut self.groups[record.group].slots[at].arrivals[member] {
            arrival.ticket = Some(id);
        }
        Ok(Posted::Ticket(id))
    }

    fn disagree(&mut self, last: Record, at: usize) {
        let state = &self.groups[last.group];
        let others = state.slots[at].arrivals.iter().flatten().map(|arrival| arrival.record);
        let mut records: Vec<Record> = others.filter(|other| other.rank != last.rank).collect();
        records.push(last);
        let members = state.group.ranks().to_vec();
        self.fail_mismatch(&records, members);
    }

    /// Members arrive in sequence, so the slot that fills up is always the first.
    fn take_front(&mut self, group: usize) -> Complete {
        let state = &mut self.groups[group];
        let mut slot = state.slots.pop_front().expect("invariant: a full slot is there");
        state.first += 1;
        let mut payloads = Vec::with_capacity(slot.arrivals.len());
        let mut tickets = Vec::with_capacity(slot.arrivals.len());
        let mut operation = Operation::Barrier;
        for arrival in slot.arrivals.drain(..).flatten() {
            operation = arrival.record.operation;
            payloads.push(arrival.payload);
            tickets.push(arrival.ticket);
        }
        slot.arrived = 0;
        state.spare.push(slot);
        for id in tickets.iter().flatten() {
            self.ticket_mut(*id).needs = Needs::Nobody;
        }
        Complete { operation, payloads, tickets, group }
    }

    /// Hands the results out: the last arriver's own, and the ranks to wake.
    pub(super) fn close_collective(&mut self, complete: Complete) -> (Done, Vec<usize>) {
        let mut own = Done::default();
        let mut wake = Vec::new();
        debug_assert_eq!(complete.tickets.len(), self.groups[complete.group].group.size());
        for (ticket, payload) in complete.tickets.into_iter().zip(complete.payloads) {
            match ticket {
                Some(id) => wake.extend(self.close(id, payload)),
                None => own = Done { send: payload.send, recv: payload.recv },
            }
        }
        (own, wake)
    }

    // ---- messages ----

    /// Whether `to` already waits for the next message from `from` (indices within the group).
    pub(super) fn receiver_waits(&mut self, group: usize, from: usize, to: usize) -> bool {
        !self.groups[group].channel(from, to).recvs.is_empty()
    }

    /// A ticket for a message, or for both directions of an exchange.
    pub(super) fn open_message(&mut self, record: Record) -> Result<usize, CommError> {
        self.check(record.rank)?;
        let world = |rank: usize| Some(self.groups[record.group].group.ranks()[rank]);
        let (to, from, open) = match record.operation {
            Operation::Send { to } => (world(to), None, 1),
            Operation::Recv { from } => (None, world(from), 1),
            Operation::Exchange { to, from } => (world(to), world(from), 2),
            Operation::Broadcast { .. }
            | Operation::AllReduce(_)
            | Operation::AllGather
            | Operation::ReduceScatter(_)
            | Operation::AllToAll
            | Operation::Barrier => (None, None, 0),
        };
        Ok(self.issue(record, Needs::Peers { to, from }, open))
    }

    /// Posts the outgoing direction of ticket `id`: matched at once, or queued (as `staged` copy,
    /// if there is one: then this direction is over).
    pub(super) fn post_send(
        &mut self,
        id: usize,
        (from, to): (usize, usize),
        buf: trine_buffer::Buf,
        staged: Option<trine_buffer::Buf>,
    ) -> Option<Transfer> {
        let mut record = self.ticket(id).record;
        record.recv = None;
        let channel = self.groups[record.group].channel(from, to);
        record.sequence = channel.sends_posted;
        channel.sends_posted += 1;
        let receiver = channel.recvs.pop_front();
        self.note(id, record);
        if let Some(recv) = receiver {
            return self.matched(Outgoing { record, ticket: Some(id), buf }, recv);
        }
        let (ticket, queued) = match staged {
            Some(copy) => {
                let payload = Payload { send: Some(buf), recv: None };
                self.no_longer_needs(id, true);
                // Its rank is here, not waiting: nobody to wake.
                self.close(id, payload);
                (None, copy)
            }
            None => (Some(id), buf),
        };
        let channel = self.groups[record.group].channel(from, to);
        channel.sends.push_back(Outgoing { record, ticket, buf: queued });
        None
    }

    /// Posts the incoming direction of ticket `id`: matched at once, or queued.
    pub(super) fn post_recv(
        &mut self,
        id: usize,
        (from, to): (usize, usize),
        buf: trine_buffer::Buf,
    ) -> Option<Transfer> {
        let mut record = self.ticket(id).record;
        record.send = None;
        let channel = self.groups[record.group].channel(from, to);
        record.sequence = channel.recvs_posted;
        channel.recvs_posted += 1;
        let sender = channel.sends.pop_front();
        self.note(id, record);
        let recv = Incoming { record, ticket: id, buf };
        if let Some(send) = sender {
            return self.matched(send, recv);
        }
        self.groups[record.group].channel(from, to).recvs.push_back(recv);
        None
    }

    /// What reports show of a message is its latest direction's number.
    fn note(&mut self, id: usize, record: Record) {
        let ticket = self.ticket_mut(id);
        ticket.record.sequence = record.sequence;
        let whole = ticket.record;
        self.ranks[record.rank].latest = Some(whole);
    }

    fn matched(&mut self, send: Outgoing, recv: Incoming) -> Option<Transfer> {
        if send.record.send != recv.record.recv || send.record.name != recv.record.name {
            let records = [send.record, recv.record];
            self.fail_mismatch(&records, vec![send.record.rank, recv.record.rank]);
            return None;
        }
        if let Some(id) = send.ticket {
            self.no_longer_needs(id, true);
        }
        self.no_longer_needs(recv.ticket, false);
        Some(Transfer { send, recv })
    }

    fn no_longer_needs(&mut self, id: usize, outgoing: bool) {
        match &mut self.ticket_mut(id).needs {
            Needs::Peers { to, .. } if outgoing => *to = None,
            Needs::Peers { from, .. } => *from = None,
            Needs::Group | Needs::Nobody => {}
        }
    }

    /// Hands a copied message's buffers back; the ranks to wake.
    pub(super) fn close_transfer(&mut self, transfer: Transfer) -> [Option<usize>; 2] {
        let Transfer { send, recv } = transfer;
        let payload = Payload { send: Some(send.buf), recv: None };
        let sender = send.ticket.and_then(|id| self.close(id, payload));
        let receiver = self.close(recv.ticket, Payload { send: None, recv: Some(recv.buf) });
        [sender, receiver]
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
