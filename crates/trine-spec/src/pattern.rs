//! Names of parameters or tensors, several at once.

use std::fmt;

/// What names may fit: `*` stands for any characters, `?` for one, every other character for itself.
///
/// ```
/// use trine_spec::Pattern;
///
/// let matrices = Pattern::new("block.?.*.weight");
/// assert!(matrices.fits("block.3.attention.q.weight"));
/// assert!(!matrices.fits("block.12.attention.q.weight"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Pattern(String);

impl Pattern {
    /// The pattern that a text is: every text is one.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a whole name fits. Takes time of the order of both lengths multiplied, at most.
    pub fn fits(&self, name: &str) -> bool {
        let (pattern, name) = (self.0.as_bytes(), name.as_bytes());
        let (mut at, mut seen) = (0, 0);
        // The last `*`, and how much of the name it has taken: only that one needs to take more.
        let mut star: Option<(usize, usize)> = None;
        while seen < name.len() {
            match pattern.get(at) {
                Some(b'*') => {
                    star = Some((at, seen));
                    at += 1;
                }
                Some(b'?') => {
                    (at, seen) = (at + 1, seen + char_len(name, seen));
                }
                Some(byte) if *byte == name[seen] => (at, seen) = (at + 1, seen + 1),
                Some(_) | None => {
                    let Some((after, taken)) = star else { return false };
                    let taken = taken + char_len(name, taken);
                    star = Some((after, taken));
                    (at, seen) = (after + 1, taken);
                }
            }
        }
        pattern[at..].iter().all(|byte| *byte == b'*')
    }
}

/// Bytes of the character that begins at a byte.
fn char_len(text: &[u8], at: usize) -> usize {
    let is_more = |byte: &&u8| **byte & 0b1100_0000 == 0b1000_0000;
    1 + text[at + 1..].iter().take_while(is_more).count()
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_take_any_characters_and_question_marks_one() {
        let cases = [
            ("embedding.token", "embedding.token", true),
            ("embedding.token", "embedding.tokens", false),
            ("embedding.tokens", "embedding.token", false),
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("*", "head.norm.weight", true),
            ("block.*.weight", "block.3.attention.q.weight", true),
            ("block.*.weight", "block.3.attention.q.bias", false),
            ("*.q.*", "block.3.attention.q.weight", true),
            ("*a*ab", "aaab", true),
            ("*a*ab", "aaba", false),
            ("block.?.*", "block.3.norm", true),
            ("block.?.*", "block.13.norm", false),
            ("??", "äö", true),
            ("?", "äö", false),
            ("*?ö", "äö", true),
            ("?", "", false),
        ];
        for (pattern, name, fits) in cases {
            assert_eq!(Pattern::new(pattern).fits(name), fits, "{pattern} and {name}");
        }
        // No pattern takes time beyond the product of the lengths.
        assert!(!Pattern::new("*a".repeat(200)).fits(&format!("{}b", "a".repeat(5000))));
    }
}
