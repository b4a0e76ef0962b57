//! What is known of a run that failed: the first cause, what everybody did meanwhile, and the
//! flight recorders. The same for ranks that are threads and for ranks that are processes.

use crate::{Call, Operation};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// Ranks that a diagnosis lists beside the one that failed.
const OTHERS_SHOWN: usize = 16;

/// What a rank says of itself, now or in its last heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    /// World rank.
    pub rank: usize,
    /// Its machine; empty where there is only one.
    pub host: String,
    /// Counts what it does: phases, actions, operations begun and ended.
    pub progress: u64,
    /// Where in the run it is; empty before the first phase.
    pub place: String,
    /// How long its phase may go without progress, if that is longer than usual.
    pub deadline: Option<Duration>,
    /// What it does.
    pub doing: Doing,
}

/// What a rank does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Doing {
    /// It computes, or has not been heard of yet.
    Running {
        /// Its latest operation.
        latest: Option<String>,
    },
    /// It waits in an operation.
    Waiting {
        /// The operation, with group, number and call site.
        call: String,
        /// The same as a key.
        meeting: Meeting,
        /// The world ranks that must come before it can go on, as far as it knows.
        waits_for: Vec<usize>,
    },
    /// It will not do anything any more.
    Finished,
}

/// Which operation: ranks that wait in one and the same have come, and do not wait for each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meeting {
    group: String,
    /// The operation and its name; for both ends of a message the same.
    what: String,
    /// World ranks of a message's ends.
    ends: Option<(usize, usize)>,
    sequence: u64,
}

impl Meeting {
    /// The operation that a call is one side of.
    pub fn of(call: &Call) -> Self {
        let world = |member: usize| call.group.ranks()[member];
        let (what, ends) = match call.operation {
            Operation::Send { to } => ("message", Some((call.rank, world(to)))),
            Operation::Recv { from } => ("message", Some((world(from), call.rank))),
            Operation::Exchange { .. }
            | Operation::Broadcast { .. }
            | Operation::AllReduce(_)
            | Operation::AllGather
            | Operation::ReduceScatter(_)
            | Operation::AllToAll
            | Operation::Barrier => (call.operation.label(), None),
        };
        Self {
            group: call.group.to_string(),
            what: format!("{what} {}", call.name),
            ends,
            sequence: call.sequence,
        }
    }
}

impl Beat {
    /// A rank that has not said anything yet.
    pub fn unheard(rank: usize, host: &str) -> Self {
        let doing = Doing::Running { latest: None };
        Self { rank, host: host.into(), progress: 0, place: String::new(), deadline: None, doing }
    }

    fn name(&self) -> String {
        match &*self.host {
            "" => format!("rank {}", self.rank),
            host => format!("rank {} on {host}", self.rank),
        }
    }
}

/// `rank 3 on node7, in training step 12, action 7 (B0.3), waits for rank 1 in recv(…) …`
impl fmt::Display for Beat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())?;
        if !self.place.is_empty() {
            write!(f, ", in {}", self.place)?;
        }
        match &self.doing {
            Doing::Running { latest: None } => {
                f.write_str(", runs; it has not called anything yet")
            }
            Doing::Running { latest: Some(call) } => write!(f, ", runs; its latest call: {call}"),
            Doing::Waiting { call, waits_for, .. } if waits_for.is_empty() => {
                write!(f, ", waits for the end of {call}")
            }
            Doing::Waiting { call, waits_for, .. } => {
                write!(f, ", waits for {} in {call}", ranks(waits_for))
            }
            Doing::Finished => f.write_str(", has finished"),
        }
    }
}

/// `rank 1`, `ranks 1, 2, 5`.
pub(crate) fn ranks(all: &[usize]) -> String {
    let numbers: Vec<String> = all.iter().map(ToString::to_string).collect();
    format!("{} {}", if all.len() == 1 { "rank" } else { "ranks" }, numbers.join(", "))
}

/// The first cause of a failed run: which rank, what happened, and what everybody did then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnosis {
    /// World rank that failed, or that the others waited for in vain.
    pub rank: usize,
    /// What happened to it.
    pub failure: String,
    /// All ranks at that moment, as far as they are known, in rank order.
    pub beats: Vec<Beat>,
}

impl Diagnosis {
    /// The failed rank at that moment.
    pub fn beat(&self) -> Option<&Beat> {
        self.beats.iter().find(|beat| beat.rank == self.rank)
    }
}

/// The failed rank first, then those that wait, then the rest; at most 16 of them.
impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let own = self.beat();
        let name = own.map_or_else(|| format!("rank {}", self.rank), Beat::name);
        write!(f, "{name}: {}", self.failure)?;
        if let Some(own) = own {
            write!(f, "\n  at that moment: {own}")?;
        }
        let others = || self.beats.iter().filter(|beat| beat.rank != self.rank);
        let waits = |beat: &&Beat| matches!(beat.doing, Doing::Waiting { .. });
        let shown = others().filter(waits).chain(others().filter(|beat| !waits(beat)));
        for beat in shown.take(OTHERS_SHOWN) {
            write!(f, "\n  {beat}")?;
        }
        match others().count().checked_sub(OTHERS_SHOWN + 1) {
            Some(more) => write!(f, "\n  others: {}", more + 1),
            None => Ok(()),
        }
    }
}

/// A rank as a watcher sees it.
#[derive(Debug, Clone, Copy)]
pub struct Sighting<'a> {
    /// What it said last.
    pub beat: &'a Beat,
    /// How long ago that was.
    pub unheard: Duration,
    /// How long its progress has been the same.
    pub quiet: Duration,
}

impl Sighting<'_> {
    /// How long the rank, and those that wait for it, may go without progress.
    fn allowed(&self, deadline: Duration) -> Duration {
        deadline.max(self.beat.deadline.unwrap_or_default())
    }
}

/// Whether the run can go on, judged from all ranks' latest heartbeats.
///
/// It cannot if a rank has not been heard of for `deadline`; or if a rank waits, nothing has moved
/// for as long, and what it waits for in the end is a rank that runs without progress, one that has
/// finished, or a circle. A rank that waits for one that makes progress is never blamed, however
/// long it takes. Phases may have longer deadlines of their own ([`crate::Phase`]).
pub fn judge(sightings: &[Sighting<'_>], deadline: Duration) -> Option<Diagnosis> {
    let lost =
        |seen: &&Sighting<'_>| seen.unheard >= deadline && seen.beat.doing != Doing::Finished;
    let lost: Vec<&Sighting<'_>> = sightings.iter().filter(lost).collect();
    if let Some(first) = lost.first() {
        let mut failure = format!(
            "no heartbeat for {:.1?}: it is stopped, or its host or the link to it is gone",
            first.unheard
        );
        if lost.len() > 1 {
            let rest: Vec<usize> = lost[1..].iter().map(|seen| seen.beat.rank).collect();
            failure += &format!("; nor is there any of {}", ranks(&rest));
        }
        return Some(diagnosis(first.beat.rank, failure, sightings));
    }
    sightings.iter().find_map(|seen| judge_waiting(seen, sightings, deadline))
}

fn diagnosis(rank: usize, failure: String, sightings: &[Sighting<'_>]) -> Diagnosis {
    let beats = sightings.iter().map(|seen| seen.beat.clone()).collect();
    Diagnosis { rank, failure, beats }
}

/// What is to be said about one rank that waits, if it waits in vain.
fn judge_waiting(
    waiting: &Sighting<'_>,
    all: &[Sighting<'_>],
    deadline: Duration,
) -> Option<Diagnosis> {
    let Doing::Waiting { call, .. } = &waiting.beat.doing else { return None };
    let allowed = waiting.allowed(deadline);
    if waiting.quiet < allowed {
        return None;
    }
    let reached = reachable(waiting, all);
    if reached.is_empty() {
        let failure = format!(
            "everybody has come to {call}, but it does not end for {:.1?}: nothing arrives between \
             the hosts",
            waiting.quiet
        );
        return Some(diagnosis(waiting.beat.rank, failure, all));
    }
    let overdue = |seen: &Sighting<'_>| seen.quiet >= seen.allowed(allowed);
    let roots = || reached.iter().filter(|seen| !matches!(seen.beat.doing, Doing::Waiting { .. }));
    if let Some(root) = roots().find(|seen| overdue(seen)) {
        let failure = match root.beat.doing {
            Doing::Finished => "has finished, while others wait for it".to_owned(),
            Doing::Running { .. } | Doing::Waiting { .. } => format!(
                "runs without progress for {:.1?} (no action or operation begins or ends), while \
                 others wait for it; phases that take longer need a longer deadline",
                root.quiet
            ),
        };
        return Some(diagnosis(root.beat.rank, failure, all));
    }
    if roots().next().is_some() || !reached.iter().all(|seen| overdue(seen)) {
        return None;
    }
    let mut circle: Vec<usize> = reached.iter().map(|seen| seen.beat.rank).collect();
    circle.push(waiting.beat.rank);
    circle.sort_unstable();
    circle.dedup();
    let failure = format!("{} wait for each other, and none can go on", ranks(&circle));
    Some(diagnosis(circle[0], failure, all))
}

/// The ranks that a rank waits for, directly or by way of others that wait.
fn reachable<'a, 'b>(from: &Sighting<'b>, all: &'a [Sighting<'b>]) -> Vec<&'a Sighting<'b>> {
    let mut reached: Vec<&Sighting<'_>> = Vec::new();
    let mut next = missing(from, all);
    while let Some(seen) = next.pop() {
        if reached.iter().all(|old| old.beat.rank != seen.beat.rank) {
            reached.push(seen);
            next.extend(missing(seen, all));
        }
    }
    reached
}

/// Those that a rank waits for and that have not come to the same operation.
fn missing<'a, 'b>(of: &Sighting<'_>, all: &'a [Sighting<'b>]) -> Vec<&'a Sighting<'b>> {
    let Doing::Waiting { meeting, waits_for, .. } = &of.beat.doing else { return Vec::new() };
    let has_come =
        |beat: &Beat| matches!(&beat.doing, Doing::Waiting { meeting: m, .. } if m == meeting);
    let is_missing =
        |seen: &&Sighting<'_>| waits_for.contains(&seen.beat.rank) && !has_come(seen.beat);
    all.iter().filter(is_missing).collect()
}

/// What a rank's flight recorder held.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FlightRecord {
    /// World rank.
    pub rank: usize,
    /// Its machine; empty where there is only one.
    pub host: String,
    /// Where in the run it was.
    pub place: String,
    /// Operations that it had posted in all.
    pub operations_posted: u64,
    /// How long it had not moved, in seconds.
    pub quiet_s: f64,
    /// The latest of them, oldest first.
    pub operations: Vec<FlightEntry>,
}

/// An operation of a flight recorder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FlightEntry {
    /// The rank's own count.
    pub number: u64,
    /// When it was posted, in seconds since the rank began.
    pub at_s: f64,
    /// How long it took, if it is over.
    pub took_s: Option<f64>,
    /// `posted`, `waiting` or `done`.
    pub state: String,
    /// Where in the run it was posted.
    pub place: String,
    /// The operation with its name, number, extents, group and call site.
    pub call: String,
}

/// What is left of a failed run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PostMortem {
    /// The first cause.
    pub diagnosis: Diagnosis,
    /// The flight recorders that could be collected, in rank order.
    pub records: Vec<FlightRecord>,
}

#[cfg(test)]
mod tests;
