//! What a store knows: the ranks, the first cause, records and values. No sockets here.

use crate::StoreOptions;
use crate::message::{Answer, Ask};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use trine_comm::{Beat, Diagnosis, Doing, FlightRecord, Sighting, judge};

/// Limits of what ranks may keep in the store.
const KEYS_MAX: usize = 4096;
const KEY_BYTES_MAX: usize = 256;
const SHARED_MAX: usize = 65_536;
const VALUES_BYTES_MAX: usize = 64 << 20;

/// What is known of a rank.
#[derive(Debug)]
struct Seen {
    beat: Beat,
    heard: Instant,
    moved: Instant,
    life: Life,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    /// It has not sent a heartbeat yet.
    Expected,
    Alive,
    /// It has said farewell, or is gone.
    Over,
}

#[derive(Debug)]
struct Known {
    ranks: Vec<Seen>,
    cause: Option<Diagnosis>,
    /// Whether the cause is only that a process is gone, and whoever started it may know how.
    vague: bool,
    records: BTreeMap<usize, FlightRecord>,
    values: HashMap<String, Vec<u8>>,
    value_bytes: usize,
    /// Operations that not all takers have taken out.
    shared: HashMap<String, Meeting>,
    judged: Instant,
    /// Until when ranks may join.
    join_by: Instant,
    /// When this process went on after it had stood still for longer than the deadline, and for how long.
    woke: Option<(Instant, Duration)>,
    closing: bool,
}

/// The sides of an operation so far.
#[derive(Debug)]
struct Meeting {
    sides: Vec<Option<String>>,
    takers: usize,
}

/// A store's state, shared by its threads.
#[derive(Debug)]
pub(crate) struct State {
    known: Mutex<Known>,
    changed: Condvar,
    deadline: Duration,
    join_within: Duration,
    /// The rank that is this process, if one is.
    owner: Option<usize>,
}

impl State {
    pub(crate) fn new(options: &StoreOptions) -> Self {
        let StoreOptions { ranks, deadline, join_within, owner, .. } = *options;
        let began = Instant::now();
        let expected = |rank| Seen {
            beat: Beat::unheard(rank, ""),
            heard: began,
            moved: began,
            life: Life::Expected,
        };
        let known = Known {
            ranks: (0..ranks).map(expected).collect(),
            cause: None,
            vague: false,
            records: BTreeMap::new(),
            values: HashMap::new(),
            value_bytes: 0,
            shared: HashMap::new(),
            judged: began,
            join_by: began + join_within,
            woke: None,
            closing: false,
        };
        let known = Mutex::new(known);
        Self { known, changed: Condvar::new(), deadline, join_within, owner }
    }

    // No thread of the store may die of another one's bug.
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.known().closing
    }

    pub(crate) fn close(&self) {
        self.known().closing = true;
        self.changed.notify_all();
    }

    /// Waits until `look` finds something, at most for `timeout`.
    fn wait_for<T>(&self, timeout: Duration, look: impl Fn(&Known) -> Option<T>) -> Option<T> {
        let until = Instant::now() + timeout;
        let mut known = self.known();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match look(&known) {
                Some(found) => return Some(found),
                None if left.is_zero() || known.closing => return None,
                None => {
                    let woken = self.changed.wait_timeout(known, left);
                    known = woken.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
    }

    pub(crate) fn cause_within(&self, timeout: Duration) -> Option<Diagnosis> {
        self.wait_for(timeout, |known| known.cause.clone())
    }

    /// Whether the cause is only that a process is gone.
    pub(crate) fn is_loss(&self) -> bool {
        let known = self.known();
        known.cause.is_some() && known.vague
    }

    /// Whether all ranks have said farewell in time.
    pub(crate) fn over_within(&self, timeout: Duration) -> bool {
        let is_over = |known: &Known| known.ranks.iter().all(|rank| rank.life == Life::Over);
        self.wait_for(timeout, |known| is_over(known).then_some(())).is_some()
    }

    /// The flight recorders so far; waits for those of all ranks, at most for `timeout`.
    pub(crate) fn records_within(&self, timeout: Duration) -> Vec<FlightRecord> {
        let all = |known: &Known| known.records.len() == known.ranks.len();
        let _ = self.wait_for(timeout, |known| all(known).then_some(()));
        self.known().records.values().cloned().collect()
    }

    pub(crate) fn value(&self, key: &str) -> Option<Vec<u8>> {
        self.known().values.get(key).cloned()
    }

    pub(crate) fn beats(&self) -> Vec<Beat> {
        self.known().ranks.iter().map(|rank| rank.beat.clone()).collect()
    }

    /// How many ranks have joined so far, those that have gone included.
    pub(crate) fn joined(&self) -> usize {
        self.known().ranks.iter().filter(|rank| rank.life != Life::Expected).count()
    }

    /// A rank's connection asks for the first time to be its lifeline.
    pub(crate) fn begin_life(&self, rank: usize, host: &str) -> Result<(), String> {
        let mut known = self.known();
        let seen = &mut known.ranks[rank];
        match seen.life {
            Life::Expected => {
                (seen.beat, seen.life) = (Beat::unheard(rank, host), Life::Alive);
                (seen.heard, seen.moved) = (Instant::now(), Instant::now());
                Ok(())
            }
            Life::Alive => Err(format!("rank {rank} is here already, on {}", seen.beat.host)),
            Life::Over => Err(format!("rank {rank} has gone already")),
        }
    }

    /// Answers one question of a rank.
    pub(crate) fn answer(&self, rank: usize, ask: Ask) -> Answer {
        let mut known = self.known();
        match ask {
            Ask::Beat(beat) if beat.rank != rank => Answer::No("that is another rank's".into()),
            Ask::Fail(diagnosis) if diagnosis.rank >= known.ranks.len() => {
                Answer::No("there is no such rank".into())
            }
            Ask::Beat(beat) => {
                let seen = &mut known.ranks[rank];
                seen.heard = Instant::now();
                if beat.progress != seen.beat.progress {
                    seen.moved = seen.heard;
                }
                seen.beat = beat;
                known.cause.clone().map_or(Answer::Fine, Answer::Stop)
            }
            Ask::Fail(diagnosis) => {
                for beat in diagnosis.beats {
                    if let Some(seen) = known.ranks.get_mut(beat.rank)
                        && beat.progress >= seen.beat.progress
                    {
                        seen.beat = beat;
                    }
                }
                known.fail(diagnosis.rank, diagnosis.failure, false);
                self.changed.notify_all();
                Answer::Fine
            }
            Ask::Record(record) if record.rank != rank => {
                Answer::No("that is another rank's".into())
            }
            Ask::Record(record) => {
                known.records.insert(rank, record);
                self.changed.notify_all();
                Answer::Fine
            }
            Ask::Put { key, value } => {
                known.put(key, value).map_or_else(Answer::No, |()| Answer::Fine)
            }
            Ask::Get { key } => match known.values.get(&key) {
                Some(value) => Answer::Value(value.clone()),
                None => Answer::NotYet,
            },
            Ask::Share { .. } | Ask::Take { .. } | Ask::Check if known.cause.is_some() => {
                known.cause.clone().map_or(Answer::Fine, Answer::Stop)
            }
            Ask::Check => Answer::Fine,
            Ask::Share { key, place, places, takers, value } => known
                .share(key, (place, places, takers), value)
                .map_or_else(Answer::No, |()| Answer::Fine),
            Ask::Take { key } => known.take(&key).map_or(Answer::NotYet, Answer::Shared),
            Ask::Farewell => {
                let seen = &mut known.ranks[rank];
                seen.life = Life::Over;
                // Its last heartbeat may be from an operation that is over: it waits for nobody now.
                seen.beat.doing = Doing::Finished;
                self.changed.notify_all();
                Answer::Fine
            }
        }
    }

    /// A rank's lifeline has ended. Without a farewell, that is a failure: of this process, if the rank
    /// has given it up because it stood still.
    pub(crate) fn lost(&self, rank: usize, why: &str) {
        let mut known = self.known();
        if known.ranks[rank].life == Life::Alive && !known.closing {
            known.ranks[rank].life = Life::Over;
            match (known.stood_still(self.deadline), self.owner) {
                (None, _) => known.fail(rank, format!("its process is gone: {why}"), true),
                (Some(slept), Some(owner)) => {
                    let failure =
                        format!("stood still for {slept:.1?}; the others have given it up");
                    known.fail(owner, failure, false);
                }
                (Some(slept), None) => {
                    let failure = format!(
                        "has given up, because the process that watches over the run stood still for \
                         {slept:.1?}"
                    );
                    known.fail(rank, failure, false);
                }
            }
        }
        self.changed.notify_all();
    }

    /// Whoever started a rank's process knows how it ended.
    pub(crate) fn note_exit(&self, rank: usize, how: &str) {
        let mut known = self.known();
        let Some(seen) = known.ranks.get_mut(rank) else { return };
        seen.life = Life::Over;
        known.fail(rank, how.to_owned(), false);
        self.changed.notify_all();
    }

    /// Looks at all ranks, and finds the cause if the run cannot go on.
    ///
    /// A watcher that was asleep itself, such as one on a machine that was suspended, has not heard
    /// anybody meanwhile and must not blame them: the time beyond `tick` is forgiven.
    pub(crate) fn judge(&self, tick: Duration) {
        let mut known = self.known();
        let now = Instant::now();
        let slept = (now - known.judged).saturating_sub(4 * tick);
        known.judged = now;
        known.join_by += slept;
        if slept > self.deadline {
            known.woke = Some((now, slept));
        }
        for seen in &mut known.ranks {
            seen.heard = (seen.heard + slept).min(now);
            seen.moved = (seen.moved + slept).min(now);
        }
        let expected = |seen: &&Seen| seen.life == Life::Expected;
        let absent: Vec<usize> =
            known.ranks.iter().filter(expected).map(|seen| seen.beat.rank).collect();
        if let Some(first) = absent.first()
            && now >= known.join_by
        {
            let failure = format!(
                "has not joined within {:.1?}; ranks missing: {} of {}",
                self.join_within,
                absent.len(),
                known.ranks.len()
            );
            known.fail(*first, failure, false);
        } else if known.cause.is_none() {
            let sightings: Vec<Sighting<'_>> =
                known.ranks.iter().filter_map(|seen| seen.sighting(now)).collect();
            if let Some(found) = judge(&sightings, self.deadline) {
                known.fail(found.rank, found.failure, false);
            }
        }
        if known.cause.is_some() {
            self.changed.notify_all();
        }
    }
}

impl Seen {
    /// What the judge sees; of a rank that has not joined yet, nothing.
    fn sighting(&self, now: Instant) -> Option<Sighting<'_>> {
        let (unheard, quiet) = (now - self.heard, now - self.moved);
        match self.life {
            Life::Expected => None,
            Life::Alive => Some(Sighting { beat: &self.beat, unheard, quiet }),
            // It has nothing to say any more, but others may wait for it.
            Life::Over => Some(Sighting { beat: &self.beat, unheard: Duration::ZERO, quiet }),
        }
    }
}

impl Known {
    /// For how long this process stood still, if that was longer than the deadline and has only just ended:
    /// what ends now has given it up.
    fn stood_still(&self, deadline: Duration) -> Option<Duration> {
        // Whoever looks first after it went on may not be the judge.
        let unjudged = self.judged.elapsed();
        if unjudged > deadline {
            return Some(unjudged);
        }
        self.woke.filter(|(woke, _)| woke.elapsed() < deadline).map(|(_, slept)| slept)
    }

    /// Keeps the first cause, and what everybody did then. A vague one is made precise by a later
    /// report on the same rank.
    fn fail(&mut self, rank: usize, failure: String, vague: bool) {
        match &mut self.cause {
            None => {
                let beats = self.ranks.iter().map(|seen| seen.beat.clone()).collect();
                self.cause = Some(Diagnosis { rank, failure, beats });
                self.vague = vague;
            }
            Some(cause) if self.vague && !vague && cause.rank == rank => {
                (cause.failure, self.vague) = (failure, false);
            }
            Some(_) => {}
        }
    }

    /// Keeps one side of an operation.
    fn share(
        &mut self,
        key: String,
        (place, places, takers): (usize, usize, usize),
        value: String,
    ) -> Result<(), String> {
        let (ranks, bytes) = (self.ranks.len(), self.value_bytes + value.len());
        if key.len() > KEY_BYTES_MAX || bytes > VALUES_BYTES_MAX || self.shared.len() >= SHARED_MAX
        {
            return Err(format!(
                "the store takes keys of at most {KEY_BYTES_MAX} bytes, {SHARED_MAX} operations under way, and \
                 {VALUES_BYTES_MAX} bytes of values"
            ));
        }
        if place >= places || places > ranks || takers == 0 || takers > ranks {
            return Err(format!(
                "place {place} of {places} for {takers} is none that {ranks} ranks have"
            ));
        }
        let empty = || Meeting { sides: vec![None; places], takers };
        let meeting = self.shared.entry(key).or_insert_with(empty);
        match meeting.sides.get_mut(place) {
            Some(side @ None) => *side = Some(value),
            Some(Some(_)) | None => return Err("a side of this operation is there already".into()),
        }
        self.value_bytes = bytes;
        Ok(())
    }

    /// All sides of an operation, once they are there; the last taker takes them out.
    fn take(&mut self, key: &str) -> Option<Vec<String>> {
        let meeting = self.shared.get_mut(key)?;
        let all = meeting.sides.iter().cloned().collect::<Option<Vec<_>>>()?;
        meeting.takers -= 1;
        if meeting.takers == 0 {
            self.shared.remove(key);
            self.value_bytes -= all.iter().map(String::len).sum::<usize>();
        }
        Some(all)
    }

    fn put(&mut self, key: String, value: Vec<u8>) -> Result<(), String> {
        let old = self.values.get(&key).map(Vec::len);
        let bytes = self.value_bytes - old.unwrap_or(0) + value.len();
        let keys = self.values.len() + usize::from(old.is_none());
        if key.len() > KEY_BYTES_MAX || keys > KEYS_MAX || bytes > VALUES_BYTES_MAX {
            return Err(format!(
                "the store takes keys of at most {KEY_BYTES_MAX} bytes, {KEYS_MAX} of them, and \
                 {VALUES_BYTES_MAX} bytes of values"
            ));
        }
        self.values.insert(key, value);
        self.value_bytes = bytes;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(ranks: usize) -> StoreOptions {
        let bind = "127.0.0.1:0".parse().unwrap();
        StoreOptions::new(bind, ranks, crate::Token::generate().unwrap())
    }

    fn state(ranks: usize) -> State {
        State::new(&options(ranks))
    }

    fn none(timeout_ms: u64) -> Duration {
        Duration::from_millis(timeout_ms)
    }

    #[test]
    fn the_first_cause_stays_and_a_vague_one_is_made_precise() {
        let state = state(3);
        for rank in 0..3 {
            state.begin_life(rank, "a").unwrap();
        }
        state.lost(1, "the connection ended");
        state.lost(2, "the connection ended");
        let cause = || state.cause_within(none(0)).unwrap();
        assert_eq!((cause().rank, cause().beats.len()), (1, 3));
        state.note_exit(2, "was killed by signal 15");
        assert!(cause().failure.contains("the connection ended"));
        state.note_exit(1, "was killed by signal 9");
        assert_eq!(cause().failure, "was killed by signal 9");
        state.note_exit(1, "something else");
        assert_eq!(cause().failure, "was killed by signal 9");
        let told = state.answer(0, Ask::Beat(Beat::unheard(0, "a")));
        assert!(matches!(told, Answer::Stop(cause) if cause.rank == 1));
    }

    #[test]
    fn who_says_farewell_is_not_lost() {
        let state = state(1);
        state.begin_life(0, "a").unwrap();
        assert_eq!(state.begin_life(0, "b").unwrap_err(), "rank 0 is here already, on a");
        assert!(!state.over_within(none(0)));
        assert!(matches!(state.answer(0, Ask::Farewell), Answer::Fine));
        state.lost(0, "the connection ended");
        assert!(state.over_within(none(0)));
        assert_eq!(state.cause_within(none(0)), None);
        assert!(state.begin_life(0, "b").is_err());
    }

    /// The last heartbeats of ranks that are done are of any moment: together they may look like a
    /// circle.
    #[test]
    fn ranks_that_are_done_wait_for_nobody() {
        let state = State::new(&StoreOptions { deadline: none(200), ..options(3) });
        for (rank, waits_for) in [(0, vec![]), (1, vec![2]), (2, vec![1])] {
            state.begin_life(rank, "a").unwrap();
            let label = if rank == 1 { "texts" } else { "leave" };
            let group = trine_comm::Group::new("world", vec![0, 1, 2], rank).unwrap();
            let site = std::panic::Location::caller();
            let request = trine_comm::Request::new(trine_comm::Operation::Barrier, label, site);
            let call = request.call(&group, 4);
            let mut beat = Beat::unheard(rank, "a");
            if rank > 0 {
                let meeting = trine_comm::Meeting::of(&call);
                beat.doing = Doing::Waiting { call: call.to_string(), meeting, waits_for };
            }
            assert!(matches!(state.answer(rank, Ask::Beat(beat)), Answer::Fine));
        }
        let farewell = |rank| assert!(matches!(state.answer(rank, Ask::Farewell), Answer::Fine));
        farewell(1);
        farewell(2);
        for _ in 0..6 {
            std::thread::sleep(none(50));
            state.answer(0, Ask::Beat(Beat::unheard(0, "a")));
            state.judge(none(1000));
        }
        assert_eq!(state.cause_within(none(0)), None);
    }

    #[test]
    fn values_have_limits() {
        let state = state(1);
        let put = |key: &str, bytes: usize| {
            let ask = Ask::Put { key: key.into(), value: vec![7; bytes] };
            matches!(state.answer(0, ask), Answer::Fine)
        };
        assert!(put("a", 3) && put("a", VALUES_BYTES_MAX));
        assert!(!put("b", 1));
        assert!(put("a", 1) && put("b", 1));
        assert!(!put(&"k".repeat(KEY_BYTES_MAX + 1), 1));
        let got = state.answer(0, Ask::Get { key: "a".into() });
        assert!(matches!(got, Answer::Value(value) if value == [7]));
        assert!(matches!(state.answer(0, Ask::Get { key: "c".into() }), Answer::NotYet));
        for number in 2..KEYS_MAX {
            assert!(put(&number.to_string(), 0), "{number}");
        }
        assert!(!put("one more", 0));
    }

    #[test]
    fn a_watcher_that_slept_blames_nobody() {
        let state = State::new(&StoreOptions { deadline: none(50), ..options(1) });
        state.begin_life(0, "a").unwrap();
        std::thread::sleep(none(200));
        // It has slept all the time, as far as it knows.
        state.judge(none(1));
        assert_eq!(state.cause_within(none(0)), None);
        // Awake and without a heartbeat for as long.
        for _ in 0..100 {
            std::thread::sleep(none(2));
            state.judge(none(10));
        }
        let cause = state.cause_within(none(0)).unwrap();
        assert!(cause.failure.starts_with("no heartbeat"), "{cause}");
    }

    /// After it stood still for longer than ranks wait for it, they are gone; that is not their fault.
    #[test]
    fn a_store_that_stood_still_accuses_nobody_of_leaving() {
        for (owner, rank, said) in [
            (Some(0), 0, "the others have given it up"),
            (None, 2, "because the process that watches over the run stood still"),
        ] {
            for is_judge_first in [true, false] {
                let deadline = none(100);
                let state = State::new(&StoreOptions { deadline, owner, ..options(3) });
                (0..3).for_each(|rank| state.begin_life(rank, "a").unwrap());
                state.judge(none(1));
                std::thread::sleep(none(200));
                if is_judge_first {
                    state.judge(none(1));
                }
                state.lost(2, "its connection has ended");
                let cause = state.cause_within(none(0)).unwrap();
                assert_eq!(cause.rank, rank);
                assert!(cause.failure.contains(said) && !state.is_loss(), "{cause}");
            }
        }
        // Awake all the time.
        let state = state(3);
        state.begin_life(2, "a").unwrap();
        state.lost(2, "its connection has ended");
        assert!(state.is_loss());
    }

    #[test]
    fn ranks_that_never_join_are_named() {
        let state = State::new(&StoreOptions { join_within: none(0), ..options(3) });
        state.begin_life(0, "a").unwrap();
        state.judge(none(10));
        let cause = state.cause_within(none(0)).unwrap();
        assert_eq!(cause.rank, 1);
        assert!(cause.failure.contains("ranks missing: 2 of 3"), "{cause}");
    }
}
