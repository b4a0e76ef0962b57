//! The stopwatch of measurements: one call, again and again.

use std::time::{Duration, Instant};

/// How long one call took that was made again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// Calls that count.
    pub calls: usize,
    /// The shortest: on a shared machine, the call that the neighbours left alone.
    pub best: Duration,
    /// The one in the middle: what a run can count on.
    pub median: Duration,
}

impl Times {
    /// Calls for as long as `budget`, and then until `calls_min` calls count, one at least. One call
    /// before them does not count: it finds cold caches and memory that is not mapped yet.
    ///
    /// # Errors
    /// Those of the call.
    pub fn of<E>(
        budget: Duration,
        calls_min: usize,
        mut call: impl FnMut() -> Result<(), E>,
    ) -> Result<Self, E> {
        call()?;
        let begin = Instant::now();
        let mut times = Vec::new();
        while times.len() < calls_min.max(1) || begin.elapsed() < budget {
            let start = Instant::now();
            call()?;
            times.push(start.elapsed());
        }
        times.sort_unstable();
        Ok(Self { calls: times.len(), best: times[0], median: times[times.len() / 2] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    #[test]
    fn the_first_call_does_not_count() {
        let mut slept_ms = [20, 1, 3, 2].into_iter();
        let times = Times::of(Duration::ZERO, 3, || {
            std::thread::sleep(Duration::from_millis(slept_ms.next().unwrap()));
            Ok::<(), Infallible>(())
        });
        let times = times.unwrap();
        assert_eq!(times.calls, 3);
        let (best, median) = (times.best.as_millis(), times.median.as_millis());
        assert!((1..20).contains(&best) && (2..20).contains(&median), "{times:?}");

        let mut calls = 0;
        let times = Times::of(Duration::ZERO, 0, || {
            calls += 1;
            Ok::<(), Infallible>(())
        });
        assert_eq!((times.unwrap().calls, calls), (1, 2));
    }

    #[test]
    fn the_budget_is_used_and_errors_end_it() {
        let begin = Instant::now();
        let times = Times::of(Duration::from_millis(5), 0, || Ok::<(), Infallible>(()));
        let times = times.unwrap();
        assert!(begin.elapsed() >= Duration::from_millis(5));
        assert!(times.calls > 1 && times.best <= times.median, "{times:?}");
        let mut left = 3;
        let failed = Times::of(Duration::from_secs(3600), 0, || {
            left -= 1;
            if left > 0 { Ok(()) } else { Err("no more") }
        });
        assert_eq!((failed, left), (Err("no more"), 0));
    }
}
