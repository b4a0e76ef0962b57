//! The beginning and the end of a process in its world.

use crate::comm::{MpiComm, Pause, Shared, lock};
use crate::engine::{Engine, Members};
use crate::options::MpiOptions;
use crate::raw::Link;
use mpi::Threading;
use mpi::environment::Universe;
use mpi::topology::Communicator as _;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use trine_buffer::Buf;
use trine_comm::{CommError, Communicator, Delivery, Group, Recorder, ReduceOp, SelfComm};

/// Why a process could not join its world.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// MPI was initialised before.
    #[error("MPI is initialised already: a process joins its world once")]
    Twice,
    /// The library cannot be called by a program with threads.
    #[error(
        "the MPI library ({library}) provides {provided}, but MPI_THREAD_FUNNELED is needed: \
         kernels compute in threads of their own"
    )]
    Threads {
        /// Its version.
        library: String,
        /// Its level.
        provided: String,
    },
    /// The first calls failed.
    #[error(transparent)]
    Comm(#[from] CommError),
}

/// A process in its world of MPI. Dropped without [`World::leave`], it leaves MPI as it is: a process
/// whose world has failed must end without waiting for others.
pub struct World {
    shared: Shared,
    /// `None` once finalised.
    universe: Option<Universe>,
    rank: usize,
    size: usize,
    host: String,
    recorder: Arc<Recorder>,
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} of {} on {}", self.rank, self.size, self.host)
    }
}

/// Groups have numbers: the first is the world in MPI's order, the second in the order of a layout.
const WORLD: u64 = 1;

/// See [`WORLD`].
const ARRANGED: u64 = 2;

impl World {
    /// Initialises MPI for the calling thread, the only one that may communicate from now on. Waits
    /// for the other processes as `MPI_Init` does.
    ///
    /// # Errors
    /// See [`JoinError`].
    pub fn join(options: MpiOptions) -> Result<Self, JoinError> {
        let (universe, provided) =
            mpi::initialize_with_threading(Threading::Funneled).ok_or(JoinError::Twice)?;
        let world = universe.world();
        let (rank, size) = (world.rank(), world.size() as usize);
        if provided < Threading::Funneled {
            let provided = format!("{provided:?}");
            return Err(JoinError::Threads { library: library(), provided });
        }
        let link = Link::new(options.chunk_bytes_max, options.delivery == Delivery::Rendezvous)?;
        let engine = Engine::new(link, options, rank, size)?;
        let host = mpi::environment::processor_name().unwrap_or_else(|_| "unknown".into());
        Ok(Self {
            recorder: Recorder::new(rank as usize, &host),
            shared: Arc::new(Mutex::new(engine)),
            universe: Some(universe),
            rank: rank as usize,
            size,
            host,
        })
    }

    /// The process's number in MPI's order.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Number of processes.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The name of the host, as MPI knows it.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// All processes in MPI's order.
    pub fn comm(&self) -> Arc<dyn Communicator> {
        let order: Vec<usize> = (0..self.size).collect();
        self.members(WORLD, &order, self.recorder.clone())
    }

    /// All processes in another order: rank i of the new world is the process `order[i]` of MPI's.
    /// Called by all, with the same order, before anything else uses ranks; from now on errors name
    /// the new ones.
    ///
    /// # Panics
    /// If `order` is not a permutation.
    pub fn arranged(&self, order: &[usize]) -> Arc<dyn Communicator> {
        let mut names = vec![usize::MAX; self.size];
        for (rank, process) in order.iter().enumerate() {
            names[*process] = rank;
        }
        assert!(
            order.len() == self.size && names.iter().all(|name| *name < self.size),
            "an order of all processes"
        );
        let own = names[self.rank];
        lock(&self.shared).rename(names);
        let recorder = Recorder::new(own, &self.host);
        self.members(ARRANGED, order, recorder)
    }

    fn members(&self, id: u64, order: &[usize], recorder: Arc<Recorder>) -> Arc<dyn Communicator> {
        let index = order.iter().position(|process| *process == self.rank);
        let group = index.and_then(|index| Group::new("world", (0..self.size).collect(), index));
        let group = group.expect("invariant: the order has every process");
        let mpi_ranks = order.iter().map(|process| *process as i32).collect();
        let whole = MpiComm::new(self.shared.clone(), Members { group, id, mpi_ranks, recorder });
        if self.size == 1 {
            return SelfComm::within("world", 0, Some(Arc::new(whole)));
        }
        Arc::new(whole)
    }

    /// Ends the world well: waits for everybody, makes sure that nothing is left, finalises MPI.
    ///
    /// # Errors
    /// Ranks that do not come, or operations that nobody matched.
    pub fn leave(mut self) -> Result<(), CommError> {
        let comm = self.comm();
        comm.barrier("leave")?;
        // MPI_Finalize waits for everybody: either all go there or nobody does.
        let left = lock(&self.shared).left(WORLD);
        let flag = Buf::from_vec(vec![u64::from(!left.is_empty())]);
        let somewhere = comm.all_reduce(flag, ReduceOp::Max, "left")?.typed::<u64>()?[0] == 1;
        let deadline = lock(&self.shared).deadline();
        self.flush(deadline);
        if somewhere {
            let here =
                if left.is_empty() { "other ranks know what".into() } else { left.join("\n  ") };
            let message = format!("all ranks have finished, but nobody matched:\n  {here}");
            return Err(CommError::Backend { backend: "trine-comm-mpi", message });
        }
        lock(&self.shared).close()?;
        self.universe = None;
        Ok(())
    }

    /// Gives MPI up to `at_most` to get out what was sent, such as the news of a failure.
    pub fn flush(&self, at_most: Duration) {
        let started = Instant::now();
        let mut pause = Pause::default();
        while started.elapsed() < at_most {
            let mut engine = lock(&self.shared);
            // Somebody who is gone cannot be told.
            if engine.poll().is_err() || engine.is_flushed() {
                return;
            }
            drop(engine);
            pause.take();
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // MPI_Finalize waits for the others, who may be gone.
        std::mem::forget(self.universe.take());
    }
}

/// Name and version of the MPI library.
pub fn library() -> String {
    let text = mpi::environment::library_version().unwrap_or_default();
    // Open MPI goes on with who has packaged it when.
    let name = text.split(['\n', ',']).next().unwrap_or_default();
    name.trim_end_matches('\0').trim().to_owned()
}
