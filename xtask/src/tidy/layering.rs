//! The layering: crates.toml against `cargo metadata`, and the tables of the documents against crates.toml.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::table::{self, Kind, Row, Table};
use super::{Problem, TextFile};
use crate::workspace::{Dependency, Package};

/// What a pure crate's own clippy.toml must forbid.
const PURE_FORBIDS: &[&str] = &[
    "std::time::Instant::now",
    "std::time::SystemTime::now",
    "std::env::var",
    "std::thread::spawn",
];

/// A section of a document that is written from crates.toml.
struct Section {
    path: &'static str,
    /// Stands in the markers around it.
    name: &'static str,
    render: fn(&Table) -> String,
}

const SECTIONS: &[Section] = &[
    Section { path: "README.md", name: "crates", render: purposes },
    Section { path: "docs/architecture.md", name: "layering", render: edges },
];

/// The table itself: one row a crate, from the bottom up, with a purpose.
pub(super) fn check_table(table: &Table) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut above: BTreeSet<&str> = BTreeSet::new();
    for row in &table.crates {
        let mut report = |text: String| problems.push(Problem::file(table::PATH, text));
        if row.purpose.trim().is_empty() {
            report(format!("{} has no purpose", row.name));
        }
        for used in &row.uses {
            report_use(table, row, used, above.contains(used.as_str()), &mut report);
        }
        if !above.insert(&row.name) {
            report(format!("{} has two rows", row.name));
        }
    }
    problems
}

fn report_use(
    table: &Table,
    row: &Row,
    used: &str,
    is_above: bool,
    report: &mut impl FnMut(String),
) {
    if !is_above {
        report(format!("{} uses {used}, which has no row above it", row.name));
        return;
    }
    let Some(target) = table.row(used) else { return };
    match target.kind {
        Kind::Library => {}
        Kind::Dev if row.kind == Kind::Tool => {}
        Kind::Dev => report(format!("{} may use {used} as a dev-dependency only", row.name)),
        Kind::Binary | Kind::Tool => {
            report(format!("{} uses {used}, which is no library", row.name))
        }
    }
    if row.pure && !target.pure {
        report(format!("{} is pure and uses {used}, which is not", row.name));
    }
}

/// The edges between members: those of the table and no others.
pub(super) fn check_edges(table: &Table, members: &[Package]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for member in members {
        match table.row(&member.name) {
            None => problems.push(Problem::file(
                table::PATH,
                format!("the crate {} has no row; add one with its purpose", member.name),
            )),
            Some(row) => problems.extend(check_member(table, row, member)),
        }
    }
    let named = |row: &&Row| !members.iter().any(|member| member.name == row.name);
    problems.extend(table.crates.iter().filter(named).map(|row| {
        Problem::file(
            table::PATH,
            format!("{} has a row but is no member; create it or drop the row", row.name),
        )
    }));
    problems
}

fn check_member(table: &Table, row: &Row, member: &Package) -> Vec<Problem> {
    let path = format!("{}: Cargo.toml", member.name);
    let texts = member.dependencies.iter().filter_map(|dependency| {
        match (dependency.path.is_some(), dependency.is_dev()) {
            (false, false) => check_external(row, &dependency.name),
            (true, false) => check_edge(row, &dependency.name),
            (true, true) => check_dev_edge(table, row, dependency),
            (false, true) => None,
        }
    });
    texts.map(|text| Problem::file(&path, text)).collect()
}

fn check_external(row: &Row, name: &str) -> Option<String> {
    let is_impure = row.pure && name.starts_with("candle");
    is_impure.then(|| format!("a pure crate must not depend on {name}"))
}

fn check_edge(row: &Row, name: &String) -> Option<String> {
    let allowed = if row.uses.is_empty() { "none".to_owned() } else { row.uses.join(", ") };
    let is_other = !row.uses.contains(name);
    is_other.then(|| {
        format!("depends on {name}, which {} does not allow (allowed: {allowed})", table::PATH)
    })
}

fn check_dev_edge(table: &Table, row: &Row, dependency: &Dependency) -> Option<String> {
    let name = &dependency.name;
    let used = table.row(name)?;
    if matches!(used.kind, Kind::Binary | Kind::Tool) {
        return Some(format!("has a dev-dependency on {name}, which is no library"));
    }
    // cargo drops a dev-dependency without a version from the archive. One with a version would have to be published
    // first, while it waits for this crate itself.
    let is_below = table.crates.iter().position(|other| other.name == *name)
        < table.crates.iter().position(|other| other.name == row.name);
    let is_fine = row.kind == Kind::Tool || dependency.req == "*" || is_below;
    (!is_fine).then(|| {
        format!("the dev-dependency {name} is a layer above: name it by path, without a version, or this crate cannot be packaged")
    })
}

/// Every pure crate has a clippy.toml of its own that forbids what would make it impure.
pub(super) fn check_pure(table: &Table, members: &[Package], files: &[TextFile]) -> Vec<Problem> {
    let exists = |row: &&Row| row.pure && members.iter().any(|member| member.name == row.name);
    let mut problems = Vec::new();
    for row in table.crates.iter().filter(exists) {
        let path = format!("crates/{}/clippy.toml", row.name);
        let text =
            files.iter().find(|file| file.path == path).map_or("", |file| file.text.as_str());
        let missing = PURE_FORBIDS.iter().filter(|forbidden| !text.contains(**forbidden));
        problems.extend(missing.map(|forbidden| {
            Problem::file(&path, format!("a pure crate must disallow {forbidden}"))
        }));
    }
    problems
}

/// Every crate has a paragraph in the code map.
pub(super) fn check_code_map(table: &Table, architecture: &TextFile) -> Vec<Problem> {
    let has_paragraph = |row: &&Row| {
        architecture.text.lines().any(|line| line.trim_end() == format!("### `{}`", row.name))
    };
    let missing = table.crates.iter().filter(|row| !has_paragraph(row));
    missing
        .map(|row| {
            Problem::file(&architecture.path, format!("no paragraph \"### `{}`\"", row.name))
        })
        .collect()
}

/// The documents with generated sections, as they should be; with what is wrong where they are not.
pub(super) fn generated(table: &Table, files: &[TextFile]) -> (Vec<TextFile>, Vec<Problem>) {
    let mut changed = Vec::new();
    let mut problems = Vec::new();
    for Section { path, name, render } in SECTIONS {
        let Some(file) = files.iter().find(|file| file.path == *path) else {
            problems.push(Problem::file(path, "does not exist"));
            continue;
        };
        match replace_section(&file.text, name, &render(table)) {
            None => problems
                .push(Problem::file(path, format!("no markers `{}`", marker(name, "begin")))),
            Some(text) if text != file.text => {
                problems.push(Problem::file(
                    path,
                    format!(
                        "the section `{name}` differs from {}: run `cargo xtask tidy --bless`",
                        table::PATH
                    ),
                ));
                changed.push(TextFile { path: file.path.clone(), text });
            }
            Some(_) => {}
        }
    }
    (changed, problems)
}

fn marker(name: &str, end: &str) -> String {
    format!("<!-- {name}:{end} -->")
}

/// `text` with the lines between the markers of `name` replaced.
fn replace_section(text: &str, name: &str, section: &str) -> Option<String> {
    let (before, rest) = text.split_once(&marker(name, "begin"))?;
    let (_, after) = rest.split_once(&marker(name, "end"))?;
    Some(format!("{before}{}\n{section}{}{after}", marker(name, "begin"), marker(name, "end")))
}

fn purposes(table: &Table) -> String {
    let mut text = "| crate | what it is for |\n|---|---|\n".to_owned();
    for row in table.crates.iter().filter(|row| row.kind != Kind::Tool) {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "| `{}` | {} |", row.name, row.purpose);
    }
    text
}

fn edges(table: &Table) -> String {
    let mut text = "| crate | kind | may depend on |\n|---|---|---|\n".to_owned();
    for row in &table.crates {
        let kind = match (row.kind, row.pure) {
            (Kind::Library, true) => "library, pure",
            (Kind::Library, false) => "library",
            (Kind::Binary, _) => "binary",
            (Kind::Dev, _) => "dev-dependency only",
            (Kind::Tool, _) => "tool",
        };
        let short = |name: &String| name.trim_start_matches("trine-").to_owned();
        let uses = row.uses.iter().map(short).collect::<Vec<_>>().join(", ");
        let uses = if uses.is_empty() { "–".to_owned() } else { uses };
        let _ = writeln!(text, "| `{}` | {kind} | {uses} |", row.name);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn row(name: &str, kind: Kind, uses: &[&str]) -> Row {
        let uses = uses.iter().map(|name| (*name).to_owned()).collect();
        Row { name: name.to_owned(), purpose: "p".to_owned(), kind, pure: false, uses }
    }

    fn table(crates: Vec<Row>) -> Table {
        Table { crates, exceptions: Vec::new() }
    }

    fn member(name: &str, dependencies: &[(&str, Option<&str>)]) -> Package {
        let dependency = |(name, kind): &(&str, Option<&str>)| Dependency {
            name: (*name).to_owned(),
            req: "*".to_owned(),
            kind: kind.map(str::to_owned),
            path: (!name.starts_with("candle")).then(|| PathBuf::from("somewhere")),
            rename: None,
        };
        let dependencies = dependencies.iter().map(dependency).collect();
        Package { dependencies, ..Package::of_test(name) }
    }

    #[track_caller]
    fn assert_one(problems: &[Problem], part: &str) {
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].text.contains(part), "{problems:?} does not say {part}");
    }

    fn three() -> Table {
        table(vec![
            row("a", Kind::Library, &[]),
            row("b", Kind::Library, &["a"]),
            row("kit", Kind::Dev, &["a"]),
        ])
    }

    #[test]
    fn a_sound_table_and_its_edges_pass() {
        let members = [
            member("a", &[("kit", Some("dev"))]),
            member("b", &[("a", None), ("candle-core", None)]),
            member("kit", &[("a", None)]),
        ];
        assert!(check_table(&three()).is_empty());
        assert!(check_edges(&three(), &members).is_empty());
    }

    #[test]
    fn other_edges_fail() {
        let kit = member("kit", &[]);
        let up = [member("a", &[("b", None)]), member("b", &[]), kit.clone()];
        assert_one(&check_edges(&three(), &up), "depends on b");
        let build = [member("a", &[("b", Some("build"))]), member("b", &[]), kit.clone()];
        assert_one(&check_edges(&three(), &build), "depends on b");
        let normal = [member("a", &[]), member("b", &[("kit", None)]), kit];
        assert_one(&check_edges(&three(), &normal), "depends on kit");
    }

    #[test]
    fn a_dev_dependency_above_has_no_version() {
        let mut members = [
            member("a", &[("kit", Some("dev"))]),
            member("b", &[("a", Some("dev"))]),
            member("kit", &[]),
        ];
        members[1].dependencies[0].req = "^0.1.0".to_owned();
        assert!(check_edges(&three(), &members).is_empty());
        members[0].dependencies[0].req = "^0.1.0".to_owned();
        assert_one(&check_edges(&three(), &members), "cannot be packaged");
    }

    #[test]
    fn crates_and_rows_must_match() {
        let members = [member("a", &[]), member("b", &[]), member("kit", &[]), member("new", &[])];
        assert_one(&check_edges(&three(), &members), "new has no row");
        assert_one(&check_edges(&three(), &members[..2]), "kit has a row");
    }

    #[test]
    fn rows_may_use_only_libraries_above() {
        let upward = table(vec![row("a", Kind::Library, &["b"]), row("b", Kind::Library, &[])]);
        assert_one(&check_table(&upward), "no row above");
        let kit = table(vec![row("kit", Kind::Dev, &[]), row("a", Kind::Library, &["kit"])]);
        assert_one(&check_table(&kit), "dev-dependency only");
        let tool = table(vec![row("t", Kind::Tool, &[]), row("a", Kind::Library, &["t"])]);
        assert_one(&check_table(&tool), "is no library");
        let twice = table(vec![row("a", Kind::Library, &[]), row("a", Kind::Library, &[])]);
        assert_one(&check_table(&twice), "two rows");
    }

    #[test]
    fn a_pure_crate_stays_pure() {
        let mut rows = vec![row("a", Kind::Library, &[]), row("b", Kind::Library, &["a"])];
        rows[1].pure = true;
        assert_one(&check_table(&table(rows.clone())), "is not");
        rows[0].pure = true;
        let pure = table(rows);
        let members = [member("a", &[("candle-core", None)]), member("b", &[])];
        assert_one(&check_edges(&pure, &members), "candle-core");

        let good = PURE_FORBIDS.join("\n");
        let file = |name: &str, text: &str| TextFile {
            path: format!("crates/{name}/clippy.toml"),
            text: text.to_owned(),
        };
        assert!(check_pure(&pure, &members, &[file("a", &good), file("b", &good)]).is_empty());
        let partial = good.replace("std::env::var", "");
        assert_one(
            &check_pure(&pure, &members, &[file("a", &good), file("b", &partial)]),
            "std::env::var",
        );
        assert_eq!(check_pure(&pure, &members, &[file("a", &good)]).len(), PURE_FORBIDS.len());
    }

    #[test]
    fn a_crate_without_a_paragraph_fails() {
        let map = |text: &str| TextFile { path: "map.md".to_owned(), text: text.to_owned() };
        let all = "### `a`\ntext\n### `b`\n### `kit`\n";
        assert!(check_code_map(&three(), &map(all)).is_empty());
        assert_one(&check_code_map(&three(), &map("### `a`\n### `kit`\nb\n")), "### `b`");
    }

    #[test]
    fn generated_sections_are_compared_and_rewritten() {
        let stale = |path: &str, name: &str| TextFile {
            path: path.to_owned(),
            text: format!("top\n<!-- {name}:begin -->\nold\n<!-- {name}:end -->\nbottom\n"),
        };
        let files = [stale("README.md", "crates"), stale("docs/architecture.md", "layering")];
        let (changed, problems) = generated(&three(), &files);
        assert_eq!((changed.len(), problems.len()), (2, 2));
        assert!(changed[0].text.starts_with("top\n<!-- crates:begin -->\n| crate |"));
        assert!(changed[0].text.ends_with("| `kit` | p |\n<!-- crates:end -->\nbottom\n"));
        assert!(changed[1].text.contains("| `b` | library | a |\n"));
        let (again, problems) = generated(&three(), &changed);
        assert!(again.is_empty() && problems.is_empty(), "{problems:?}");
        let (_, problems) = generated(&three(), &changed[..1]);
        assert_one(&problems, "does not exist");
    }
}
