//! Groups of parameters.

use super::super::groups;
use super::super::nearest::nearest_pattern;
use super::Check;
use trine_optim::Group;
use trine_spec::{ParamSpec, Pattern, Recompute, SpecError};

/// Lines of the longest list of patterns: each is held against every parameter.
const LINES_MAX: usize = 100;

/// What is wrong with a pattern that fits no name.
const UNMATCHED: &str = "names no parameter of the model";

impl Check<'_> {
    /// The groups of a model that holds together.
    pub(super) fn groups(&mut self) {
        let lines = &self.config.optimizer.groups;
        if self.too_many("optimizer.groups", lines) {
            return;
        }
        let params = self.params();
        for (number, line) in lines.iter().enumerate() {
            let wrong = match groups::parse(line) {
                Ok(group) => self.wrong_group((number, line), &group, &params),
                Err(refused) => Some((refused.rule, refused.nearest)),
            };
            if let Some((rule, nearest)) = wrong {
                self.report("optimizer.groups", format!("{line:?}"), rule, nearest);
            }
        }
    }

    /// What is frozen of a model that holds together.
    pub(super) fn frozen(&mut self) {
        let lines = &self.config.train.frozen;
        if lines.is_empty() || self.too_many("train.frozen", lines) {
            return;
        }
        let (params, patterns) = (self.params(), self.config.frozen());
        let Ok(mut parts) = self.config.model.parts(1) else { return };
        let found = self.found.len();
        for (line, pattern) in lines.iter().zip(&patterns) {
            if !names_any(pattern, &params) {
                let is_valid = |other: &Pattern| parts.freeze(std::slice::from_ref(other)).is_ok();
                let nearest = self.nearest(pattern, &params, is_valid);
                self.report("train.frozen", format!("{line:?}"), UNMATCHED, format!("{nearest:?}"));
            }
        }
        if let (true, Err(SpecError::Frozen { rule, nearest })) =
            (found == self.found.len(), parts.freeze(&patterns))
        {
            self.report("train.frozen", format!("{lines:?}"), rule, nearest);
        }
    }

    /// What is computed again of a model that holds together.
    pub(super) fn recompute(&mut self) {
        const KEY: &str = "train.recompute";
        let what = self.config.train.recompute.clone();
        match &what {
            Recompute::None => return,
            Recompute::Blocks { every: every @ 1.. } => return self.every(*every),
            Recompute::Blocks { every: 0 } => {}
            Recompute::Tensors(patterns) if self.too_many(KEY, patterns) => return,
            Recompute::Tensors(_) => {}
        }
        let Ok(parts) = self.config.model.parts(1) else { return };
        for (wrong, fault) in parts.recompute_faults(&what) {
            if let SpecError::Recompute { rule, nearest } = fault {
                self.report(KEY, wrong, rule, nearest);
            }
        }
    }

    /// Whether a list of patterns is too long, which is then reported.
    fn too_many<T>(&mut self, key: &str, lines: &[T]) -> bool {
        let is_long = lines.len() > LINES_MAX;
        if is_long {
            let rule = format!("must be at most {LINES_MAX} lines");
            let found = format!("a list of {}", lines.len());
            self.report(key, found, rule, "one line with a `*`");
        }
        is_long
    }

    /// The parameters that a pattern may name. What is frozen says so.
    fn params(&self) -> Vec<ParamSpec> {
        let (model, frozen) = (&self.config.model, self.config.frozen());
        let params = model.pieces().flat_map(|piece| model.params(piece, 1));
        let mut params: Vec<ParamSpec> = params.filter(|param| param.tied_to.is_none()).collect();
        for param in &mut params {
            param.trainable = !frozen.iter().any(|pattern| pattern.fits(&param.name));
        }
        params
    }

    /// What is wrong with a group beside the model and the optimizer, and what would do.
    fn wrong_group(
        &self,
        (number, line): (usize, &str),
        group: &Group,
        params: &[ParamSpec],
    ) -> Option<(String, String)> {
        if !names_any(&group.pattern, params) {
            let is_trained = |pattern: &Pattern| {
                params.iter().any(|param| param.trainable && pattern.fits(&param.name))
            };
            let nearest = self.nearest(&group.pattern, params, is_trained);
            let settings = line.rsplit_once(':').map_or("", |(_, settings)| settings);
            return Some((UNMATCHED.into(), format!("\"{nearest}:{settings}\"")));
        }
        if self.is_idle(group, params) {
            let mut rest = self.config.optimizer.groups.clone();
            rest.remove(number);
            let rule = format!(
                "does nothing, as all that it names is frozen: train.frozen = {:?}{}",
                self.config.train.frozen,
                self.given("train.frozen")
            );
            return Some((rule, format!("optimizer.groups = {rest:?}")));
        }
        let mut named = params.iter().filter(|param| group.names(param));
        if group.decay.is_some_and(|decay| decay > 0.0) && !named.any(|param| param.decay) {
            let rule = "sets a decay, which matrices alone have, and names none";
            return Some((rule.into(), "decay=0".into()));
        }
        let peak = self.config.optimizer.lr * group.lr.unwrap_or(1.0);
        let is_number = (peak as f32).is_finite();
        (!is_number).then(|| {
            (format!("lr × optimizer.lr = {peak:e} must be a number of f32"), "lr=1".into())
        })
    }

    /// The nearest pattern that is valid, for one that names nothing.
    fn nearest(
        &self,
        pattern: &Pattern,
        params: &[ParamSpec],
        is_valid: impl FnMut(&Pattern) -> bool,
    ) -> String {
        let found = nearest_pattern(pattern, params, self.config.model.layers, is_valid);
        found.map_or_else(|| "embedding.*".into(), |found| found.as_str().to_owned())
    }
}

/// Whether a pattern names a parameter.
fn names_any(pattern: &Pattern, params: &[ParamSpec]) -> bool {
    params.iter().any(|param| pattern.fits(&param.name))
}
