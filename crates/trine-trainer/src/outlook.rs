//! What a run will take, before it starts.

use crate::memory::MemoryPlan;
use crate::planned::{Machine, planned_step};
use crate::settings::EngineConfig;
use std::fmt::{self, Display, Formatter};
use trine_mesh::plural;

/// Time and memory of the steps that are left.
#[derive(Debug, Clone, PartialEq)]
pub struct Outlook {
    /// Seconds of a step, or why they are not planned.
    pub step_s: Result<f64, String>,
    /// Steps that are left.
    pub steps: u64,
    /// The time limit in seconds, if there is one.
    pub limit_s: Option<f64>,
    /// Memory against what may be used.
    pub memory: MemoryPlan,
}

impl Outlook {
    /// The outlook of a run on a machine, if that is known.
    pub fn new(
        engine: &EngineConfig,
        machine: Result<&Machine, String>,
        (steps, minutes_max): (u64, f64),
        memory: MemoryPlan,
    ) -> Self {
        let step = machine.and_then(|machine| {
            // A plan that fails is no reason not to start.
            planned_step(engine, machine).unwrap_or_else(|error| Err(error.to_string()))
        });
        let limit_s = (minutes_max > 0.0).then_some(60.0 * minutes_max);
        Self { step_s: step.map(|step| step.step), steps, limit_s, memory }
    }
}

impl Outlook {
    /// `1 step`, `1000 steps`.
    fn count(&self) -> String {
        format!("{} {}", self.steps, plural(self.steps, "step"))
    }
}

impl Display for Outlook {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match (&self.step_s, self.limit_s) {
            (Ok(step), Some(limit)) if step * self.steps as f64 > limit => {
                let fit = (limit / step) as u64;
                write!(f, "about {} a step, {fit} of {}", Time(*step), self.count())?;
                write!(f, " in the {} that it may take", Time(limit))?;
            }
            (Ok(step), _) => {
                let all = Time(step * self.steps as f64);
                write!(f, "about {} a step, {all} for {}", Time(*step), self.count())?;
            }
            (Err(why), _) => write!(f, "no time is planned: {why}")?,
        }
        write!(f, "; {}", self.memory)
    }
}

/// Seconds, shown in a unit that fits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Time(pub f64);

impl Display for Time {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let seconds = self.0;
        match seconds {
            s if s < 0.1 => write!(f, "{:.1} ms", 1e3 * s),
            s if s < 100.0 => write!(f, "{s:.1} s"),
            s if s < 2.0 * 3600.0 => write!(f, "{:.1} minutes", s / 60.0),
            s if s < 2.0 * 86400.0 => write!(f, "{:.1} hours", s / 3600.0),
            s => write!(f, "{:.1} days", s / 86400.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_and_memory_are_said_in_a_line() {
        let memory = MemoryPlan { ranks: 1, bytes: 61_300_000, is_least: false, limit: None };
        let outlook = |step_s: Result<f64, String>, limit_s| {
            Outlook { step_s, steps: 1000, limit_s, memory: memory.clone() }.to_string()
        };
        let rest =
            "; needs 61.3 MB of memory for 1 rank, this system does not tell how much may be used";
        assert_eq!(
            outlook(Ok(3.12), None),
            format!("about 3.1 s a step, 52.0 minutes for 1000 steps{rest}")
        );
        let short = "about 20.0 ms a step, 500 of 1000 steps in the 10.0 s that it may take";
        assert_eq!(outlook(Ok(0.02), Some(10.0)), format!("{short}{rest}"));
        assert_eq!(
            outlook(Ok(0.02), Some(60.0)),
            format!("about 20.0 ms a step, 20.0 s for 1000 steps{rest}")
        );
        assert_eq!(
            outlook(Err("no machine".into()), None),
            format!("no time is planned: no machine{rest}")
        );
        let one = Outlook { step_s: Ok(2.0), steps: 1, limit_s: None, memory: memory.clone() };
        assert_eq!(one.to_string(), format!("about 2.0 s a step, 2.0 s for 1 step{rest}"));
        let long = [7199.0, 86400.0, 1e6].map(|seconds| Time(seconds).to_string());
        assert_eq!(long, ["120.0 minutes", "24.0 hours", "11.6 days"]);
    }
}
