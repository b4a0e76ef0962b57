//! The end of a process whose memory is used up: one message with the rank, where it was and what the plan needs.

use std::cell::Cell;
use std::fmt::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, TryLockError};
use std::thread;
use std::time::Duration;
use trine_comm::Recorder;

/// Freed before the message is made: what is left may not be enough for it.
const RESERVE_BYTES: usize = 1 << 20;

thread_local! {
    /// Whether this thread is making the message.
    static IS_TELLING: Cell<bool> = const { Cell::new(false) };
}

/// What is known when memory is used up.
#[derive(Debug)]
pub(crate) struct OutOfMemory {
    reserve: Mutex<Vec<u8>>,
    told: AtomicBool,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    ranks: Vec<Arc<Recorder>>,
    /// What the plan needs, in words.
    plan: Option<String>,
}

impl OutOfMemory {
    /// Knows nothing yet.
    pub(crate) fn new() -> Self {
        let reserve = Mutex::new(Vec::with_capacity(RESERVE_BYTES));
        Self { reserve, told: AtomicBool::new(false), known: Mutex::default() }
    }

    /// Learns what the plan needs.
    pub(crate) fn planned(&self, plan: String) {
        if let Ok(mut known) = self.known.lock() {
            known.plan = Some(plan);
        }
    }

    /// Learns of a rank of this process. A later one takes the place of an earlier one with its number.
    pub(crate) fn add_rank(&self, recorder: &Arc<Recorder>) {
        if let Ok(mut known) = self.known.lock() {
            known.ranks.retain(|rank| rank.rank() != recorder.rank());
            known.ranks.push(recorder.clone());
        }
    }

    /// Says that so many bytes were refused, and ends the process with exit code 1. Called by the allocator: of several
    /// threads the first one speaks, and what it allocates itself may fail.
    pub(crate) fn end(&self, bytes: usize) {
        if IS_TELLING.replace(true) {
            return;
        }
        if self.told.swap(true, Ordering::SeqCst) {
            loop {
                thread::sleep(Duration::from_secs(1));
            }
        }
        if let Ok(mut reserve) = self.reserve.try_lock() {
            *reserve = Vec::new();
        }
        // Not through the library's lock: a thread that waits above may hold it.
        let _ = rustix::io::write(rustix::stdio::stderr(), self.message(bytes).as_bytes());
        signal_hook::low_level::exit(1)
    }

    /// The message, as far as is known.
    fn message(&self, bytes: usize) -> String {
        let thread = thread::current();
        let name = thread.name().unwrap_or("a thread");
        let mut text = format!("\nerror: out of memory: {bytes} bytes were refused in {name}");
        let known = match self.known.try_lock() {
            Ok(known) => known,
            Err(TryLockError::Poisoned(known)) => known.into_inner(),
            Err(TryLockError::WouldBlock) => return text + "\n",
        };
        // A rank's own threads are called after it; others work for all.
        let own = |rank: &&Arc<Recorder>| name == format!("rank {}", rank.rank());
        if let Some(rank) = known.ranks.iter().find(own).or(known.ranks.first()) {
            let _ = write!(text, "; rank {} was at: {}", rank.rank(), rank.place());
        }
        if let Some(plan) = &known.plan {
            let _ = write!(text, "; the plan {plan}");
        }
        text + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trine_comm::Name;

    #[test]
    fn the_message_has_the_rank_its_place_and_the_plan() {
        let end = OutOfMemory::new();
        let plain = end.message(5);
        assert!(plain.starts_with("\nerror: out of memory: 5 bytes were refused in "), "{plain}");
        let recorder = Recorder::new(3, "");
        recorder.begin_phase(Name::new("training").with("step", 7));
        // The one that measured before it is over.
        end.add_rank(&Recorder::new(3, ""));
        end.add_rank(&recorder);
        end.planned("needs 2.4 GB".into());
        let thread = thread::Builder::new().name("rank 3".into());
        let text = thread.spawn(move || end.message(9)).unwrap().join().unwrap();
        assert_eq!(
            text,
            "\nerror: out of memory: 9 bytes were refused in rank 3; rank 3 was at: training step 7; \
             the plan needs 2.4 GB\n"
        );
    }
}
