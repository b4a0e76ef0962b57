//! Measured times of actions, and what follows from them.

use crate::cores::thread_cpu_seconds;
use crate::run::trace::Track;
use std::time::{Duration, Instant};
use trine_pipeline::Moment;
use trine_schedule::{Action, Delivery, Schedule, simulate};

use crate::TrainError;

/// Most memory that the process has held, in bytes, where the system tells (Linux).
pub(crate) fn peak_rss_bytes() -> Option<u64> {
    status_bytes("VmHWM:")
}

/// Memory that the process holds now, in bytes, where the system tells (Linux).
pub(crate) fn rss_bytes() -> Option<u64> {
    status_bytes("VmRSS:")
}

#[cfg(not(target_os = "linux"))]
fn status_bytes(_: &str) -> Option<u64> {
    None
}

#[cfg(target_os = "linux")]
fn status_bytes(field: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with(field))?;
    let kibibytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kibibytes * 1024)
}

/// Watches a rank's actions: CPU seconds of each position of its list, summed over steps, and, when
/// asked for, every action's wall time.
#[derive(Debug)]
pub(crate) struct ActionClock {
    seconds: Vec<f64>,
    steps: usize,
    begun: (f64, Instant),
    trace: Option<Track>,
    step: u64,
    step_began: Instant,
}

/// Steps at the start whose times are not used: memory is first touched there.
pub(crate) const WARM_UP_STEPS: u64 = 2;

impl ActionClock {
    pub(crate) fn new(actions: usize, trace: Option<Track>) -> Self {
        let now = Instant::now();
        Self {
            seconds: vec![0.0; actions],
            steps: 0,
            begun: (0.0, now),
            trace,
            step: 0,
            step_began: now,
        }
    }

    /// Starts a step; `since_start` counts the steps of this process.
    pub(crate) fn begin_step(&mut self, step: u64, since_start: u64) {
        (self.step, self.step_began) = (step, Instant::now());
        if since_start == WARM_UP_STEPS {
            self.seconds.fill(0.0);
            self.steps = 0;
        }
        self.steps += 1;
    }

    pub(crate) fn observe(&mut self, position: usize, action: &Action, moment: Moment) {
        match moment {
            Moment::Begin => self.begun = (thread_cpu_seconds(), Instant::now()),
            Moment::End => {
                let (cpu, wall) = self.begun;
                self.seconds[position] += thread_cpu_seconds() - cpu;
                if let Some(trace) = &self.trace {
                    trace.action(*action, self.step, wall);
                }
            }
        }
    }

    /// Actions of the list.
    pub(crate) fn actions(&self) -> usize {
        self.seconds.len()
    }

    /// Time since the step began.
    pub(crate) fn step_elapsed(&self) -> Duration {
        self.step_began.elapsed()
    }

    /// Mean CPU seconds of each action of the list so far.
    pub(crate) fn means(&self) -> Vec<f64> {
        let steps = self.steps.max(1) as f64;
        self.seconds.iter().map(|seconds| seconds / steps).collect()
    }
}

/// The bubble of a schedule whose actions take the measured times: the simulator replays them, so
/// that it means something when ranks share cores.
pub(crate) fn replayed_bubble(
    schedule: &Schedule,
    seconds: &[Vec<f64>],
) -> Result<f64, TrainError> {
    let measured = |rank: usize, position: usize, _: &Action| seconds[rank][position];
    Ok(simulate(schedule, Delivery::Buffered, &measured)?.bubble_fraction())
}
