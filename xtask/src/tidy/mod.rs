//! `cargo xtask tidy`: the rules of the repository that no lint knows. Each is a function from inputs to problems.

mod circles;
mod columns;
mod commands;
mod docs;
mod layering;
mod mask;
mod package;
mod sources;
mod table;
mod usage;

use std::fmt;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;

use crate::workspace::{Package, Workspace};
use table::Table;

/// What tools or runs make in the root folder, not writers. `.git` is a file in a linked work tree.
const SKIPPED: &[&str] = &[".git", ".cuda", "target", "runs"];

/// A file of the repository, as the rules see it.
#[derive(Debug, Clone)]
struct TextFile {
    /// Relative to the root, with `/`.
    path: String,
    text: String,
}

/// Something a rule found.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Problem {
    path: String,
    /// From 1; 0 if the whole file is meant.
    line: usize,
    text: String,
}

impl TextFile {
    fn is_rust(&self) -> bool {
        Path::new(&self.path).extension().is_some_and(|extension| extension == "rs")
    }

    fn is_markdown(&self) -> bool {
        Path::new(&self.path).extension().is_some_and(|extension| extension == "md")
    }
}

impl Problem {
    fn file(path: &str, text: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line: 0, text: text.into() }
    }

    fn line(path: &str, line: usize, text: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, text: text.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.path, self.text),
            line => write!(f, "{}:{line}: {}", self.path, self.text),
        }
    }
}

/// Runs every rule, and with `bless` first rewrites what is generated.
pub(crate) fn run(workspace: &Workspace, bless: bool) -> anyhow::Result<ExitCode> {
    if bless {
        rewrite_generated(workspace)?;
    }
    let files = read_tree(&workspace.root)?;
    let problems = check(workspace, &Table::load(&workspace.root)?, &files);
    problems.iter().for_each(|problem| println!("{problem}"));
    if problems.is_empty() {
        println!("tidy: {} files and {} crates are in order", files.len(), workspace.members.len());
        return Ok(ExitCode::SUCCESS);
    }
    println!("tidy: {} problems", problems.len());
    Ok(ExitCode::FAILURE)
}

fn check(workspace: &Workspace, table: &Table, files: &[TextFile]) -> Vec<Problem> {
    let exists = |path: &Path| workspace.root.join(path).exists();
    let folder_of = |member: &Package| workspace.folder_of(member);
    let mut problems = layering::check_table(table);
    problems.extend(layering::check_edges(table, &workspace.members));
    problems.extend(layering::check_pure(table, &workspace.members, files));
    problems.extend(layering::generated(table, files).1);
    problems.extend(usage::check_facade(table));
    problems.extend(usage::check_rows(table, &workspace.members));
    problems.extend(usage::check_dependencies(&workspace.members, files, folder_of));
    problems.extend(package::check_manifests(table, &workspace.members, folder_of, |path| {
        exists(Path::new(path))
    }));
    problems.extend(package::readmes(&workspace.members, files, folder_of).1);
    if let Some(architecture) = files.iter().find(|file| file.path == "docs/architecture.md") {
        problems.extend(layering::check_code_map(table, architecture));
    }
    problems.extend(sources::check(table, files));
    problems.extend(circles::check(files));
    problems.extend(docs::check_links(files, exists));
    problems.extend(docs::check_decisions(files));
    problems.extend(docs::check_tests_named(files));
    problems.extend(columns::check(files));
    problems.extend(docs::check_commands(files));
    problems
}

fn rewrite_generated(workspace: &Workspace) -> anyhow::Result<()> {
    let (root, files) = (&workspace.root, read_tree(&workspace.root)?);
    let folder_of = |member: &Package| workspace.folder_of(member);
    let (sections, _) = layering::generated(&Table::load(root)?, &files);
    let (readmes, _) = package::readmes(&workspace.members, &files, folder_of);
    for file in sections.into_iter().chain(readmes) {
        std::fs::write(root.join(&file.path), file.text)
            .with_context(|| format!("cannot write {}", file.path))?;
        println!("tidy: rewrote {}", file.path);
    }
    Ok(())
}

/// All text files below `root`, sorted by path.
fn read_tree(root: &Path) -> anyhow::Result<Vec<TextFile>> {
    let mut files = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(&folder)
            .with_context(|| format!("cannot read {}", folder.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot read {}", folder.display()))?;
            if SKIPPED.iter().any(|skipped| entry.path() == root.join(skipped)) {
                continue;
            }
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                files.extend(read_text(root, &entry.path())?);
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

/// The file, or `None` if it is not text.
fn read_text(root: &Path, path: &Path) -> anyhow::Result<Option<TextFile>> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let relative = path.strip_prefix(root).unwrap_or(path);
    let parts: Vec<_> = relative.iter().map(|part| part.to_string_lossy()).collect();
    Ok(String::from_utf8(bytes).ok().map(|text| TextFile { path: parts.join("/"), text }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plain `cargo test --workspace` enforces the rules, so nobody needs to know of `cargo xtask tidy`.
    #[test]
    fn the_tree_is_tidy() {
        let workspace = Workspace::load().unwrap();
        let files = read_tree(&workspace.root).unwrap();
        assert!(
            files.iter().any(|file| file.path == "xtask/src/tidy/mod.rs"),
            "the tree was not read"
        );
        let problems = check(&workspace, &Table::load(&workspace.root).unwrap(), &files);
        let lines: Vec<_> = problems.iter().map(Problem::to_string).collect();
        assert!(lines.is_empty(), "{} problems:\n{}", lines.len(), lines.join("\n"));
    }
}
