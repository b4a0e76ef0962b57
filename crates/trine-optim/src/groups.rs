//! Groups of parameters that are updated in another way than the rest.

use crate::{LrKind, OptimizerConfig};
use trine_spec::{ParamSpec, Pattern};

/// What is set for the parameters whose names fit a pattern. Of several groups that name a parameter, each later one
/// wins for what it sets.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// Which parameters. A tied copy is updated as what it is a copy of.
    pub pattern: Pattern,
    /// Factor of the run's learning rate, not negative.
    pub lr: Option<f64>,
    /// Weight decay in the place of [`OptimizerConfig::weight_decay`], not negative. What has none still has none.
    pub decay: Option<f64>,
    /// What the rate does after the warm-up.
    pub schedule: Option<LrKind>,
}

impl Group {
    /// One that sets nothing yet.
    pub fn new(pattern: Pattern) -> Self {
        Self { pattern, lr: None, decay: None, schedule: None }
    }

    /// Whether it names a parameter.
    pub fn names(&self, spec: &ParamSpec) -> bool {
        self.pattern.fits(spec.known_as())
    }
}

/// How a parameter is updated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rule {
    /// Factor of the learning rate.
    pub(crate) lr: f64,
    /// Weight decay.
    pub(crate) decay: f64,
    /// Whose schedule the rate follows; `None`: the run's.
    pub(crate) schedule: Option<LrKind>,
}

impl Rule {
    /// What the configuration has for a parameter, and the groups that name it.
    pub(crate) fn of(spec: &ParamSpec, config: &OptimizerConfig, groups: &[Group]) -> Self {
        let mut rule = Self { lr: 1.0, decay: config.weight_decay(), schedule: None };
        for group in groups.iter().filter(|group| group.names(spec)) {
            rule.lr = group.lr.unwrap_or(rule.lr);
            rule.decay = group.decay.unwrap_or(rule.decay);
            rule.schedule = group.schedule.or(rule.schedule);
        }
        Self { decay: if spec.decay { rule.decay } else { 0.0 }, ..rule }
    }
}
