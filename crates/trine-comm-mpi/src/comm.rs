//! The communicator and its pending operations.

use crate::engine::{Engine, Members};
use crate::envelope::group_id;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use trine_buffer::Buf;
use trine_comm::{
    CommError, Communicator, Done, Group, Operation, Pending, Progress, Recorder, Request,
    SelfComm, Site,
};

/// The engine, shared by a rank's communicators and pending operations.
pub(crate) type Shared = Arc<Mutex<Engine>>;

// The engine's own failures are errors; a panic under the lock is a bug, and the others must still be
// able to stop.
pub(crate) fn lock(shared: &Shared) -> MutexGuard<'_, Engine> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A group of processes, seen by one of them.
pub(crate) struct MpiComm {
    shared: Shared,
    members: Members,
    /// How often it has been divided.
    divisions: AtomicU64,
}

impl MpiComm {
    pub(crate) fn new(shared: Shared, members: Members) -> Self {
        Self { shared, members, divisions: AtomicU64::new(0) }
    }

    /// Everybody's colour and a hash of its name, by the group's own gathering.
    fn colours(&self, colour: u64, name: &str, site: Site) -> Result<Vec<(u64, u64)>, CommError> {
        let own = vec![colour, group_id(0, 0, hash(name))];
        let request = Request {
            recv: Some(Buf::from_vec(vec![0u64; own.len() * self.members.group.size()])),
            send: Some(Buf::from_vec(own)),
            ..Request::new(Operation::AllGather, "split", site)
        };
        let done = self.start(request)?.wait()?;
        let all = done.into_recv(site)?;
        Ok(all.typed::<u64>()?.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
    }
}

fn hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

impl fmt::Debug for MpiComm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MPI group {:?}", self.members.group)
    }
}

impl Communicator for MpiComm {
    fn group(&self) -> &Group {
        &self.members.group
    }

    fn start(&self, request: Request) -> Result<Pending, CommError> {
        let id = lock(&self.shared).start(&self.members, request)?;
        let shared = self.shared.clone();
        Ok(Pending::started(Box::new(MpiPending { shared, id: Some(id) })))
    }

    fn subgroup(
        &self,
        colour: u64,
        name: &str,
        site: Site,
    ) -> Result<Arc<dyn Communicator>, CommError> {
        let division = self.divisions.fetch_add(1, Ordering::Relaxed);
        let all = self.colours(colour, name, site)?;
        let group = &self.members.group;
        let members: Vec<usize> =
            (0..group.size()).filter(|member| all[*member].0 == colour).collect();
        let named_otherwise = members.iter().find(|member| all[**member].1 != all[group.rank()].1);
        if let Some(other) = named_otherwise {
            let message = format!(
                "ranks {} and {} divide group {group} with colour {colour}, but disagree on the \
                 name of their part; this one's is {name:?}, at {site}",
                group.world_rank(),
                group.ranks()[*other],
            );
            let error = CommError::Backend { backend: "split", message };
            lock(&self.shared).fail(&error);
            return Err(error);
        }
        let index = members.iter().position(|member| *member == group.rank());
        let ranks = members.iter().map(|member| group.ranks()[*member]).collect();
        let part = index.and_then(|index| Group::new(name, ranks, index));
        let part = part.expect("invariant: every rank has its own colour");
        if part.size() == 1 {
            let whole = Self::new(self.shared.clone(), self.members.clone());
            return Ok(SelfComm::within(name, part.world_rank(), Some(Arc::new(whole))));
        }
        let members = Members {
            group: part,
            id: group_id(self.members.id, division, colour),
            mpi_ranks: members.iter().map(|member| self.members.mpi_ranks[*member]).collect(),
            recorder: self.members.recorder.clone(),
        };
        Ok(Arc::new(Self::new(self.shared.clone(), members)))
    }

    fn abort(&self, cause: &str) {
        let mut engine = lock(&self.shared);
        engine.abort(cause);
        // Told now if this thread may, else by the next poll of the one that may. A failure to tell
        // changes nothing: the world has failed already.
        let _ = engine.poll();
    }

    fn check(&self) -> Result<(), CommError> {
        lock(&self.shared).check()
    }

    fn recorder(&self) -> &Arc<Recorder> {
        &self.members.recorder
    }
}

/// A posted operation.
struct MpiPending {
    shared: Shared,
    /// `None` once it has been waited for.
    id: Option<u64>,
}

impl Progress for MpiPending {
    fn is_done(&self) -> bool {
        let mut engine = lock(&self.shared);
        if let Err(error) = engine.poll() {
            engine.fail(&error);
        }
        self.id.is_none_or(|id| engine.check().is_err() || engine.is_done(id))
    }

    // Host memory is ready on every queue when the operation is over.
    fn wait(mut self: Box<Self>) -> Result<Done, CommError> {
        let Some(id) = self.id else { return Ok(Done::default()) };
        let started = Instant::now();
        let mut pause = Pause::default();
        lock(&self.shared).begin_wait(id);
        loop {
            let mut engine = lock(&self.shared);
            match engine.poll() {
                Ok(true) => pause = Pause::default(),
                Ok(false) => {}
                Err(error) => {
                    engine.fail(&error);
                    let _ = engine.poll();
                    return Err(error);
                }
            }
            engine.check()?;
            if let Some(done) = engine.fetch(id) {
                self.id = None;
                return Ok(done);
            }
            let waited = started.elapsed();
            if waited >= engine.deadline()
                && let Some(error) = engine.overdue(id, waited)
            {
                engine.fail(&error);
                // The others learn of it before this rank unwinds.
                let _ = engine.poll();
                return Err(error);
            }
            drop(engine);
            pause.take();
        }
    }
}

impl Drop for MpiPending {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            lock(&self.shared).forget(id);
        }
    }
}

/// How long a rank that polls in vain leaves the core to others: not at all, then until the scheduler
/// comes back to it, then longer and longer. Ranks often outnumber cores.
#[derive(Debug, Default)]
pub(crate) struct Pause {
    taken: u32,
}

impl Pause {
    const SPINS: u32 = 4;
    const YIELDS: u32 = 12;
    const SLEEP_MIN: Duration = Duration::from_micros(50);
    const SLEEP_MAX: Duration = Duration::from_millis(1);

    pub(crate) fn take(&mut self) {
        match self.taken {
            0..Self::SPINS => std::hint::spin_loop(),
            Self::SPINS..Self::YIELDS => std::thread::yield_now(),
            more => {
                let doublings = ((more - Self::YIELDS) / 16).min(8);
                std::thread::sleep((Self::SLEEP_MIN * (1 << doublings)).min(Self::SLEEP_MAX));
            }
        }
        self.taken = self.taken.saturating_add(1);
    }
}
