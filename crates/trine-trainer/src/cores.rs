//! A rank's threads, and the cores that they run on.

use crate::config::Pin;
use trine_kernels::{Pinned, Team, allowed_cpus};

/// The threads of one of several ranks of this process.
#[derive(Debug)]
pub(crate) struct RankThreads {
    /// The rank's own thread, which runs its kernels, and its helpers.
    pub(crate) team: Team,
    /// Keeps the rank's own thread on its core.
    pub(crate) pinned: Option<Pinned>,
}

impl RankThreads {
    /// `threads` threads for the calling thread, which is rank `rank` of `ranks` in this process.
    pub(crate) fn new(pin: Pin, ranks: usize, rank: usize, threads: usize) -> Self {
        let allowed = match pin {
            Pin::Auto => allowed_cpus(),
            Pin::Off => Vec::new(),
        };
        match cores_of(&allowed, ranks, rank, threads) {
            None => Self { team: Team::new(threads), pinned: None },
            // Helpers first: what a pinned thread starts stays on its core.
            Some(cores) => Self {
                team: Team::on_cpus(cores),
                pinned: cores.first().copied().and_then(Pinned::to),
            },
        }
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
            let rank = RankThreads::new(pin, before.len(), before.len() - 1, 1);
            assert_eq!(rank.pinned.is_some(), pinned);
            let own = if pinned { before[before.len() - 1..].to_vec() } else { before.clone() };
            assert_eq!((allowed_cpus(), rank.team.threads()), (own, 1));
            drop(rank);
            assert_eq!(allowed_cpus(), before);
        }
        // Too many ranks: nobody is pinned.
        assert!(RankThreads::new(Pin::Auto, before.len() + 1, 0, 1).pinned.is_none());
    }
}
