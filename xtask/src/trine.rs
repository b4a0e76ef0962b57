//! Builds the release binary `trine` and becomes it: `cargo xtask train` and `cargo xtask bench`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::Context;
use serde::Serialize;

use crate::workspace::{Package, Workspace, executable};

/// What `trine` reads to find its default corpus.
#[derive(Debug, Serialize)]
struct CorpusManifest {
    packages: Vec<CorpusPackage>,
}

#[derive(Debug, Serialize)]
struct CorpusPackage {
    name: String,
    version: String,
    root: PathBuf,
}

/// `cargo xtask train ARGS…`.
pub(crate) fn train(workspace: &Workspace, args: &[OsString]) -> anyhow::Result<ExitCode> {
    let binary = build(workspace)?;
    let cache = workspace.target.join("trine");
    let corpus = cache.join("corpus.json");
    write_corpus(&corpus, workspace.registry_packages()?)?;

    let mut trine = Command::new(binary);
    trine.arg("train").args(args);
    trine.arg("--corpus-manifest").arg(corpus).arg("--cache").arg(cache);
    become_program(trine)
}

/// `cargo xtask bench NAME ARGS…`, for what `trine bench` does itself.
pub(crate) fn bench(
    workspace: &Workspace,
    name: &str,
    args: &[OsString],
) -> anyhow::Result<ExitCode> {
    let mut trine = Command::new(build(workspace)?);
    trine.args(["bench", name]).args(args);
    become_program(trine)
}

/// Builds `trine` and returns where cargo put it.
pub(crate) fn build(workspace: &Workspace) -> anyhow::Result<PathBuf> {
    let mut cargo = workspace.cargo();
    cargo.args(["build", "--release", "--locked", "--package", "trine-cli", "--bin", "trine"]);
    executable(cargo, "trine")
}

fn write_corpus(path: &Path, packages: Vec<Package>) -> anyhow::Result<()> {
    let manifest = corpus_manifest(packages);
    let folder = path.parent().context("the corpus manifest needs a folder")?;
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot create {}", folder.display()))?;
    // Renamed into place: a second run may be reading it.
    let part = path.with_extension(format!("{}.tmp", std::process::id()));
    std::fs::write(&part, serde_json::to_string_pretty(&manifest)? + "\n")
        .and_then(|()| std::fs::rename(&part, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Keeps the order, which is by name and version.
fn corpus_manifest(packages: Vec<Package>) -> CorpusManifest {
    let packages = packages
        .into_iter()
        .map(|package| CorpusPackage {
            root: package.folder().to_owned(),
            name: package.name,
            version: package.version,
        })
        .collect();
    CorpusManifest { packages }
}

/// Replaces this process: exit code, terminal, signals and the process id are then the program's own.
#[cfg(unix)]
fn become_program(mut program: Command) -> anyhow::Result<ExitCode> {
    use std::os::unix::process::CommandExt;
    let error = program.exec();
    Err(error).with_context(|| format!("cannot run {}", program.get_program().to_string_lossy()))
}

/// Where a process cannot be replaced: runs the program and takes over its exit code.
#[cfg(not(unix))]
fn become_program(mut program: Command) -> anyhow::Result<ExitCode> {
    let status = program
        .status()
        .with_context(|| format!("cannot run {}", program.get_program().to_string_lossy()))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, version: &str) -> Package {
        Package {
            name: name.to_owned(),
            version: version.to_owned(),
            manifest_path: Path::new("registry")
                .join(format!("{name}-{version}"))
                .join("Cargo.toml"),
            source: Some("registry+https://example.org/index".to_owned()),
            dependencies: Vec::new(),
            publish: None,
        }
    }

    #[test]
    fn the_manifest_lists_name_version_and_folder() {
        let manifest = corpus_manifest(vec![package("half", "2.7.1"), package("serde", "1.0.229")]);
        let json = serde_json::to_value(&manifest).unwrap();
        assert_eq!(json["packages"].as_array().unwrap().len(), 2);
        assert_eq!(json["packages"][1]["name"], "serde");
        assert_eq!(json["packages"][1]["version"], "1.0.229");
        assert_eq!(json["packages"][1]["root"], "registry/serde-1.0.229");
    }

    #[test]
    fn a_written_manifest_leaves_no_temporary_file() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/xtask-test");
        let path = folder.join("corpus.json");
        write_corpus(&path, vec![package("half", "2.7.1")]).unwrap();
        let left: Vec<_> = std::fs::read_dir(&folder).unwrap().collect();
        assert_eq!(left.len(), 1);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
