//! The pattern nearest to one that names nothing.

use std::collections::BTreeSet;
use trine_spec::{ParamSpec, Pattern};

/// Of the patterns that name some of `params`, the one most similar to `pattern` that `is_valid`.
pub(super) fn nearest_pattern(
    pattern: &Pattern,
    params: &[ParamSpec],
    layers: usize,
    mut is_valid: impl FnMut(&Pattern) -> bool,
) -> Option<Pattern> {
    let all = candidates(pattern.as_str(), params, layers);
    let likeness = |text: &String| strsim::normalized_damerau_levenshtein(text, pattern.as_str());
    let mut ranked: Vec<(f64, String)> =
        all.into_iter().map(|text| (likeness(&text), text)).collect();
    // Of two that are as similar, the one that leaves less open.
    let open = |text: &str| [&['*', '?'][..], &['*']].map(|open| text.matches(open).count());
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(open(&a.1).cmp(&open(&b.1))));
    ranked.into_iter().take(TRIED_MAX).map(|(_, text)| Pattern::new(text)).find(|p| is_valid(p))
}

/// To look whether a pattern is valid takes as long as the model is deep.
const TRIED_MAX: usize = 64;

/// The parts of a name that a name is made of.
const PARTS_MAX: usize = 8;

/// Patterns that name something: the names themselves, and these with some parts left open. Blocks are those that the
/// pattern may mean, and all of them.
fn candidates(pattern: &str, params: &[ParamSpec], layers: usize) -> BTreeSet<String> {
    let numbers = pattern.split('.').filter_map(|part| part.parse::<usize>().ok());
    let mut meant: BTreeSet<usize> =
        numbers.map(|number| number.min(layers.saturating_sub(1))).collect();
    if meant.is_empty() {
        meant.insert(0);
    }
    let mut all = BTreeSet::new();
    for param in params {
        let parts: Vec<&str> = param.name.split('.').collect();
        let is_meant = |at: &usize| meant.contains(at);
        let block = parts.get(1).and_then(|part| part.parse().ok());
        if parts.len() <= PARTS_MAX && block.is_none_or(|block| is_meant(&block)) {
            add_opened(&parts, &mut all);
        }
    }
    all
}

/// Adds a name, and what it becomes if its ends or some of its parts are left open.
fn add_opened(parts: &[&str], all: &mut BTreeSet<String>) {
    for first in 0..parts.len() {
        for end in first + 1..=parts.len() {
            let kept = &parts[first..end];
            for opened in 0..(1_u32 << kept.len()) - 1 {
                let each = kept.iter().enumerate().map(|(at, part)| match opened >> at & 1 {
                    0 => part,
                    // A letter, such as that of queries; the number of a block has any length.
                    _ if part.len() == 1 && !part.starts_with(char::is_numeric) => "?",
                    _ => "*",
                });
                let before = (first > 0).then_some("*");
                let after = (end < parts.len()).then_some("*");
                let parts: Vec<&str> = before.into_iter().chain(each).chain(after).collect();
                all.insert(parts.join("."));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trine_spec::presets;

    fn nearest(preset: &str, pattern: &str) -> String {
        let model = presets::find(preset).unwrap().model;
        let params: Vec<ParamSpec> =
            model.pieces().flat_map(|piece| model.params(piece, 1)).collect();
        let pattern = Pattern::new(pattern);
        let names = |pattern: &Pattern| params.iter().any(|param| pattern.fits(&param.name));
        let found = nearest_pattern(&pattern, &params, model.layers, names).unwrap();
        assert!(names(&found), "{found}");
        found.as_str().to_owned()
    }

    /// Every candidate names something, whether it is asked or not.
    #[test]
    fn the_nearest_pattern_keeps_what_was_right() {
        for (typed, expected) in [
            ("embeding.token", "embedding.token"),
            ("blok.*", "block.*"),
            ("block.99.*", "block.11.*"),
            ("*.atention.*", "*.attention.*"),
            ("block.*.mpl.down.weight", "block.*.mlp.down.weight"),
            ("*.normm.weight", "*.norm.weight"),
            ("*.attention.x.weight", "*.attention.k.weight"),
            ("haed.*", "head.*"),
        ] {
            assert_eq!(nearest("gpt2-124m", typed), expected, "{typed}");
        }
        assert_eq!(nearest("llama3-8b", "*.gat.*"), "*.gate.*");
        assert_eq!(nearest("llama3-8b", "block.40.mlp.up.weight"), "block.31.mlp.up.weight");
    }

    #[test]
    fn what_is_not_valid_is_not_the_nearest() {
        let model = presets::find("gpt2-124m").unwrap().model;
        let params: Vec<ParamSpec> =
            model.pieces().flat_map(|piece| model.params(piece, 1)).collect();
        let mut parts = model.parts(1).unwrap();
        let typed = Pattern::new("*.attention.w.weight");
        let found = nearest_pattern(&typed, &params, model.layers, |pattern| {
            parts.freeze(std::slice::from_ref(pattern)).is_ok()
        });
        // Queries are not frozen without keys and values.
        assert_eq!(found.unwrap().as_str(), "*.attention.?.weight");
        assert_eq!(nearest_pattern(&typed, &params, model.layers, |_| false), None);
    }
}
