//! A rank's threads, the cores that they run on, and the time that they took of them.

use crate::config::Pin;
use rustix::time::{ClockId, clock_gettime};
use trine_kernels::{Pinned, Team, allowed_cpus};

/// CPU time of the calling thread in seconds: what a rank worked, however many ranks share a core.
pub(crate) fn thread_cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// `threads` threads for the calling thread, which is rank `rank` of `ranks` in this process: the team
/// that runs its kernels, and what keeps the calling thread on its core, if it is pinned.
pub(crate) fn rank_team(
    pin: Pin,
    ranks: usize,
    rank: usize,
    threads: usize,
) -> (Team, Option<Pinned>) {
    let allowed = match pin {
        Pin::Auto => allowed_cpus(),
        Pin::Off => Vec::new(),
    };
    match cores_of(&allowed, ranks, rank, threads) {
        None => (Team::new(threads), None),
        // Helpers first: what a pinned thread starts stays on its core.
        Some(cores) => (Team::on_cpus(cores), cores.first().copied().and_then(Pinned::to)),
    }
}

/// The cores of a rank, of those that the process may use: its own ones, where there are enough for all
/// threads of all ranks. Else none: where ranks share cores, whichever is ready has to run wherever one
/// is free.
fn cores_of(allowed: &[usize], ranks: usize, rank: usize, threads: usize) -> Option<&[usize]> {
    let needed = ranks.checked_mul(threads)?;
    if needed == 0 || needed > allowed.len() {
        return None;
    }
    allowed.get(rank * threads..(rank + 1) * threads)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_get_cores_of_their_own_or_none() {
        let cores = [1, 2, 5, 7];
        assert_eq!(cores_of(&cores, 1, 0, 4), Some(&cores[..]));
        assert_eq!(cores_of(&cores, 2, 0, 2), Some(&cores[..2]));
        assert_eq!(cores_of(&cores, 2, 1, 2), Some(&cores[2..]));
        assert_eq!(cores_of(&cores, 3, 2, 1), Some(&cores[2..3]));
        // More threads than cores, and systems that do not tell.
        assert_eq!(cores_of(&cores, 2, 0, 3), None);
        assert_eq!(cores_of(&cores, 8, 0, 1), None);
        assert_eq!(cores_of(&[], 1, 0, 1), None);
        assert_eq!(cores_of(&cores, usize::MAX, 0, 2), None);
        // A rank that is not there.
        assert_eq!(cores_of(&cores, 2, 2, 2), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_pinned_rank_computes_where_it_may_and_leaves_its_thread_free() {
        let before = allowed_cpus();
        for (pin, pinned) in [(Pin::Auto, true), (Pin::Off, false)] {
            let (team, guard) = rank_team(pin, before.len(), before.len() - 1, 1);
            assert_eq!(guard.is_some(), pinned);
            let own = if pinned { before[before.len() - 1..].to_vec() } else { before.clone() };
            assert_eq!((allowed_cpus(), team.threads()), (own, 1));
            drop(guard);
            assert_eq!(allowed_cpus(), before);
        }
        // Too many ranks: nobody is pinned.
        assert!(rank_team(Pin::Auto, before.len() + 1, 0, 1).1.is_none());
    }
}
