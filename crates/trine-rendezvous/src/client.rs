//! A rank's side: questions, and the thread that sends heartbeats.

use crate::frame::{self, FRAME_BYTES_MAX, Incoming};
use crate::message::{Answer, Ask, Hello};
use crate::{RendezvousError, Token};
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use trine_comm::{Diagnosis, FlightRecord, Recorder};

/// How often a heartbeat is sent.
const BEAT_EVERY: Duration = Duration::from_millis(200);

/// How long a wait for an answer lasts before it is looked whether to go on: a process that was
/// suspended has missed one of these, and not its whole patience.
const SLICE: Duration = Duration::from_millis(100);

/// How often a rank says who it is before it takes a silent end for a refusal.
const GREETINGS: usize = 3;

/// A rank's connection to its run's store. Its calls may come from any thread.
#[derive(Debug)]
pub struct Client {
    peer: Peer,
    stream: Mutex<TcpStream>,
}

/// The store, and who asks it.
#[derive(Debug, Clone)]
struct Peer {
    address: SocketAddr,
    token: Token,
    rank: usize,
    host: String,
    timeout: Duration,
}

impl Client {
    /// Connects as the world rank `rank` on `host`, and tries for `timeout`, because the store may
    /// come up later. No call waits longer than `timeout` for an answer.
    ///
    /// # Errors
    /// Nobody there, or the token or the rank is refused.
    pub fn connect(
        address: SocketAddr,
        token: &Token,
        rank: usize,
        host: &str,
        timeout: Duration,
    ) -> Result<Self, RendezvousError> {
        let peer = Peer { address, token: token.clone(), rank, host: host.to_owned(), timeout };
        let stream = Mutex::new(peer.connect()?);
        Ok(Self { peer, stream })
    }

    pub(crate) fn ask(&self, ask: &Ask) -> Result<Answer, RendezvousError> {
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        self.peer.ask(&mut stream, ask, &|| true)
    }

    fn tell(&self, ask: &Ask) -> Result<(), RendezvousError> {
        match self.ask(ask)? {
            Answer::Fine | Answer::Stop(_) => Ok(()),
            Answer::No(why) => Err(self.peer.refused(why)),
            other @ (Answer::Value(_) | Answer::Shared(_) | Answer::NotYet) => {
                Err(self.peer.unexpected(&other))
            }
        }
    }

    /// Keeps a value under a key, for all ranks; a later one replaces it.
    ///
    /// # Errors
    /// A store that is gone, or full.
    pub fn put(&self, key: &str, value: &[u8]) -> Result<(), RendezvousError> {
        self.tell(&Ask::Put { key: key.to_owned(), value: value.to_owned() })
    }

    /// The value under a key; waits until somebody has put one, at most for `within`.
    ///
    /// # Errors
    /// A store that is gone, or nobody puts one.
    pub fn get(&self, key: &str, within: Duration) -> Result<Vec<u8>, RendezvousError> {
        let began = Instant::now();
        let mut pause = Duration::from_millis(2);
        loop {
            match self.ask(&Ask::Get { key: key.to_owned() })? {
                Answer::Value(value) => return Ok(value),
                Answer::NotYet if began.elapsed() >= within => {
                    return Err(RendezvousError::NoValue { key: key.to_owned(), waited: within });
                }
                Answer::NotYet => thread::sleep(pause),
                Answer::No(why) => return Err(self.peer.refused(why)),
                other @ (Answer::Fine | Answer::Shared(_) | Answer::Stop(_)) => {
                    return Err(self.peer.unexpected(&other));
                }
            }
            pause = (2 * pause).min(SLICE);
        }
    }

    /// Reports that the run cannot go on, and why. Only the first report of a run counts.
    ///
    /// # Errors
    /// A store that is gone.
    pub fn fail(&self, diagnosis: &Diagnosis) -> Result<(), RendezvousError> {
        self.tell(&Ask::Fail(diagnosis.clone()))
    }

    /// Hands in this rank's flight recorder.
    ///
    /// # Errors
    /// A store that is gone.
    pub fn record(&self, record: &FlightRecord) -> Result<(), RendezvousError> {
        self.tell(&Ask::Record(record.clone()))
    }

    /// Starts a thread that sends what `recorder` knows as heartbeats, over a connection of its own:
    /// the rank's lifeline. `on_stop` is called at most once, with why the rank must stop.
    ///
    /// # Errors
    /// No connection, another process with this rank, or no thread.
    pub fn watch(
        &self,
        recorder: &Arc<Recorder>,
        on_stop: impl FnOnce(Stop) + Send + 'static,
    ) -> Result<Watch, RendezvousError> {
        let (peer, recorder) = (self.peer.clone(), recorder.clone());
        let mut stream = peer.connect()?;
        // The first one here, so that a rank that is refused knows before it begins.
        let first = peer.ask(&mut stream, &Ask::Beat(recorder.beat()), &|| true)?;
        if let Answer::No(why) = first {
            return Err(peer.refused(why));
        }
        let ends = Arc::new(Ends::default());
        let seen = ends.clone();
        let body = move || {
            if let Some(stop) = peer.beat(&mut stream, first, &recorder, &seen) {
                on_stop(stop);
            }
        };
        let thread = thread::Builder::new().name("heartbeat".into()).spawn(body);
        let thread =
            thread.map_err(|source| RendezvousError::System { what: "start a thread", source })?;
        Ok(Watch { ends, thread: Some(thread) })
    }
}

/// Why a rank must stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// The run has failed, as the store tells.
    Failed(Diagnosis),
    /// The store does not answer any more. What this rank knows of it, about itself.
    Unheard(Diagnosis),
}

/// How a watch is told to end.
#[derive(Debug, Default)]
struct Ends {
    farewell: AtomicBool,
    dropped: AtomicBool,
}

/// The heartbeats of a rank. Dropped without [`Watch::farewell`], the rank counts as gone: that is
/// what happens when it panics.
#[derive(Debug)]
pub struct Watch {
    ends: Arc<Ends>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// The rank has done its work and goes: its absence is not a failure.
    pub fn farewell(self) {
        self.ends.farewell.store(true, Ordering::Release);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.ends.dropped.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // `on_stop` may have ended the process's main part, but it runs on that thread itself.
            if thread.thread().id() != thread::current().id() {
                thread.thread().unpark();
                let _ = thread.join();
            }
        }
    }
}

impl Peer {
    fn refused(&self, why: impl Into<String>) -> RendezvousError {
        RendezvousError::Refused { address: self.address, rank: self.rank, why: why.into() }
    }

    fn unexpected(&self, answer: &Answer) -> RendezvousError {
        RendezvousError::Protocol { address: self.address, why: format!("{answer:?}") }
    }

    fn unreachable(&self, source: io::Error) -> RendezvousError {
        RendezvousError::Unreachable { address: self.address, source }
    }

    /// A connection that the store has accepted. One that it ends at once is tried again: it may have had
    /// more of them than it takes.
    fn connect(&self) -> Result<TcpStream, RendezvousError> {
        for _ in 1..GREETINGS {
            match self.greet()? {
                Some(stream) => return Ok(stream),
                None => thread::sleep(SLICE),
            }
        }
        // That is how it treats whoever has another token.
        self.greet()?
            .ok_or_else(|| self.refused("it ended the connection: this is another run's token"))
    }

    /// Reaches the store and says who this is; `None` if it ends the connection.
    fn greet(&self) -> Result<Option<TcpStream>, RendezvousError> {
        let mut stream = self.reach()?;
        let hello = Hello { token: self.token.reveal(), rank: self.rank, host: self.host.clone() };
        match self.exchange(&mut stream, &hello, &|| true) {
            Ok(Answer::Fine) => Ok(Some(stream)),
            Ok(Answer::No(why)) => Err(self.refused(why)),
            Ok(other) => Err(self.unexpected(&other)),
            Err(RendezvousError::Unreachable { source, .. })
                if matches!(
                    source.kind(),
                    io::ErrorKind::UnexpectedEof
                        | io::ErrorKind::ConnectionReset
                        | io::ErrorKind::BrokenPipe
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn reach(&self) -> Result<TcpStream, RendezvousError> {
        let began = Instant::now();
        let stream = loop {
            let left = self.timeout.saturating_sub(began.elapsed()).max(SLICE);
            match TcpStream::connect_timeout(&self.address, left) {
                Ok(stream) => break stream,
                Err(error) if began.elapsed() >= self.timeout => {
                    return Err(self.unreachable(error));
                }
                // The store is not up yet.
                Err(_) => thread::sleep(SLICE / 2),
            }
        };
        let prepare = |stream: &TcpStream| {
            stream.set_nodelay(true)?;
            stream.set_write_timeout(Some(self.timeout.max(SLICE)))
        };
        prepare(&stream).map_err(|error| self.unreachable(error))?;
        Ok(stream)
    }

    fn ask(
        &self,
        stream: &mut TcpStream,
        ask: &Ask,
        go_on: &dyn Fn() -> bool,
    ) -> Result<Answer, RendezvousError> {
        self.exchange(stream, ask, go_on)
    }

    /// Sends a message and waits for the answer, for as long as `go_on` and no longer than the
    /// timeout.
    fn exchange(
        &self,
        stream: &mut TcpStream,
        message: &impl serde::Serialize,
        go_on: &dyn Fn() -> bool,
    ) -> Result<Answer, RendezvousError> {
        let frame = frame::encode(message)
            .map_err(|bytes| RendezvousError::TooLarge { bytes, max: FRAME_BYTES_MAX })?;
        frame::write(stream, &frame).map_err(|error| self.unreachable(error))?;
        let slices = self.timeout.as_millis().div_ceil(SLICE.as_millis()).max(1);
        for _ in 0..slices {
            match frame::read(stream, SLICE, self.timeout.max(SLICE)) {
                Ok(Incoming::Frame(answer)) => return Ok(answer),
                Ok(Incoming::Idle) if go_on() => {}
                Ok(Incoming::Idle) => break,
                Ok(Incoming::Closed) => {
                    return Err(self.unreachable(io::ErrorKind::UnexpectedEof.into()));
                }
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    let why = error.to_string();
                    return Err(RendezvousError::Protocol { address: self.address, why });
                }
                Err(error) => return Err(self.unreachable(error)),
            }
        }
        let text = format!("no answer for {:.1?}", self.timeout);
        Err(self.unreachable(io::Error::new(io::ErrorKind::TimedOut, text)))
    }

    /// Heartbeats until the watch ends. Why the run must stop, if it must.
    fn beat(
        &self,
        stream: &mut TcpStream,
        first: Answer,
        recorder: &Recorder,
        ends: &Ends,
    ) -> Option<Stop> {
        let mut answer = Ok(first);
        loop {
            match answer {
                Ok(Answer::Stop(cause)) => return Some(Stop::Failed(cause)),
                Ok(
                    Answer::Fine
                    | Answer::Value(_)
                    | Answer::Shared(_)
                    | Answer::NotYet
                    | Answer::No(_),
                ) => {}
                Err(_) if ends.dropped.load(Ordering::Acquire) => return None,
                Err(error) => {
                    let failure = format!(
                        "{error}; whoever started the run, its host or the link to it is gone"
                    );
                    let beats = vec![recorder.beat()];
                    return Some(Stop::Unheard(Diagnosis { rank: self.rank, failure, beats }));
                }
            }
            if !ends.dropped.load(Ordering::Acquire) {
                thread::park_timeout(BEAT_EVERY);
            }
            if ends.dropped.load(Ordering::Acquire) {
                if ends.farewell.load(Ordering::Acquire) {
                    // A store that is gone does not miss it.
                    let _ = self.ask(stream, &Ask::Farewell, &|| true);
                }
                return None;
            }
            let go_on = || !ends.dropped.load(Ordering::Acquire);
            answer = self.ask(stream, &Ask::Beat(recorder.beat()), &go_on);
        }
    }
}
