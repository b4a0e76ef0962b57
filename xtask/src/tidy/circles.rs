//! The modules of a crate: none uses one that uses it, by itself or through others.

use std::collections::{BTreeMap, BTreeSet};

use super::mask::{is_word, mask, test_lines};
use super::sources::is_test_file;
use super::{Problem, TextFile};

/// Crates whose modules use each other through names that the root passes on. In these only a path that names a module
/// counts.
const LOOSE: &[&str] =
    &["trine-buffer", "trine-kernels", "trine-models", "trine-schedule", "trine-spec"];

/// Where the names of a crate's root are at home: its modules in themselves, what it passes on in their modules.
type Homes = BTreeMap<String, String>;

/// By user and used module of one crate, outside of tests: the first place.
type Uses<'a> = BTreeMap<&'a str, BTreeMap<String, Place<'a>>>;

struct Place<'a> {
    path: &'a str,
    line: usize,
}

/// A source file of a crate.
struct Source<'a> {
    path: &'a str,
    /// Its top-level module; `lib` or `main` is the root.
    module: &'a str,
    code: String,
}

/// Every use that closes a circle between top-level modules. The root of a crate and its `error` are left out: one
/// declares all modules, the other has their errors.
pub(super) fn check(files: &[TextFile]) -> Vec<Problem> {
    let mut crates: BTreeMap<&str, Vec<Source<'_>>> = BTreeMap::new();
    for file in files.iter().filter(|file| file.is_rust() && !is_test_file(&file.path)) {
        if let Some((name, module)) = in_crate(&file.path) {
            let source = Source { path: &file.path, module, code: without_tests(&file.text) };
            crates.entry(name).or_default().push(source);
        }
    }
    crates.iter().flat_map(|(name, sources)| check_crate(name, sources)).collect()
}

/// The crate of a source file, and its top-level module.
fn in_crate(path: &str) -> Option<(&str, &str)> {
    let (name, path) = path.strip_prefix("crates/")?.split_once("/src/")?;
    Some((name, path.split(['/', '.']).next()?))
}

fn check_crate(name: &str, sources: &[Source<'_>]) -> Vec<Problem> {
    let root = || sources.iter().filter(|source| matches!(source.module, "lib" | "main"));
    let modules: Homes = root().flat_map(|root| modules(&root.code)).collect();
    let passed_on = root().flat_map(|root| passed_on(&root.code, &modules));
    let all = passed_on.chain(modules.clone()).collect();
    let problems = circles(&uses(sources, &all));
    match (LOOSE.contains(&name), problems.is_empty()) {
        (false, _) => problems,
        (true, false) => circles(&uses(sources, &modules)),
        (true, true) => {
            let text = format!("{name} has no circles any more: drop it from LOOSE");
            vec![Problem::file("xtask/src/tidy/circles.rs", text)]
        }
    }
}

fn uses<'a>(sources: &[Source<'a>], homes: &Homes) -> Uses<'a> {
    let mut uses = Uses::new();
    // What the root does not declare outside of tests has no home.
    let is_module =
        |source: &&Source<'_>| source.module != "error" && homes.contains_key(source.module);
    for Source { path, module, code } in sources.iter().filter(is_module) {
        let uses = uses.entry(*module).or_default();
        for (used, line) in used(code, module, homes) {
            uses.entry(used).or_insert(Place { path, line });
        }
    }
    uses
}

/// The code of a source without comments, literals and items of tests. Lines stay.
fn without_tests(source: &str) -> String {
    let code = mask(source).code;
    let lines = code.lines().zip(test_lines(&code));
    lines.flat_map(|(line, is_test)| [if is_test { "" } else { line }, "\n"]).collect()
}

/// The modules that the root declares, at home in themselves.
fn modules(root: &str) -> impl Iterator<Item = (String, String)> {
    let names = after(root, "mod ").map(|(_, rest)| split_word(rest).0.to_owned());
    names.map(|name| (name.clone(), name))
}

/// The names that the root has from its modules, with those.
fn passed_on(root: &str, modules: &Homes) -> Vec<(String, String)> {
    let names = after(root, "use ").flat_map(|(_, rest)| tree(rest));
    let of_modules = names.filter(|(first, _)| modules.contains_key(*first));
    of_modules.map(|(first, name)| (name.to_owned(), first.to_owned())).collect()
}

/// The other modules that a file of the module `user` uses, with the lines (from 1).
fn used(code: &str, user: &str, homes: &Homes) -> Vec<(String, usize)> {
    let mut used = Vec::new();
    for (line, rest) in after(code, "crate::") {
        let all = tree(rest).into_iter().filter_map(|(first, _)| homes.get(first));
        used.extend(all.filter(|home| *home != user).map(|home| (home.clone(), line)));
    }
    used
}

/// What stands behind each `word` that begins no longer word, with its line (from 1).
fn after<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = (usize, &'a str)> {
    let begins = move |at: &usize| !code[..*at].ends_with(is_word);
    let found = code.match_indices(word).map(|(at, _)| at).filter(begins);
    found.map(move |at| (code[..at].matches('\n').count() + 1, &code[at + word.len()..]))
}

/// The first and the last name of each path of a use tree, or of a path in code: `a::{B, c::D as E}` gives `a`, `B` and
/// `a`, `E`.
fn tree(text: &str) -> Vec<(&str, &str)> {
    if let Some(group) = text.trim_start().strip_prefix('{') {
        return parts(group).into_iter().flat_map(tree).collect();
    }
    let (first, rest) = split_word(text);
    if first.is_empty() {
        return Vec::new();
    }
    if let Some(inner) = rest.strip_prefix("::").map(tree).filter(|inner| !inner.is_empty()) {
        return inner.into_iter().map(|(_, name)| (first, name)).collect();
    }
    let renamed = rest.trim_start().strip_prefix("as ").map(|rest| split_word(rest).0);
    vec![(first, renamed.unwrap_or(first))]
}

/// The word that `text` begins with, and the rest.
fn split_word(text: &str) -> (&str, &str) {
    let text = text.trim_start();
    text.split_at(text.find(|c| !is_word(c)).unwrap_or(text.len()))
}

/// What stands between the commas of a group, up to the brace that closes it.
fn parts(group: &str) -> Vec<&str> {
    let (mut parts, mut from, mut depth) = (Vec::new(), 0, 0_usize);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                parts.push(&group[from..at]);
                from = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    parts
}

/// Every use that closes a circle.
fn circles(uses: &Uses<'_>) -> Vec<Problem> {
    let edges = uses.iter().flat_map(|(user, used)| used.iter().map(move |edge| (user, edge)));
    let closing = edges.filter(|(user, (used, _))| reaches(uses, used, user));
    let problem = |(user, (used, place)): (&&str, (&String, &Place<'_>))| {
        let text = format!(
            "the module `{user}` uses `{used}`, which uses `{user}`, itself or through others: move what both need to \
             where neither is above"
        );
        Problem::line(place.path, place.line, text)
    };
    closing.map(problem).collect()
}

/// True if the module `from` uses `to`, itself or through others.
fn reaches(uses: &Uses<'_>, from: &str, to: &str) -> bool {
    let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
    while let Some(module) = open.pop() {
        if module == to {
            return true;
        }
        if seen.insert(module) {
            open.extend(uses.get(module).into_iter().flat_map(BTreeMap::keys).map(String::as_str));
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The problems of a crate with these files.
    fn found(name: &str, files: &[(&str, &str)]) -> Vec<String> {
        let file = |(path, text): &(&str, &str)| TextFile {
            path: format!("crates/{name}/src/{path}"),
            text: (*text).to_owned(),
        };
        let files: Vec<_> = files.iter().map(file).collect();
        check(&files).iter().map(Problem::to_string).collect()
    }

    #[track_caller]
    fn assert_circle(files: &[(&str, &str)], starts: &[&str]) {
        let problems = found("c", files);
        assert_eq!(problems.len(), starts.len(), "{problems:#?}");
        for (problem, start) in problems.iter().zip(starts) {
            assert!(
                problem.starts_with(&format!("crates/c/src/{start}")),
                "{problem} is not {start}"
            );
        }
    }

    const ROOT: (&str, &str) = (
        "lib.rs",
        "mod a;\nmod b;\nmod c;\npub use a::A;\npub use b::{B, deep::{Deep, Old as New}};\nstruct OfRoot;\n",
    );

    #[test]
    fn a_circle_is_found_at_each_of_its_uses() {
        let a = ("a.rs", "\nuse crate::b::x;\n");
        assert_circle(
            &[ROOT, a, ("b.rs", "fn f() { crate::c::y() }"), ("c.rs", "use crate::b;")],
            &["b.rs:1: the module `b` uses `c`", "c.rs:1: the module `c` uses `b`"],
        );
        let (b, c) = (("b/deep.rs", "\n\nuse crate::c::y;"), ("c/mod.rs", "use crate::a::z;"));
        assert_circle(&[ROOT, a, b, c], &["a.rs:2:", "b/deep.rs:3:", "c/mod.rs:1:"]);
    }

    #[test]
    fn names_that_the_root_passes_on_are_of_their_modules() {
        for name in ["B", "Deep", "New", "{OfRoot, New}", "{\n    c::{x, y},\n    Deep as D,\n}"] {
            let a = format!("use crate::{name};");
            assert_circle(
                &[ROOT, ("a.rs", &a), ("b.rs", "impl F for crate::A {}")],
                &["a.rs:1:", "b.rs:1:"],
            );
        }
    }

    #[test]
    fn what_is_no_circle_passes() {
        let a = "use crate::{B, OfRoot, a::x, b::{y, z}};";
        let tests = "#[cfg(test)]\nmod tests {\n    use crate::a::x;\n}\n";
        for b in [
            "use crate::c::x;",
            "// crate::a",
            "f(\"crate::A\")",
            "use mycrate::A;",
            "use crate::Old;",
            tests,
        ] {
            assert_circle(&[ROOT, ("a.rs", a), ("b.rs", b), ("b/tests.rs", "use crate::A;")], &[]);
        }
        let root = "mod a;\n#[cfg(test)]\nmod b;\npub use a::A;\n";
        assert_circle(
            &[("main.rs", root), ("a.rs", "use crate::b;"), ("b.rs", "use crate::A;")],
            &[],
        );
    }

    #[test]
    fn loose_crates_may_have_circles_of_names_only() {
        let (name, b) = (LOOSE[0], ("b.rs", "use crate::A;"));
        assert_eq!(found(name, &[ROOT, ("a.rs", "use crate::B;"), b]), [""; 0]);
        assert_eq!(
            found(name, &[ROOT, ("a.rs", "use crate::B;"), ("b.rs", "use crate::a::A;")]),
            [""; 0]
        );
        let direct = [ROOT, ("a.rs", "use crate::b::B;"), ("b.rs", "use crate::a::A;")];
        assert_eq!(found(name, &direct).len(), 2);
        assert!(found(name, &[ROOT, b])[0].contains("no circles any more"));
    }
}
