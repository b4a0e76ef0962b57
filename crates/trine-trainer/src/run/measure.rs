//! Measured times of actions, and what follows from them.

use crate::TrainError;
use crate::cores::thread_cpu_seconds;
use crate::run::device_watch::{DeviceWatch, Timed};
use crate::run::trace::Track;
use std::time::{Duration, Instant};
use trine_buffer::Place;
use trine_pipeline::Moment;
use trine_schedule::{Action, Delivery, Schedule, simulate};

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

/// Watches a rank's actions: seconds of each position of its list, summed over steps, and, when asked for, when each
/// was at work. On the host these are CPU seconds, as ranks may share cores; on a device, seconds of its queue.
#[derive(Debug)]
pub(crate) struct ActionClock {
    seconds: Vec<f64>,
    steps: usize,
    watch: Watch,
    trace: Option<Track>,
    step: u64,
    step_began: Instant,
}

/// What tells the time of actions.
#[derive(Debug)]
enum Watch {
    /// The processor: when the action under way began, in CPU seconds of the thread and by the wall.
    Host(f64, Instant),
    /// A device, whose host only queues the work.
    Device(Box<DeviceWatch>),
}

/// Steps at the start whose times are not used: memory is first touched there.
pub(crate) const WARM_UP_STEPS: u64 = 2;

impl ActionClock {
    /// A clock for so many actions of a rank that computes at `place`, which stands still for it once.
    pub(crate) fn new(
        actions: usize,
        place: &Place,
        trace: Option<Track>,
    ) -> Result<Self, TrainError> {
        let now = Instant::now();
        let watch = match place {
            Place::Host => Watch::Host(0.0, now),
            Place::Device(_) => Watch::Device(Box::new(DeviceWatch::new(place)?)),
        };
        Ok(Self { seconds: vec![0.0; actions], steps: 0, watch, trace, step: 0, step_began: now })
    }

    /// Starts a step; `since_start` counts the steps of this process.
    pub(crate) fn begin_step(&mut self, step: u64, since_start: u64) -> Result<(), TrainError> {
        (self.step, self.step_began) = (step, Instant::now());
        if since_start == WARM_UP_STEPS {
            self.seconds.fill(0.0);
            self.steps = 0;
        }
        self.steps += 1;
        if let Watch::Device(watch) = &mut self.watch { watch.begin_step() } else { Ok(()) }
    }

    pub(crate) fn observe(&mut self, position: usize, action: &Action, moment: Moment) {
        match (&mut self.watch, moment) {
            (Watch::Device(watch), moment) => watch.observe(position, action, moment),
            (Watch::Host(cpu, wall), Moment::Begin) => {
                (*cpu, *wall) = (thread_cpu_seconds(), Instant::now());
            }
            (Watch::Host(cpu, wall), Moment::End) => {
                self.seconds[position] += thread_cpu_seconds() - *cpu;
                if let Some(trace) = &self.trace {
                    trace.action(*action, self.step, *wall, wall.elapsed());
                }
            }
        }
    }

    /// Takes the times of the step's actions, whose losses are known. Nobody waits for it.
    pub(crate) fn end_step(&mut self) -> Result<(), TrainError> {
        let Watch::Device(watch) = &mut self.watch else { return Ok(()) };
        for Timed { position, action, began, seconds } in watch.end_step()? {
            self.seconds[position] += seconds;
            if let Some(trace) = &self.trace {
                trace.action(action, self.step, began, Duration::from_secs_f64(seconds));
            }
        }
        Ok(())
    }

    /// Actions of the list.
    pub(crate) fn actions(&self) -> usize {
        self.seconds.len()
    }

    /// Time since the step began.
    pub(crate) fn step_elapsed(&self) -> Duration {
        self.step_began.elapsed()
    }

    /// Mean seconds of each action of the list so far.
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
