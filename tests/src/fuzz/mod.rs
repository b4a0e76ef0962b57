//! A fuzzer of everything that trine reads: texts and folders that are nearly right, through the
//! entry points that users reach, in one process.
//!
//! The inputs are a pure function of the seed, the target and their number, so that a failure can be
//! seen again. An input must be accepted or refused: whatever panics, takes long or takes memory is a
//! failure, and its bytes are kept.

mod folders;
mod mutate;
mod store;
mod targets;

pub use targets::{Shape, Target, targets};

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// What an input may cost, and how many there are.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// Where the inputs come from.
    pub seed: u64,
    /// Inputs of a target at most.
    pub inputs_max: u64,
    /// Time of a target; the input that has begun is finished.
    pub time: Duration,
    /// Time of one input at most.
    pub input_time_max: Duration,
    /// Bytes by which the process may grow at most while a target is read.
    pub growth_bytes_max: u64,
}

/// An input that was neither accepted nor refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Its number: with the seed and the target, it is the same input again.
    pub index: u64,
    /// The input.
    pub input: Vec<u8>,
    /// What happened.
    pub why: String,
}

/// What became of the inputs of one target.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Inputs that were read and understood.
    pub accepted: u64,
    /// Inputs that were refused with a message.
    pub refused: u64,
    /// The first failure; it ends the target.
    pub failure: Option<Failure>,
}

/// The state of a worker that its watcher can see.
type Current = Arc<Mutex<(u64, Vec<u8>)>>;

/// Reads inputs of a target until the budget is spent or one fails.
pub fn run(target: Target, budget: &Budget) -> Found {
    let current = Current::default();
    let (sender, outcomes) = channel();
    let worker = Worker { target, budget: *budget, current: current.clone(), outcomes: sender };
    let worker = thread::spawn(move || worker.work());
    let mut found = Found::default();
    let fail = |found: &mut Found, why: String| {
        let (index, input) = current.lock().map(|current| current.clone()).unwrap_or_default();
        found.failure = Some(Failure { index, input, why });
    };
    loop {
        match outcomes.recv_timeout(budget.input_time_max) {
            Ok(Ok(true)) => found.accepted += 1,
            Ok(Ok(false)) => found.refused += 1,
            Ok(Err(why)) => fail(&mut found, why),
            // It cannot be stopped; the process ends soon.
            Err(RecvTimeoutError::Timeout) => {
                fail(&mut found, format!("took more than {:?}", budget.input_time_max));
                return found;
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    if worker.join().is_err() && found.failure.is_none() {
        fail(&mut found, "the fuzzer itself has panicked".to_owned());
    }
    found
}

struct Worker {
    target: Target,
    budget: Budget,
    current: Current,
    /// Whether an input was accepted, or how it failed.
    outcomes: Sender<Result<bool, String>>,
}

impl Worker {
    fn work(self) {
        let (began, before) = (Instant::now(), peak_bytes());
        for index in 0..self.budget.inputs_max {
            if began.elapsed() >= self.budget.time {
                return;
            }
            let input = self.target.input(self.budget.seed, index);
            if let Ok(mut current) = self.current.lock() {
                *current = (index, input.clone());
            }
            let read = catch_unwind(AssertUnwindSafe(|| self.target.read(&input)));
            let grown = peak_bytes().saturating_sub(before);
            let outcome = match read {
                Err(panic) => Err(format!("panicked: {}", message(&*panic))),
                Ok(_) if grown > self.budget.growth_bytes_max => {
                    Err(format!("the process has grown by {grown} bytes"))
                }
                Ok(read) => Ok(read.is_ok()),
            };
            let failed = outcome.is_err();
            // Without a watcher nobody wants to know.
            if self.outcomes.send(outcome).is_err() || failed {
                return;
            }
        }
    }
}

fn message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

/// The most memory that this process has had; 0 where the system does not tell.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
