//! The ledger: which stream knows that which operation is done, by vector clocks (Mattern 1989), and who has touched
//! which bytes last.
//!
//! The host counts as one: what one of its threads has waited for, all know. So a missing event between threads that
//! wait for each other by other means is no false alarm.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// Whether the ledger is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checks {
    /// Every access is looked at: it costs the host some time for each operation, and the device none.
    On,
    /// None is.
    Off,
}

impl Default for Checks {
    /// On in debug builds.
    fn default() -> Self {
        if cfg!(debug_assertions) { Self::On } else { Self::Off }
    }
}

/// Two operations of different streams that touch the same bytes, at least one of them writing, in no order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unordered {
    /// The operation that was refused.
    pub operation: String,
    /// Its stream.
    pub stream: String,
    /// Whether it writes.
    pub writes: bool,
    /// What the memory is for.
    pub memory: String,
    /// The bytes that both touch.
    pub bytes: Range<usize>,
    /// The operation before.
    pub other: String,
    /// Its stream.
    pub other_stream: String,
    /// Whether that one has written.
    pub other_wrote: bool,
}

impl fmt::Display for Unordered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { operation, stream, writes, memory, bytes, other, other_stream, other_wrote } =
            self;
        let does = if *writes { "writes" } else { "reads" };
        let did = if *other_wrote { "writes" } else { "reads" };
        let Range { start, end } = bytes;
        write!(
            f,
            "`{operation}` on stream `{stream}` {does} bytes {start}..{end} of `{memory}`, which `{other}` on stream \
             `{other_stream}` {did}, and no event orders the two"
        )
    }
}

impl std::error::Error for Unordered {}

/// How many operations of each stream are known to be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Clock(Vec<u64>);

impl Clock {
    fn join(&mut self, other: &Self) {
        self.0.resize(self.0.len().max(other.0.len()), 0);
        for (ours, theirs) in self.0.iter_mut().zip(&other.0) {
            *ours = (*ours).max(*theirs);
        }
    }

    fn has(&self, mark: &Mark) -> bool {
        self.0.get(mark.stream).is_some_and(|time| *time >= mark.time)
    }
}

/// An operation: the `time`th of its stream.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mark {
    stream: usize,
    time: u64,
    name: Arc<str>,
}

/// Bytes with one history.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Segment {
    end: usize,
    write: Option<Mark>,
    /// Since that write; none is ordered after another.
    reads: Vec<Mark>,
}

#[derive(Debug)]
struct Buffer {
    name: Arc<str>,
    /// By their first byte; together all bytes.
    segments: BTreeMap<usize, Segment>,
}

#[derive(Debug)]
struct Line {
    name: Arc<str>,
    clock: Clock,
}

/// One access of an operation.
#[derive(Debug, Clone)]
pub(crate) struct Touch {
    pub(crate) buffer: u64,
    pub(crate) bytes: Range<usize>,
    pub(crate) writes: bool,
}

/// What all streams, all buffers and the host of a process know of each other.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    streams: Vec<Line>,
    host: Clock,
    buffers: HashMap<u64, Buffer>,
    /// Found where no error can be returned.
    found: VecDeque<Unordered>,
}

impl Ledger {
    /// A new stream; its number.
    pub(crate) fn add_stream(&mut self, name: &str) -> usize {
        self.streams.push(Line { name: name.into(), clock: Clock::default() });
        self.streams.len() - 1
    }

    /// An operation of a stream, before it is queued.
    ///
    /// # Errors
    /// If it touches bytes that are not ordered before it, or such a fault was found earlier where nobody was told.
    pub(crate) fn operation(
        &mut self,
        stream: usize,
        name: &str,
        touches: &[Touch],
    ) -> Result<(), Box<Unordered>> {
        if let Some(earlier) = self.found.pop_front() {
            return Err(Box::new(earlier));
        }
        let mark = self.begin(stream, name);
        let touches = || touches.iter().filter(|touch| !touch.bytes.is_empty());
        touches().try_for_each(|touch| self.check(&mark, touch))?;
        for touch in touches() {
            self.write_down(&mark, touch);
        }
        Ok(())
    }

    /// The memory of a buffer begins here in the order of its stream.
    pub(crate) fn allocate(&mut self, stream: usize, buffer: u64, name: &str, bytes: usize) {
        let write = Some(self.begin(stream, "alloc"));
        let segments = [(0, Segment { end: bytes, write, reads: Vec::new() })].into();
        self.buffers.insert(buffer, Buffer { name: name.into(), segments });
    }

    /// The memory of a buffer ends here. What is found wrong is told by the next operation.
    pub(crate) fn free(&mut self, stream: usize, buffer: u64) {
        let mark = self.begin(stream, "free");
        let Some(bytes) = self.buffers.get(&buffer).map(Buffer::bytes) else { return };
        let all = Touch { buffer, bytes: 0..bytes, writes: true };
        self.found.extend(self.check(&mark, &all).err().map(|unordered| *unordered));
        self.buffers.remove(&buffer);
    }

    /// From now on the buffer is for something else.
    pub(crate) fn rename(&mut self, buffer: u64, name: &str) {
        if let Some(buffer) = self.buffers.get_mut(&buffer) {
            buffer.name = name.into();
        }
    }

    /// What a stream has done up to here, for an event.
    pub(crate) fn record(&mut self, stream: usize) -> Clock {
        self.begin(stream, "record");
        self.streams[stream].clock.clone()
    }

    /// What the stream does from now on comes after what the event has recorded.
    pub(crate) fn wait(&mut self, stream: usize, recorded: &Clock) {
        self.streams[stream].clock.join(recorded);
    }

    /// The host has waited for an event.
    pub(crate) fn wait_on_host(&mut self, recorded: &Clock) {
        self.host.join(recorded);
    }

    fn begin(&mut self, stream: usize, name: &str) -> Mark {
        let Self { streams, host, .. } = self;
        let clock = &mut streams[stream].clock;
        clock.join(host);
        clock.0.resize(clock.0.len().max(stream + 1), 0);
        clock.0[stream] += 1;
        Mark { stream, time: clock.0[stream], name: name.into() }
    }

    fn check(&self, mark: &Mark, touch: &Touch) -> Result<(), Box<Unordered>> {
        let Some(buffer) = self.buffers.get(&touch.buffer) else { return Ok(()) };
        let clock = &self.streams[mark.stream].clock;
        for (start, segment) in buffer.overlapping(&touch.bytes) {
            let reads = segment.reads.iter().filter(|_| touch.writes).map(|mark| (mark, false));
            let mut before = segment.write.iter().map(|mark| (mark, true)).chain(reads);
            let Some((other, other_wrote)) = before.find(|(other, _)| !clock.has(other)) else {
                continue;
            };
            return Err(Box::new(Unordered {
                operation: mark.name.to_string(),
                stream: self.streams[mark.stream].name.to_string(),
                writes: touch.writes,
                memory: buffer.name.to_string(),
                bytes: start.max(touch.bytes.start)..segment.end.min(touch.bytes.end),
                other: other.name.to_string(),
                other_stream: self.streams[other.stream].name.to_string(),
                other_wrote,
            }));
        }
        Ok(())
    }

    fn write_down(&mut self, mark: &Mark, touch: &Touch) {
        let clock = &self.streams[mark.stream].clock;
        let Some(buffer) = self.buffers.get_mut(&touch.buffer) else { return };
        buffer.cut(touch.bytes.start);
        buffer.cut(touch.bytes.end);
        for (_, segment) in buffer.segments.range_mut(touch.bytes.clone()) {
            if touch.writes {
                segment.write = Some(mark.clone());
                segment.reads.clear();
            } else {
                segment.reads.retain(|read| !clock.has(read));
                segment.reads.push(mark.clone());
            }
        }
        buffer.join();
    }
}

impl Buffer {
    fn bytes(&self) -> usize {
        self.segments.values().next_back().map_or(0, |last| last.end)
    }

    fn overlapping<'a>(
        &'a self,
        bytes: &'a Range<usize>,
    ) -> impl Iterator<Item = (usize, &'a Segment)> {
        let before_end = self.segments.range(..bytes.end);
        let reaching = before_end.rev().take_while(|(_, segment)| segment.end > bytes.start);
        reaching.map(|(start, segment)| (*start, segment))
    }

    /// Makes a segment begin at `at`.
    fn cut(&mut self, at: usize) {
        let Some((_, segment)) = self.segments.range_mut(..at).next_back() else { return };
        if segment.end > at {
            let rest = segment.clone();
            segment.end = at;
            self.segments.insert(at, rest);
        }
    }

    /// Makes one segment of neighbours with the same history, so that their number stays that of the ranges in use.
    fn join(&mut self) {
        let mut joined: BTreeMap<usize, Segment> = BTreeMap::new();
        for (start, segment) in std::mem::take(&mut self.segments) {
            match joined.values_mut().next_back() {
                Some(last) if last.write == segment.write && last.reads == segment.reads => {
                    last.end = segment.end;
                }
                _ => drop(joined.insert(start, segment)),
            }
        }
        self.segments = joined;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUFFER: u64 = 7;

    /// Streams `a` and `b`, and a buffer of 100 bytes that `a` has allocated and the host knows of.
    fn ledger() -> Ledger {
        let mut ledger = Ledger::default();
        assert_eq!((ledger.add_stream("a"), ledger.add_stream("b")), (0, 1));
        ledger.allocate(0, BUFFER, "x", 100);
        let recorded = ledger.record(0);
        ledger.wait_on_host(&recorded);
        ledger
    }

    fn touch(bytes: Range<usize>, writes: bool) -> [Touch; 1] {
        [Touch { buffer: BUFFER, bytes, writes }]
    }

    #[test]
    fn ranges_that_do_not_meet_are_apart() {
        let mut ledger = ledger();
        ledger.operation(0, "first", &touch(0..40, true)).unwrap();
        ledger.operation(1, "second", &touch(40..100, true)).unwrap();
        let error = ledger.operation(1, "third", &touch(30..60, false)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`third` on stream `b` reads bytes 30..40 of `x`, which `first` on stream `a` writes, and no event orders \
             the two"
        );
    }

    #[test]
    fn no_bytes_are_in_nobodys_way() {
        let mut ledger = ledger();
        ledger.operation(0, "first", &touch(0..100, true)).unwrap();
        ledger.operation(1, "nothing", &touch(40..40, true)).unwrap();
        assert_eq!(ledger.buffers[&BUFFER].segments.len(), 1);
    }

    #[test]
    fn segments_are_as_many_as_ranges_in_use() {
        let mut ledger = ledger();
        for at in 0..50 {
            ledger.operation(0, "part", &touch(2 * at..2 * at + 1, true)).unwrap();
        }
        assert_eq!(ledger.buffers[&BUFFER].segments.len(), 100);
        ledger.operation(0, "whole", &touch(0..100, true)).unwrap();
        assert_eq!(ledger.buffers[&BUFFER].segments.len(), 1);
        for _ in 0..50 {
            ledger.operation(0, "read", &touch(0..100, false)).unwrap();
        }
        assert_eq!(ledger.buffers[&BUFFER].segments[&0].reads.len(), 1);
    }

    #[test]
    fn a_write_waits_for_every_reader() {
        for waits in [false, true] {
            let mut ledger = ledger();
            let third = ledger.add_stream("c");
            ledger.operation(1, "early", &touch(0..10, false)).unwrap();
            let early = ledger.record(1);
            ledger.operation(third, "late", &touch(0..10, false)).unwrap();
            let late = ledger.record(third);
            ledger.wait(0, &late);
            if waits {
                ledger.wait(0, &early);
            }
            let result = ledger.operation(0, "write", &touch(0..10, true));
            assert_eq!(result.err().map(|error| error.other), (!waits).then(|| "early".to_owned()));
        }
    }

    #[test]
    fn what_is_found_on_freeing_is_told_next() {
        let mut ledger = ledger();
        ledger.operation(1, "use", &touch(0..10, false)).unwrap();
        ledger.free(0, BUFFER);
        let error = ledger.operation(1, "next", &[]).unwrap_err();
        let told = (&*error.operation, &*error.other, error.other_wrote);
        assert_eq!(told, ("free", "use", false));
        ledger.operation(1, "after", &[]).unwrap();
    }
}
