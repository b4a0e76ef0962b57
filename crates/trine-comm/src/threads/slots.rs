//! Collectives while their members arrive.

use super::board::{Board, Needs};
use super::record::Record;
use crate::device::{Parcel, Payload};
use crate::{CommError, Operation};

/// A member's contribution to a collective. The last arriver needs no ticket.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) record: Record,
    ticket: Option<usize>,
    payload: Payload,
}

/// One collective of a group while its members arrive.
#[derive(Debug, Default)]
pub(super) struct Slot {
    pub(super) arrivals: Vec<Option<Arrival>>,
    arrived: usize,
}

/// A collective that everybody has posted, on its way to be executed.
#[derive(Debug)]
pub(super) struct Complete {
    pub(super) operation: Operation,
    /// Whose contributions, in the group's order.
    records: Vec<Record>,
    pub(super) payloads: Vec<Payload>,
    /// How many of its members wait for it, and leave their cores to whoever works.
    pub(super) idle: usize,
    /// The last arriver's operation in its recorder.
    pub(super) number: u64,
    tickets: Vec<Option<usize>>,
}

impl Complete {
    /// Every contribution with its buffer.
    pub(super) fn contributions(&self) -> impl Iterator<Item = (&Record, &Parcel)> {
        let all = self.records.iter().zip(&self.payloads);
        all.filter_map(|(record, payload)| Some((record, payload.send.as_ref()?)))
    }
}

/// How a member's arrival ended.
#[derive(Debug)]
pub(super) enum Posted {
    /// Others are missing; here are the ticket and the operation's number in its rank's recorder.
    Ticket(usize, u64),
    /// It was the last one.
    Complete(Complete),
}

impl Board {
    /// Posts a member's side of its group's next collective.
    pub(super) fn arrive(
        &mut self,
        mut record: Record,
        member: usize,
        payload: Payload,
    ) -> Result<Posted, CommError> {
        self.check(record.rank)?;
        let state = &mut self.groups[record.group];
        record.sequence = state.next[member];
        state.next[member] += 1;
        let number = self.note(&record);
        let state = &mut self.groups[record.group];
        let size = state.group.size();
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
        if !agrees {
            self.disagree(record, at);
            self.check(record.rank)?;
        }
        if last {
            return Ok(Posted::Complete(self.take_front(record.group, number)));
        }
        let id = self.issue(record, number, Needs::Group, 1);
        if let Some(arrival) = &mut self.groups[record.group].slots[at].arrivals[member] {
            arrival.ticket = Some(id);
        }
        Ok(Posted::Ticket(id, number))
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
    fn take_front(&mut self, group: usize, number: u64) -> Complete {
        let state = &mut self.groups[group];
        let mut slot = state.slots.pop_front().expect("invariant: a full slot is there");
        state.first += 1;
        let mut payloads = Vec::with_capacity(slot.arrivals.len());
        let mut tickets = Vec::with_capacity(slot.arrivals.len());
        let mut records = Vec::with_capacity(slot.arrivals.len());
        let mut operation = Operation::Barrier;
        for arrival in slot.arrivals.drain(..).flatten() {
            operation = arrival.record.operation;
            records.push(arrival.record);
            payloads.push(arrival.payload);
            tickets.push(arrival.ticket);
        }
        slot.arrived = 0;
        state.spare.push(slot);
        for id in tickets.iter().flatten() {
            self.ticket_mut(*id).needs = Needs::Nobody;
        }
        let idle = tickets.iter().flatten().filter(|id| self.is_awaited(**id)).count();
        Complete { operation, records, payloads, idle, number, tickets }
    }

    /// Hands the results out: the last arriver's own, and the ranks to wake.
    pub(super) fn close_collective(&mut self, complete: Complete) -> (Payload, Vec<usize>) {
        let mut own = Payload::default();
        let mut wake = Vec::new();
        for (ticket, payload) in complete.tickets.into_iter().zip(complete.payloads) {
            match ticket {
                Some(id) => wake.extend(self.close(id, payload)),
                None => own = payload,
            }
        }
        (own, wake)
    }
}
