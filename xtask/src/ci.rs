//! `cargo xtask ci`: the checks of a merge, as one table and one loop.

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::Context;

use crate::counts;
use crate::gpu;
use crate::interop;
use crate::workspace::{Package, Workspace, output};

/// One row of the table.
struct Step {
    name: &'static str,
    when: When,
    env: &'static [(&'static str, &'static str)],
    /// Arguments of cargo; `{crate}` makes one command for every crate that can be published, `{published}` excludes
    /// the others.
    cargo: &'static [&'static str],
}

enum When {
    Always,
    /// Only with `--full`.
    Full,
    /// Only where `cargo NAME` exists, which a step that needs a separate program cannot take for granted.
    Installed(&'static str),
    /// Only where rustup has the standard library of this platform, or can fetch it.
    Platform(&'static str),
    /// With the oldest compiler that the manifests allow, only where rustup has it or can fetch it.
    OldestRust,
    /// Only where `mpicc` exists: MPI is the system's, not cargo's.
    Mpi,
    /// The same, where in addition this user may make network namespaces.
    TwoHosts,
    /// Only with `--full`, where Python has transformers.
    Interop,
    /// Only where the compiler of GPUs' kernels is, which `.ci/run` fetches.
    Nvrtc,
    /// Always; but what is counted is compared only with numbers of the same compiler, and the line of the step says
    /// so.
    Counts,
}

/// Cheap steps first; then those that share artefacts in one target folder: clippy, documents and the single crates use
/// the same checked dependencies, the tests build them once more with code.
const STEPS: &[Step] = &[
    Step { name: "fmt", when: When::Always, env: &[], cargo: &["fmt", "--all", "--check"] },
    Step { name: "tidy", when: When::Always, env: &[], cargo: &["xtask", "tidy"] },
    Step {
        name: "clippy",
        when: When::Always,
        env: &[],
        cargo: &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"],
    },
    Step { name: "test", when: When::Always, env: &[], cargo: &["test", "--workspace"] },
    Step { name: "counts", when: When::Counts, env: &[], cargo: &["xtask", "counts"] },
    Step {
        name: "gpu kernels",
        when: When::Nvrtc,
        env: &[],
        cargo: &["xtask", "gpu", "kernels", "--check", "--gpu-libraries", gpu::LIBRARIES],
    },
    // Miri sees more than the sanitizer, and is slow: the threads and what is portable, not the kernels' tests over
    // shapes.
    Step { name: "sanitize", when: When::Always, env: &[], cargo: &["xtask", "sanitize"] },
    Step {
        name: "miri",
        when: When::Installed("miri"),
        env: &[],
        cargo: &["miri", "test", "--package", "trine-kernels", "--lib"],
    },
    Step {
        name: "doc",
        when: When::Always,
        env: &[("RUSTDOCFLAGS", "-D warnings")],
        // The workspace switches on every other feature but `mpi`.
        cargo: &["doc", "--workspace", "--no-deps", "--features", "trine-comm/conformance"],
    },
    // Users depend on single crates; a feature that only another member switches on would be missed by --workspace.
    Step { name: "alone", when: When::Always, env: &[], cargo: &["check", "--package", "{crate}"] },
    // All in one call: as long as the crates are in no registry, `cargo package --package X` cannot resolve the ones
    // that X uses, but --workspace serves them to each other as if they were. It resolves each crate alone, from its
    // own archive.
    Step {
        name: "package",
        when: When::Always,
        env: &[],
        cargo: &["package", "--workspace", "{published}", "--allow-dirty", "--no-verify"],
    },
    Step {
        name: "deny",
        when: When::Installed("deny"),
        env: &[],
        cargo: &["deny", "check", "bans", "licenses", "sources"],
    },
    // Checked, not run: there is no such machine here.
    Step {
        name: "macos",
        when: When::Platform("aarch64-apple-darwin"),
        env: &[],
        cargo: &["check", "--workspace", "--target", "aarch64-apple-darwin"],
    },
    Step {
        name: "arm linux",
        when: When::Platform("aarch64-unknown-linux-gnu"),
        env: &[],
        cargo: &["check", "--workspace", "--target", "aarch64-unknown-linux-gnu"],
    },
    Step {
        name: "oldest rust",
        when: When::OldestRust,
        env: &[],
        cargo: &["check", "--workspace", "--all-targets"],
    },
    // Ranks as processes: the conformance suite and failures under mpirun with 2, 3, 4 and 8 ranks.
    Step {
        name: "mpi lint",
        when: When::Mpi,
        env: &[],
        cargo: &[
            "clippy",
            "--package",
            "trine-comm-mpi",
            "--package",
            "trine-cli",
            "--features",
            "trine-comm-mpi/mpi,trine-cli/mpi",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ],
    },
    Step {
        name: "mpi ranks",
        when: When::Mpi,
        env: &[],
        cargo: &["test", "--package", "trine-comm-mpi", "--features", "mpi"],
    },
    Step {
        name: "mpi doc",
        when: When::Mpi,
        env: &[("RUSTDOCFLAGS", "-D warnings")],
        cargo: &["doc", "--package", "trine-comm-mpi", "--no-deps", "--features", "mpi"],
    },
    // Whole runs, bit for bit those of threads; ranks that are killed or stopped.
    Step {
        name: "mpi runs",
        when: When::Mpi,
        env: &[],
        cargo: &[
            "test",
            "--package",
            "trine-cli",
            "--features",
            "mpi",
            "--test",
            "runs",
            "mpi",
            "--",
            "--test-threads=1",
        ],
    },
    Step {
        name: "two hosts",
        when: When::TwoHosts,
        env: &[],
        cargo: &[
            "test",
            "--package",
            "trine-cli",
            "--features",
            "mpi",
            "--test",
            "runs",
            "mpi",
            "--",
            "--test-threads=1",
            "--ignored",
        ],
    },
    Step {
        name: "large message",
        when: When::Full,
        env: &[],
        cargo: &[
            "test",
            "--package",
            "trine-comm-mpi",
            "--features",
            "mpi",
            "--release",
            "--test",
            "ranks",
            "--",
            "--ignored",
        ],
    },
    Step {
        name: "long tests",
        when: When::Full,
        env: &[],
        cargo: &[
            "test",
            "--workspace",
            "--release",
            "--",
            "--ignored",
            "--skip",
            "two_hundred_seeds",
        ],
    },
    // Apart, because its table of faults and outcomes is to be seen.
    Step {
        name: "faults",
        when: When::Full,
        env: &[],
        cargo: &[
            "test",
            "--package",
            "trine-tests",
            "--release",
            "--test",
            "faults",
            "two_hundred_seeds",
            "--",
            "--ignored",
            "--nocapture",
        ],
    },
    // Checkpoints in transformers and lm-eval.
    Step { name: "interop", when: When::Interop, env: &[], cargo: &["xtask", "interop"] },
    Step {
        name: "fuzz",
        when: When::Full,
        env: &[],
        cargo: &["xtask", "fuzz", "--seconds", "120"],
    },
    Step {
        name: "parity",
        when: When::Full,
        env: &[],
        cargo: &["xtask", "parity", "--fuzz", "300"],
    },
    // Compiles every crate from its archive, all dependencies included.
    Step {
        name: "archives",
        when: When::Full,
        env: &[],
        cargo: &["package", "--workspace", "{published}", "--allow-dirty"],
    },
];

/// Runs the steps in order and stops at the first that fails.
pub(crate) fn run(workspace: &Workspace, full: bool) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let mut lines = Vec::new();
    for step in STEPS {
        if let Some(reason) = skipped(workspace, step, full) {
            lines.push(format!("{:<12} left out: {reason}", step.name));
            continue;
        }
        let step_started = Instant::now();
        for args in commands(step, &workspace.members) {
            let line = command_line(step, &args);
            println!("\nci: {}: {line}", step.name);
            if !succeeds(workspace, step, &args)? {
                println!("\nci: {} failed. Repeat it with:\n    {line}", step.name);
                return Ok(ExitCode::FAILURE);
            }
        }
        let (seconds, remark) = (step_started.elapsed().as_secs_f64(), remark(workspace, step)?);
        lines.push(format!("{:<12} ok {seconds:>7.1} s{remark}", step.name));
        println!("ci: {}", lines[lines.len() - 1]);
    }
    println!("\nci: all passed in {:.0} s", started.elapsed().as_secs_f64());
    lines.iter().for_each(|line| println!("    {line}"));
    Ok(ExitCode::SUCCESS)
}

/// Why a step does not run, if it does not.
fn skipped(workspace: &Workspace, step: &Step, full: bool) -> Option<String> {
    match step.when {
        When::Always | When::Counts => None,
        When::Platform(target) => no_platform(target),
        When::OldestRust => no_oldest_rust(),
        When::Mpi => no_mpi(),
        When::TwoHosts => no_mpi().or_else(no_namespaces),
        When::Nvrtc => gpu::no_compiler(&workspace.root),
        When::Full => only_full(full),
        When::Interop => only_full(full).or_else(|| {
            let why = "python3 has no transformers or no torch";
            (!interop::is_possible()).then(|| why.to_owned())
        }),
        When::Installed(tool) => {
            (!is_installed(workspace, tool)).then(|| format!("cargo-{tool} is not installed"))
        }
    }
}

fn only_full(full: bool) -> Option<String> {
    (!full).then(|| "only with --full".to_owned())
}

/// What the line of a step that passed has to say beside the time.
fn remark(workspace: &Workspace, step: &Step) -> anyhow::Result<String> {
    match step.when {
        When::Always
        | When::Full
        | When::Interop
        | When::Nvrtc
        | When::Installed(_)
        | When::Platform(_)
        | When::OldestRust
        | When::Mpi
        | When::TwoHosts => Ok(String::new()),
        When::Counts => {
            let why = counts::not_judged(workspace)?;
            Ok(why.map_or_else(String::new, |why| format!(", NOT JUDGED: {why}")))
        }
    }
}

/// The oldest compiler that the manifests allow.
const OLDEST_RUST: &str = env!("CARGO_PKG_RUST_VERSION");

/// Why nothing can be checked for `target` here, if it cannot.
fn no_platform(target: &str) -> Option<String> {
    let folder =
        output(Command::new("rustc").args(["--print", "target-libdir", "--target", target]));
    let is_there = folder.is_ok_and(|folder| Path::new(folder.trim()).is_dir());
    let has = is_there || runs(Command::new("rustup").args(["target", "add", target]));
    (!has).then(|| format!("DID NOT RUN: rustup cannot add the target {target} here"))
}

/// Why the oldest compiler cannot be tried here, if it cannot.
fn no_oldest_rust() -> Option<String> {
    let is_there = runs(Command::new("rustup").args(["run", OLDEST_RUST, "cargo", "--version"]));
    let install = ["toolchain", "install", OLDEST_RUST, "--profile", "minimal"];
    let has = is_there || runs(Command::new("rustup").args(install));
    (!has).then(|| format!("DID NOT RUN: rustup cannot install Rust {OLDEST_RUST} here"))
}

/// Why ranks cannot be processes here, if they cannot.
fn no_mpi() -> Option<String> {
    let has = |program: &str| runs(Command::new(program).arg("--version"));
    let missing = ["mpicc", "mpirun"].into_iter().find(|program| !has(program))?;
    Some(format!("there is no {missing} (Debian: openmpi-bin libopenmpi-dev libclang-dev)"))
}

/// Why one machine cannot be two hosts here, if it cannot.
fn no_namespaces() -> Option<String> {
    let made = runs(Command::new("unshare").args(["--net", "--uts", "--mount", "ip", "link"]));
    (!made).then(|| "this user may not make network namespaces".to_owned())
}

fn runs(command: &mut Command) -> bool {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}

fn is_installed(workspace: &Workspace, tool: &str) -> bool {
    let mut probe = workspace.cargo();
    probe.args([tool, "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
    probe.status().is_ok_and(|status| status.success())
}

/// The argument lists of a step, its placeholders filled in.
fn commands(step: &Step, members: &[Package]) -> Vec<Vec<String>> {
    let (published, others): (Vec<_>, Vec<_>) =
        members.iter().partition(|member| member.is_published());
    let exclude: Vec<_> =
        others.iter().map(|member| format!("--exclude={}", member.name)).collect();
    let fill = |name: &str| -> Vec<String> {
        let args = step.cargo.iter().flat_map(|arg| match *arg {
            "{published}" => exclude.clone(),
            _ => vec![arg.replace("{crate}", name)],
        });
        args.collect()
    };
    if step.cargo.contains(&"{crate}") {
        published.iter().map(|member| fill(&member.name)).collect()
    } else {
        vec![fill("")]
    }
}

/// The step as a line for a shell.
fn command_line(step: &Step, args: &[String]) -> String {
    let env = step.env.iter().map(|(name, value)| format!("{name}=\"{value}\" "));
    let program = match step.when {
        When::OldestRust => format!("rustup run {OLDEST_RUST} cargo "),
        When::Always
        | When::Full
        | When::Installed(_)
        | When::Platform(_)
        | When::Interop
        | When::Nvrtc
        | When::Mpi
        | When::TwoHosts
        | When::Counts => "cargo ".to_owned(),
    };
    env.collect::<String>() + &program + &args.join(" ")
}

/// Runs one command with its output shown.
fn succeeds(workspace: &Workspace, step: &Step, args: &[String]) -> anyhow::Result<bool> {
    let mut command: Command = workspace.cargo();
    if let When::OldestRust = step.when {
        command = Command::new("rustup");
        // The cargo that runs us must not choose the compiler.
        command.args(["run", OLDEST_RUST, "cargo"]).current_dir(&workspace.root);
        command.env_remove("RUSTC").env_remove("RUSTDOC").env_remove("CARGO");
    }
    command.args(args).envs(step.env.iter().copied());
    let status = command.status().context("cannot run cargo")?;
    Ok(status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(name: &str) -> &'static Step {
        STEPS.iter().find(|step| step.name == name).unwrap()
    }

    fn member(name: &str, publish: Option<Vec<String>>) -> Package {
        Package { publish, ..Package::of_test(name) }
    }

    #[test]
    fn placeholders_are_filled_in() {
        let members = [member("a", None), member("b", None), member("tool", Some(Vec::new()))];
        assert_eq!(
            commands(step("alone"), &members),
            [["check", "--package", "a"], ["check", "--package", "b"]]
        );
        assert_eq!(commands(step("test"), &members), [["test", "--workspace"]]);
        assert_eq!(commands(step("package"), &members)[0][2], "--exclude=tool");
    }

    #[test]
    fn the_line_to_repeat_carries_the_environment() {
        let args = commands(step("doc"), &[]).remove(0);
        let line = command_line(step("doc"), &args);
        assert!(
            line.starts_with("RUSTDOCFLAGS=\"-D warnings\" cargo doc --workspace --no-deps"),
            "{line}"
        );
        let old = command_line(step("oldest rust"), &commands(step("oldest rust"), &[])[0]);
        assert!(old.starts_with("rustup run 1.") && old.contains(" cargo check "), "{old}");
    }

    #[test]
    fn the_tests_run_as_the_readme_says() {
        let readme = include_str!("../../README.md");
        let line = command_line(step("test"), &commands(step("test"), &[])[0]);
        assert!(readme.contains(&line), "README.md does not say `{line}`");
    }

    #[test]
    fn only_full_runs_the_long_tests() {
        let workspace = Workspace::load().unwrap();
        assert_eq!(skipped(&workspace, step("test"), false), None);
        assert!(skipped(&workspace, step("long tests"), false).is_some());
        assert_eq!(skipped(&workspace, step("long tests"), true), None);
    }
}
