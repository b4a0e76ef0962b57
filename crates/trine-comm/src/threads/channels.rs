//! Messages between two members of a group, matched in the order of posting.

use super::board::{Board, Needs};
use super::record::Record;
use crate::CommError;
use crate::device::{self, Parcel, Payload};
use std::collections::VecDeque;

#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) record: Record,
    /// `None`: a staged copy whose sender went on.
    ticket: Option<usize>,
    buf: Parcel,
}

#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) record: Record,
    ticket: usize,
    buf: Parcel,
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
    /// The message's side of the sender.
    pub(super) fn record(&self) -> &Record {
        &self.send.record
    }

    pub(super) fn execute(&mut self) -> Result<(), CommError> {
        device::copy(&mut self.send.buf, &mut self.recv.buf)?;
        if self.send.record.seal.is_some() {
            // What has arrived is looked at before its rank opens it.
            self.recv.buf.let_queue_wait()?;
        }
        Ok(())
    }

    /// What has arrived.
    pub(super) fn arrived(&self) -> &Parcel {
        &self.recv.buf
    }
}

impl Board {
    /// Whether `to` already waits for the next message from `from` (indices within the group).
    pub(super) fn receiver_waits(&mut self, group: usize, from: usize, to: usize) -> bool {
        !self.groups[group].channel(from, to).recvs.is_empty()
    }

    /// A ticket for a message of `own` to a member, the wish for one from a member, or both; and the
    /// operation's number in its rank's recorder.
    pub(super) fn open_message(
        &mut self,
        mut record: Record,
        own: usize,
        to: Option<usize>,
        from: Option<usize>,
    ) -> Result<(usize, u64), CommError> {
        self.check(record.rank)?;
        let state = &mut self.groups[record.group];
        // What reports show of an exchange is the incoming direction's number.
        record.sequence = match (to, from) {
            (_, Some(from)) => state.channel(from, own).recvs_posted,
            (Some(to), None) => state.channel(own, to).sends_posted,
            (None, None) => 0,
        };
        let number = self.note(&record);
        let ranks = self.groups[record.group].group.ranks();
        let (to, from) = (to.map(|member| ranks[member]), from.map(|member| ranks[member]));
        let open = u8::from(to.is_some()) + u8::from(from.is_some());
        Ok((self.issue(record, number, Needs::Peers { to, from }, open), number))
    }

    /// Posts the outgoing direction of ticket `id`: matched at once, or queued (as `staged` copy,
    /// if there is one: then this direction is over).
    pub(super) fn post_send(
        &mut self,
        id: usize,
        (from, to): (usize, usize),
        buf: Parcel,
        staged: Option<Parcel>,
    ) -> Option<Transfer> {
        let mut record = self.ticket(id).record;
        record.recv = None;
        let channel = self.groups[record.group].channel(from, to);
        record.sequence = channel.sends_posted;
        channel.sends_posted += 1;
        let receiver = channel.recvs.pop_front();
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
        buf: Parcel,
    ) -> Option<Transfer> {
        let mut record = self.ticket(id).record;
        record.send = None;
        let channel = self.groups[record.group].channel(from, to);
        record.sequence = channel.recvs_posted;
        channel.recvs_posted += 1;
        let sender = channel.sends.pop_front();
        let recv = Incoming { record, ticket: id, buf };
        if let Some(send) = sender {
            return self.matched(send, recv);
        }
        self.groups[record.group].channel(from, to).recvs.push_back(recv);
        None
    }

    fn matched(&mut self, send: Outgoing, recv: Incoming) -> Option<Transfer> {
        if !send.record.suits(&recv.record) {
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
