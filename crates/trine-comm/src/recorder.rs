//! The flight recorder of a rank: its latest operations, where in the run it is, and whether it
//! moves.

use crate::diagnosis::{Beat, Doing, FlightEntry, FlightRecord, Meeting};
use crate::place::ActionText;
use crate::{Call, Phase, Place};
use std::fmt::{self, Display};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Operations that a recorder keeps.
pub const OPERATIONS_KEPT: usize = 64;

/// What a rank has done lately: shared by all its communicators, written by the rank, and read by
/// whoever watches it.
///
/// A backend calls [`Recorder::post`], [`Recorder::wait`] and [`Recorder::finish`]; whoever runs the
/// rank says where it is by [`Recorder::begin_phase`] and [`Recorder::begin_action`]. Each of these
/// is *progress*: a deadline runs only while there is none. None of them allocates.
pub struct Recorder {
    rank: usize,
    host: String,
    origin: Instant,
    log: Mutex<Log>,
}

struct Log {
    place: Place,
    /// The operation with number n is at n modulo [`OPERATIONS_KEPT`].
    entries: Vec<Entry>,
    posted: u64,
    progress: u64,
    moved: Instant,
    finished: bool,
}

#[derive(Debug, Clone)]
struct Entry {
    number: u64,
    call: Call,
    posted: Instant,
    waits: bool,
    ended: Option<Instant>,
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Recorder(rank {})", self.rank)
    }
}

impl Recorder {
    /// A recorder of the world rank `rank` on `host` (empty where there is only one).
    pub fn new(rank: usize, host: &str) -> Arc<Self> {
        let origin = Instant::now();
        let log = Log {
            place: Place::default(),
            entries: Vec::with_capacity(OPERATIONS_KEPT),
            posted: 0,
            progress: 0,
            moved: origin,
            finished: false,
        };
        Arc::new(Self { rank, host: host.to_owned(), origin, log: Mutex::new(log) })
    }

    // A panic while the lock is held is a bug of this file; the record must still be readable.
    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// World rank.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// The machine, if there are several.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The rank begins a part of the run, such as a training step.
    pub fn begin_phase(&self, phase: impl Into<Phase>) {
        let mut log = self.log();
        log.place = Place { phase: phase.into(), action: None };
        log.progress();
    }

    /// The rank begins an action of its schedule.
    pub fn begin_action(&self, position: usize, action: impl Display) {
        let action = ActionText::new(position, action);
        let mut log = self.log();
        log.place.action = Some(action);
        log.progress();
    }

    /// The rank has run its list of actions to the end.
    pub fn end_actions(&self) {
        let mut log = self.log();
        log.place.action = None;
        log.progress();
    }

    /// Notes a posted operation, with the rank's place in it; the number to name it by.
    pub fn post(&self, call: Call) -> u64 {
        let mut log = self.log();
        log.progress();
        let (number, posted, place) = (log.posted, log.moved, log.place);
        let call = Call { place, ..call };
        let entry = Entry { number, call, posted, waits: false, ended: None };
        match log.entries.get_mut(slot(number)) {
            Some(old) => *old = entry,
            None => log.entries.push(entry),
        }
        log.posted += 1;
        number
    }

    /// Notes that the rank waits for an operation.
    pub fn wait(&self, number: u64) {
        self.log().change(number, |entry, _| entry.waits = true);
    }

    /// Notes that an operation is over.
    pub fn finish(&self, number: u64) {
        let mut log = self.log();
        log.progress();
        log.change(number, |entry, now| (entry.waits, entry.ended) = (false, Some(now)));
    }

    /// Notes that the rank will do nothing any more.
    pub fn end(&self) {
        let mut log = self.log();
        log.finished = true;
        log.progress();
    }

    /// Where the rank is.
    pub fn place(&self) -> Place {
        self.log().place
    }

    /// Its latest operation.
    pub fn latest(&self) -> Option<Call> {
        self.log().latest().map(|entry| entry.call.clone())
    }

    /// How many operations it has posted.
    pub fn operations(&self) -> u64 {
        self.log().posted
    }

    /// How long it has not moved.
    pub fn quiet(&self) -> Duration {
        self.log().moved.elapsed()
    }

    /// What a heartbeat says.
    pub fn beat(&self) -> Beat {
        let log = self.log();
        let waits = log.entries.iter().filter(|entry| entry.waits).max_by_key(|e| e.number);
        let doing = match (log.finished, waits) {
            (true, _) => Doing::Finished,
            (false, Some(entry)) => Doing::Waiting {
                call: entry.call.text(),
                meeting: Meeting::of(&entry.call),
                waits_for: entry.call.others(),
            },
            (false, None) => Doing::Running { latest: log.latest().map(|e| e.call.text()) },
        };
        Beat {
            rank: self.rank,
            host: self.host.clone(),
            progress: log.progress,
            place: log.place.to_string(),
            deadline: log.place.phase.deadline,
            doing,
        }
    }

    /// What is left behind when a run fails: the operations that are kept, oldest first.
    pub fn record(&self) -> FlightRecord {
        let log = self.log();
        let mut entries: Vec<&Entry> = log.entries.iter().collect();
        entries.sort_by_key(|entry| entry.number);
        let seconds = |at: Instant| (at - self.origin).as_secs_f64();
        let entry = |entry: &&Entry| FlightEntry {
            number: entry.number,
            at_s: seconds(entry.posted),
            took_s: entry.ended.map(|ended| (ended - entry.posted).as_secs_f64()),
            state: match (entry.ended, entry.waits) {
                (Some(_), _) => "done",
                (None, true) => "waiting",
                (None, false) => "posted",
            }
            .into(),
            place: entry.call.place.to_string(),
            call: entry.call.text(),
        };
        FlightRecord {
            rank: self.rank,
            host: self.host.clone(),
            place: log.place.to_string(),
            operations_posted: log.posted,
            quiet_s: log.moved.elapsed().as_secs_f64(),
            operations: entries.iter().map(entry).collect(),
        }
    }
}

fn slot(number: u64) -> usize {
    (number % OPERATIONS_KEPT as u64) as usize
}

impl Log {
    fn progress(&mut self) {
        self.progress += 1;
        self.moved = Instant::now();
    }

    /// Changes an entry, if it is still kept.
    fn change(&mut self, number: u64, change: impl FnOnce(&mut Entry, Instant)) {
        let now = self.moved;
        if let Some(entry) = self.entries.get_mut(slot(number)).filter(|e| e.number == number) {
            change(entry, now);
        }
    }

    fn latest(&self) -> Option<&Entry> {
        self.entries.get(slot(self.posted.checked_sub(1)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Name, Operation, Request, SelfComm};
    use std::panic::Location;

    fn call(name: Name) -> Call {
        let operation = Operation::Barrier;
        Request::new(operation, name, Location::caller()).call(SelfComm::new().group(), 3)
    }

    #[test]
    fn the_last_operations_are_kept_with_their_places() {
        let recorder = Recorder::new(2, "node7");
        assert_eq!(recorder.record().operations, []);
        let numbers: Vec<u64> = (0..100)
            .map(|at| {
                recorder.begin_phase(Name::new("step").with("", at / 50));
                recorder.post(call(Name::new("x").with("n", at)))
            })
            .collect();
        recorder.finish(numbers[98]);
        recorder.wait(numbers[99]);
        // Forgotten long ago.
        recorder.finish(numbers[0]);
        let record = recorder.record();
        assert_eq!((record.rank, &*record.host, record.operations_posted), (2, "node7", 100));
        let kept: Vec<u64> = record.operations.iter().map(|entry| entry.number).collect();
        assert_eq!(kept, (36..100).collect::<Vec<_>>());
        let states: Vec<&str> = record.operations[61..].iter().map(|e| &*e.state).collect();
        assert_eq!(states, ["posted", "done", "waiting"]);
        assert_eq!(record.operations[0].place, "step  0");
        assert!(record.operations[0].call.starts_with("barrier \"x n 36\" #3, group world[0]"));
    }

    #[test]
    fn everything_that_a_rank_does_is_progress() {
        let recorder = Recorder::new(0, "");
        let progress = || recorder.beat().progress;
        let mut seen = vec![progress()];
        recorder.begin_phase(Name::new("training"));
        seen.push(progress());
        recorder.begin_action(4, "F0.1");
        seen.push(progress());
        let number = recorder.post(call(Name::new("x")));
        seen.push(progress());
        recorder.finish(number);
        seen.push(progress());
        recorder.end_actions();
        seen.push(progress());
        recorder.end();
        seen.push(progress());
        assert_eq!(seen, [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(recorder.beat().doing, Doing::Finished);
    }

    #[test]
    fn a_beat_says_what_a_rank_waits_for() {
        let recorder = Recorder::new(0, "a");
        recorder.begin_action(1, "R");
        let number = recorder.post(call(Name::new("x")));
        assert!(matches!(recorder.beat().doing, Doing::Running { latest: Some(_) }));
        recorder.wait(number);
        let Doing::Waiting { call, .. } = recorder.beat().doing else { panic!("not waiting") };
        assert!(call.contains("barrier \"x\" #3"), "{call}");
        assert!(recorder.quiet() < Duration::from_secs(60));
    }
}
