//! Rules about single files: the header, the length, words and paths that must not occur.

use super::mask::{Masked, is_word, mask, test_lines};
use super::table::{Exception, Kind, Table};
use super::{Problem, TextFile};

const LINES_MAX: usize = 900;
const LINES_WITHOUT_TESTS_MAX: usize = 600;

/// Something that must not occur, and what to do instead.
struct Ban {
    /// Name in an exception of crates.toml.
    rule: &'static str,
    /// Any of them; `…` stands for anything on the same line.
    patterns: &'static [&'static str],
    place: Place,
    scope: Scope,
    instead: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Code of Rust files, without strings and comments.
    Code,
    /// Code and comments of Rust files, and all of any other file.
    Text,
    /// Every file, strings included.
    Anywhere,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    Everywhere,
    /// Everything but tests.
    Production,
    /// Library crates, without their tests.
    Libraries,
    /// Those of them that are not named.
    LibrariesBut(&'static [&'static str]),
    /// These crates, without their tests.
    Crates(&'static [&'static str]),
}

// The patterns that are searched for in strings too, or in all text, are written in two parts: this file is no
// exception.
const BANS: &[Ban] = &[
    Ban {
        rule: "unfinished",
        patterns: &["todo!(", "unimplemented!("],
        place: Place::Code,
        scope: Scope::Everywhere,
        instead: "return a typed error, or leave the function out until it works",
    },
    Ban {
        rule: "unfinished",
        patterns: &[concat!("TO", "DO"), concat!("FIX", "ME")],
        place: Place::Text,
        scope: Scope::Everywhere,
        instead: "do it, or open an issue",
    },
    Ban {
        rule: "unwrap",
        patterns: &[".unwrap()"],
        place: Place::Code,
        scope: Scope::Production,
        instead: "use `?` with a typed error, or `.expect(\"invariant: …\")` for what cannot be",
    },
    Ban {
        rule: "environment",
        patterns: &["std::env"],
        place: Place::Code,
        scope: Scope::Libraries,
        instead: "take an argument; only trine-cli reads the environment (contract C9)",
    },
    Ban {
        rule: "global",
        patterns: &[
            "thread_local!",
            "static mut ",
            "static …OnceLock<",
            "static …LazyLock<",
            "static …Mutex<",
            "static …RwLock<",
            "static …Atomic",
        ],
        place: Place::Code,
        scope: Scope::Libraries,
        instead: "hold it in a value that is passed on; ranks are threads and share every global (contract C9)",
    },
    // candle-nn 0.11.1: softmax_last_dim, rms_norm, layer_norm, rope, rope_i, rope_thd and flash_attn return tensors
    // without a graph, so a model that uses them trains with missing gradients and no error. The no_bwd operations of
    // candle-core do the same, and it swaps the gradients of scatter and scatter_add.
    Ban {
        rule: "gradient",
        patterns: &[
            "candle_nn",
            "apply_op1_no_bwd",
            "apply_op2_no_bwd",
            "apply_op3_no_bwd",
            "Tensor::scatter",
        ],
        place: Place::Code,
        scope: Scope::Everywhere,
        instead: "its gradient is missing or wrong in silence: use trine-nn, or an operation with a checked backward",
    },
    Ban {
        rule: "random",
        patterns: &["Tensor::rand"],
        place: Place::Code,
        scope: Scope::Everywhere,
        instead: "draw from trine-rng: candle's CPU generator cannot be seeded (contract C1)",
    },
    // A family is a name for what its pieces consist of. Who reads pieces works for every family and for pieces of
    // one's own.
    Ban {
        rule: "family",
        patterns: &["Family"],
        place: Place::Code,
        scope: Scope::LibrariesBut(&["trine-spec", "trine-models", "trine-testkit"]),
        instead: "read the parts of the model (`ModelParts`): only the zoo knows families",
    },
    Ban {
        rule: "family",
        patterns: &["ModelSpec"],
        place: Place::Code,
        scope: Scope::Crates(&[
            "trine-nn",
            "trine-optim",
            "trine-shard",
            "trine-dp",
            "trine-pipeline",
        ]),
        instead: "read layouts and names of parameters: below the zoo nobody knows what a model is",
    },
    Ban {
        rule: "machine path",
        patterns: &[
            concat!("/ho", "me/"),
            concat!("/Us", "ers/"),
            concat!("/ro", "ot/"),
            concat!("/wo", "rk/"),
            concat!("/t", "mp/"),
            concat!("C:", "\\"),
        ],
        place: Place::Anywhere,
        scope: Scope::Everywhere,
        instead: "use a path relative to the repository, or a temporary folder",
    },
];

/// All rules about single files.
pub(super) fn check(table: &Table, files: &[TextFile]) -> Vec<Problem> {
    let mut findings = Vec::new();
    for file in files {
        let masked = file.is_rust().then(|| mask(&file.text));
        if let Some(masked) = &masked {
            findings.extend(check_header(file));
            findings.extend(check_length(file, &masked.code));
        }
        findings.extend(check_bans(file, masked.as_ref(), table.kind_of(&file.path)));
    }
    apply_exceptions(&table.exceptions, findings)
}

/// A problem that an exception may let pass.
struct Finding {
    rule: &'static str,
    problem: Problem,
}

/// Every Rust file says in its first line what it is for.
fn check_header(file: &TextFile) -> Option<Finding> {
    let has_header = file.text.starts_with("//! ");
    let text = "the first line must be `//! …`: what is this file for?";
    let problem = || Problem::line(&file.path, 1, text);
    (!has_header).then(|| Finding { rule: "header", problem: problem() })
}

/// Files stay short enough to be read; the part without tests even more so.
fn check_length(file: &TextFile, code: &str) -> Option<Finding> {
    let lines = file.text.lines().count();
    let in_tests = test_lines(code).into_iter().filter(|is_test| *is_test).count();
    let without_tests = if is_test_file(&file.path) { 0 } else { lines - in_tests };
    let text = if lines > LINES_MAX {
        format!("{lines} lines, at most {LINES_MAX}: split it by topic")
    } else if without_tests > LINES_WITHOUT_TESTS_MAX {
        format!(
            "{without_tests} lines without tests, at most {LINES_WITHOUT_TESTS_MAX}: split it by topic"
        )
    } else {
        return None;
    };
    Some(Finding { rule: "length", problem: Problem::file(&file.path, text) })
}

/// True for files that hold nothing but tests.
pub(super) fn is_test_file(path: &str) -> bool {
    let mut parts = path.rsplit('/');
    let name = parts.next().unwrap_or(path);
    name == "tests.rs"
        || name.ends_with("_tests.rs")
        || parts.any(|part| part == "tests" || part == "benches")
}

fn check_bans(file: &TextFile, masked: Option<&Masked>, kind: Kind) -> Vec<Finding> {
    let is_test = masked.map_or_else(Vec::new, |masked| test_lines(&masked.code));
    let whole_file_tests = is_test_file(&file.path);
    let mut findings = Vec::new();
    for ban in BANS {
        let views: Vec<&str> = match (ban.place, masked) {
            (Place::Code, None) => continue,
            (Place::Code, Some(masked)) => vec![&masked.code],
            (Place::Text, Some(masked)) => vec![&masked.code, &masked.comments],
            (Place::Text, None) | (Place::Anywhere, _) => vec![&file.text],
        };
        for (at, line) in views.iter().flat_map(|view| view.lines().enumerate()) {
            let in_test = whole_file_tests || is_test.get(at).copied().unwrap_or(false);
            if !in_scope(ban.scope, kind, &file.path, in_test) {
                continue;
            }
            if let Some(pattern) = ban.patterns.iter().find(|pattern| has_pattern(line, pattern)) {
                let text = format!("`{pattern}`: {}", ban.instead);
                let problem = Problem::line(&file.path, at + 1, text);
                findings.push(Finding { rule: ban.rule, problem });
            }
        }
    }
    findings
}

fn in_scope(scope: Scope, kind: Kind, path: &str, in_test: bool) -> bool {
    let is_library = !in_test && matches!(kind, Kind::Library | Kind::Dev);
    let is_of = |crates: &[&str]| {
        crates.iter().any(|name| path.starts_with(&format!("crates/{name}/src/")))
    };
    match scope {
        Scope::Everywhere => true,
        Scope::Production => !in_test,
        Scope::Libraries => is_library,
        Scope::LibrariesBut(crates) => is_library && !is_of(crates),
        Scope::Crates(crates) => is_library && is_of(crates),
    }
}

/// True if all parts of `pattern` occur in `line`.
fn has_pattern(line: &str, pattern: &str) -> bool {
    pattern.split('…').all(|word| has_word(line, word))
}

/// True if `word` occurs in `line` and does not begin inside a longer word, path or lifetime.
fn has_word(line: &str, word: &str) -> bool {
    let begins_inside = |before: char| match word.chars().next() {
        Some('/') => is_word(before) || matches!(before, '.' | '-' | '~' | '}' | '/' | '*'),
        Some(first) if is_word(first) => is_word(before) || before == '\'',
        _ => false,
    };
    line.match_indices(word)
        .any(|(at, _)| !line[..at].chars().next_back().is_some_and(begins_inside))
}

/// Drops what crates.toml lets pass, and reports exceptions without a reason or without a use.
fn apply_exceptions(exceptions: &[Exception], findings: Vec<Finding>) -> Vec<Problem> {
    let matches = |exception: &Exception, finding: &Finding| {
        exception.rule == finding.rule && exception.path == finding.problem.path
    };
    let mut problems = Vec::new();
    for exception in exceptions {
        let name = format!("the exception \"{}\" for {}", exception.rule, exception.path);
        if exception.reason.trim().is_empty() {
            problems.push(Problem::file(super::table::PATH, format!("{name} has no reason")));
        }
        if !findings.iter().any(|finding| matches(exception, finding)) {
            problems
                .push(Problem::file(super::table::PATH, format!("{name} is not needed; drop it")));
        }
    }
    let kept =
        findings.into_iter().filter(|finding| !exceptions.iter().any(|e| matches(e, finding)));
    problems.extend(kept.map(|finding| finding.problem));
    problems
}

#[cfg(test)]
mod tests {
    use super::super::table::Row;
    use super::*;

    fn table() -> Table {
        let row = |name: &str, kind| Row {
            name: name.to_owned(),
            purpose: "p".to_owned(),
            kind,
            pure: false,
            uses: Vec::new(),
        };
        let crates = ["lib", "trine-nn", "trine-models"].map(|name| row(name, Kind::Library));
        let crates = crates.into_iter().chain([row("bin", Kind::Binary)]).collect();
        Table { crates, exceptions: Vec::new() }
    }

    fn found(path: &str, text: &str) -> Vec<Problem> {
        check(&table(), &[TextFile { path: path.to_owned(), text: text.to_owned() }])
    }

    /// Checks `line` as the second line of a library file.
    fn found_in_library(line: &str) -> Vec<Problem> {
        found_in("lib", line)
    }

    /// Checks `line` as the second line of a file of a crate.
    fn found_in(name: &str, line: &str) -> Vec<Problem> {
        found(&format!("crates/{name}/src/a.rs"), &format!("//! A.\n{line}\n"))
    }

    #[track_caller]
    fn assert_one(problems: &[Problem], line: usize, part: &str) {
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert_eq!(problems[0].line, line, "{problems:?}");
        assert!(problems[0].text.contains(part), "{problems:?} does not say {part}");
    }

    #[test]
    fn a_file_without_a_header_fails() {
        assert!(found("crates/lib/src/a.rs", "//! A.\nfn a() {}\n").is_empty());
        assert_one(&found("crates/lib/src/a.rs", "fn a() {}\n"), 1, "first line");
        assert_one(&found("crates/lib/src/a.rs", "//!\n"), 1, "first line");
        assert!(found("a.md", "fn a() {}\n").is_empty());
    }

    #[test]
    fn long_files_fail_and_tests_count_less() {
        let code = |lines: usize| "//! A.\n".to_owned() + &"fn a() {}\n".repeat(lines - 1);
        assert!(found("crates/lib/src/a.rs", &code(600)).is_empty());
        assert_one(&found("crates/lib/src/a.rs", &code(601)), 0, "601 lines without tests");
        assert!(found("crates/lib/src/tests.rs", &code(900)).is_empty());
        assert_one(&found("crates/lib/tests/a.rs", &code(901)), 0, "901 lines, at most");
        let tests = |lines: usize| {
            code(600) + "#[cfg(test)]\nmod tests {\n" + &"fn a() {}\n".repeat(lines - 3) + "}\n"
        };
        assert!(found("crates/lib/src/a.rs", &tests(300)).is_empty());
        assert_one(&found("crates/lib/src/a.rs", &tests(301)), 0, "901 lines, at most");
    }

    /// One line for every pattern of the table, in its order.
    #[test]
    fn every_banned_word_fails() {
        let samples = [
            "fn a() { todo!() }".to_owned(),
            "fn a() { unimplemented!(\"later\") }".to_owned(),
            format!("// {}: later", concat!("TO", "DO")),
            format!("/* {} */", concat!("FIX", "ME")),
            "fn a() { b.unwrap(); }".to_owned(),
            "use std::env;".to_owned(),
            "thread_local! { }".to_owned(),
            "static mut A: u8 = 0;".to_owned(),
            "static A: OnceLock<u8> = OnceLock::new();".to_owned(),
            "pub static A: LazyLock<u8> = f();".to_owned(),
            "static A: Mutex<u8> = Mutex::new(0);".to_owned(),
            "static A: RwLock<u8> = RwLock::new(0);".to_owned(),
            "static A: AtomicU8 = AtomicU8::new(0);".to_owned(),
            "use candle_nn::ops;".to_owned(),
            "x.apply_op1_no_bwd(&op)".to_owned(),
            "x.apply_op2_no_bwd(&y, &op)".to_owned(),
            "x.apply_op3_no_bwd(&y, &z, &op)".to_owned(),
            "Tensor::scatter_add(&x, &i, &s, 0)".to_owned(),
            "Tensor::randn(0f32, 1.0, 4, &device)".to_owned(),
            "fn a(family: Family) {}".to_owned(),
            "fn a(model: &ModelSpec) {}".to_owned(),
            format!("const P: &str = \"{}me/a\";", "/ho"),
            format!("// see {}ers/a/b", "/Us"),
            format!("f(\"{}ot/a\")", "/ro"),
            format!("f(\"{}rk/a\")", "/wo"),
            format!("f(\"{}mp/a\")", "/t"),
            format!("f(\"{}\\a\")", "C:"),
        ];
        let rows =
            BANS.iter().flat_map(|ban| ban.patterns.iter().map(move |pattern| (ban, pattern)));
        assert_eq!(samples.len(), rows.clone().count());
        for (sample, (ban, pattern)) in samples.iter().zip(rows) {
            let problems = match ban.scope {
                Scope::Crates(crates) => found_in(crates[0], sample),
                Scope::Everywhere
                | Scope::Production
                | Scope::Libraries
                | Scope::LibrariesBut(_) => found_in_library(sample),
            };
            assert_one(&problems, 2, ban.instead);
            assert!(problems[0].text.contains(pattern), "{problems:?} is not about {pattern}");
        }
    }

    #[test]
    fn strings_comments_and_longer_words_pass() {
        for line in [
            "f(\"todo!() .unwrap() std::env\");",
            "/// ```\n/// a.unwrap();\n/// ```",
            "fn a(x: &'static OnceLock<u8>) {}",
            "struct A { once: OnceLock<u8> }",
            "fn my_todo!() {}",
            "let path = \"target/tmp/a\";",
            "// https://example.org/home/a",
        ] {
            let problems = found_in_library(line);
            assert!(problems.is_empty(), "{line}: {problems:?}");
        }
    }

    #[test]
    fn scopes_are_kept() {
        let test = "#[cfg(test)]\nmod tests {\n    fn a() { b.unwrap(); std::env::var(\"A\"); }\n}";
        assert!(found_in_library(test).is_empty());
        assert!(found("crates/lib/tests/a.rs", "//! A.\nfn a() { b.unwrap() }\n").is_empty());
        assert!(found("crates/bin/src/main.rs", "//! A.\nuse std::env;\n").is_empty());
        assert!(found_in("trine-models", "fn a(family: Family) {}").is_empty());
        assert!(found_in("trine-models", "fn a(model: &ModelSpec) {}").is_empty());
        assert!(found_in("bin", "fn a(family: Family) {}").is_empty());
        assert_one(&found("crates/bin/src/main.rs", "//! A.\nfn a() { b.unwrap() }\n"), 2, "`?`");
        let path = format!("see {}rk/a\n", "/wo");
        assert_one(&found("README.md", &path), 1, "relative");
    }

    #[test]
    fn exceptions_need_a_use_and_a_reason() {
        let exception = |path: &str, reason: &str| Exception {
            rule: "header".to_owned(),
            path: path.to_owned(),
            reason: reason.to_owned(),
        };
        let files = [TextFile { path: "a.rs".to_owned(), text: "fn a() {}\n".to_owned() }];
        let with = |exception| Table { exceptions: vec![exception], ..table() };
        assert!(check(&with(exception("a.rs", "generated")), &files).is_empty());
        assert_one(&check(&with(exception("a.rs", " ")), &files), 0, "no reason");
        let unused = check(&with(exception("b.rs", "generated")), &files);
        assert_eq!(unused.len(), 2);
        assert!(unused[0].text.contains("not needed"));
    }
}
