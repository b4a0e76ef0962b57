//! The learning rate as a pure function of the step.

use crate::OptimError;
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// What the rate does after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LrKind {
    /// Stays at its peak.
    Constant,
    /// Falls to the minimum along half a cosine (Loshchilov & Hutter, 1608.03983).
    Cosine,
    /// Falls to the minimum along a line.
    Linear,
    /// Warm-up, stable, decay (Hu et al., 2404.06395): stays at its peak, then falls to the minimum
    /// along a line over the last steps. Unlike the others it does not depend on the length of the
    /// run before the decay begins.
    Wsd,
}

/// A learning-rate schedule: linear warm-up from zero, then one of [`LrKind`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LrSchedule {
    /// What the rate does after the warm-up.
    pub kind: LrKind,
    /// Steps until the peak is reached; 0 starts at the peak.
    pub warmup_steps: u64,
    /// The last step's rate as a part of the peak, in `0..=1` ([`LrKind::Constant`]: unused).
    pub min_ratio: f64,
    /// The part of all steps that the decay of [`LrKind::Wsd`] takes, in `0..=1`.
    pub decay_fraction: f64,
}

/// The learning rates of one step: the run's, and what it would be after each schedule.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// The run's.
    pub run: f64,
    /// By the place of the kind in [`LrKind::ALL`].
    kinds: [f64; 4],
}

impl LrKind {
    /// All there are.
    pub const ALL: [Self; 4] = [Self::Constant, Self::Cosine, Self::Linear, Self::Wsd];

    /// The words that stand for them in configurations.
    pub const WORDS: &'static [&'static str] = &["constant", "cosine", "linear", "wsd"];

    /// The word that stands for it.
    pub fn word(self) -> &'static str {
        Self::WORDS[self as usize]
    }
}

impl Rates {
    /// The rate after a schedule; `None`: the run's.
    pub fn of(&self, kind: Option<LrKind>) -> f64 {
        kind.map_or(self.run, |kind| self.kinds[kind as usize])
    }
}

impl From<f64> for Rates {
    /// The same rate whatever the schedule.
    fn from(rate: f64) -> Self {
        Self { run: rate, kinds: [rate; 4] }
    }
}

impl LrSchedule {
    /// Checks the constants.
    ///
    /// # Errors
    /// The first that is out of its range, with the nearest valid value.
    pub fn check(&self) -> Result<(), OptimError> {
        for (field, value) in
            [("lr.min_ratio", self.min_ratio), ("lr.decay_fraction", self.decay_fraction)]
        {
            if !(0.0..=1.0).contains(&value) {
                let nearest = if value > 1.0 { 1.0 } else { 0.0 };
                let rule = "it must lie in 0..=1";
                return Err(OptimError::Field { field, value, rule, nearest });
            }
        }
        Ok(())
    }

    /// The rate of step `step` of `total`; steps count from 1. The first warm-up step already has
    /// `peak / warmup_steps`, the last step of a run has `min_ratio · peak`, and so have all after
    /// it. A warm-up as long as the run or longer is cut off by its end. The only step of a run of one
    /// is its first: without a warm-up it has the peak.
    pub fn rate(&self, peak: f64, step: u64, total: u64) -> f64 {
        if step < self.warmup_steps {
            return peak * step as f64 / self.warmup_steps as f64;
        }
        let from = self.decay_start(total);
        // From 0 on the last step at the peak to 1 on the last step of the run.
        let progress = if step <= from || (step, total) == (1, 1) {
            0.0
        } else if step >= total {
            1.0
        } else {
            (step - from) as f64 / (total - from) as f64
        };
        let height = match self.kind {
            LrKind::Constant => 1.0,
            LrKind::Cosine => (1.0 + (PI * progress).cos()) / 2.0,
            LrKind::Linear | LrKind::Wsd => 1.0 - progress,
        };
        peak * (self.min_ratio + (1.0 - self.min_ratio) * height)
    }

    /// [`LrSchedule::rate`], for groups also that of the other kinds with the same warm-up and constants.
    pub fn rates(&self, peak: f64, step: u64, total: u64) -> Rates {
        let rate = |kind| Self { kind, ..*self }.rate(peak, step, total);
        Rates { run: rate(self.kind), kinds: LrKind::ALL.map(rate) }
    }

    /// The last step at the peak.
    fn decay_start(&self, total: u64) -> u64 {
        match self.kind {
            LrKind::Constant | LrKind::Cosine | LrKind::Linear => self.warmup_steps,
            LrKind::Wsd => {
                let decay = (self.decay_fraction * total as f64).round() as u64;
                self.warmup_steps.max(total.saturating_sub(decay))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(kind: LrKind, warmup_steps: u64) -> LrSchedule {
        LrSchedule { kind, warmup_steps, min_ratio: 0.1, decay_fraction: 0.2 }
    }

    #[test]
    fn the_corners_of_each_shape() {
        // (kind, warm-up, step, total, part of the peak)
        let cases = [
            (LrKind::Constant, 10, 1, 100, 0.1),
            (LrKind::Constant, 10, 10, 100, 1.0),
            (LrKind::Constant, 10, 100, 100, 1.0),
            (LrKind::Constant, 0, 1, 1, 1.0),
            (LrKind::Cosine, 10, 5, 110, 0.5),
            (LrKind::Cosine, 10, 10, 110, 1.0),
            (LrKind::Cosine, 10, 60, 110, 0.55),
            (LrKind::Cosine, 10, 110, 110, 0.1),
            (LrKind::Cosine, 10, 500, 110, 0.1),
            (LrKind::Linear, 0, 25, 100, 0.775),
            (LrKind::Linear, 0, 100, 100, 0.1),
            (LrKind::Linear, 0, 0, 100, 1.0),
            (LrKind::Wsd, 10, 10, 100, 1.0),
            (LrKind::Wsd, 10, 80, 100, 1.0),
            (LrKind::Wsd, 10, 90, 100, 0.55),
            (LrKind::Wsd, 10, 100, 100, 0.1),
            // A warm-up as long as the run, and longer.
            (LrKind::Cosine, 100, 100, 100, 1.0),
            (LrKind::Linear, 200, 100, 100, 0.5),
            // Warm-up and decay meet: the decay is shortened.
            (LrKind::Wsd, 90, 95, 100, 0.55),
            // A single step.
            (LrKind::Cosine, 0, 1, 1, 1.0),
            (LrKind::Linear, 1, 1, 1, 1.0),
            (LrKind::Wsd, 2, 1, 1, 0.5),
        ];
        for (kind, warmup, step, total, expected) in cases {
            let rate = schedule(kind, warmup).rate(2.0, step, total);
            let what = format!("{kind:?} warm-up {warmup} step {step} of {total}: {rate}");
            assert!((rate - 2.0 * expected).abs() < 1e-12, "{what}");
        }
        assert_eq!(cases.len(), 22);
    }

    #[test]
    fn the_rates_of_a_step_are_those_of_each_kind() {
        let rates = schedule(LrKind::Cosine, 10).rates(2.0, 60, 110);
        assert_eq!(rates.of(None), rates.of(Some(LrKind::Cosine)));
        for kind in LrKind::ALL {
            assert_eq!(rates.of(Some(kind)), schedule(kind, 10).rate(2.0, 60, 110), "{kind:?}");
            assert_eq!(Rates::from(0.5).of(Some(kind)), 0.5);
            let text = serde_json::to_string(&kind).unwrap();
            assert_eq!(text, format!("{:?}", kind.word()));
        }
    }

    #[test]
    fn every_rate_is_finite_positive_and_falls_after_the_warm_up() {
        let mut cases = 0;
        for kind in LrKind::ALL {
            for warmup in [0, 1, 7, 30, 40] {
                for total in [0, 1, 2, 30] {
                    let schedule = schedule(kind, warmup);
                    let rates: Vec<f64> =
                        (1..=total + 5).map(|step| schedule.rate(1.0, step, total)).collect();
                    assert!(rates.iter().all(|rate| *rate > 0.0 && *rate <= 1.0), "{rates:?}");
                    let fall = warmup.max(1) as usize - 1;
                    let after = rates.get(fall..).unwrap_or_default();
                    assert!(after.windows(2).all(|pair| pair[0] >= pair[1]), "{rates:?}");
                    cases += 1;
                }
            }
        }
        assert_eq!(cases, 80);
    }

    #[test]
    fn ratios_out_of_range_are_refused() {
        let bad = LrSchedule { min_ratio: 1.5, ..schedule(LrKind::Wsd, 0) };
        let text = bad.check().unwrap_err().to_string();
        assert_eq!(text, "lr.min_ratio = 1.5: it must lie in 0..=1; nearest valid value: 1");
        assert!(
            LrSchedule { decay_fraction: f64::NAN, ..schedule(LrKind::Wsd, 0) }.check().is_err()
        );
        assert!(schedule(LrKind::Cosine, 5).check().is_ok());
    }
}
