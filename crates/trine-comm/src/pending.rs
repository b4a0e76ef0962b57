//! Operations under way.

use crate::{CommError, Site};
use std::fmt;
use trine_buffer::Buf;

/// The buffers of a finished operation.
#[derive(Debug, Default)]
pub struct Done {
    /// The contributed buffer: unchanged, or the result of an operation that works in place.
    pub send: Option<Buf>,
    /// The filled buffer.
    pub recv: Option<Buf>,
}

impl Done {
    /// The contributed buffer; `site` is the call that is blamed if a wrapper took it away.
    ///
    /// # Errors
    /// [`CommError::Taken`].
    pub fn into_send(self, site: Site) -> Result<Buf, CommError> {
        self.send.ok_or(CommError::Taken { which: "send", site })
    }

    /// The filled buffer.
    ///
    /// # Errors
    /// [`CommError::Taken`].
    pub fn into_recv(self, site: Site) -> Result<Buf, CommError> {
        self.recv.ok_or(CommError::Taken { which: "recv", site })
    }

    /// Both buffers, the contributed one first.
    ///
    /// # Errors
    /// [`CommError::Taken`].
    pub fn into_both(self, site: Site) -> Result<(Buf, Buf), CommError> {
        let send = self.send.ok_or(CommError::Taken { which: "send", site })?;
        let recv = self.recv.ok_or(CommError::Taken { which: "recv", site })?;
        Ok((send, recv))
    }
}

/// A backend's side of an operation under way. It owns the operation's buffers. Dropping it must
/// not panic, and must keep the buffers out of their pool until no rank uses them any more.
pub trait Progress: Send {
    /// Whether [`Progress::wait`] would return at once.
    fn is_done(&self) -> bool;
    /// Waits for the end, if the buffers lie on the host. On a device their queue does so: what it is given
    /// afterwards sees the results.
    ///
    /// # Errors
    /// Whatever the operation ran into.
    fn wait(self: Box<Self>) -> Result<Done, CommError>;
}

/// An operation under way. It holds the operation's buffers, so that nobody writes to them
/// meanwhile; [`Pending::wait`] gives them back. One that is dropped leaves its buffers with the
/// communicator until the operation is over.
#[must_use = "an operation under way holds its buffers; wait for it"]
pub struct Pending(State);

enum State {
    Finished(Done),
    Started(Box<dyn Progress>),
}

impl Pending {
    /// An operation that is over already.
    pub fn finished(done: Done) -> Self {
        Self(State::Finished(done))
    }

    /// An operation that a backend works on.
    pub fn started(progress: Box<dyn Progress>) -> Self {
        Self(State::Started(progress))
    }

    /// Whether [`Pending::wait`] would return at once.
    pub fn is_done(&self) -> bool {
        match &self.0 {
            State::Finished(_) => true,
            State::Started(progress) => progress.is_done(),
        }
    }

    /// Gives the buffers back. On the host it waits for the end; on a device the buffers' queue does so, and what it
    /// is given afterwards sees the results.
    ///
    /// # Errors
    /// Whatever the operation ran into; the buffers are gone then.
    pub fn wait(self) -> Result<Done, CommError> {
        match self.0 {
            State::Finished(done) => Ok(done),
            State::Started(progress) => progress.wait(),
        }
    }
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending").field("is_done", &self.is_done()).finish()
    }
}
