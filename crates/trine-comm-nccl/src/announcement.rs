//! What a rank says on the host of an operation of its GPU, so that ranks that disagree are found.

use trine_comm::{
    Buf, Call, CommError, Communicator, DType, Name, Operation, Peers, Pending, Request, Seal,
};

/// Bytes of an announcement: a number that must be equal, then the call in words, cut.
const BYTES: usize = 256;
const NUMBER_BYTES: usize = size_of::<u64>();

/// What every announcement is called: the operation's own name is in it.
const ANNOUNCED: Name = Name::new("operation of a GPU");

/// One rank's announcement on its way.
#[derive(Debug)]
pub(crate) struct Announcement {
    call: Call,
    /// What others must say of what this rank sends, and of what it receives; of a collective the same.
    sends: u64,
    receives: u64,
    state: Option<Pending>,
}

fn encoded(number: u64, call: &Call) -> Vec<u8> {
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.extend(call.to_string().bytes());
    bytes.resize(BYTES, 0);
    bytes
}

impl Announcement {
    /// Says on the host what this rank calls.
    pub(crate) fn post(
        host: &dyn Communicator,
        call: &Call,
        seal: Option<Seal>,
    ) -> Result<Self, CommError> {
        let sends = call.signature(call.send, seal.map(|seal| seal.outgoing));
        let incoming = if call.recv.is_some() { call.recv } else { call.send };
        let receives = call.signature(incoming, seal.map(|seal| seal.number(call.operation)));
        // A collective is a gathering of what all say; a message goes the way of its elements.
        let (operation, says, hears) = match call.operation.peers() {
            None => (Operation::AllGather, true, host.group().size()),
            Some(Peers { to, from }) => (call.operation, to.is_some(), usize::from(from.is_some())),
        };
        let request = Request {
            send: says.then(|| Buf::from_vec(encoded(sends, call))),
            recv: (hears > 0).then(|| Buf::zeros(DType::U8, hears * BYTES)),
            ..Request::new(operation, ANNOUNCED, call.site)
        };
        let state = Some(host.start(request)?);
        Ok(Self { call: call.clone(), sends, receives, state })
    }

    pub(crate) fn call(&self) -> &Call {
        &self.call
    }

    /// Whether everybody who takes part has said the same; waits for nobody.
    ///
    /// # Errors
    /// Ranks that disagree, with both calls; or a world that has failed.
    pub(crate) fn is_answered(&mut self) -> Result<bool, CommError> {
        let Some(pending) = self.state.take_if(|pending| pending.is_done()) else {
            return Ok(self.state.is_none());
        };
        let Some(said) = pending.wait()?.recv else { return Ok(true) };
        let expected =
            if self.call.operation.peers().is_some() { self.receives } else { self.sends };
        for theirs in said.typed::<u8>()?.chunks_exact(BYTES) {
            let (number, text) = theirs.split_at(NUMBER_BYTES);
            if number != expected.to_le_bytes() {
                let text = String::from_utf8_lossy(text);
                let theirs = text.trim_end_matches('\0').to_owned();
                return Err(CommError::Conflict { own: Box::new(self.call.clone()), theirs });
            }
        }
        Ok(true)
    }
}
