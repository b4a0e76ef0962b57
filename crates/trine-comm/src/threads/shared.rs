//! What the ranks of a world of threads share.

use super::WorldOptions;
use super::board::Board;
use crate::{Cause, CommError, Group, Recorder};
use crossbeam::utils::CachePadded;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use trine_buffer::Pool;

/// A world of threads.
pub(super) struct Shared {
    board: Mutex<Board>,
    /// Where each rank parks: nobody is woken but those that something happened to.
    bells: Vec<CachePadded<Condvar>>,
    /// Staged messages.
    pub(super) pool: Pool,
    /// One a rank.
    pub(super) recorders: Vec<Arc<Recorder>>,
    pub(super) options: WorldOptions,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a world of threads: {}", self.bells.len())
    }
}

impl Shared {
    pub(super) fn new(world: Group, options: WorldOptions) -> Self {
        let bells = (0..world.size()).map(|_| CachePadded::default()).collect();
        let recorders: Vec<_> = world.ranks().iter().map(|rank| Recorder::new(*rank, "")).collect();
        let board = Mutex::new(Board::new(world, &recorders));
        Self { bells, board, pool: Pool::new(), recorders, options }
    }

    // A rank that panics does so outside the lock, except for bugs of this crate; the others must
    // still be able to stop.
    pub(super) fn lock(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn park<'a>(
        &self,
        rank: usize,
        board: MutexGuard<'a, Board>,
        at_most: Duration,
    ) -> MutexGuard<'a, Board> {
        let woken = self.bells[rank].wait_timeout(board, at_most);
        woken.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Wakes ranks. Called without the lock, so that they do not run into it.
    pub(super) fn wake(&self, ranks: impl IntoIterator<Item = usize>) {
        for rank in ranks {
            self.bells[rank].notify_all();
        }
    }

    /// Releases the lock and wakes everybody: the world has failed.
    pub(super) fn wake_all(&self, board: MutexGuard<'_, Board>) {
        drop(board);
        self.wake(0..self.bells.len());
    }

    /// Stops the world with `message` as the cause, unless it has failed already.
    pub(super) fn abort(&self, rank: usize, message: &str) {
        let mut board = self.lock();
        let cause = Cause { rank, message: message.into() };
        board.fail(rank, CommError::Aborted { cause }, Vec::new());
        self.wake_all(board);
    }

    /// Notes that a rank will not call anything any more.
    pub(super) fn finish(&self, rank: usize) {
        let mut board = self.lock();
        board.finish(rank);
        board.fail_if_stuck(rank);
        if board.check(rank).is_err() {
            self.wake_all(board);
        }
    }
}

/// A rank's place in its world, shared by its communicators and pending operations. When the last
/// of them goes, the rank is over.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) shared: Arc<Shared>,
    pub(super) rank: usize,
}

impl Drop for Seat {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.shared.abort(self.rank, "panicked");
        }
        self.shared.finish(self.rank);
    }
}
