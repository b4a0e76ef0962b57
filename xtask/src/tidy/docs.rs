//! Rules about Markdown: relative links lead somewhere, and decision records have their parts and a
//! status.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Parser;
use clap::error::ErrorKind;

use super::commands;
use super::{Problem, TextFile};

/// The parts of a decision record: what a heading may be called, and what the part is for.
const DECISION_PARTS: &[(&[&str], &str)] = &[
    (&["choice", "chosen", "decision"], "Choice"),
    (&["alternative", "option"], "Alternatives"),
    (
        &["change it back", "change this", "change our mind", "revisit", "reconsider"],
        "What would change it back",
    ),
];

/// Relative links of all Markdown files; `exists` answers for a path relative to the root.
pub(super) fn check_links(files: &[TextFile], exists: impl Fn(&Path) -> bool) -> Vec<Problem> {
    let mut problems = Vec::new();
    for file in files.iter().filter(|file| file.is_markdown()) {
        let folder = Path::new(&file.path).parent().unwrap_or(Path::new(""));
        for (line, target) in links(&file.text) {
            let path = target.split('#').next().unwrap_or(target);
            if is_remote(target) || path.is_empty() {
                continue;
            }
            let resolved = resolve(folder, path);
            if !resolved.is_some_and(|resolved| exists(&resolved)) {
                problems.push(Problem::line(
                    &file.path,
                    line,
                    format!("the link `{target}` leads nowhere"),
                ));
            }
        }
    }
    problems
}

fn is_remote(target: &str) -> bool {
    target.contains("://") || target.starts_with("mailto:")
}

/// `folder/path` without `.` and `..`; `None` if it leaves the repository.
fn resolve(folder: &Path, path: &str) -> Option<PathBuf> {
    let mut resolved = folder.to_owned();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                if !resolved.pop() {
                    return None;
                }
            }
            name => resolved.push(name),
        }
    }
    Some(resolved)
}

/// Link targets with their line numbers: `[text](target)`, `[name]: target` and `src="target"`, outside of code.
fn links(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut in_fence = false;
    for (at, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_fence = !in_fence;
        } else if !in_fence {
            found.extend(links_of_line(line).into_iter().map(|target| (at + 1, target)));
        }
    }
    found
}

fn links_of_line(line: &str) -> Vec<&str> {
    let mut found = Vec::new();
    if line.starts_with('[')
        && let Some((_, target)) = line.split_once("]: ")
    {
        found.extend(target.split_whitespace().next());
    }
    // Every second piece lies between backticks; of a link whose text is code, the target lies outside.
    for piece in line.split('`').step_by(2) {
        for (open, close) in [("](", ')'), ("src=\"", '"')] {
            let targets = piece.split(open).skip(1).filter_map(|rest| rest.split_once(close));
            found.extend(targets.filter_map(|(target, _)| target.split_whitespace().next()));
        }
    }
    found
}

/// Commands of `cargo xtask` in Markdown parse. What it hands to `trine`, a test of trine-cli holds.
pub(super) fn check_commands(files: &[TextFile]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for file in files.iter().filter(|file| file.is_markdown()) {
        for command in commands::shown(&file.text, &["cargo", "xtask"]) {
            let typed = std::iter::once("xtask").chain(command.words.iter().map(String::as_str));
            let Err(error) = crate::Cli::try_parse_from(typed) else { continue };
            let missing = [
                ErrorKind::MissingRequiredArgument,
                ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand,
            ];
            let only_named = command.in_prose && missing.contains(&error.kind());
            if !only_named && error.use_stderr() {
                let said = error.to_string().lines().next().unwrap_or_default().to_owned();
                let words = command.words.join(" ");
                let text = format!("`cargo xtask {words}` does not parse: {said}");
                problems.push(Problem::line(&file.path, command.line, text));
            }
        }
    }
    problems
}

/// The line of a decision record that says whether it holds, and which record supersedes it.
const STATUS: &str = "Status: ";

/// Underscores from which on a name in code style is taken for that of a test: tests are called by a sentence.
const UNDERSCORES_OF_TESTS_MIN: usize = 4;

/// Tests that Markdown names, as `file.rs: name` or, where the name is a sentence, alone: each is a function of that
/// file, or of any.
pub(super) fn check_tests_named(files: &[TextFile]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for file in files.iter().filter(|file| file.is_markdown()) {
        for span in code_spans(&file.text) {
            let Some((place, name)) = test_named(&span) else { continue };
            let is_there = |source: &&TextFile| {
                let in_file = place.is_none_or(|place| source.path.ends_with(&format!("/{place}")));
                in_file && source.text.contains(&format!("fn {name}("))
            };
            if !files.iter().filter(|file| file.is_rust()).any(|source| is_there(&source)) {
                let of = place.map_or_else(String::new, |place| format!(" in a file {place}"));
                let text = format!("names the test {name}, which does not exist{of}");
                problems.push(Problem::file(&file.path, text));
            }
        }
    }
    problems
}

/// The file, if one is given, and the name of the test that a piece of code names.
fn test_named(span: &str) -> Option<(Option<&str>, &str)> {
    let is_name = |text: &str| {
        let mut bytes = text.bytes();
        text.contains('_')
            && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    };
    if let Some((place, name)) = span.split_once(": ") {
        return (place.ends_with(".rs") && is_name(name)).then_some((Some(place), name));
    }
    let is_sentence = span.matches('_').count() >= UNDERSCORES_OF_TESTS_MIN;
    (is_name(span) && is_sentence).then_some((None, span))
}

/// What stands between backticks outside of fences; a piece may go over the end of a line.
fn code_spans(text: &str) -> Vec<String> {
    let mut in_fence = false;
    let mut prose = String::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_fence = !in_fence;
        } else if line.trim().is_empty() {
            prose.push('\n');
        } else if !in_fence {
            prose.extend([line, " "]);
        }
    }
    // A paragraph with a stray backtick must not turn the next one inside out.
    let spans = prose.lines().flat_map(|paragraph| paragraph.split('`').skip(1).step_by(2));
    spans.map(|span| span.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

/// Decision records: `docs/decisions/NNNN-title.md`, numbers used once, a status, all parts present.
pub(super) fn check_decisions(files: &[TextFile]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut numbers: BTreeMap<&str, &str> = BTreeMap::new();
    for file in files {
        let Some(name) = file.path.strip_prefix("docs/decisions/") else { continue };
        let Some(number) = decision_number(name) else {
            problems.push(Problem::file(&file.path, "a decision record is called NNNN-title.md"));
            continue;
        };
        if let Some(other) = numbers.insert(number, &file.path) {
            problems
                .push(Problem::file(&file.path, format!("number {number} is taken by {other}")));
        }
        if !file.text.lines().any(|line| line.starts_with(STATUS)) {
            problems.push(Problem::file(&file.path, "no line \"Status: …\" below the title"));
        }
        let missing = DECISION_PARTS.iter().filter(|(names, _)| !has_heading(&file.text, names));
        problems.extend(
            missing.map(|(_, part)| Problem::file(&file.path, format!("no heading \"{part}\""))),
        );
    }
    problems
}

fn decision_number(name: &str) -> Option<&str> {
    let (number, title) = name.strip_suffix(".md")?.split_once('-')?;
    let is_number = number.len() == 4 && number.bytes().all(|byte| byte.is_ascii_digit());
    (is_number && !title.is_empty() && !title.contains('/')).then_some(number)
}

/// True if a heading below the title contains one of `names`.
fn has_heading(text: &str, names: &[&str]) -> bool {
    let headings = text.lines().filter(|line| line.starts_with("##"));
    headings.map(str::to_lowercase).any(|heading| names.iter().any(|name| heading.contains(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> TextFile {
        TextFile { path: path.to_owned(), text: text.to_owned() }
    }

    fn bad_links(path: &str, text: &str) -> Vec<usize> {
        let exists = |path: &Path| path == Path::new("docs/a.md") || path == Path::new("README.md");
        let problems = check_links(&[file(path, text)], exists);
        problems.iter().map(|problem| problem.line).collect()
    }

    #[test]
    fn links_that_lead_somewhere_pass() {
        let text =
            "[a](a.md) [b](../README.md#part) [c](#part) [d](https://example.org/x)\n[e]: ./a.md\n";
        assert!(bad_links("docs/b.md", text).is_empty());
        assert!(bad_links("docs/b.md", "`[x](none.md)`\n```text\n[x](none.md)\n```\n").is_empty());
        assert!(bad_links("crates/x/src/a.rs", "//! [x](none.md)").is_empty());
    }

    #[test]
    fn links_that_lead_nowhere_fail() {
        assert_eq!(bad_links("docs/b.md", "ok\n[a](none.md)\n"), [2]);
        assert_eq!(bad_links("docs/b.md", "[`code`](none.md \"title\")\n[r]: none.md\n"), [1, 2]);
        assert_eq!(bad_links("README.md", "<img src=\"docs/none.svg\">"), [1]);
        assert_eq!(bad_links("README.md", "[up](../README.md)"), [1]);
    }

    #[test]
    fn commands_that_do_not_parse_are_found() {
        let text = "`cargo xtask ci --full` `cargo xtask bench torch`\n\n```sh\ncargo xtask tidy --bles\n\
                    cargo xtask bench torch\n```\n";
        let lines = |text| check_commands(&[file("docs/a.md", text)]);
        let lines: Vec<usize> = lines(text).iter().map(|problem| problem.line).collect();
        assert_eq!(lines, [4, 5]);
    }

    const RECORD: &str = "# Title\n\nStatus: in force.\n\n## The choice\n\n## Alternatives considered\n\n\
                          ## What would change it back\n";

    #[test]
    fn a_whole_decision_record_passes() {
        assert!(check_decisions(&[file("docs/decisions/0001-a.md", RECORD)]).is_empty());
        assert!(check_decisions(&[file("docs/a.md", "nothing")]).is_empty());
    }

    #[test]
    fn a_decision_record_with_a_missing_part_fails() {
        for (part, heading) in [
            ("Choice", "## The choice"),
            ("Alternatives", "## Alternatives considered"),
            ("What would change it back", "## What would change it back"),
        ] {
            let problems =
                check_decisions(&[file("docs/decisions/0001-a.md", &RECORD.replace(heading, ""))]);
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(problems[0].text.contains(part), "{problems:?}");
        }
    }

    #[test]
    fn a_decision_record_without_a_status_fails() {
        let record = RECORD.replace(STATUS, "");
        let problems = check_decisions(&[file("docs/decisions/0001-a.md", &record)]);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].text.contains("Status"), "{problems:?}");
    }

    #[test]
    fn decision_numbers_are_four_digits_and_used_once() {
        assert_eq!(check_decisions(&[file("docs/decisions/12-a.md", RECORD)]).len(), 1);
        let twice =
            [file("docs/decisions/0001-a.md", RECORD), file("docs/decisions/0001-b.md", RECORD)];
        assert_eq!(check_decisions(&twice).len(), 1);
    }

    #[test]
    fn a_test_that_a_document_names_exists() {
        let source = file(
            "crates/x/tests/sums.rs",
            "#[test]\nfn all_of_the_sums_agree() {}\nfn adds_up() {}\n",
        );
        let found =
            |text: &str| check_tests_named(&[file("docs/a.md", text), source.clone()]).len();
        for (text, problems) in [
            ("`sums.rs: adds_up` and `all_of_the_sums_agree`", 0),
            ("held by (`sums.rs:\nadds_up`)", 0),
            ("`other.rs: adds_up`", 1),
            ("`sums.rs: adds_down`", 1),
            ("`ums.rs: adds_up`", 1),
            ("`some_of_the_sums_agree`", 1),
            ("`bytes_in_flight_max`, `sums.rs`, `key: some_value`", 0),
            ("```text\n`sums.rs: adds_down`\n```", 0),
            ("a stray ` tick\n\n`sums.rs: adds_up`", 0),
        ] {
            assert_eq!(found(text), problems, "{text}");
        }
    }
}
