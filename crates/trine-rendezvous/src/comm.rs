//! A communicator by way of the store, for the few words that processes exchange on the host where their tensors go
//! another way.

use crate::client::Client;
use crate::message::{Answer, Ask};
use crate::share::{Envelope, decoded, encoded};
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use trine_comm::{
    Buf, Call, Cause, CommError, Communicator, Diagnosis, Done, Extent, Group, Missing, Operation,
    Peers, Pending, Progress, RankState, Recorder, Request, SelfComm, Site,
};

/// Whose words errors pass on.
const STORE: &str = "store";

/// How long a rank that asks in vain waits before it asks again, at least and at most.
const PAUSE_MIN: Duration = Duration::from_micros(100);
const PAUSE_MAX: Duration = Duration::from_millis(2);

/// What all groups of a rank share.
#[derive(Debug)]
struct Seat {
    client: Arc<Client>,
    recorder: Arc<Recorder>,
    deadline: Duration,
    /// What nobody waits for any more, and is still to be taken out of the store.
    dropped: Mutex<Vec<String>>,
}

/// A group of processes, seen by one of them. Messages are delivered buffered, and each operation costs a rank two
/// questions to the store or more: it is made for control words, not for tensors.
pub struct StoreComm {
    seat: Arc<Seat>,
    group: Group,
    id: u64,
    /// The next number of collectives, and of messages by sender and receiver.
    next: Mutex<HashMap<Option<(usize, usize)>, u64>>,
    divisions: AtomicU64,
}

impl fmt::Debug for StoreComm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "group {:?} by the store", self.group)
    }
}

// A panic while a lock is held leaves counts and lists that are whole.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed(message: String) -> CommError {
    CommError::Backend { backend: STORE, message }
}

impl Seat {
    /// Asks the store; a run that has failed is an error with its first cause.
    fn ask(&self, ask: &Ask) -> Result<Answer, CommError> {
        match self.client.ask(ask).map_err(|error| failed(error.to_string()))? {
            Answer::Stop(Diagnosis { rank, failure, .. }) => {
                let cause = Cause { rank, message: failure.into() };
                Err(CommError::Aborted { cause })
            }
            Answer::No(why) => Err(failed(why)),
            other => Ok(other),
        }
    }

    /// What has been shared under a key, once all of it is there.
    fn take(&self, key: &str) -> Result<Option<Vec<Envelope>>, CommError> {
        match self.ask(&Ask::Take { key: key.to_owned() })? {
            Answer::Shared(values) => {
                let all: Option<Vec<_>> = values.iter().map(|value| decoded(value)).collect();
                let why = || "what was shared is no operation: do all ranks run the same version of trine?";
                all.map(Some).ok_or_else(|| failed(why().into()))
            }
            _ => Ok(None),
        }
    }

    /// Stops the run with this error as the first cause, unless it has failed already.
    fn fail(&self, error: CommError) -> CommError {
        if !matches!(error, CommError::Aborted { .. }) {
            self.abort(&error.to_string());
        }
        error
    }

    fn abort(&self, cause: &str) {
        let (rank, beats) = (self.recorder.rank(), vec![self.recorder.beat()]);
        // A store that is gone has nobody to tell.
        let _ = self.client.fail(&Diagnosis { rank, failure: cause.to_owned(), beats });
    }
}

impl StoreComm {
    /// The world of a run: `ranks` processes, each with a client of its rank.
    ///
    /// # Panics
    /// If the client's rank is not one of them.
    pub fn world(
        client: Arc<Client>,
        ranks: usize,
        recorder: Arc<Recorder>,
        deadline: Duration,
    ) -> Arc<dyn Communicator> {
        let group = Group::new("world", (0..ranks).collect(), recorder.rank());
        let group = group.expect("a rank of the world");
        let seat = Arc::new(Seat { client, recorder, deadline, dropped: Mutex::default() });
        let whole = Self::new(seat, group, 0);
        if ranks == 1 {
            SelfComm::within("world", 0, Some(Arc::new(whole)))
        } else {
            Arc::new(whole)
        }
    }

    fn new(seat: Arc<Seat>, group: Group, id: u64) -> Self {
        Self { seat, group, id, next: Mutex::default(), divisions: AtomicU64::new(0) }
    }

    /// The next key of collectives, or of the messages from one rank to another; and its number.
    fn key(&self, ends: Option<(usize, usize)>) -> (String, u64) {
        let mut next = locked(&self.next);
        let next = next.entry(ends).or_default();
        *next += 1;
        let way = ends.map_or(String::new(), |(from, to)| format!("{from}>{to} "));
        (format!("{:x} {way}{}", self.id, *next - 1), *next - 1)
    }

    fn share(
        &self,
        key: String,
        (place, places, takers): (usize, usize, usize),
        envelope: &Envelope,
    ) -> Result<(), CommError> {
        let value = encoded(envelope);
        self.seat.ask(&Ask::Share { key, place, places, takers, value }).map(drop)
    }

    fn post(&self, request: Request) -> Result<Pending, CommError> {
        let dropped = std::mem::take(&mut *locked(&self.seat.dropped));
        for key in dropped {
            if self.seat.take(&key)?.is_none() {
                locked(&self.seat.dropped).push(key);
            }
        }
        let (own, size) = (self.group.rank(), self.group.size());
        let Request { operation, seal, .. } = request;
        let (incoming, outgoing, sequence) = match operation.peers() {
            None => {
                let (key, number) = self.key(None);
                (Some(key.clone()), Some((key, (own, size, size))), number)
            }
            Some(Peers { to, from }) => {
                let out = to.map(|to| self.key(Some((own, to))));
                let incoming = from.map(|from| self.key(Some((from, own))));
                let shown = incoming.as_ref().or(out.as_ref()).map_or(0, |(_, number)| *number);
                (incoming.map(|(key, _)| key), out.map(|(key, _)| (key, (0, 1, 1))), shown)
            }
        };
        let call = request.call(&self.group, sequence);
        let number = self.seat.recorder.post(call.clone());
        if let Some((key, seats)) = outgoing {
            let is_silent = matches!(operation, Operation::Broadcast { root } if root != own);
            let bytes = match &request.send {
                Some(send) if !is_silent => send.slice().bytes()?.to_vec(),
                _ => Vec::new(),
            };
            let signature = call.signature(call.send, seal.map(|seal| seal.outgoing));
            self.share(key, seats, &Envelope { signature, text: call.to_string(), bytes })?;
        }
        let done = Done { send: request.send, recv: request.recv };
        let Some(key) = incoming else {
            self.seat.recorder.finish(number);
            return Ok(Pending::finished(done));
        };
        let message = if call.recv.is_some() { call.recv } else { call.send };
        let signature = call.signature(message, seal.map(|seal| seal.number(operation)));
        let (seat, taken) = (self.seat.clone(), Mutex::new(None));
        let waits = Waits { seat, key: Some(key), taken, call, number, signature, done };
        Ok(Pending::started(Box::new(waits)))
    }

    /// Everybody's colour and name, in the group's order.
    fn wishes(&self, colour: u64, name: &str, site: Site) -> Result<Vec<(u64, u64)>, CommError> {
        let own = vec![colour, trine_comm::checksum(name.as_bytes())];
        let request = Request {
            recv: Some(Buf::from_vec(vec![0u64; own.len() * self.group.size()])),
            send: Some(Buf::from_vec(own)),
            ..Request::new(Operation::AllGather, "split", site)
        };
        let all = self.start(request)?.wait()?.into_recv(site)?;
        Ok(all.typed::<u64>()?.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
    }
}

impl Communicator for StoreComm {
    fn group(&self) -> &Group {
        &self.group
    }

    fn start(&self, request: Request) -> Result<Pending, CommError> {
        request.check(&self.group)?;
        self.post(request).map_err(|error| self.seat.fail(error))
    }

    fn subgroup(
        &self,
        colour: u64,
        name: &str,
        site: Site,
    ) -> Result<Arc<dyn Communicator>, CommError> {
        let division = self.divisions.fetch_add(1, Ordering::Relaxed);
        let wishes = self.wishes(colour, name, site)?;
        let (ranks, own) = (self.group.ranks(), self.group.rank());
        let members: Vec<usize> =
            (0..ranks.len()).filter(|member| wishes[*member].0 == colour).collect();
        if let Some(other) = members.iter().find(|member| wishes[**member].1 != wishes[own].1) {
            let message = format!(
                "ranks {} and {} divide group {} with colour {colour}, but disagree on the name of their part; this \
                 one's is {name:?}, at {site}",
                ranks[own], ranks[*other], self.group
            );
            return Err(self.seat.fail(failed(message)));
        }
        let index = members.iter().position(|member| *member == own);
        let part = members.iter().map(|member| ranks[*member]).collect();
        let part = index.and_then(|index| Group::new(name, part, index));
        let part = part.expect("invariant: every rank has its own colour");
        if part.size() == 1 {
            let whole = Self::new(self.seat.clone(), self.group.clone(), self.id);
            return Ok(SelfComm::within(name, part.world_rank(), Some(Arc::new(whole))));
        }
        let id = trine_comm::checksum(format!("{} {division} {colour}", self.id).as_bytes());
        Ok(Arc::new(Self::new(self.seat.clone(), part, id)))
    }

    fn abort(&self, cause: &str) {
        self.seat.abort(cause);
    }

    fn check(&self) -> Result<(), CommError> {
        self.seat.ask(&Ask::Check).map(drop)
    }

    fn recorder(&self) -> &Arc<Recorder> {
        &self.seat.recorder
    }
}

/// An operation that waits for what others share.
struct Waits {
    seat: Arc<Seat>,
    /// `None` once it is taken, or has failed.
    key: Option<String>,
    taken: Mutex<Option<Result<Vec<Envelope>, CommError>>>,
    call: Call,
    number: u64,
    signature: u64,
    done: Done,
}

impl Progress for Waits {
    fn is_done(&self) -> bool {
        let mut taken = locked(&self.taken);
        if let (None, Some(key)) = (&*taken, &self.key) {
            *taken = self.seat.take(key).transpose();
        }
        taken.is_some()
    }

    fn wait(mut self: Box<Self>) -> Result<Done, CommError> {
        let (started, mut pause) = (Instant::now(), PAUSE_MIN);
        self.seat.recorder.wait(self.number);
        while !self.is_done() {
            let waited = started.elapsed();
            if waited >= self.seat.deadline {
                let unheard = |rank| Missing { rank, state: RankState::Unheard(None) };
                let missing = self.call.others().into_iter().map(unheard).collect();
                let call = Box::new(self.call.clone());
                return Err(self.seat.fail(CommError::Deadline { call, waited, missing }));
            }
            std::thread::sleep(pause);
            pause = (2 * pause).min(PAUSE_MAX);
        }
        self.key = None;
        let taken = locked(&self.taken).take();
        let envelopes =
            taken.expect("invariant: it is done").map_err(|error| self.seat.fail(error))?;
        self.compare(&envelopes).map_err(|error| self.seat.fail(error))?;
        let mut done = std::mem::take(&mut self.done);
        let contributions: Vec<&[u8]> = envelopes.iter().map(|envelope| &*envelope.bytes).collect();
        fill(&self.call, &mut done, &contributions).map_err(|error| self.seat.fail(error))?;
        self.seat.recorder.finish(self.number);
        Ok(done)
    }
}

impl Waits {
    /// Refuses what another rank says of another operation.
    fn compare(&self, envelopes: &[Envelope]) -> Result<(), CommError> {
        match envelopes.iter().find(|envelope| envelope.signature != self.signature) {
            None => Ok(()),
            Some(other) => {
                let (own, theirs) = (Box::new(self.call.clone()), other.text.clone());
                Err(CommError::Conflict { own, theirs })
            }
        }
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            locked(&self.seat.dropped).push(key);
        }
    }
}

/// Computes a rank's result of what all have shared, in rank order; of a message, of the one that has come.
fn fill(call: &Call, done: &mut Done, shared: &[&[u8]]) -> Result<(), CommError> {
    let own = call.group.rank();
    let part = |bytes: usize, all: &[u8]| all[own * bytes..(own + 1) * bytes].to_vec();
    let into = |buf: &mut Option<Buf>, bytes: &[u8]| -> Result<(), CommError> {
        if let Some(buf) = buf {
            buf.slice_mut().bytes()?.copy_from_slice(bytes);
        }
        Ok(())
    };
    let reduced = |op, buf: &mut Option<Buf>, bytes: &[u8]| -> Result<(), CommError> {
        if let Some(buf) = buf {
            let mut all = Buf::zeros(buf.dtype(), buf.len() * shared.len());
            all.slice_mut().bytes()?.copy_from_slice(bytes);
            trine_comm::reduce(op, all.slice(), buf.slice_mut())?;
        }
        Ok(())
    };
    let received = call.recv.map_or(0, |Extent { dtype, len }| dtype.bytes() * len);
    match call.operation {
        Operation::Send { .. } | Operation::Barrier => Ok(()),
        Operation::Recv { .. } | Operation::Exchange { .. } => into(&mut done.recv, shared[0]),
        Operation::Broadcast { root } => into(&mut done.send, shared[root]),
        Operation::AllGather => into(&mut done.recv, &shared.concat()),
        Operation::AllReduce(op) => reduced(op, &mut done.send, &shared.concat()),
        Operation::ReduceScatter(op) => {
            let parts: Vec<u8> = shared.iter().flat_map(|all| part(received, all)).collect();
            reduced(op, &mut done.recv, &parts)
        }
        Operation::AllToAll => {
            let each = received / shared.len();
            let parts: Vec<u8> = shared.iter().flat_map(|all| part(each, all)).collect();
            into(&mut done.recv, &parts)
        }
    }
}
