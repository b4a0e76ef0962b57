//! What computing again costs a layout, and what it saves.

use super::task::recompute_word;
use crate::output::Unit;
use trine_plan::{Choice, Estimate, Layout, Planner, Recompute};

/// A layout beside itself without recompute.
pub(crate) struct Again {
    with: Estimate,
    without: Estimate,
    recompute: Recompute,
    headroom: f64,
}

impl Again {
    /// That of a layout which computes something again.
    pub(crate) fn of(planner: &Planner<'_>, choice: &Choice, headroom: f64) -> Option<Self> {
        let recompute = choice.layout.recompute;
        if recompute == Recompute::None {
            return None;
        }
        let kept = Layout { recompute: Recompute::None, ..choice.layout };
        Some(Self { with: choice.estimate, without: planner.estimate(&kept), recompute, headroom })
    }

    /// The share of a step that it adds.
    pub(crate) fn time_share(&self) -> f64 {
        self.with.time.step / self.without.time.step - 1.0
    }

    /// Bytes that the fullest device holds less.
    pub(crate) fn bytes_saved(&self) -> f64 {
        self.without.memory.total() - self.with.memory.total()
    }

    /// A line for people.
    pub(crate) fn line(&self) -> String {
        let [with, without] = [self.with, self.without].map(|one| one.memory.total());
        let allowed = self.without.memory_bytes * (1.0 - self.headroom);
        let bytes = Unit::of_bytes(without);
        format!(
            "Recompute ({}) costs {:.1} % time. Without it the fullest device needs {} instead of {}; {} may be used.\n",
            recompute_word(self.recompute),
            100.0 * self.time_share(),
            bytes.show(without, 1),
            bytes.show(with, 1),
            bytes.show(allowed, 1),
        )
    }
}
