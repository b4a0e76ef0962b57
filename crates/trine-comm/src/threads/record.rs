//! What is known of a posted operation apart from its buffers.

use crate::{Extent, Name, Operation, Place, Request, Seal, Site};

/// A posted operation without its buffers: what is compared and reported.
#[derive(Debug, Clone, Copy)]
pub(super) struct Record {
    pub(super) rank: usize,
    pub(super) group: usize,
    pub(super) operation: Operation,
    pub(super) name: Name,
    pub(super) sequence: u64,
    pub(super) send: Option<Extent>,
    pub(super) recv: Option<Extent>,
    pub(super) site: Site,
    pub(super) seal: Option<Seal>,
    pub(super) place: Place,
}

impl Record {
    pub(super) fn new(rank: usize, group: usize, request: &Request, place: Place) -> Self {
        Self {
            rank,
            group,
            operation: request.operation,
            name: request.name,
            sequence: 0,
            send: request.send.as_ref().map(Extent::of),
            recv: request.recv.as_ref().map(Extent::of),
            site: request.site,
            seal: request.seal,
            place,
        }
    }

    /// Whether both call the same collective.
    pub(super) fn agrees(&self, other: &Self) -> bool {
        self.operation == other.operation
            && self.name == other.name
            && self.send == other.send
            && self.recv == other.recv
            && self.seal.map(|seal| seal.outgoing) == other.seal.map(|seal| seal.outgoing)
    }

    /// Whether a message that this rank sends is the one that the other wants.
    pub(super) fn suits(&self, receiver: &Self) -> bool {
        self.send == receiver.recv
            && self.name == receiver.name
            && self.seal.map(|seal| seal.outgoing) == receiver.seal.map(|seal| seal.incoming)
    }
}
