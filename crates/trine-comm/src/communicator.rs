//! The trait that backends implement, and the calls built on it.

use crate::{CommError, Group, Name, Operation, Pending, Recorder, ReduceOp, Request, Site};
use std::fmt::Debug;
use std::panic::Location;
use std::sync::Arc;
use trine_buffer::{Buf, DType};

/// A group of ranks that exchange buffers, seen by one of them.
///
/// Six methods are what a backend provides, and a seventh if it copies messages; the calls that
/// everybody uses are methods of `dyn Communicator`. They are not in the trait because a call through
/// a trait object would lose its call site.
///
/// All members call the group's collectives in the same order and with the same names. A rank's
/// operations are issued by one thread at a time: a rank that waits is taken to do nothing else.
pub trait Communicator: Debug + Send + Sync {
    /// Who takes part, and which of them the caller is.
    fn group(&self) -> &Group;

    /// Posts an operation. It never waits for a peer; the result may be finished at once.
    ///
    /// # Errors
    /// A request that does not fit the group, a disagreement with ranks that came earlier, or an
    /// earlier failure of the world.
    fn start(&self, request: Request) -> Result<Pending, CommError>;

    /// Divides the group: ranks with equal `colour` form a new one called `name`, in their old
    /// order. A collective: every member calls it, and ranks of one colour agree on the name.
    ///
    /// # Errors
    /// As for every collective.
    fn subgroup(
        &self,
        colour: u64,
        name: &str,
        site: Site,
    ) -> Result<Arc<dyn Communicator>, CommError>;

    /// Stops every rank of the world: what is not over yet and what is called later fails with the
    /// world's first cause. Later causes are ignored.
    fn abort(&self, cause: &str);

    /// Whether the world still stands: for a rank that waits for something else than an operation.
    ///
    /// # Errors
    /// The world's failure, as this rank sees it.
    fn check(&self) -> Result<(), CommError>;

    /// The calling rank's flight recorder, one for all its groups: the backend notes operations
    /// there, and whoever runs the rank where it is.
    fn recorder(&self) -> &Arc<Recorder>;

    /// Makes room for so many more of this rank's messages under way at once, each of `len` elements.
    /// A backend that copies a message that nobody waits for yet has the memory then; others have no
    /// use for it. Not a collective.
    ///
    /// # Errors
    /// If there is too little memory.
    fn reserve(&self, _dtype: DType, _len: usize, _messages: usize) -> Result<(), CommError> {
        Ok(())
    }
}

impl dyn Communicator + '_ {
    /// The calling rank's index in the group.
    pub fn rank(&self) -> usize {
        self.group().rank()
    }

    /// Number of ranks in the group.
    pub fn size(&self) -> usize {
        self.group().size()
    }

    #[track_caller]
    fn post(
        &self,
        operation: Operation,
        name: impl Into<Name>,
        send: Option<Buf>,
        recv: Option<Buf>,
    ) -> Result<Pending, CommError> {
        let site = Location::caller();
        self.start(Request { send, recv, ..Request::new(operation, name, site) })
    }

    /// Posts a message to the rank `to`; done when `buf` may be written again.
    ///
    /// # Errors
    /// See [`CommError`].
    #[track_caller]
    pub fn post_send(
        &self,
        buf: Buf,
        to: usize,
        name: impl Into<Name>,
    ) -> Result<Pending, CommError> {
        self.post(Operation::Send { to }, name, Some(buf), None)
    }

    /// Posts the wish for a message from the rank `from` of exactly `buf`'s type and length.
    ///
    /// # Errors
    /// See [`CommError`].
    #[track_caller]
    pub fn post_recv(
        &self,
        buf: Buf,
        from: usize,
        name: impl Into<Name>,
    ) -> Result<Pending, CommError> {
        self.post(Operation::Recv { from }, name, None, Some(buf))
    }

    /// Posts a message to `to` and the wish for one from `from` together. Each direction is matched
    /// with the peer's send, receive or exchange.
    ///
    /// # Errors
    /// See [`CommError`].
    #[track_caller]
    pub fn post_exchange(
        &self,
        send: Buf,
        to: usize,
        recv: Buf,
        from: usize,
        name: impl Into<Name>,
    ) -> Result<Pending, CommError> {
        self.post(Operation::Exchange { to, from }, name, Some(send), Some(recv))
    }

    /// Posts a broadcast of the root's `buf` into everybody's.
    ///
    /// # Errors
    /// See [`CommError`].
    #[track_caller]
    pub fn post_broadcast(
        &self,
        buf: Buf,
        root: usize,
        name: impl Into<Name>,
    ) -> Result<Pending, CommError> {
        self.post(Operation::Broadcast { root }, name, Some(buf), None)
    }

    /// Posts a reduction of everybody's `buf` into everybody's.
    ///
    /// # Errors
    /// See [`CommError`].
    #[track_caller]
    pub fn post_all_reduce(
        &self,
        buf: Buf,
        op: ReduceOp,
        name: impl Into<Name>,
    ) -> Result<Pending, CommError> {
        self.post(Operation::AllReduce(op), name, Some(buf), None)
    }

    /// Posts the collection of everybody's `send` (n elements) in everybody's `recv` (size × n).
    ///
    /// # Errors
    /// See [`CommError`].
    #[track_caller]
    pub fn post_all_gather(
        &self,
        send: Buf,
        recv: Buf,
        name: impl Into<Name>,
    ) -> Result<Pending, CommError> {
        self.post(Operation::AllGather, name, Some(send), Some(recv))
    }

    /// Posts a reduction of everybody's `send` (size × n elements), of which each rank gets its
    /// part in `recv` (n).
    ///
    /// # Errors
    /// See [`CommError`].
    #[track_caller]
    pub fn post_reduce_scatter(
        &self,
        send: Buf,
        recv: Buf,
        op: ReduceOp,
        name: impl Into<Name>,
    ) -> Result<Pending, CommError> {
        self.post(Operation::ReduceScatter(op), name, Some(send), Some(recv))
    }

    /// Posts the transposition of parts: part i of `send` goes to rank i, part i of `recv` comes
    /// from it (both size × n elements).
    ///
    /// # Errors
    /// See [`CommError`].
    #[track_caller]
    pub fn post_all_to_all(
        &self,
        send: Buf,
        recv: Buf,
        name: impl Into<Name>,
    ) -> Result<Pending, CommError> {
        self.post(Operation::AllToAll, name, Some(send), Some(recv))
    }

    /// Posts the arrival at a barrier; done when everybody has arrived.
    ///
    /// # Errors
    /// See [`CommError`].
    #[track_caller]
    pub fn post_barrier(&self, name: impl Into<Name>) -> Result<Pending, CommError> {
        self.post(Operation::Barrier, name, None, None)
    }

    /// `post_send`, waited for; gives the buffer back.
    ///
    /// # Errors
    /// See [`CommError`].
    #[track_caller]
    pub fn send(&self, buf: Buf, to: usize, name: impl Into<Name>) -> Result<Buf, CommError> {
        self.post_send(buf, to, name)?.wait()?.into_send(Location::caller())
    }

    /// `post_recv`, waited for; gives the filled buffer back.
    ///
    /// # Errors
    /// See [`CommError`].
    #[track_caller]
    pub fn recv(&self, buf: Buf, from: usize, name: impl Into<Name>) -> Result<Buf, CommError> {
        self.post_recv(buf, from, name)?.wait()?.into_recv(Location::caller())
    }

    /// `post_exchange`, waited for; gives `(send, recv)` back.
    ///
    /// # Errors
    /// See [`CommError`].
    #[track_caller]
    pub fn exchange(
        &self,
        send: Buf,
        to: usize,
        recv: Buf,
        from: usize,
        name: impl Into<Name>,
    ) -> Result<(Buf, Buf), CommError> {
        let pending = self.post_exchange(send, to, recv, from, name)?;
        pending.wait()?.into_both(Location::caller())
    }

    /// `post_broadcast`, waited for.
    ///
    /// # Errors
    /// See [`CommError`].
    #[track_caller]
    pub fn broadcast(
        &self,
        buf: Buf,
        root: usize,
        name: impl Into<Name>,
    ) -> Result<Buf, CommError> {
        self.post_broadcast(buf, root, name)?.wait()?.into_send(Location::caller())
    }

    /// `post_all_reduce`, waited for; the buffer holds the reduction.
    ///
    /// # Errors
    /// See [`CommError`].
    #[track_caller]
    pub fn all_reduce(
        &self,
        buf: Buf,
        op: ReduceOp,
        name: impl Into<Name>,
    ) -> Result<Buf, CommError> {
        self.post_all_reduce(buf, op, name)?.wait()?.into_send(Location::caller())
    }

    /// `post_all_gather`, waited for; gives `(send, recv)` back.
    ///
    /// # Errors
    /// See [`CommError`].
    #[track_caller]
    pub fn all_gather(
        &self,
        send: Buf,
        recv: Buf,
        name: impl Into<Name>,
    ) -> Result<(Buf, Buf), CommError> {
        self.post_all_gather(send, recv, name)?.wait()?.into_both(Location::caller())
    }

    /// `post_reduce_scatter`, waited for; gives `(send, recv)` back,
    /// `send` unchanged.
    ///
    /// # Errors
    /// See [`CommError`].
    #[track_caller]
    pub fn reduce_scatter(
        &self,
        send: Buf,
        recv: Buf,
        op: ReduceOp,
        name: impl Into<Name>,
    ) -> Result<(Buf, Buf), CommError> {
        let pending = self.post_reduce_scatter(send, recv, op, name)?;
        pending.wait()?.into_both(Location::caller())
    }

    /// `post_all_to_all`, waited for; gives `(send, recv)` back.
    ///
    /// # Errors
    /// See [`CommError`].
    #[track_caller]
    pub fn all_to_all(
        &self,
        send: Buf,
        recv: Buf,
        name: impl Into<Name>,
    ) -> Result<(Buf, Buf), CommError> {
        self.post_all_to_all(send, recv, name)?.wait()?.into_both(Location::caller())
    }

    /// Waits until everybody is here.
    ///
    /// # Errors
    /// See [`CommError`].
    #[track_caller]
    pub fn barrier(&self, name: impl Into<Name>) -> Result<(), CommError> {
        self.post_barrier(name)?.wait().map(drop)
    }

    /// [`Communicator::subgroup`] with the call site filled in.
    ///
    /// # Errors
    /// As for every collective.
    #[track_caller]
    pub fn split(&self, colour: u64, name: &str) -> Result<Arc<dyn Communicator>, CommError> {
        self.subgroup(colour, name, Location::caller())
    }
}
