//! What signals ask of a run: finish the step, save and end; or end at once.

use crate::failure::Failure;
use crate::output;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGXCPU};
use signal_hook::iterator::{Handle, Signals};
use signal_hook::{flag, low_level};
use std::ffi::c_int;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use trine_trainer::run::{Event, Reporter, Work};

/// The code of a run that somebody has ended before it could save.
pub(crate) const INTERRUPTED: u8 = 130;

/// Why a run that is asked to end before it trains ends at once.
pub(crate) const BEFORE_STEPS: &str = "ended before the first step; there was nothing to save";

/// The signals by which people, terminals and batch systems end a program. A hang-up that is ignored
/// from the start, as `nohup` has it, stays so.
pub(crate) fn of_people() -> Vec<c_int> {
    let hang_up = (!is_ignored(SIGHUP)).then_some(SIGHUP);
    [SIGINT, SIGTERM].into_iter().chain(hang_up).collect()
}

/// Those by which batch systems and limits of processor time (`ulimit -t`) announce the end. They may come again, and
/// then mean no more than the first.
const OF_SYSTEMS: [c_int; 2] = [SIGUSR1, SIGXCPU];

/// Whether this process has ignored a signal from its start, where the system tells.
#[cfg(target_os = "linux")]
fn is_ignored(signal: c_int) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.unwrap_or(0) >> (signal - 1) & 1 == 1
}

#[cfg(not(target_os = "linux"))]
fn is_ignored(_: c_int) -> bool {
    false
}

/// Who heeds signals.
#[derive(Debug, Clone, Default)]
pub(crate) struct Heeding {
    /// What its lines begin with: the rank, where it is not the one that speaks for all.
    pub(crate) who: String,
    /// Whether somebody else ends the run where there is nothing to save yet.
    pub(crate) supervised: bool,
}

/// Signals as wishes for a run.
pub(crate) struct Wishes {
    heeding: Heeding,
    signals: Signals,
    stop: Arc<AtomicBool>,
}

impl Wishes {
    /// From here on the first signal is a wish; a second one of a person ends the process at once,
    /// whatever it is at.
    pub(crate) fn watch(heeding: Heeding) -> Result<Self, Failure> {
        let stop = Arc::new(AtomicBool::new(false));
        let people = of_people();
        let watch = || -> std::io::Result<Signals> {
            for &signal in &people {
                let code = c_int::from(INTERRUPTED);
                flag::register_conditional_shutdown(signal, code, stop.clone())?;
            }
            let all = || people.iter().copied().chain(OF_SYSTEMS);
            let signals = Signals::new(all())?;
            for signal in all() {
                flag::register(signal, stop.clone())?;
            }
            Ok(signals)
        };
        let signals = watch().map_err(|error| {
            Failure::Run(anyhow::Error::from(error).context("cannot watch signals"))
        })?;
        Ok(Self { heeding, signals, stop })
    }

    /// Does some work whose events go to `reporter`, and heeds wishes meanwhile.
    pub(crate) fn heed<T>(
        mut self,
        reporter: &Mutex<dyn Reporter + '_>,
        work: impl for<'b> FnOnce(&AtomicBool, &'b Mutex<dyn Reporter + 'b>) -> T,
    ) -> T {
        let (seen, stop) = (Mutex::new(Seen::default()), self.stop.clone());
        let noting = Mutex::new(Noting { seen: &seen, reporter });
        thread::scope(|scope| {
            let _closing = Closing(self.signals.handle());
            // The first one is a wish. Of those that come after it, a person's ends the process.
            scope.spawn(|| {
                if let Some(signal) = self.signals.forever().next() {
                    self.heeding.heed(signal, &lock(&seen), reporter);
                }
            });
            work(&stop, &noting)
        })
    }
}

/// Does some work that comes before the run. A signal meanwhile ends the process, and says so. When the work is done,
/// [`Wishes`] takes over.
pub(crate) fn ending_at_once<T>(work: impl FnOnce() -> T) -> Result<T, Failure> {
    let mut signals = Signals::new(of_people()).map_err(|error| {
        Failure::Run(anyhow::Error::from(error).context("cannot watch signals"))
    })?;
    thread::scope(|scope| {
        let _closing = Closing(signals.handle());
        scope.spawn(move || {
            if let Some(signal) = signals.forever().next() {
                output::complain(&format!("{}: {BEFORE_STEPS}", name(signal)));
                low_level::exit(c_int::from(INTERRUPTED));
            }
        });
        Ok(work())
    })
}

fn name(signal: c_int) -> &'static str {
    match signal {
        SIGUSR1 => "asked to stop",
        _ => low_level::signal_name(signal).unwrap_or("a signal"),
    }
}

/// Ends the wait for signals, also when what was done meanwhile panics.
struct Closing(Handle);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Heeding {
    /// Says what the wish waits for, or ends the process.
    fn heed(&self, signal: c_int, seen: &Seen, reporter: &Mutex<dyn Reporter + '_>) {
        let name = name(signal);
        match seen.awaited() {
            Some(awaited) => {
                let text = format!("{}{name}: {awaited}; again to end at once", self.who);
                if self.who.is_empty() {
                    let mut reporter = reporter.lock().unwrap_or_else(PoisonError::into_inner);
                    reporter.event(&Event::Note(text));
                } else if signal != SIGUSR1 {
                    // The other ranks have no screen. The supervisor's signal goes to all of them, and rank 0
                    // speaks.
                    output::complain(&text);
                }
            }
            None if self.supervised => {}
            None => {
                output::complain(&format!("{}{name}: {}", self.who, seen.over()));
                low_level::exit(c_int::from(INTERRUPTED));
            }
        }
    }
}

/// What a run is at, from its events.
#[derive(Debug, Default)]
struct Seen {
    /// Its work, and since when that is known.
    work: Option<(Work, Instant)>,
    /// The time of the step before.
    step_took: Option<Duration>,
    /// Whether it has written everything.
    finished: bool,
}

impl Seen {
    fn note(&mut self, event: &Event<'_>) {
        match event {
            Event::Work(work) => self.work = Some((*work, Instant::now())),
            Event::Step { line, .. } => {
                self.step_took = Some(Duration::from_secs_f64(line.step_ms.max(0.0) / 1e3));
            }
            Event::Finished { .. } => self.finished = true,
            _ => {}
        }
    }

    /// What a wish waits for; `None` where there is nothing to save.
    fn awaited(&self) -> Option<String> {
        let (work, since) = self.work.filter(|_| !self.finished)?;
        match work {
            Work::Measuring | Work::Building => None,
            Work::Step { step, actions_done, actions, elapsed, .. } => {
                let elapsed = elapsed + since.elapsed();
                let all = self.step_took.or_else(|| {
                    (actions_done > 0)
                        .then(|| elapsed.mul_f64(actions as f64 / actions_done as f64))
                });
                let left = all.map_or_else(String::new, |all| {
                    let left = all.saturating_sub(elapsed).as_secs_f64();
                    if left < 1.0 { " (under 1 s)".into() } else { format!(" (about {left:.0} s)") }
                });
                Some(format!("finishing step {step}{left}, then saving"))
            }
            Work::Evaluating { batches_done, batches } => {
                Some(format!("finishing the evaluation ({batches_done} of {batches} batches done)"))
            }
            Work::Saving { step } => Some(format!("saving step {step}")),
        }
    }

    /// Why nothing is awaited.
    fn over(&self) -> &'static str {
        if self.finished { "ended after the run, which is saved" } else { BEFORE_STEPS }
    }
}

/// Notes what a run is at, and hands its events on.
struct Noting<'a> {
    seen: &'a Mutex<Seen>,
    reporter: &'a Mutex<dyn Reporter + 'a>,
}

impl Reporter for Noting<'_> {
    fn event(&mut self, event: &Event<'_>) {
        lock(self.seen).note(event);
        self.reporter.lock().unwrap_or_else(PoisonError::into_inner).event(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_awaited_follows_from_the_events() {
        let mut seen = Seen::default();
        assert_eq!(seen.awaited(), None);
        seen.note(&Event::Work(Work::Building));
        assert_eq!(seen.awaited(), None);
        let step = |actions_done, seconds| {
            let elapsed = Duration::from_secs(seconds);
            Event::Work(Work::Step { step: 12, steps: 20, actions_done, actions: 40, elapsed })
        };
        seen.note(&step(0, 1));
        assert_eq!(seen.awaited().unwrap(), "finishing step 12, then saving");
        seen.note(&step(10, 60));
        assert_eq!(seen.awaited().unwrap(), "finishing step 12 (about 180 s), then saving");
        seen.step_took = Some(Duration::from_millis(64_400));
        assert_eq!(seen.awaited().unwrap(), "finishing step 12 (about 4 s), then saving");
        seen.note(&step(39, 70));
        assert_eq!(seen.awaited().unwrap(), "finishing step 12 (under 1 s), then saving");
        seen.note(&Event::Work(Work::Saving { step: 12 }));
        assert_eq!(seen.awaited().unwrap(), "saving step 12");
        seen.finished = true;
        assert_eq!(seen.awaited(), None);
    }
}
