//! Which part of a corpus is held out, and where texts may be cut.

use crate::report::Candidate;
use std::collections::{BTreeMap, BTreeSet};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// How far above the share that is held out a whole group may take it.
const OVERSHOOT: f64 = 1.2;
/// The largest part of the bytes held out that one group may have: the measure should not be that of
/// one crate.
const GROUP_SHARE_MAX: f64 = 1.0 / 3.0;
/// The smallest piece a text is cut into.
const PIECE_BYTES_MIN: usize = 8;

/// Groups to hold out: in the order of a hash of their names and `seed`, those that fit, until `share`
/// of the bytes and `groups_min` groups are reached; none that would fill more than a third of that.
/// A name's place in that order never changes, so adding a crate changes little. At least one group is
/// left for training; none is held out of one group.
pub(crate) fn hold_out(
    files: &[Candidate],
    groups_min: usize,
    share: f64,
    seed: u64,
) -> BTreeSet<String> {
    let mut sizes = BTreeMap::<&str, u64>::new();
    for file in files {
        *sizes.entry(&file.group).or_default() += file.text.len() as u64;
    }
    let total = sizes.values().sum::<u64>() as f64;
    let mut groups: Vec<_> = sizes.into_iter().collect();
    groups.sort_by_key(|(name, _)| (xxh3_64_with_seed(name.as_bytes(), seed), *name));
    let groups_min = groups_min.min(groups.len() - 1);

    let mut chosen = BTreeSet::new();
    let mut bytes = 0;
    for (name, size) in &groups {
        let is_enough = bytes as f64 >= share * total && chosen.len() >= groups_min;
        let is_small = *size as f64 <= GROUP_SHARE_MAX * share * total;
        if !is_enough && is_small && (bytes + size) as f64 <= OVERSHOOT * share * total {
            bytes += size;
            chosen.insert((*name).to_owned());
        }
    }
    // Few or large groups: the smallest ones fill up to the least number.
    groups.sort_by_key(|(name, size)| (*size, *name));
    for (name, _) in groups {
        if chosen.len() < groups_min {
            chosen.insert(name.to_owned());
        }
    }
    chosen
}

/// Where the held-out part of a single text begins: the first line's start in its last `share`, else
/// the last line's start in the last four times that, else a character. `None` for fewer than two
/// characters.
pub(crate) fn split_text(text: &str, share: f64) -> Option<usize> {
    let bytes = text.len() as f64;
    let wanted = char_boundary(text, text.len() - (bytes * share).ceil() as usize);
    let earliest = text.len().saturating_sub((bytes * 4.0 * share) as usize);
    let after = text[wanted..].find('\n').map(|at| wanted + at + 1);
    let before = text[..wanted].rfind('\n').map(|at| at + 1);
    let is_inside = |at: &usize| *at > 0 && *at < text.len();
    after
        .filter(is_inside)
        .or(before.filter(|at| *at > earliest))
        .or(Some(wanted))
        .filter(is_inside)
}

/// The last character border at or before `at`.
pub(crate) fn char_boundary(text: &str, at: usize) -> usize {
    let at = at.min(text.len());
    (0..=at).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0)
}

/// Cuts a text into pieces of about `bytes` bytes (at most twice that, unless a word is longer)
/// that a tokenizer may read one by one.
///
/// A cut is made before a line feed that follows something else than white space. The byte-level
/// pattern never joins across such a place and never looks back over it, so the pieces give the
/// tokens of the whole. Where there is no such place the cut is at a space, or at a character.
pub(crate) fn pieces(text: &str, bytes: usize) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (piece, after) = rest.split_at(piece_end(rest, bytes));
        rest = after;
        Some(piece)
    })
}

fn piece_end(text: &str, bytes: usize) -> usize {
    // At least one character of any width.
    let bytes = bytes.max(PIECE_BYTES_MIN);
    if text.len() <= bytes {
        return text.len();
    }
    let from = char_boundary(text, bytes);
    let to = char_boundary(text, 2 * bytes);
    let border = |is_border: fn(char) -> bool| {
        let mut before = text[..from].chars().next_back()?;
        text[from..to].char_indices().find_map(|(at, c)| {
            let found = is_border(c) && !before.is_whitespace();
            before = c;
            found.then_some(from + at)
        })
    };
    border(|c| c == '\n').or_else(|| border(char::is_whitespace)).unwrap_or(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(count: usize, bytes: usize) -> Vec<Candidate> {
        (0..count)
            .map(|i| Candidate {
                group: format!("crate{i}"),
                name: format!("crate{i}/lib.rs"),
                text: "x".repeat(bytes + i),
            })
            .collect()
    }

    #[test]
    fn about_five_percent_and_stable() {
        let before = hold_out(&files(200, 1000), 3, 0.05, 0);
        assert!((9..=12).contains(&before.len()), "{before:?}");
        // One more crate moves at most one in or out.
        let after = hold_out(&files(201, 1000), 3, 0.05, 0);
        assert!(before.symmetric_difference(&after).count() <= 2);
    }

    #[test]
    fn no_group_fills_more_than_a_third() {
        let mut files = files(200, 1000);
        // First in the order of hashes.
        let first = hold_out(&files, 3, 0.05, 0)
            .into_iter()
            .min_by_key(|name| xxh3_64_with_seed(name.as_bytes(), 0));
        let large = files.iter_mut().find(|file| Some(&file.group) == first.as_ref()).unwrap();
        large.text = "x".repeat(6000);
        let held_out = hold_out(&files, 3, 0.05, 0);
        assert!(!held_out.contains(&first.unwrap()) && held_out.len() >= 9);
    }

    #[test]
    fn shares_and_seeds_are_kept() {
        let files = files(200, 1000);
        for (share, count) in [(0.01, 1..=1), (0.2, 38..=42), (0.5, 98..=103)] {
            assert!(count.contains(&hold_out(&files, 1, share, 0).len()), "{share}");
        }
        assert_ne!(hold_out(&files, 1, 0.05, 0), hold_out(&files, 1, 0.05, 1));
        let text = "0123456\n".repeat(100);
        assert_eq!(split_text(&text, 0.5), Some(400 + 8));
        assert_eq!(split_text("abcd", 0.5), Some(2));
    }

    #[test]
    fn few_groups() {
        assert_eq!(hold_out(&files(1, 10), 3, 0.05, 0).len(), 0);
        assert_eq!(hold_out(&files(2, 10), 3, 0.05, 0).len(), 1);
        assert_eq!(hold_out(&files(3, 10), 3, 0.05, 0).len(), 2);
        assert_eq!(hold_out(&files(10, 10), 3, 0.05, 0).len(), 3);
        assert_eq!(hold_out(&files(10, 10), 1, 0.05, 0).len(), 1);
    }

    #[test]
    fn single_texts_are_cut_at_lines() {
        let text = "0123456\n89\n".repeat(100);
        let cut = split_text(&text, 0.05).unwrap();
        assert_eq!(&text[cut - 1..cut], "\n");
        assert!((0.94..=0.97).contains(&(cut as f64 / text.len() as f64)));
        let line = "é".repeat(100);
        assert_eq!(split_text(&line, 0.05), Some(190));
        assert_eq!(split_text("ab", 0.05), Some(1));
        assert_eq!(split_text("a\n", 0.05), Some(1));
        assert_eq!(split_text("é", 0.05), None);
        assert_eq!(split_text("", 0.05), None);
    }

    #[test]
    fn pieces_join_to_the_text() {
        let text = "fn a() {\n\n    1\n}\n é\u{a0}日本語 ".repeat(40) + &"=".repeat(300);
        let mut cuts = 0;
        for bytes in [8, 9, 13, 64, 1000, 100_000] {
            let pieces: Vec<&str> = pieces(&text, bytes).collect();
            assert_eq!(pieces.concat(), text);
            assert!(pieces.iter().all(|piece| !piece.is_empty()));
            assert!(pieces.iter().all(|piece| piece.len() <= 2 * bytes));
            cuts += pieces.len();
        }
        assert!(cuts > 300);
        let lines: Vec<&str> = pieces("ab cdefgh\nij klmnop\n\n\nq rstuvwxyz1234567", 8).collect();
        assert_eq!(lines, ["ab cdefgh", "\nij klmnop", "\n\n\nq rstuvwxyz12", "34567"]);
    }
}
