//! Groups of parameters.

use super::super::{groups, keys};
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
        for line in lines {
            let wrong = match groups::parse(line) {
                Ok(group) => self.wrong_group(&group, &params),
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
        let found = self.found.len();
        for (line, pattern) in lines.iter().zip(&patterns) {
            if let Some(nearest) = unmatched(pattern, &params) {
                self.report("train.frozen", format!("{line:?}"), UNMATCHED, format!("{nearest:?}"));
            }
        }
        let frozen = self.config.model.parts(1).and_then(|mut parts| parts.freeze(&patterns));
        if let (true, Err(SpecError::Frozen { rule, nearest })) =
            (found == self.found.len(), frozen)
        {
            self.report("train.frozen", format!("{lines:?}"), rule, nearest);
        }
    }

    /// What is computed again of a model that holds together.
    pub(super) fn recompute(&mut self) {
        const KEY: &str = "train.recompute";
        // Each name by itself, so that all wrong ones are said at once.
        let each: Vec<Recompute> = match self.config.train.recompute.clone() {
            Recompute::None | Recompute::Blocks { every: 1.. } => return,
            zero @ Recompute::Blocks { every: 0 } => vec![zero],
            Recompute::Tensors(patterns) if self.too_many(KEY, &patterns) => return,
            Recompute::Tensors(patterns) => {
                patterns.into_iter().map(|pattern| Recompute::Tensors(vec![pattern])).collect()
            }
        };
        let Ok(mut parts) = self.config.model.parts(1) else { return };
        for one in each {
            if let Err(SpecError::Recompute { rule, nearest }) = parts.recompute(&one) {
                self.report(KEY, &one, rule, nearest);
            }
        }
    }

    /// Whether a list of patterns is too long, which is then reported.
    fn too_many<T>(&mut self, key: &str, lines: &[T]) -> bool {
        let is_long = lines.len() > LINES_MAX;
        if is_long {
            let rule = format!("must be at most {LINES_MAX} lines");
            self.report(key, lines.len(), rule, "one line with a `*`");
        }
        is_long
    }

    /// The parameters that a pattern may name.
    fn params(&self) -> Vec<ParamSpec> {
        let model = &self.config.model;
        let params = model.pieces().flat_map(|piece| model.params(piece, 1));
        params.filter(|param| param.tied_to.is_none()).collect()
    }

    /// What is wrong with a group beside the model and the optimizer, and what would do.
    fn wrong_group(&self, group: &Group, params: &[ParamSpec]) -> Option<(String, String)> {
        if let Some(nearest) = unmatched(&group.pattern, params) {
            return Some((UNMATCHED.into(), nearest));
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
}

/// Where a pattern names no parameter: the name that is most similar.
fn unmatched(pattern: &Pattern, params: &[ParamSpec]) -> Option<String> {
    let names = params.iter().map(|param| param.name.as_str());
    if names.clone().any(|name| pattern.fits(name)) {
        return None;
    }
    Some(keys::nearest_word(pattern.as_str(), names).to_owned())
}
