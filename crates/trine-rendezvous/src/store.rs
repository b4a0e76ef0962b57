//! The store: listens, serves each connection on a thread, and judges.

use crate::frame::{self, Incoming};
use crate::lobby::Lobby;
use crate::message::{Answer, Ask, Hello};
use crate::state::State;
use crate::{RendezvousError, StoreOptions};
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use trine_comm::{Beat, Diagnosis, FlightRecord};

/// How long a frame may take to be complete or to be taken.
const FRAME_WITHIN: Duration = Duration::from_secs(5);

/// How often threads look whether the store closes.
const SLICE: Duration = Duration::from_millis(50);

/// Connections that are taken before those that are here are looked at.
const ACCEPTED_AT_ONCE: usize = 64;

/// The meeting point of a run's processes. Dropping it ends all connections; ranks take that for the
/// end of the run.
#[derive(Debug)]
pub struct Store {
    shared: Arc<Shared>,
    address: SocketAddr,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    options: StoreOptions,
    state: State,
    open: AtomicUsize,
    connections: Mutex<Vec<JoinHandle<()>>>,
}

impl Store {
    /// Listens on the given interface.
    ///
    /// # Errors
    /// An address that is not this host's or in use, or no thread.
    pub fn bind(options: StoreOptions) -> Result<Self, RendezvousError> {
        let bind = options.bind;
        let refused = |source| RendezvousError::Bind { address: bind, source };
        let listener = TcpListener::bind(bind).map_err(refused)?;
        listener.set_nonblocking(true).map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        let shared = Arc::new(Shared {
            state: State::new(&options),
            options,
            open: AtomicUsize::new(0),
            connections: Mutex::default(),
        });
        let mut store = Self { shared: shared.clone(), address, threads: Vec::new() };
        let accepting = shared.clone();
        store.threads.push(spawn("store", move || accepting.accept(&listener))?);
        store.threads.push(spawn("store judge", move || {
            let tick = shared.options.tick();
            while !shared.state.is_closing() {
                thread::sleep(tick);
                shared.state.judge(tick);
            }
        })?);
        Ok(store)
    }

    /// Where it listens, with the port that was free.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The first cause of failure; waits for one, at most for `timeout`.
    pub fn cause_within(&self, timeout: Duration) -> Option<Diagnosis> {
        self.shared.state.cause_within(timeout)
    }

    /// Whether the cause is only that a rank's process is gone: whoever started it may know how.
    pub fn is_loss(&self) -> bool {
        self.shared.state.is_loss()
    }

    /// Waits until all ranks have said farewell, at most for `timeout`; whether they have.
    pub fn over_within(&self, timeout: Duration) -> bool {
        self.shared.state.over_within(timeout)
    }

    /// The flight recorders that have come, in rank order; waits for those of all ranks, at most for
    /// `timeout`.
    pub fn records_within(&self, timeout: Duration) -> Vec<FlightRecord> {
        self.shared.state.records_within(timeout)
    }

    /// The value that a rank has put under a key.
    pub fn value(&self, key: &str) -> Option<Vec<u8>> {
        self.shared.state.value(key)
    }

    /// What each rank said last.
    pub fn beats(&self) -> Vec<Beat> {
        self.shared.state.beats()
    }

    /// How many ranks have joined so far, those that have gone included.
    pub fn joined(&self) -> usize {
        self.shared.state.joined()
    }

    /// A rank's process has ended badly, as whoever started it knows: `was killed by signal 9`.
    pub fn note_exit(&self, rank: usize, how: &str) {
        self.shared.state.note_exit(rank, how);
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.shared.state.close();
        let connections = &self.shared.connections;
        let connections = std::mem::take(&mut *lock(connections));
        for thread in self.threads.drain(..).chain(connections) {
            // A thread that panicked has nothing more to tell.
            let _ = thread.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn spawn(
    name: &str,
    body: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, RendezvousError> {
    let spawned = thread::Builder::new().name(name.into()).spawn(body);
    spawned.map_err(|source| RendezvousError::System { what: "start a thread", source })
}

impl Shared {
    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        let mut lobby = Lobby::default();
        while !self.state.is_closing() {
            // Nobody, or a connection that broke at once, or no file left: later again.
            let come = std::iter::from_fn(|| listener.accept().ok()).take(ACCEPTED_AT_ONCE);
            come.for_each(|(stream, _)| lobby.enter(stream));
            for (stream, hello) in lobby.greeted(&self.options.token) {
                self.admit(stream, hello);
            }
            thread::sleep(SLICE / 10);
        }
    }

    /// Serves a rank on a thread.
    fn admit(self: &Arc<Self>, stream: TcpStream, hello: Hello) {
        let mut connections = lock(&self.connections);
        connections.retain(|thread| !thread.is_finished());
        self.open.fetch_add(1, Ordering::Relaxed);
        let shared = self.clone();
        let served = spawn("store connection", move || {
            // What goes wrong with a connection ends it, and nothing else.
            let _ = shared.serve(stream, &hello);
            shared.open.fetch_sub(1, Ordering::Relaxed);
        });
        match served {
            Ok(thread) => connections.push(thread),
            Err(_) => drop(self.open.fetch_sub(1, Ordering::Relaxed)),
        }
    }

    fn serve(&self, mut stream: TcpStream, hello: &Hello) -> io::Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(FRAME_WITHIN))?;
        let most = self.options.connections_max();
        if self.open.load(Ordering::Relaxed) > most {
            let why = format!("it serves {most} connections at a time");
            return reply(&mut stream, &Answer::No(why));
        }
        if hello.rank >= self.options.ranks {
            let why = format!("the run has ranks 0..{}", self.options.ranks);
            return reply(&mut stream, &Answer::No(why));
        }
        reply(&mut stream, &Answer::Fine)?;
        let mut lifeline = false;
        let ended = self.converse(&mut stream, hello, &mut lifeline);
        if lifeline {
            let why = match &ended {
                Ok(()) => "its connection has ended".to_owned(),
                Err(error) => format!("its connection broke ({error})"),
            };
            self.state.lost(hello.rank, &why);
        }
        ended
    }

    /// Question and answer, until one side ends it.
    fn converse(
        &self,
        stream: &mut TcpStream,
        hello: &Hello,
        lifeline: &mut bool,
    ) -> io::Result<()> {
        loop {
            let ask = match frame::read(stream, SLICE, FRAME_WITHIN)? {
                Incoming::Idle if !self.state.is_closing() => continue,
                Incoming::Idle | Incoming::Closed => return Ok(()),
                Incoming::Frame(ask) => ask,
            };
            if matches!(ask, Ask::Beat(_)) && !*lifeline {
                if let Err(why) = self.state.begin_life(hello.rank, &hello.host) {
                    return reply(stream, &Answer::No(why));
                }
                *lifeline = true;
            }
            reply(stream, &self.state.answer(hello.rank, ask))?;
        }
    }
}

fn reply(stream: &mut TcpStream, answer: &Answer) -> io::Result<()> {
    let frame = frame::encode(answer).or_else(|bytes| {
        frame::encode(&Answer::No(format!("the answer has {bytes} bytes, more than a frame")))
    });
    frame::write(stream, &frame.unwrap_or_default())
}
