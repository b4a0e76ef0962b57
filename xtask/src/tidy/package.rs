//! What a user of a single crate gets: its README, made from the documentation of the crate, and a manifest that says
//! what the crate is for.

use std::fmt::Write;

use super::table::Table;
use super::{Problem, TextFile};
use crate::workspace::Package;

/// Files beside each published manifest. Links to those of the root, so that each text exists once; cargo packs what
/// they lead to.
const LICENCES: &[&str] = &["LICENSE-APACHE", "LICENSE-MIT"];

/// Keywords that a registry takes.
const KEYWORDS_MAX: usize = 5;

/// The manifests of all members; `folder_of` says where a member lies, relative to the root, and `exists` answers for a
/// path relative to it.
pub(super) fn check_manifests(
    table: &Table,
    members: &[Package],
    folder_of: impl Fn(&Package) -> String,
    exists: impl Fn(&str) -> bool,
) -> Vec<Problem> {
    let mut problems = Vec::new();
    for member in members {
        let folder = folder_of(member);
        let path = format!("{folder}/Cargo.toml");
        let purpose = table.row(&member.name).map(|row| row.purpose.as_str());
        if purpose.is_some() && member.description.as_deref() != purpose {
            let text = "the description is not the purpose that crates.toml has";
            problems.push(Problem::file(&path, text));
        }
        if member.is_published() {
            let missing = LICENCES.iter().map(|name| format!("{folder}/{name}"));
            let missing = missing.filter(|licence| !exists(licence));
            problems.extend(missing.map(|licence| {
                Problem::file(&licence, "is missing: link it to the text in the root folder")
            }));
            problems.extend(faults(member).into_iter().map(|text| Problem::file(&path, text)));
        }
    }
    problems
}

/// What the manifest of a published crate lacks.
fn faults(member: &Package) -> Vec<&'static str> {
    let has_docs =
        member.metadata.as_ref().is_some_and(|metadata| !metadata["docs"]["rs"].is_null());
    let checks = [
        (member.readme.as_deref() == Some("README.md"), "no `readme = \"README.md\"`"),
        ((1..=KEYWORDS_MAX).contains(&member.keywords.len()), "1 to 5 keywords are wanted"),
        (!member.categories.is_empty(), "no categories"),
        (has_docs, "no table [package.metadata.docs.rs]"),
    ];
    checks.into_iter().filter(|(is_fine, _)| !is_fine).map(|(_, text)| text).collect()
}

/// The READMEs of the published crates as they should be; with what is wrong where they are not.
pub(super) fn readmes(
    members: &[Package],
    files: &[TextFile],
    folder_of: impl Fn(&Package) -> String,
) -> (Vec<TextFile>, Vec<Problem>) {
    let (mut changed, mut problems) = (Vec::new(), Vec::new());
    for member in members.iter().filter(|member| member.is_published()) {
        let folder = folder_of(member);
        let find = |path: String| files.iter().find(|file| file.path == path);
        let root =
            find(format!("{folder}/src/lib.rs")).or_else(|| find(format!("{folder}/src/main.rs")));
        let Some(root) = root else { continue };
        let beside = |name: &str| find(format!("{folder}/{name}")).map(|file| file.text.as_str());
        let (path, text) = (format!("{folder}/README.md"), readme(member, &root.text, beside));
        if find(path.clone()).is_none_or(|file| file.text != text) {
            let what = "is not made from the crate's documentation: run `cargo xtask tidy --bless`";
            problems.push(Problem::file(&path, what));
            changed.push(TextFile { path, text });
        }
    }
    (changed, problems)
}

/// The lines of a crate's documentation; `beside` gives the files that it includes.
fn documentation<'a>(source: &'a str, beside: impl Fn(&str) -> Option<&'a str>) -> Vec<&'a str> {
    let included = |line: &str| {
        let name = line.strip_prefix("#![doc = include_str!(\"../")?.strip_suffix("\")]")?;
        beside(name)
    };
    let mut lines = Vec::new();
    for line in source.lines() {
        match (line.strip_prefix("//!"), included(line)) {
            (Some(line), _) => lines.push(line.strip_prefix(' ').unwrap_or(line)),
            (None, Some(text)) => lines.extend(text.lines()),
            (None, None) => break,
        }
    }
    lines
}

fn readme<'a>(
    member: &Package,
    source: &'a str,
    beside: impl Fn(&str) -> Option<&'a str>,
) -> String {
    let mut text = format!("# {}\n\n", member.name);
    let mut fence = Fence::Outside;
    for line in documentation(source, beside) {
        let next = fence.after(line);
        let shown = match (fence, next) {
            (Fence::Outside, Fence::Rust) => "```rust".to_owned(),
            (Fence::Rust, _) if line == "#" || line.starts_with("# ") => {
                fence = next;
                continue;
            }
            (Fence::Outside, Fence::Outside) => without_item_links(line),
            (Fence::Outside, Fence::Other) | (Fence::Rust | Fence::Other, _) => line.to_owned(),
        };
        text.push_str(&shown);
        text.push('\n');
        fence = next;
    }
    let repository = member.repository.as_deref().unwrap_or_default();
    let licence = member.license.as_deref().unwrap_or_default().replace("OR", "or");
    // Writing to a string cannot fail.
    let _ = write!(
        text,
        "\nPart of [trine]({repository}), which trains transformers with tensor, pipeline and data parallelism.\n\
         Licensed under {licence}, at your option.\n"
    );
    text
}

/// Where a line of Markdown stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fence {
    Outside,
    /// In code that is compiled, where lines that begin with `# ` are hidden.
    Rust,
    /// In any other code.
    Other,
}

impl Fence {
    fn after(self, line: &str) -> Self {
        let Some(language) = line.trim_start().strip_prefix("```") else { return self };
        let is_rust = matches!(language, "" | "rust" | "no_run" | "compile_fail");
        match self {
            Self::Outside if is_rust => Self::Rust,
            Self::Outside => Self::Other,
            Self::Rust | Self::Other => Self::Outside,
        }
    }
}

/// The line with links to items, which only rustdoc resolves, as plain code.
fn without_item_links(line: &str) -> String {
    let (mut text, mut rest) = (String::new(), line);
    while let Some((before, opened)) = rest.split_once("[`") {
        let Some((name, after)) = opened.split_once("`]") else { break };
        let target = after.strip_prefix('(').and_then(|target| target.split_once(')'));
        text.push_str(before);
        match target {
            Some((target, tail)) if target.contains("://") => {
                text.extend(["[`", name, "`](", target, ")"]);
                rest = tail;
            }
            Some((_, tail)) => {
                text.extend(["`", without_kind(name), "`"]);
                rest = tail;
            }
            None => {
                text.extend(["`", without_kind(name), "`"]);
                rest = after;
            }
        }
    }
    text + rest
}

/// `mod@name` as `name`: the kind is for rustdoc.
fn without_kind(name: &str) -> &str {
    name.split_once('@').map_or(name, |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::table::{Kind, Row};

    fn folder(_: &Package) -> String {
        "crates/a".to_owned()
    }

    fn good() -> Package {
        Package {
            description: Some("what it is for".to_owned()),
            readme: Some("README.md".to_owned()),
            keywords: vec!["word".to_owned()],
            categories: vec!["science".to_owned()],
            repository: Some("https://example.org/trine".to_owned()),
            license: Some("MIT OR Apache-2.0".to_owned()),
            metadata: Some(serde_json::json!({ "docs": { "rs": { "all-features": true } } })),
            ..Package::of_test("a")
        }
    }

    fn problems(member: Package, exists: bool) -> Vec<String> {
        let row = Row {
            name: "a".to_owned(),
            purpose: "what it is for".to_owned(),
            kind: Kind::Library,
            pure: false,
            uses: vec![],
        };
        let table = Table { crates: vec![row], exceptions: vec![] };
        let found = check_manifests(&table, &[member], folder, |_| exists);
        found.iter().map(Problem::to_string).collect()
    }

    #[test]
    fn a_published_crate_says_what_it_is() {
        assert_eq!(problems(good(), true), Vec::<String>::new());
        assert_eq!(problems(good(), false).len(), 2);
        for (part, member) in [
            ("description", Package { description: Some("else".to_owned()), ..good() }),
            ("readme", Package { readme: None, ..good() }),
            ("keywords", Package { keywords: vec!["k".to_owned(); 6], ..good() }),
            ("categories", Package { categories: vec![], ..good() }),
            ("docs.rs", Package { metadata: Some(serde_json::json!({ "docs": {} })), ..good() }),
        ] {
            let found = problems(member, true);
            assert!(found.len() == 1 && found[0].contains(part), "{found:?}");
        }
        let tool = Package { publish: Some(vec![]), ..Package::of_test("a") };
        let tool = Package { description: good().description, ..tool };
        assert_eq!(problems(tool, false), Vec::<String>::new());
    }

    #[test]
    fn a_readme_is_the_documentation_of_the_crate() {
        let source = "//! First, see [`X`] and [`y`](crate::y) and [`mod@z`].\n//!\n//! ```\n//! let a = 1;\n\
                      //! # hidden(a);\n//! #[derive(Debug)] struct B;\n//! ```\n//!\n//! ```sh\n//! # shown\n//! ```\n\
                      //! [`W`](https://example.org)\n#![doc = include_str!(\"../more.md\")]\n\nuse x;\n//! not this\n";
        let lib = TextFile { path: "crates/a/src/lib.rs".to_owned(), text: source.to_owned() };
        let more = TextFile { path: "crates/a/more.md".to_owned(), text: "More.\n".to_owned() };
        let (changed, found) = readmes(&[good()], &[lib.clone(), more.clone()], folder);
        assert_eq!((changed.len(), found.len()), (1, 1));
        let expected = "# a\n\nFirst, see `X` and `y` and `z`.\n\n```rust\nlet a = 1;\n#[derive(Debug)] struct B;\n```\n\n\
                        ```sh\n# shown\n```\n[`W`](https://example.org)\nMore.\n\nPart of [trine](https://example.org/trine), \
                        which trains transformers with tensor, pipeline and data parallelism.\n\
                        Licensed under MIT or Apache-2.0, at your option.\n";
        assert_eq!(changed[0].text, expected);
        let (again, found) = readmes(&[good()], &[lib, more, changed[0].clone()], folder);
        assert!(again.is_empty() && found.is_empty(), "{found:?}");
    }
}
