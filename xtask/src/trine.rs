//! Builds the release binary `trine` and becomes it: `cargo xtask train` and `cargo xtask bench`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

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

/// `cargo xtask train ARGS…`; with `--backend mpi`, processes under `trine launch`.
pub(crate) fn train(workspace: &Workspace, args: &[OsString]) -> anyhow::Result<ExitCode> {
    let launch = launch_args(args);
    let binary = if launch.is_some() { build_with_mpi(workspace)? } else { build(workspace)? };
    let cache = workspace.target.join("trine");
    let corpus = cache.join("corpus.json");
    write_corpus(&corpus, workspace.registry_packages()?)?;

    let mut trine = Command::new(&binary);
    name_as_typed(&mut trine, &binary);
    match &launch {
        Some(Launch { launch, train }) => trine.arg("launch").args(launch).arg("--").args(train),
        None => trine.arg("train").args(args),
    };
    trine.arg("--corpus-manifest").arg(corpus).arg("--cache").arg(cache);
    become_program(trine)
}

/// What `trine launch` and the training it starts are given.
#[derive(Debug, PartialEq, Eq)]
struct Launch {
    launch: Vec<OsString>,
    train: Vec<OsString>,
}

/// Options of `trine launch` among those of `trine train`, each with a value.
const LAUNCH_OPTIONS: [&str; 6] =
    ["-n", "--ranks", "--restarts", "--interface", "--mpirun", "--mpirun-arg"];

/// The arguments parted in two, if they ask for processes.
fn launch_args(args: &[OsString]) -> Option<Launch> {
    let mut parted = Launch { launch: Vec::new(), train: Vec::new() };
    let mut is_mpi = false;
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        let text = arg.to_string_lossy();
        let name = text.split_once('=').map_or(&*text, |(name, _)| name);
        if text == "--backend=mpi" {
            is_mpi = true;
        } else if text == "--backend" {
            // The value decides; any other than mpi goes on to `trine train`, which knows them.
            match rest.next() {
                Some(value) if value == "mpi" => is_mpi = true,
                other => parted.train.extend([arg.clone()].into_iter().chain(other.cloned())),
            }
        } else if LAUNCH_OPTIONS.contains(&name) {
            parted.launch.push(arg.clone());
            if name == text {
                parted.launch.extend(rest.next().cloned());
            }
        } else {
            parted.train.push(arg.clone());
        }
    }
    is_mpi.then_some(parted)
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
    executable(building(workspace), "trine")
}

/// The same with ranks as processes, for which the system must have MPI.
fn build_with_mpi(workspace: &Workspace) -> anyhow::Result<PathBuf> {
    let mut cargo = building(workspace);
    cargo.args(["--features", "mpi"]);
    executable(cargo, "trine").context(
        "--backend mpi needs an MPI library and libclang (Debian: openmpi-bin libopenmpi-dev \
         libclang-dev)",
    )
}

fn building(workspace: &Workspace) -> Command {
    let mut cargo = workspace.cargo();
    cargo.args(["build", "--release", "--locked", "--package", "trine-cli", "--bin", "trine"]);
    // For the summary of a run, where there is a repository to ask.
    if let Some(commit) = commit(workspace) {
        cargo.env("TRINE_COMMIT", commit);
    }
    cargo
}

/// What the workspace was built from, with a mark if it was changed since.
fn commit(workspace: &Workspace) -> Option<String> {
    let mut git = Command::new("git");
    git.args(["describe", "--always", "--abbrev=12", "--exclude=*", "--dirty"]);
    let output = git.current_dir(&workspace.root).stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok().filter(|_| output.status.success())?;
    Some(text.trim().to_owned())
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

/// Lets the program know itself as a person here would type it, for the commands that it prints.
#[cfg(unix)]
fn name_as_typed(program: &mut Command, binary: &Path) {
    use std::os::unix::process::CommandExt;
    let here = std::env::current_dir().ok();
    if let Some(below) = here.and_then(|here| binary.strip_prefix(here).ok()) {
        program.arg0(Path::new(".").join(below));
    }
}

#[cfg(not(unix))]
fn name_as_typed(_: &mut Command, _: &Path) {}

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
            version: version.to_owned(),
            manifest_path: Path::new("registry")
                .join(format!("{name}-{version}"))
                .join("Cargo.toml"),
            source: Some("registry+https://example.org/index".to_owned()),
            ..Package::of_test(name)
        }
    }

    #[test]
    fn processes_are_asked_for_by_the_backend() {
        let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        let parted = launch_args(&words("--tp 2 --backend mpi -n 8 --restarts=1 --steps 3"));
        let wanted =
            Launch { launch: words("-n 8 --restarts=1"), train: words("--tp 2 --steps 3") };
        assert_eq!(parted, Some(wanted));
        assert!(launch_args(&words("--backend=mpi")).is_some());
        assert_eq!(launch_args(&words("--tp 2 --backend threads")), None);
        assert_eq!(launch_args(&words("--tp 2")), None);
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
