//! Counted nouns, for messages.

/// A noun for so many: `plural(1, "rank")` is `rank`, `plural(8, "batch")` is `batches`.
pub fn plural(number: u64, noun: &str) -> String {
    match number {
        1 => noun.to_owned(),
        _ if noun.ends_with("ch") => format!("{noun}es"),
        _ if noun.ends_with('y') => format!("{}ies", &noun[..noun.len() - 1]),
        _ => format!("{noun}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::plural;

    #[test]
    fn one_is_singular_and_the_rest_plural() {
        let cases =
            [(1, "rank", "rank"), (0, "rank", "ranks"), (8, "micro-batch", "micro-batches")];
        for (number, noun, said) in cases.into_iter().chain([(2, "entry", "entries")]) {
            assert_eq!(plural(number, noun), said);
        }
    }
}
