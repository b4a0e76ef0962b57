//! What cargo knows about this workspace: its folder, its members and their edges, and the packages it depends on.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use serde::Deserialize;

/// The workspace and its members, without their external dependencies.
#[derive(Debug)]
pub(crate) struct Workspace {
    /// Folder of the root manifest.
    pub(crate) root: PathBuf,
    /// Where cargo builds: `target` unless the user moved it.
    pub(crate) target: PathBuf,
    /// The local packages, by name.
    pub(crate) members: Vec<Package>,
}

/// One package of `cargo metadata`.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) manifest_path: PathBuf,
    /// `None` for a local package, `registry+URL` or `sparse+URL` for one of a registry.
    pub(crate) source: Option<String>,
    pub(crate) dependencies: Vec<Dependency>,
    /// `Some([])` says `publish = false`.
    pub(crate) publish: Option<Vec<String>>,
    pub(crate) description: Option<String>,
    pub(crate) license: Option<String>,
    pub(crate) repository: Option<String>,
    /// Relative to the manifest.
    pub(crate) readme: Option<String>,
    #[serde(default)]
    pub(crate) keywords: Vec<String>,
    #[serde(default)]
    pub(crate) categories: Vec<String>,
    /// The table `[package.metadata]`.
    pub(crate) metadata: Option<serde_json::Value>,
}

/// One declared dependency of a package.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    /// The version asked for; `*` if the manifest gives none.
    pub(crate) req: String,
    /// `None` for a normal dependency, else `dev` or `build`.
    pub(crate) kind: Option<String>,
    /// Set when the dependency is a local crate.
    pub(crate) path: Option<PathBuf>,
    /// What the source calls it, if that is not its name.
    pub(crate) rename: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_root: PathBuf,
    target_directory: PathBuf,
}

impl Package {
    /// True if the manifest lets the package be published.
    pub(crate) fn is_published(&self) -> bool {
        self.publish.as_ref().is_none_or(|registries| !registries.is_empty())
    }

    /// Folder of the manifest.
    pub(crate) fn folder(&self) -> &Path {
        self.manifest_path.parent().unwrap_or(&self.manifest_path)
    }
}

impl Dependency {
    /// True if only tests, examples and documentation tests can use it.
    pub(crate) fn is_dev(&self) -> bool {
        self.kind.as_deref() == Some("dev")
    }
}

impl Workspace {
    /// Reads the workspace that this program was compiled in. Needs no network and no lock file.
    pub(crate) fn load() -> anyhow::Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let metadata = cargo_metadata(&root, &["--no-deps"])?;
        let mut members = metadata.packages;
        members.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Self { root: metadata.workspace_root, target: metadata.target_directory, members })
    }

    /// Folder of a member relative to the root, with `/`.
    pub(crate) fn folder_of(&self, member: &Package) -> String {
        let folder = member.folder();
        let parts = folder.strip_prefix(&self.root).unwrap_or(folder).iter();
        parts.map(|part| part.to_string_lossy()).collect::<Vec<_>>().join("/")
    }

    /// A cargo call in the root folder.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = Command::new(cargo_program());
        command.current_dir(&self.root);
        command
    }

    /// The packages from registries that a build for this machine uses, in the locked versions, sorted by name and
    /// version.
    pub(crate) fn registry_packages(&self) -> anyhow::Result<Vec<Package>> {
        let host = host_triple()?;
        let metadata = cargo_metadata(&self.root, &["--locked", "--filter-platform", &host])?;
        let mut packages = metadata.packages;
        packages.retain(|package| package.source.as_deref().is_some_and(is_registry));
        packages.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
        Ok(packages)
    }
}

fn is_registry(source: &str) -> bool {
    source.starts_with("registry+") || source.starts_with("sparse+")
}

/// The cargo that runs us, so that a toolchain chosen with `cargo +NAME` stays chosen.
fn cargo_program() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

fn cargo_metadata(root: &Path, args: &[&str]) -> anyhow::Result<Metadata> {
    let mut command = Command::new(cargo_program());
    command.args(["metadata", "--format-version", "1"]).args(args).current_dir(root);
    let json = output(&mut command)?;
    serde_json::from_str(&json).context("cargo metadata printed something unexpected")
}

/// The compiler that cargo calls.
fn rustc() -> Command {
    Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
}

/// What the compiler says of itself, as in `1.95.0 (59807616e 2026-04-14)`.
pub(crate) fn rustc_version() -> anyhow::Result<String> {
    let version = output(rustc().arg("--version"))?;
    Ok(version.trim().trim_start_matches("rustc ").to_owned())
}

/// The folder that holds the compiler's libraries.
pub(crate) fn sysroot() -> anyhow::Result<PathBuf> {
    Ok(output(rustc().args(["--print", "sysroot"]))?.trim().into())
}

/// The target that programs are built for if nothing else is asked for.
pub(crate) fn host_triple() -> anyhow::Result<String> {
    let version = output(rustc().arg("-vV"))?;
    parse_host(&version).context("`rustc -vV` names no host")
}

fn parse_host(version: &str) -> Option<String> {
    version.lines().find_map(|line| line.strip_prefix("host: ")).map(str::to_owned)
}

/// Lets cargo build and returns where it put the binary or example `name`, which a moved target folder or a set build
/// target would change.
pub(crate) fn executable(mut cargo: Command, name: &str) -> anyhow::Result<PathBuf> {
    cargo.arg("--message-format=json-render-diagnostics");
    let messages = output(&mut cargo).with_context(|| format!("cannot build `{name}`"))?;
    find_executable(&messages, name)
        .with_context(|| format!("cargo built `{name}` but did not say where"))
}

/// The executable of target `name` among cargo's JSON messages, one a line.
fn find_executable(messages: &str, name: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == name)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
}

/// Runs a program and returns what it printed; its messages go to our own standard error.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run `{program}`"))?;
    if !output.status.success() {
        bail!("`{program}` failed ({}), see above", output.status);
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{program}` printed no UTF-8"))
}

#[cfg(test)]
impl Package {
    /// A member with nothing but a name.
    pub(crate) fn of_test(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            version: "0.1.0".to_owned(),
            manifest_path: PathBuf::from(format!("crates/{name}/Cargo.toml")),
            source: None,
            dependencies: vec![],
            publish: None,
            description: None,
            license: None,
            repository: None,
            readme: None,
            keywords: vec![],
            categories: vec![],
            metadata: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_read_from_the_version() {
        let version =
            "rustc 1.95.0\nbinary: rustc\nhost: x86_64-unknown-linux-gnu\nLLVM version: 22.1\n";
        assert_eq!(parse_host(version).as_deref(), Some("x86_64-unknown-linux-gnu"));
        assert_eq!(parse_host("rustc 1.95.0"), None);
    }

    #[test]
    fn the_executable_is_found_among_other_messages() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","target":{"name":"half"},"executable":null}"#,
            "\nnot json\n",
            r#"{"reason":"compiler-artifact","target":{"name":"trine"},"executable":"out/trine"}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
        );
        assert_eq!(find_executable(messages, "trine"), Some(PathBuf::from("out/trine")));
        assert_eq!(find_executable(messages, "other"), None);
    }

    #[test]
    fn local_and_git_packages_are_not_from_a_registry() {
        assert!(is_registry("registry+https://example.org/index"));
        assert!(is_registry("sparse+https://example.org/index/"));
        assert!(!is_registry("git+https://example.org/repo"));
    }

    #[test]
    fn this_workspace_loads() {
        let workspace = Workspace::load().unwrap();
        let xtask = workspace.members.iter().find(|package| package.name == "xtask").unwrap();
        assert!(!xtask.is_published());
        assert_eq!(xtask.folder(), workspace.root.join("xtask"));
        assert!(xtask.dependencies.iter().all(|dependency| dependency.path.is_none()));
    }
}
