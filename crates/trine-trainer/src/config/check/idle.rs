//! Settings that do nothing beside others. They are refused where somebody has just typed them. The configuration that
//! a run has stored may have them from an older release, and the run goes on.

use super::super::load::{ROTATION, plain_rotation};
use super::Check;
use trine_optim::Group;
use trine_spec::{ModelSpec, ParamSpec, Positions, Recompute};

impl Check<'_> {
    /// Settings of rotary positions where no block has them.
    pub(super) fn rotation(&mut self) {
        let model = &self.config.model;
        if model.positions.values().contains(&Positions::Rotary) {
            return;
        }
        let (Some(given), Some(plain)) = (traits(model), plain_rotation()) else { return };
        for key in ROTATION {
            let name = key.trim_start_matches("model.");
            if !self.origins.is_asked(key) || given[name] == plain[name] {
                continue;
            }
            let rule = format!(
                "does nothing, as no block has rotary positions: model.positions = {}{}",
                given["positions"],
                self.given("model.positions")
            );
            let nearest = format!("{key} = {} or model.positions = \"rotary\"", plain[name]);
            self.report(key, &given[name], rule, nearest);
        }
    }

    /// Every N-th block of fewer than N.
    pub(super) fn every(&mut self, every: usize) {
        const KEY: &str = "train.recompute";
        let layers = self.config.model.layers;
        if every <= layers || !self.origins.is_asked(KEY) {
            return;
        }
        let rule = format!(
            "names every {} block, and model.layers = {layers}{}",
            ordinal(every),
            self.given("model.layers")
        );
        let nearest = Recompute::Blocks { every }.within(layers);
        self.report(KEY, every, rule, nearest);
    }

    /// Whether a group names frozen parameters only, which nothing updates.
    pub(super) fn is_idle(&self, group: &Group, params: &[ParamSpec]) -> bool {
        let asked = ["optimizer.groups", "train.frozen"].map(|key| self.origins.is_asked(key));
        let named = params.iter().filter(|param| group.names(param));
        asked.contains(&true) && named.clone().all(|param| !param.trainable)
    }
}

/// `2nd`, `11th`, `23rd`.
fn ordinal(number: usize) -> String {
    let ending = match (number % 100, number % 10) {
        (11..=13, _) => "th",
        (_, 1) => "st",
        (_, 2) => "nd",
        (_, 3) => "rd",
        _ => "th",
    };
    format!("{number}{ending}")
}

/// A model's keys as a file has them.
fn traits(model: &ModelSpec) -> Option<toml::Table> {
    toml::Table::try_from(model).ok()
}
