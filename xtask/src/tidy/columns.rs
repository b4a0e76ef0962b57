//! Lines stay narrow enough to be read beside another file.

use super::mask::mask;
use super::{Problem, TextFile};

/// Columns of a line of source or prose.
const COLUMNS_MAX: usize = 120;

/// Files whose lines cannot be broken: one written by a program, and one whose comments are the texts of the keys of a
/// configuration, a literal each.
const APART: &[&str] = &["docs/planning-rows.md", "crates/trine-trainer/src/config/sections.rs"];

/// Lines of Rust and Markdown that are too long. Tables, lines with a link, code in Markdown and string literals are
/// apart: they cannot be broken.
pub(super) fn check(files: &[TextFile]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for file in files.iter().filter(|file| !APART.contains(&file.path.as_str())) {
        let long = if file.is_rust() {
            long_in_rust(&file.text)
        } else if file.is_markdown() {
            long_in_markdown(&file.text)
        } else {
            continue;
        };
        problems.extend(long.into_iter().map(|line| {
            Problem::line(&file.path, line, format!("more than {COLUMNS_MAX} columns: break it"))
        }));
    }
    problems
}

fn is_long(line: &str) -> bool {
    line.trim_end().chars().count() > COLUMNS_MAX
}

fn has_link(line: &str) -> bool {
    line.contains("](") || line.contains("://")
}

/// Long comments, and long code without a literal.
fn long_in_rust(text: &str) -> Vec<usize> {
    let masked = mask(text);
    let views = masked.code.lines().zip(masked.comments.lines()).zip(text.lines());
    let is_over = |((code, comment), line): ((&str, &str), &str)| {
        if is_long(comment) {
            return !has_link(comment) && !comment.trim_start().starts_with("//! |");
        }
        let is_all_code = code.trim_end() == line.trim_end();
        is_all_code && is_long(line)
    };
    let over = views.enumerate().filter(|(_, view)| is_over(*view));
    over.map(|(at, _)| at + 1).collect()
}

/// Long prose.
fn long_in_markdown(text: &str) -> Vec<usize> {
    let mut in_fence = false;
    let mut found = Vec::new();
    for (at, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_fence = !in_fence;
        } else if !in_fence
            && is_long(line)
            && !line.trim_start().starts_with('|')
            && !has_link(line)
        {
            found.push(at + 1);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prose_is_broken_and_tables_links_and_code_are_not() {
        let word = "word ".repeat(25);
        let text =
            format!("{word}\n| {word}|\n[a](b) {word}\n```text\n{word}\n```\n* {word}\nshort\n");
        assert_eq!(long_in_markdown(&text), [1, 7]);
    }

    #[test]
    fn comments_and_code_are_broken_and_literals_are_not() {
        let word = "word ".repeat(25);
        let code = "a + ".repeat(31);
        let text = format!(
            "//! {word}\nlet x = {code}a;\nlet y = \"{word}\";\nlet z = 1; // {word}\n/// {word}https://x.org\n"
        );
        assert_eq!(long_in_rust(&text), [1, 2, 4]);
    }
}
