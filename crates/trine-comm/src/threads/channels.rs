//! Messages between two members of a group, matched in the order of posting.

use super::board::{Board, Needs};
use super::record::Record;
use crate::CommError;
use crate::collective::Payload;
use std::collections::VecDeque;
use trine_buffer::Buf;

#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) record: Record,
    /// `None`: a staged copy whose sender went on.
    ticket: Option<usize>,
    buf: Buf,
}

#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) record: Record,
    ticket: usize,
    buf: Buf,
}

/// The messages from one member to another, matched in the order of posting.
#[derive(Debug, Default)]
pub(super) struct Channel {
    sends_posted: u64,
    recvs_posted: u64,
    pub(super) sends: VecDeque<Outgoing>,
    pub(super) recvs: VecDeque<Incoming>,
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

impl Board {
    /// Whether `to` already waits for the next message from `from` (indices within the group).
    pub(super) fn receiver_waits(&mut self, group: usize, from: usize, to: usize) -> bool {
        !self.groups[group].channel(from, to).recvs.is_empty()
    }

    /// A ticket for a message to a member, the wish for one from a member, or both.
    pub(super) fn open_message(
        &mut self,
        record: Record,
        to: Option<usize>,
        from: Option<usize>,
    ) -> Result<usize, CommError> {
        self.check(record.rank)?;
        let ranks = self.groups[record.group].group.ranks();
        let (to, from) = (to.map(|member| ranks[member]), from.map(|member| ranks[member]));
        let open = u8::from(to.is_some()) + u8::from(from.is_some());
        Ok(self.issue(record, Needs::Peers { to, from }, open))
    }

    /// Posts the outgoing direction of ticket `id`: matched at once, or queued (as `staged` copy,
    /// if there is one: then this direction is over).
    pub(super) fn post_send(
        &mut self,
        id: usize,
        (from, to): (usize, usize),
        buf: Buf,
        staged: Option<Buf>,
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
        buf: Buf,
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
}
