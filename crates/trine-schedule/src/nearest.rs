//! The nearest valid word, for error messages.

/// The candidate with the smallest edit distance to `word`, capitals ignored; `None` without
/// candidates.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    candidates.into_iter().min_by_key(|candidate| distance(&word, &candidate.to_lowercase()))
}

/// Levenshtein distance in characters; only the first 64 of `a` count, as nothing of ours is longer.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().take(64).enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (a, b, expected) in [("", "abc", 3), ("kitten", "sitting", 3), ("1f1b", "1f1b", 0)] {
            assert_eq!(distance(a, b), expected, "{a} {b}");
        }
        assert_eq!(nearest("1F1", ["gpipe", "1f1b"]), Some("1f1b"));
        assert_eq!(nearest("x", []), None);
    }
}
