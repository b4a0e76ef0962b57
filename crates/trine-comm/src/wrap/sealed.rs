//! Sealed operations: numbered and with a checksum of what goes out.

use super::Wrapper;
use crate::request::checksum_of;
use crate::{CommError, Communicator, Peers, Pending, Request, Seal};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use trine_buffer::BufferError;

/// Seals every operation before it is posted: ranks then notice elements that were altered on the
/// way, and an operation that was lost or came twice, even where the next one looks the same.
///
/// It costs a pass over the elements at both ends (xxh3 reads several GB/s). All ranks of a world
/// seal, or none. What is between this wrapper and the peer is checked, so it goes outside of wrappers
/// that meddle.
///
/// ```
/// use trine_buffer::Buf;
/// use trine_comm::wrap::{Action, Sealed, Tap};
/// use trine_comm::{CommError, ReduceOp, threads};
///
/// // A network that flips a bit of what rank 1 contributes.
/// let error = threads::run(2, &Default::default(), |comm| {
///     let rank = comm.rank();
///     let comm = Sealed::around(Tap::around(comm, move |_, request| {
///         if let (1, Some(send)) = (rank, &mut request.send) {
///             send.slice_mut().bytes().unwrap()[2] ^= 4;
///         }
///         Action::Forward
///     }));
///     comm.all_reduce(Buf::from_vec(vec![1.0f32; 8]), ReduceOp::Sum, "grad")
/// });
/// let text = error.unwrap_err().to_string();
/// assert!(text.contains("rank 1 in all_reduce(sum) \"grad\" #0"), "{text}");
/// assert!(text.contains("altered on the way"), "{text}");
/// ```
pub struct Sealed {
    inner: Arc<dyn Communicator>,
    collectives: AtomicU64,
    /// Messages to each member, messages from each.
    sent: Vec<AtomicU64>,
    received: Vec<AtomicU64>,
}

impl Sealed {
    /// `inner`, sealed.
    pub fn around(inner: Arc<dyn Communicator>) -> Arc<dyn Communicator> {
        let counters = || (0..inner.size()).map(|_| AtomicU64::new(0)).collect();
        let (sent, received) = (counters(), counters());
        Arc::new(Self { inner, collectives: AtomicU64::new(0), sent, received })
    }

    fn seal(&self, request: &Request) -> Result<Seal, BufferError> {
        let next = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
        // A peer that does not exist is refused by the backend.
        let of = |counters: &[AtomicU64], member: usize| counters.get(member).map_or(0, next);
        let (outgoing, incoming) = match request.operation.peers() {
            Some(Peers { to, from }) => (
                to.map_or(0, |to| of(&self.sent, to)),
                from.map_or(0, |from| of(&self.received, from)),
            ),
            None => {
                let number = next(&self.collectives);
                (number, number)
            }
        };
        let checksum = request.send.as_ref().map_or(Ok(0), checksum_of)?;
        Ok(Seal { outgoing, incoming, checksum })
    }
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealed({:?})", self.inner)
    }
}

impl Wrapper for Sealed {
    fn inner(&self) -> &Arc<dyn Communicator> {
        &self.inner
    }

    fn forward(&self, request: Request) -> Result<Pending, CommError> {
        let seal = Some(self.seal(&request)?);
        self.inner.start(Request { seal, ..request })
    }

    fn in_front_of(&self, subgroup: Arc<dyn Communicator>) -> Arc<dyn Communicator> {
        Self::around(subgroup)
    }

    // A division is a collective; counted, so that seals and numbers stay alike.
    fn before_division(&self) {
        self.collectives.fetch_add(1, Ordering::Relaxed);
    }
}
