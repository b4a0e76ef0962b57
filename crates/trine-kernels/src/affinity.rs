//! Which processors a thread may run on.

#[cfg(target_os = "linux")]
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::thread::{self, ThreadId};

/// The processors that the calling thread may run on, in ascending order: what whoever started the
/// process left it. Empty where the system does not tell.
pub fn allowed_cpus() -> Vec<usize> {
    #[cfg(target_os = "linux")]
    if let Ok(mask) = sched_getaffinity(None) {
        return (0..CpuSet::MAX_CPU).filter(|cpu| mask.is_set(*cpu)).collect();
    }
    Vec::new()
}

/// The calling thread on one processor, until this is dropped: then it may run wherever it could
/// before. Threads that it starts meanwhile stay on the same processor for good, so a [`crate::Team`]
/// is made first.
#[derive(Debug)]
#[must_use = "a thread is released when this is dropped"]
pub struct Pinned {
    thread: ThreadId,
    #[cfg(target_os = "linux")]
    before: CpuSet,
}

impl Pinned {
    /// Keeps the calling thread on `cpu`, one of [`allowed_cpus`]. `None` if the system refuses or
    /// knows no such thing: the thread then runs as before.
    pub fn to(cpu: usize) -> Option<Self> {
        #[cfg(target_os = "linux")]
        {
            let before = sched_getaffinity(None).ok()?;
            if cpu >= CpuSet::MAX_CPU || !before.is_set(cpu) {
                return None;
            }
            let mut only = CpuSet::new();
            only.set(cpu);
            sched_setaffinity(None, &only).ok()?;
            Some(Self { thread: thread::current().id(), before })
        }
        #[cfg(not(target_os = "linux"))]
        {
            let _ = cpu;
            None
        }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // Another thread has a mask of its own.
        #[cfg(target_os = "linux")]
        if thread::current().id() == self.thread {
            // The mask was the system's own. If it refuses it now, it has taken processors away.
            let _ = sched_setaffinity(None, &self.before);
        }
    }
}

#[cfg(all(target_os = "linux", not(miri)))]
#[cfg(test)]
mod tests {
    use super::*;
    use crate::Team;
    use std::sync::Mutex;

    #[test]
    fn a_thread_stays_on_one_processor_and_gets_its_mask_back() {
        let all = allowed_cpus();
        assert!(!all.is_empty() && all.is_sorted(), "{all:?}");
        let last = all[all.len() - 1];
        let pinned = Pinned::to(last).unwrap();
        assert_eq!(allowed_cpus(), [last]);
        // What a mask does not have is refused, and changes nothing.
        assert!(Pinned::to(last + 1).is_none() && Pinned::to(usize::MAX).is_none());
        assert_eq!(allowed_cpus(), [last]);
        drop(pinned);
        assert_eq!(allowed_cpus(), all);
        // Dropped elsewhere, it leaves that thread alone.
        let pinned = Pinned::to(last).unwrap();
        let elsewhere = thread::spawn(move || {
            let own = Pinned::to(last).unwrap();
            drop(pinned);
            let held = allowed_cpus();
            drop(own);
            held
        });
        assert_eq!(elsewhere.join().unwrap(), [last]);
        assert_eq!(allowed_cpus(), [last], "still pinned: only its own thread can release it");
    }

    #[test]
    fn each_thread_of_a_team_has_its_processor() {
        let all = allowed_cpus();
        // On a machine with one processor, both threads have it.
        let cpus = [all[0], all[all.len() - 1]];
        let team = Team::on_cpus(&cpus);
        assert_eq!(team.threads(), 2);
        let pinned = Pinned::to(cpus[0]).unwrap();
        let seen = Mutex::new(Vec::new());
        // A part each: neither ends before the other has begun.
        let both = std::sync::Barrier::new(2);
        team.run(2, |_| {
            both.wait();
            seen.lock().unwrap().push(allowed_cpus());
        });
        let mut seen = seen.into_inner().unwrap();
        seen.sort();
        let mut wanted = cpus.map(|cpu| vec![cpu]).to_vec();
        wanted.sort();
        assert_eq!(seen, wanted);
        drop(pinned);
        assert_eq!(allowed_cpus(), all);
    }
}
