//! Finding the ranks that can never go on.
//!
//! A rank that runs may do anything, so it can go on. A rank that waits can go on if every rank
//! that its operation lacks can. What this least fixpoint does not reach is stuck: it waits in a
//! circle, or for a rank that has finished, or for a stuck one. No false alarm is possible as long
//! as a waiting rank does nothing else, and nothing stuck is missed, because the last rank that
//! could have moved looks here before it parks or ends.

use crate::{Call, CommError, Stuck};

/// Who waits for whom.
pub(super) trait Waits {
    /// Number of ranks.
    fn ranks(&self) -> usize;
    /// Whether a rank has returned.
    fn is_finished(&self, rank: usize) -> bool;
    /// The operations that a rank's threads wait for: one, as a rule. None: it runs.
    fn waits(&self, rank: usize) -> &[usize];
    /// The ranks that an operation lacks; none if it is over or about to be.
    fn missing(&self, wait: usize) -> Vec<usize>;
    /// The operation, for the report.
    fn call(&self, wait: usize) -> Call;
}

/// The report on all stuck ranks, if there are any. `rank` has just begun to wait or ended.
pub(super) fn find(world: &impl Waits, rank: usize) -> Option<CommError> {
    let runs = |rank: &usize| world.waits(*rank).is_empty() && !world.is_finished(*rank);
    // The common case, without a search: those that are missing are on their way. Then `rank` can
    // go on, and with it all that waited for it before.
    let waits = world.waits(rank);
    if !world.is_finished(rank) && waits.iter().any(|wait| world.missing(*wait).iter().all(runs)) {
        return None;
    }
    let mut can_go_on: Vec<bool> = (0..world.ranks()).map(|rank| runs(&rank)).collect();
    let mut changed = true;
    while changed {
        changed = false;
        for rank in 0..world.ranks() {
            let reached = |wait: &usize| world.missing(*wait).iter().all(|rank| can_go_on[*rank]);
            if !can_go_on[rank] && world.waits(rank).iter().any(reached) {
                can_go_on[rank] = true;
                changed = true;
            }
        }
    }
    let stuck: Vec<Stuck> = (0..world.ranks())
        .filter(|rank| !can_go_on[*rank])
        .flat_map(|rank| world.waits(rank))
        .map(|wait| Stuck { call: world.call(*wait), waits_for: world.missing(*wait) })
        .collect();
    if stuck.is_empty() {
        return None;
    }
    let awaited = |rank: &usize| stuck.iter().any(|stuck| stuck.waits_for.contains(rank));
    let finished =
        (0..world.ranks()).filter(|rank| world.is_finished(*rank)).filter(awaited).collect();
    Some(CommError::Deadlock { stuck, finished })
}
