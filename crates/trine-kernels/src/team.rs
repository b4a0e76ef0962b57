//! Threads, handed in: one caller and its helpers.

use crate::Pinned;
use std::any::Any;
use std::cell::UnsafeCell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};

/// How often a helper looks for work before it parks: some tens of microseconds, the gap between
/// two kernels of one layer. Ranks that are threads share the cores, so it must be short.
const SPINS_BEFORE_PARK: u32 = 4_000;

/// Helpers at most; their count fits below [`OPEN`].
const HELPERS_MAX: usize = 1 << 12;

/// Parts for each thread where there is enough to do: a thread that loses its core for a while then
/// delays a part of the call, not its whole share.
pub(crate) const PARTS_PER_THREAD: usize = 4;

/// One more than the largest count of helpers inside a job.
const OPEN: u64 = 1 << 16;
/// The number of the job counts from this bit.
const EPOCH: u64 = 1 << 17;

/// A caller with `threads − 1` helpers that sleep between jobs. A team of one thread runs
/// everything inline. There is no global pool: each rank owns its team and so its share of cores.
///
/// ```
/// use std::sync::atomic::{AtomicUsize, Ordering};
/// let team = trine_kernels::Team::new(2);
/// let sum = AtomicUsize::new(0);
/// team.run(10, |part| {
///     sum.fetch_add(part, Ordering::Relaxed);
/// });
/// assert_eq!(sum.into_inner(), 45);
/// ```
pub struct Team {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
    /// Held while a job runs. A second caller does its job alone instead of waiting.
    busy: Mutex<()>,
}

impl fmt::Debug for Team {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Team").field("threads", &self.threads()).finish()
    }
}

/// A job: a borrowed closure, its lifetime erased. `run` does not return before all threads have
/// left it.
#[derive(Clone, Copy)]
struct Job {
    call: *const (dyn Fn(usize) + Sync),
    parts: usize,
}

struct Shared {
    /// Epoch of the job, whether helpers may still enter it, and how many are inside.
    state: AtomicU64,
    job: UnsafeCell<Option<Job>>,
    next: AtomicUsize,
    caller: Mutex<Option<Thread>>,
    caller_parks: AtomicBool,
    sleeping: Vec<AtomicBool>,
    stop: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `job` is written only by the caller that holds `busy`, while the job is closed and
// nobody is inside; helpers read it only between entering an open job and leaving it.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// Does parts of the job until none is left; a panic is kept for the caller.
    fn take_part(&self, job: Job) {
        // SAFETY: the caller of `run` keeps the closure alive until the job is closed and empty.
        let call = unsafe { &*job.call };
        loop {
            let part = self.next.fetch_add(1, Ordering::Relaxed);
            if part >= job.parts {
                return;
            }
            if let Err(cause) = catch_unwind(AssertUnwindSafe(|| call(part))) {
                self.next.store(job.parts, Ordering::Relaxed);
                let mut first = self.panic.lock().unwrap_or_else(PoisonError::into_inner);
                first.get_or_insert(cause);
                return;
            }
        }
    }

    /// Enters the open job if there is one newer than `last`; its epoch if so.
    fn enter(&self, last: u64) -> Option<u64> {
        let state = self.state.load(Ordering::SeqCst);
        let epoch = state / EPOCH;
        if state & OPEN == 0 || epoch == last {
            return None;
        }
        let entered =
            self.state.compare_exchange(state, state + 1, Ordering::SeqCst, Ordering::Relaxed);
        entered.is_ok().then_some(epoch)
    }

    fn leave(&self) {
        let state = self.state.fetch_sub(1, Ordering::SeqCst) - 1;
        if state & (EPOCH - 1) == 0 && self.caller_parks.load(Ordering::SeqCst) {
            let caller = self.caller.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(caller) = caller.as_ref() {
                caller.unpark();
            }
        }
    }

    fn help(&self, index: usize, cpu: Option<usize>) {
        // Where the system refuses, the helper runs wherever it is put.
        let _pinned = cpu.and_then(Pinned::to);
        let mut last = 0;
        loop {
            let mut spins = 0;
            let entered = loop {
                if self.stop.load(Ordering::SeqCst) {
                    return;
                }
                if let Some(epoch) = self.enter(last) {
                    break epoch;
                }
                spins += 1;
                if spins < SPINS_BEFORE_PARK {
                    std::hint::spin_loop();
                    continue;
                }
                // Announce the sleep, look once more, sleep: the caller publishes the job first
                // and looks for sleepers second, so one of the two sees the other.
                self.sleeping[index].store(true, Ordering::SeqCst);
                let state = self.state.load(Ordering::SeqCst);
                let idle = state & OPEN == 0 || state / EPOCH == last;
                if idle && !self.stop.load(Ordering::SeqCst) {
                    thread::park();
                }
                self.sleeping[index].store(false, Ordering::SeqCst);
                spins = 0;
            };
            last = entered;
            // SAFETY: inside an open job, so the caller does not write the cell.
            if let Some(job) = unsafe { *self.job.get() } {
                self.take_part(job);
            }
            self.leave();
        }
    }

    /// Closes the job and waits until every helper has left it.
    fn close(&self) {
        let mut state = self.state.fetch_and(!OPEN, Ordering::SeqCst) & !OPEN;
        let mut spins = 0;
        while state & (EPOCH - 1) != 0 {
            spins += 1;
            if spins < SPINS_BEFORE_PARK {
                std::hint::spin_loop();
            } else {
                *self.caller.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some(thread::current());
                self.caller_parks.store(true, Ordering::SeqCst);
                if self.state.load(Ordering::SeqCst) & (EPOCH - 1) != 0 {
                    thread::park();
                }
            }
            state = self.state.load(Ordering::SeqCst);
        }
        self.caller_parks.store(false, Ordering::SeqCst);
    }
}

impl Team {
    /// A team of `threads` threads, the caller of [`Team::run`] being one of them; 0 counts as 1.
    /// If the system refuses a thread, the team is smaller.
    pub fn new(threads: usize) -> Self {
        Self::spawn(&vec![None; threads.saturating_sub(1).min(HELPERS_MAX)])
    }

    /// A team with a thread for each of `cpus`, processors that the caller may run on
    /// ([`crate::allowed_cpus`]). The helpers stay on all but the first; that one is for the thread
    /// that calls [`Team::run`], which sees to itself ([`Pinned`]). None counts as one.
    pub fn on_cpus(cpus: &[usize]) -> Self {
        let helpers: Vec<_> = cpus.iter().skip(1).take(HELPERS_MAX).copied().map(Some).collect();
        Self::spawn(&helpers)
    }

    /// A helper for each entry, on that processor if there is one.
    fn spawn(cpus: &[Option<usize>]) -> Self {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            next: AtomicUsize::new(0),
            caller: Mutex::new(None),
            caller_parks: AtomicBool::new(false),
            sleeping: cpus.iter().map(|_| AtomicBool::new(false)).collect(),
            stop: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let spawn = |(index, cpu): (usize, &Option<usize>)| {
            let (shared, cpu) = (Arc::clone(&shared), *cpu);
            let builder = thread::Builder::new().name(format!("kernel-helper-{index}"));
            builder.spawn(move || shared.help(index, cpu)).ok()
        };
        let helpers = cpus.iter().enumerate().map_while(spawn).collect();
        Self { shared, helpers, busy: Mutex::new(()) }
    }

    /// Threads that take part, the caller included.
    pub fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Calls `f(0)`, …, `f(parts − 1)`, each once, on the threads of the team, and returns when all
    /// are done. Which thread does which part is open: nothing may depend on it.
    ///
    /// # Panics
    /// If a part panics, the remaining parts are left out and the first panic goes on in the caller
    /// after all threads have stopped.
    pub fn run(&self, parts: usize, f: impl Fn(usize) + Sync) {
        let free = if parts > 1 && !self.helpers.is_empty() {
            self.busy.try_lock()
        } else {
            return (0..parts).for_each(f);
        };
        // A poisoned lock only says that an earlier job panicked in its caller.
        let _busy = match free {
            Ok(guard) => guard,
            Err(std::sync::TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(std::sync::TryLockError::WouldBlock) => return (0..parts).for_each(f),
        };
        let shared = &*self.shared;
        let call: *const (dyn Fn(usize) + Sync + '_) = &raw const f;
        // SAFETY: only the lifetime changes. `close` below returns when no thread is inside the
        // job, and nothing between here and there can unwind (`take_part` catches panics), so the
        // closure outlives every use.
        let call = unsafe {
            std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const (dyn Fn(usize) + Sync)>(
                call,
            )
        };
        let job = Job { call, parts };
        // SAFETY: `busy` is held, the job is closed and nobody is inside.
        unsafe { *shared.job.get() = Some(job) };
        shared.next.store(0, Ordering::Relaxed);
        shared.state.fetch_add(EPOCH | OPEN, Ordering::SeqCst);
        for (helper, sleeping) in self.helpers.iter().zip(&shared.sleeping).take(parts - 1) {
            if sleeping.swap(false, Ordering::SeqCst) {
                helper.thread().unpark();
            }
        }
        shared.take_part(job);
        shared.close();
        let panicked = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(cause) = panicked {
            drop(_busy);
            resume_unwind(cause);
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for helper in self.helpers.drain(..) {
            helper.thread().unpark();
            // A helper catches every panic of a job, so there is no cause to pass on.
            drop(helper.join());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_runs_once_whatever_the_number_of_threads() {
        let mut cases = 0;
        for threads in [0, 1, 2, 3, 5] {
            let team = Team::new(threads);
            for parts in [0, 1, 2, 3, 7, 100] {
                let counts: Vec<_> = (0..parts).map(|_| AtomicUsize::new(0)).collect();
                team.run(parts, |part| {
                    counts[part].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
                cases += 1;
            }
        }
        assert_eq!(cases, 30);
    }

    #[test]
    fn many_short_jobs_and_pauses() {
        let rounds = if cfg!(miri) { 100 } else { 20_000 };
        let team = Team::new(3);
        let sum = AtomicUsize::new(0);
        for round in 0..rounds {
            team.run(3, |part| {
                sum.fetch_add(part + 1, Ordering::Relaxed);
            });
            if round % (rounds / 10) == 0 {
                thread::sleep(std::time::Duration::from_millis(2)); // helpers fall asleep
            }
        }
        assert_eq!(sum.into_inner(), 6 * rounds);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_team_goes_on() {
        let team = Team::new(2);
        for _ in 0..50 {
            let result = catch_unwind(AssertUnwindSafe(|| {
                team.run(8, |part| assert_ne!(part, 3, "part three fails"));
            }));
            let cause = result.unwrap_err();
            let text = cause.downcast_ref::<String>().unwrap();
            assert!(text.contains("part three fails"));
        }
        let sum = AtomicUsize::new(0);
        team.run(4, |_| {
            sum.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 4);
    }

    #[test]
    fn nested_and_concurrent_calls_run_inline() {
        let team = Team::new(2);
        let sum = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        team.run(4, |_| {
                            team.run(2, |_| {
                                sum.fetch_add(1, Ordering::Relaxed);
                            });
                        });
                    }
                });
            }
        });
        assert_eq!(sum.into_inner(), 3 * 100 * 4 * 2);
    }
}
