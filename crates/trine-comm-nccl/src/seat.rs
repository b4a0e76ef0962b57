//! A rank in its world: its failure, its operations under way, and the thread that watches them.

use crate::announcement::Announcement;
use crate::link::{Link, NCCL, gpu_error};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use trine_comm::{CommError, Communicator, Missing, RankState};
use trine_gpu::Event;

/// How often the thread looks.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// How long a failure of NCCL waits for a better explanation: ranks that disagree, or another one's failure.
const EXPLAINED_WITHIN: Duration = Duration::from_millis(300);

/// How often the host's communicator is asked whether the world stands: that may be a question to another process.
const HOST_ASKED_EVERY: Duration = Duration::from_millis(20);

/// Operations that are looked at together, for the same reason.
const LOOKED_AT_ONCE: usize = 8;

/// How old an operation is before its GPU is asked for it.
const ASKED_AFTER: Duration = Duration::from_secs(1);

/// How a world with NCCL behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NcclOptions {
    /// How long an operation may take: until all ranks have called it, while this one shows no progress, and from then
    /// on until its end on the GPU.
    pub deadline: Duration,
    /// The names of groups whose ranks send each other messages between GPUs. Each pair of such a group has two groups
    /// of NCCL, which take memory of the GPU.
    pub message_groups: &'static [&'static str],
}

impl Default for NcclOptions {
    /// 60 s; the ranks of `pp`.
    fn default() -> Self {
        Self { deadline: Duration::from_secs(60), message_groups: &["pp"] }
    }
}

/// An operation under way.
#[derive(Debug)]
struct Posted {
    number: u64,
    announcement: Announcement,
    /// `None` until it is queued on the GPU.
    ends: Option<Arc<[Event]>>,
    /// Since it was called, or all ranks have called it.
    since: Instant,
    is_answered: bool,
}

#[derive(Debug, Default)]
struct State {
    failure: Option<CommError>,
    posted: VecDeque<Posted>,
    links: Vec<Weak<Link>>,
    /// When the host's communicator was asked last.
    asked: Option<Instant>,
}

/// What the thread and the rank share.
#[derive(Debug)]
struct Shared {
    host: Arc<dyn Communicator>,
    options: NcclOptions,
    state: Mutex<State>,
    is_over: AtomicBool,
}

/// A rank's place in its world, shared by all its groups. The thread ends with it.
#[derive(Debug)]
pub(crate) struct Seat {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Seat {
    pub(crate) fn new(
        host: Arc<dyn Communicator>,
        options: NcclOptions,
    ) -> Result<Self, CommError> {
        let (state, is_over) = (Mutex::default(), AtomicBool::new(false));
        let shared = Arc::new(Shared { host, options, state, is_over });
        let watched = shared.clone();
        let thread = std::thread::Builder::new().name("watch of NCCL".into());
        let thread = thread.spawn(move || {
            while !watched.is_over.load(Ordering::Acquire) {
                // What is found is kept: the rank is told by its next call.
                let _ = watched.look();
                std::thread::park_timeout(LOOK_EVERY);
            }
        });
        let failed = |error: std::io::Error| CommError::Backend {
            backend: NCCL,
            message: format!("the thread that watches did not start: {error}"),
        };
        Ok(Self { shared, thread: Some(thread.map_err(failed)?) })
    }

    pub(crate) fn options(&self) -> &NcclOptions {
        &self.shared.options
    }

    pub(crate) fn deadline(&self) -> Duration {
        self.options().deadline
    }

    /// Watches over a group.
    pub(crate) fn add(&self, link: &Arc<Link>) {
        self.shared.lock().links.push(Arc::downgrade(link));
    }

    /// Watches over an operation that is announced, and has a number of the rank's own.
    pub(crate) fn post(&self, number: u64, announcement: Announcement) {
        let since = Instant::now();
        let posted = Posted { number, announcement, ends: None, since, is_answered: false };
        self.shared.lock().posted.push_back(posted);
    }

    /// The operation is queued, and is over behind these events.
    pub(crate) fn queued(&self, number: u64, ends: Arc<[Event]>) {
        let mut state = self.shared.lock();
        // One that is gone already has failed.
        if let Some(posted) = state.posted.iter_mut().find(|posted| posted.number == number) {
            posted.ends = Some(ends);
        }
    }

    /// Looks now.
    ///
    /// # Errors
    /// The world's failure, as this rank sees it.
    pub(crate) fn check(&self) -> Result<(), CommError> {
        self.shared.look()
    }

    /// The world fails with this error, unless it has failed already; the first failure.
    pub(crate) fn fail(&self, error: CommError) -> CommError {
        self.shared.fail(error)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A thread that panicked has nothing more to tell.
            let _ = thread.join();
        }
    }
}

impl Shared {
    // A panic while the lock is held leaves lists that are whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look(&self) -> Result<(), CommError> {
        if let Some(failure) = &self.lock().failure {
            return Err(failure.clone());
        }
        self.find().map_err(|error| self.fail(error))
    }

    /// What has gone wrong with the world, with an operation or with a group.
    fn find(&self) -> Result<(), CommError> {
        let mut state = self.lock();
        for _ in 0..state.posted.len().min(LOOKED_AT_ONCE) {
            let Some(mut posted) = state.posted.pop_front() else { break };
            // The next time it is the others' turn.
            if !self.is_over(&mut posted)? {
                state.posted.push_back(posted);
            }
        }
        state.links.retain(|link| link.strong_count() > 0);
        let links: Vec<Arc<Link>> = state.links.iter().filter_map(Weak::upgrade).collect();
        let is_asked = state.asked.is_none_or(|asked| asked.elapsed() >= HOST_ASKED_EVERY);
        if is_asked {
            state.asked = Some(Instant::now());
        }
        drop(state);
        links.iter().try_for_each(|link| link.is_busy().map(drop))?;
        if is_asked { self.host.check() } else { Ok(()) }
    }

    /// Whether an operation needs no watch any more.
    fn is_over(&self, posted: &mut Posted) -> Result<bool, CommError> {
        let deadline = self.options.deadline;
        if !posted.is_answered {
            if posted.announcement.is_answered()? {
                (posted.is_answered, posted.since) = (true, Instant::now());
                return Ok(false);
            }
            // A rank that goes on with something else is not in anybody's way yet.
            let waited = posted.since.elapsed().min(self.host.recorder().quiet());
            return if waited < deadline { Ok(false) } else { Err(late(posted, waited)) };
        }
        let waited = posted.since.elapsed();
        if waited < ASKED_AFTER.min(deadline) {
            return Ok(false);
        }
        let mut all_done = posted.ends.is_some();
        for end in posted.ends.iter().flat_map(|ends| ends.iter()) {
            all_done &= end.is_done().map_err(gpu_error)?;
        }
        if all_done || waited < deadline {
            return Ok(all_done);
        }
        let call = posted.announcement.call();
        let message = format!(
            "{call}: all its ranks have called it, but it has not ended for {waited:.1?}: a link or a GPU stands \
             still, or what comes before it on the stream"
        );
        Err(CommError::Backend { backend: NCCL, message })
    }

    /// A failure of NCCL is often that of another rank.
    fn explained(&self, error: CommError) -> CommError {
        let is_of_nccl = matches!(&error, CommError::Backend { backend, .. } if *backend == NCCL);
        let since = Instant::now();
        while is_of_nccl && since.elapsed() < EXPLAINED_WITHIN {
            let answers = || {
                let mut state = self.lock();
                let mut posted = state.posted.iter_mut();
                posted.try_for_each(|posted| posted.announcement.is_answered().map(drop))
            };
            if let Err(better) = answers().and_then(|()| self.host.check()) {
                return better;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        error
    }

    fn fail(&self, error: CommError) -> CommError {
        let error = self.explained(error);
        let mut state = self.lock();
        if let Some(first) = &state.failure {
            return first.clone();
        }
        state.failure = Some(error.clone());
        // Buffers of operations under way are with the rank; what is left here is words.
        let posted = std::mem::take(&mut state.posted);
        let links: Vec<Arc<Link>> = state.links.iter().filter_map(Weak::upgrade).collect();
        drop(state);
        drop(posted);
        self.host.abort(&error.to_string());
        links.iter().for_each(|link| link.abort());
        error
    }
}

/// Ranks that have not called an operation in time.
fn late(posted: &Posted, waited: Duration) -> CommError {
    let call = posted.announcement.call().clone();
    let unheard = |rank| Missing { rank, state: RankState::Unheard(None) };
    let missing = call.others().into_iter().map(unheard).collect();
    CommError::Deadline { call: Box::new(call), waited, missing }
}
