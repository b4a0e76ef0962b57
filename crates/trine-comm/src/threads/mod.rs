//! Ranks as threads of one process: the reference backend.
//!
//! Each rank moves its buffers into the group's slot for the operation's sequence number. The last
//! arriver does the work for everybody on the spot and wakes those that wait: with more ranks than
//! cores that is the least work in total, and nobody polls. A message is copied by whichever of its
//! two ranks comes second. So progress is made by the last arriver, in
//! [`start`](crate::Communicator::start) or in no call at all; a waiting rank is parked.
//!
//! A rank that is about to park looks whether it can ever be woken. If it waits in a circle, or for
//! a rank that has finished, every rank of the circle gets [`CommError::Deadlock`](crate::CommError::Deadlock) at once. The
//! deadline is left for ranks that really hang.

mod board;
mod channels;
mod comm;
mod deadlock;
mod record;
mod shared;
mod slots;
#[cfg(test)]
mod tests;

use crate::{Call, Communicator, Group, PostMortem, SelfComm, SharedDevice};
use comm::ThreadComm;
use shared::{Seat, Shared};
use std::any::Any;
use std::fmt::{Debug, Display};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

/// When a message is over for its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Delivery {
    /// At once: the message is copied unless its receiver already waits.
    Buffered,
    /// When the receiver takes it: nothing is copied twice, and a program that depends on
    /// buffering deadlocks, as it might on a network.
    Rendezvous,
}

/// How a world of threads behaves.
#[derive(Debug, Clone)]
pub struct WorldOptions {
    /// When a message is over for its sender.
    pub delivery: Delivery,
    /// How long a rank waits for ranks that run, but neither come nor make progress: they begin and
    /// end no action, operation or phase. A phase may have a longer one ([`crate::Phase`]).
    pub deadline: Duration,
    /// Stack of each rank's thread in bytes.
    pub stack_bytes: usize,
    /// The device on which buffers of all ranks may lie.
    pub device: Option<Arc<dyn SharedDevice>>,
}

impl Default for WorldOptions {
    /// Buffered, 60 s, 8 MiB, no device.
    fn default() -> Self {
        Self {
            delivery: Delivery::Buffered,
            deadline: Duration::from_secs(60),
            stack_bytes: 8 << 20,
            device: None,
        }
    }
}

/// Why a world did not finish: its first failure.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorldError<E: Debug + Display> {
    /// A rank returned an error.
    #[error("rank {rank} failed: {error}")]
    Failed {
        /// World rank.
        rank: usize,
        /// What it returned.
        error: E,
    },
    /// A rank panicked.
    #[error("rank {rank} panicked: {message}")]
    Panicked {
        /// World rank.
        rank: usize,
        /// The panic's message.
        message: String,
    },
    /// A thread could not be started.
    #[error("the thread of rank {rank} did not start: {source}")]
    Spawn {
        /// World rank.
        rank: usize,
        /// The system's reason.
        source: std::io::Error,
    },
    /// All ranks returned, but left operations that no peer matched.
    #[error("all ranks have finished, but nobody matched:{}",
        calls.iter().map(|call| format!("\n  {call}")).collect::<String>())]
    Unmatched {
        /// The operations.
        calls: Vec<Call>,
    },
}

/// A world that did not finish, with what is known of it.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct Explained<E: Debug + Display> {
    /// Its first failure.
    pub error: WorldError<E>,
    /// What everybody did at that moment, and all flight recorders.
    pub post_mortem: Box<PostMortem>,
}

/// A world's communicators, one a rank, in rank order, for callers with threads of their own;
/// [`run`] is simpler. A rank is over when its communicators and pending operations are dropped.
pub fn connect(ranks: usize, options: &WorldOptions) -> Vec<Arc<dyn Communicator>> {
    open(ranks, options).map(|world| world.comms).unwrap_or_default()
}

struct World {
    shared: Arc<Shared>,
    comms: Vec<Arc<dyn Communicator>>,
}

/// `None` for a world without ranks.
fn open(ranks: usize, options: &WorldOptions) -> Option<World> {
    let world = Group::new("world", (0..ranks).collect(), 0)?;
    let shared = Arc::new(Shared::new(world.clone(), options.clone()));
    let comm = |rank: usize| -> Option<Arc<dyn Communicator>> {
        let seat = Arc::new(Seat { shared: shared.clone(), rank });
        let comm: Arc<dyn Communicator> = Arc::new(ThreadComm::new(seat, world.seen_by(rank)?, 0));
        Some(if ranks == 1 { SelfComm::within("world", 0, Some(comm)) } else { comm })
    };
    let comms = (0..ranks).filter_map(comm).collect();
    Some(World { shared, comms })
}

/// Runs `body` once per rank, each on a thread of its own, and returns the ranks' values in rank
/// order. The first rank that fails or panics stops all others.
///
/// ```
/// use trine_buffer::Buf;
/// use trine_comm::{CommError, ReduceOp, threads};
///
/// let sums = threads::run(2, &Default::default(), |comm| {
///     let mine = Buf::from_vec(vec![comm.rank() as f32, 10.0]);
///     let sum = comm.all_reduce(mine, ReduceOp::Sum, "grad")?;
///     Ok::<_, CommError>(sum.typed::<f32>()?.to_vec())
/// })?;
/// assert_eq!(sums, [[1.0, 20.0], [1.0, 20.0]]);
/// # Ok::<(), threads::WorldError<CommError>>(())
/// ```
///
/// # Errors
/// The first failure, see [`WorldError`].
pub fn run<T, E, F>(ranks: usize, options: &WorldOptions, body: F) -> Result<Vec<T>, WorldError<E>>
where
    T: Send,
    E: Debug + Display + Send,
    F: Fn(Arc<dyn Communicator>) -> Result<T, E> + Sync,
{
    run_explained(ranks, options, body).map_err(|failed| failed.error)
}

/// [`run`], with a diagnosis and the flight recorders if it fails.
///
/// ```
/// use trine_comm::{Name, threads};
///
/// let failed = threads::run_explained(2, &Default::default(), |comm| {
///     comm.recorder().begin_phase(Name::new("training").with("step", 3));
///     match comm.rank() {
///         0 => comm.barrier("end").map_err(|error| error.to_string()),
///         _ => Err("out of memory".to_owned()),
///     }
/// })
/// .unwrap_err();
/// let text = failed.post_mortem.diagnosis.to_string();
/// assert!(text.starts_with("rank 1: out of memory"), "{text}");
/// assert!(text.contains("rank 1, in training step 3, runs"), "{text}");
/// ```
///
/// # Errors
/// The first failure, explained.
pub fn run_explained<T, E, F>(
    ranks: usize,
    options: &WorldOptions,
    body: F,
) -> Result<Vec<T>, Explained<E>>
where
    T: Send,
    E: Debug + Display + Send,
    F: Fn(Arc<dyn Communicator>) -> Result<T, E> + Sync,
{
    let Some(World { shared, comms }) = open(ranks, options) else { return Ok(Vec::new()) };
    run_in(&shared, comms, options, body).map_err(|error| {
        let post_mortem = Box::new(post_mortem(&shared, &error));
        Explained { error, post_mortem }
    })
}

/// What everybody did when the world failed; now, if it did not fail before all had returned.
fn post_mortem<E: Debug + Display>(shared: &Shared, error: &WorldError<E>) -> PostMortem {
    let board = shared.lock();
    let rank = match error {
        WorldError::Failed { rank, .. }
        | WorldError::Panicked { rank, .. }
        | WorldError::Spawn { rank, .. } => *rank,
        WorldError::Unmatched { calls } => calls.first().map_or(0, |call| call.rank),
    };
    let diagnosis =
        board.diagnosis().unwrap_or_else(|| board.diagnosis_of(rank, error.to_string()));
    let records = shared.recorders.iter().map(|recorder| recorder.record()).collect();
    PostMortem { diagnosis, records }
}

fn run_in<T, E, F>(
    shared: &Arc<Shared>,
    comms: Vec<Arc<dyn Communicator>>,
    options: &WorldOptions,
    body: F,
) -> Result<Vec<T>, WorldError<E>>
where
    T: Send,
    E: Debug + Display + Send,
    F: Fn(Arc<dyn Communicator>) -> Result<T, E> + Sync,
{
    let body = &body;
    let outcomes = crossbeam::thread::scope(|scope| {
        let mut handles = Vec::with_capacity(comms.len());
        for (rank, comm) in comms.into_iter().enumerate() {
            let thread = scope.builder().name(format!("rank {rank}"));
            let spawned = thread
                .stack_size(options.stack_bytes)
                .spawn(move |_| live(rank, comm, shared, body));
            match spawned {
                Ok(handle) => handles.push(handle),
                Err(source) => {
                    shared.abort(rank, "its thread did not start");
                    return Err(WorldError::Spawn { rank, source });
                }
            }
        }
        let ended = handles.into_iter().map(|handle| handle.join());
        Ok(ended
            .map(|end| end.unwrap_or_else(|panic| Err(Failure::Panic(text(&*panic)))))
            .collect())
    });
    let outcomes: Vec<_> = outcomes.expect("invariant: all threads are joined")?;
    conclude(outcomes, shared)
}

/// How a rank ended, if not well.
enum Failure<E> {
    Error(E),
    Panic(String),
}

/// A rank's life. Its communicator outlives `body`, so that its failure is known before the rank
/// counts as finished.
fn live<T, E: Display>(
    rank: usize,
    comm: Arc<dyn Communicator>,
    shared: &Shared,
    body: &(impl Fn(Arc<dyn Communicator>) -> Result<T, E> + Sync),
) -> Result<T, Failure<E>> {
    let outcome = match catch_unwind(AssertUnwindSafe(|| body(comm.clone()))) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => {
            shared.abort(rank, &error.to_string());
            Err(Failure::Error(error))
        }
        Err(panic) => {
            let message = text(&*panic);
            shared.abort(rank, &format!("panicked: {message}"));
            Err(Failure::Panic(message))
        }
    };
    shared.finish(rank);
    outcome
}

fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message").to_owned()
}

/// All values, or the failure that came first: that of the rank that stopped the world if it
/// failed itself, else that of the lowest rank.
fn conclude<T, E: Debug + Display>(
    outcomes: Vec<Result<T, Failure<E>>>,
    shared: &Shared,
) -> Result<Vec<T>, WorldError<E>> {
    let board = shared.lock();
    let first = board.cause().map(|cause| cause.rank);
    let mut values = Vec::with_capacity(outcomes.len());
    let mut failures: Vec<(usize, Failure<E>)> = Vec::new();
    for (rank, outcome) in outcomes.into_iter().enumerate() {
        match outcome {
            Ok(value) => values.push(value),
            Err(failure) => failures.push((rank, failure)),
        }
    }
    failures.sort_by_key(|(rank, _)| (Some(*rank) != first, *rank));
    match failures.into_iter().next() {
        Some((rank, Failure::Error(error))) => Err(WorldError::Failed { rank, error }),
        Some((rank, Failure::Panic(message))) => Err(WorldError::Panicked { rank, message }),
        None => match board.unmatched() {
            calls if calls.is_empty() || first.is_some() => Ok(values),
            calls => Err(WorldError::Unmatched { calls }),
        },
    }
}
