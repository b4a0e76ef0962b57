//! What a crate declares is used: rows of crates.toml by a manifest, dependencies by source.

use super::mask::{is_word, mask, test_lines};
use super::table::{self, Kind, Row, Table};
use super::{Problem, TextFile};
use crate::workspace::{Dependency, Package};

/// Edges of the table that no manifest has.
pub(super) fn check_rows(table: &Table, members: &[Package]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for row in &table.crates {
        let Some(member) = members.iter().find(|member| member.name == row.name) else { continue };
        let uses = |name: &String| {
            member
                .dependencies
                .iter()
                .any(|dependency| &dependency.name == name && !dependency.is_dev())
        };
        problems.extend(row.uses.iter().filter(|name| !uses(name)).map(|name| {
            let text = format!("{} may use {name} and its manifest does not: drop it", row.name);
            Problem::file(table::PATH, text)
        }));
    }
    problems
}

/// The crate that has every library as a module.
const FACADE: &str = "trine";

/// Libraries that the façade lacks.
pub(super) fn check_facade(table: &Table) -> Vec<Problem> {
    let Some(facade) = table.row(FACADE) else { return vec![] };
    let is_apart = |row: &&Row| {
        row.kind == Kind::Library && row.name != FACADE && !facade.uses.contains(&row.name)
    };
    let apart = table.crates.iter().filter(is_apart);
    let text = |row: &Row| format!("{FACADE} does not have {} as a module", row.name);
    apart.map(|row| Problem::file(table::PATH, text(row))).collect()
}

/// Dependencies whose name stands nowhere in the source that could use them. `folder_of` says where a
/// member lies, relative to the root.
pub(super) fn check_dependencies(
    members: &[Package],
    files: &[TextFile],
    folder_of: impl Fn(&Package) -> String,
) -> Vec<Problem> {
    let mut problems = Vec::new();
    for member in members {
        let folder = folder_of(member);
        let own = |file: &&TextFile| file.is_rust() && file.path.starts_with(&format!("{folder}/"));
        let source = Source::of(files.iter().filter(own));
        let idle = member.dependencies.iter().filter(|dependency| !source.names(dependency));
        problems.extend(idle.map(|dependency| {
            let place = if dependency.is_dev() { "tests and documentation" } else { "code" };
            let text = format!("{} is declared and no {place} names it", dependency.name);
            Problem::file(&format!("{folder}/Cargo.toml"), text)
        }));
    }
    problems
}

/// The source of a crate by who may use what of it.
struct Source {
    /// Code outside tests: what a normal dependency is for.
    product: String,
    /// Everything, comments included: documentation tests use dev-dependencies.
    all: String,
}

impl Source {
    fn of<'a>(files: impl Iterator<Item = &'a TextFile>) -> Self {
        let mut source = Self { product: String::new(), all: String::new() };
        for file in files {
            source.all.push_str(&file.text);
            if is_product(&file.path) {
                let code = mask(&file.text).code;
                let tests = test_lines(&code);
                let lines = code.lines().zip(tests).filter(|(_, is_test)| !is_test);
                lines.for_each(|(line, _)| source.product.extend([line, "\n"]));
            }
        }
        source
    }

    fn names(&self, dependency: &Dependency) -> bool {
        let name = dependency.rename.as_ref().unwrap_or(&dependency.name).replace('-', "_");
        let text = if dependency.is_dev() { &self.all } else { &self.product };
        has_identifier(text, &name)
    }
}

/// True for files that are part of what a crate's users compile.
fn is_product(path: &str) -> bool {
    let parts: Vec<_> = path.split('/').collect();
    parts.contains(&"src") || parts.last() == Some(&"build.rs")
}

fn has_identifier(text: &str, name: &str) -> bool {
    text.match_indices(name).any(|(at, _)| {
        let (before, after) = (&text[..at], &text[at + name.len()..]);
        !before.chars().next_back().is_some_and(is_word)
            && !after.chars().next().is_some_and(is_word)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn dependency(name: &str, kind: Option<&str>) -> Dependency {
        let (name, req) = (name.to_owned(), "*".to_owned());
        Dependency { name, req, kind: kind.map(str::to_owned), path: None, rename: None }
    }

    fn member(dependencies: Vec<Dependency>) -> Package {
        Package { dependencies, ..Package::of_test("a") }
    }

    fn file(path: &str, text: &str) -> TextFile {
        TextFile { path: path.to_owned(), text: text.to_owned() }
    }

    fn idle(dependency: Dependency, files: &[TextFile]) -> usize {
        let folder = |_: &Package| "crates/a".to_owned();
        check_dependencies(&[member(vec![dependency])], files, folder).len()
    }

    fn row(name: &str, uses: &[&str]) -> Row {
        let uses = uses.iter().map(|name| (*name).to_owned()).collect();
        let (name, purpose) = (name.to_owned(), "p".to_owned());
        Row { name, purpose, kind: Kind::Library, pure: false, uses }
    }

    #[test]
    fn the_facade_has_every_library() {
        let table = |uses: &[&str]| Table {
            crates: vec![row("a", &[]), row("b", &[]), row(FACADE, uses)],
            exceptions: vec![],
        };
        assert!(check_facade(&table(&["a", "b"])).is_empty());
        let problems = check_facade(&table(&["a"]));
        assert!(problems.len() == 1 && problems[0].text.contains(" b "), "{problems:?}");
    }

    #[test]
    fn a_row_that_no_manifest_has_fails() {
        let crates = vec![row("b", &[]), row("a", &["b"])];
        let table = Table { crates, exceptions: vec![] };
        let of = |kind| {
            let edge = Dependency { path: Some(PathBuf::from("b")), ..dependency("b", kind) };
            check_rows(&table, &[member(vec![edge])])
        };
        assert!(of(None).is_empty() && of(Some("build")).is_empty());
        let problems = of(Some("dev"));
        assert_eq!(problems.len(), 1);
        assert!(problems[0].text.contains("a may use b"), "{problems:?}");
    }

    #[test]
    fn a_dependency_is_used_by_code_and_a_dev_dependency_by_anything() {
        let code = file("crates/a/src/lib.rs", "use my_dep::X;\n");
        let comment = file("crates/a/src/lib.rs", "//! my_dep\n");
        let in_tests =
            file("crates/a/src/lib.rs", "#[cfg(test)]\nmod tests {\n    use my_dep::X;\n}\n");
        let test = file("crates/a/tests/a.rs", "use my_dep::X;\n");
        let longer = file("crates/a/src/lib.rs", "use my_dep_b::X;\n");
        let other = file("crates/ab/src/lib.rs", "use my_dep::X;\n");
        for (file, normal, dev) in [
            (code, 0, 0),
            (comment, 1, 0),
            (in_tests, 1, 0),
            (test, 1, 0),
            (longer, 1, 1),
            (other, 1, 1),
        ] {
            let files = [file];
            assert_eq!(idle(dependency("my-dep", None), &files), normal, "{files:?}");
            assert_eq!(idle(dependency("my-dep", Some("dev")), &files), dev, "{files:?}");
        }
    }

    #[test]
    fn a_renamed_dependency_is_looked_for_by_its_new_name() {
        let renamed = Dependency { rename: Some("short".to_owned()), ..dependency("my-dep", None) };
        assert_eq!(idle(renamed, &[file("crates/a/src/lib.rs", "short::f();\n")]), 0);
    }
}
