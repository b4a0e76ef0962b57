//! The suite by way of another place.

use crate::wrap::Wrapper;
use crate::{CommError, Communicator, Done, Pending, Progress, Request};
use std::sync::Arc;
use trine_buffer::{Buf, Place};

/// A communicator that moves each operation's buffers to another place, such as a device, and back: the suite, whose
/// buffers lie on the host, then tests what a backend does there.
#[derive(Debug)]
pub struct Elsewhere {
    inner: Arc<dyn Communicator>,
    place: Place,
}

impl Elsewhere {
    /// `inner` by way of `place`.
    pub fn around(inner: Arc<dyn Communicator>, place: Place) -> Arc<dyn Communicator> {
        Arc::new(Self { inner, place })
    }
}

impl Wrapper for Elsewhere {
    fn inner(&self) -> &Arc<dyn Communicator> {
        &self.inner
    }

    fn forward(&self, mut request: Request) -> Result<Pending, CommError> {
        let there = |buf: Option<Buf>| buf.map(|buf| self.place.hold(buf)).transpose();
        (request.send, request.recv) = (there(request.send)?, there(request.recv)?);
        Ok(Pending::started(Box::new(Back(self.inner.start(request)?))))
    }

    fn in_front_of(&self, subgroup: Arc<dyn Communicator>) -> Arc<dyn Communicator> {
        Self::around(subgroup, self.place.clone())
    }
}

struct Back(Pending);

impl Progress for Back {
    fn is_done(&self) -> bool {
        self.0.is_done()
    }

    fn wait(self: Box<Self>) -> Result<Done, CommError> {
        let back = |buf: Option<Buf>| buf.map(|buf| buf.slice().to_host()).transpose();
        let Done { send, recv } = self.0.wait()?;
        Ok(Done { send: back(send)?, recv: back(recv)? })
    }
}
