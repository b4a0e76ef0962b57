//! Runs a program to its end or to a time limit, and takes what it printed.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};

/// How long the end of a program may go unnoticed; looking more often would take time from it.
const POLL: Duration = Duration::from_millis(50);

/// What would tune a program from outside. Only a contestant that is meant to be tuned has any of it set.
pub(super) const TUNING: &[&str] = &[
    "ATEN_CPU_CAPABILITY",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "MALLOC_TRIM_THRESHOLD_",
    "MKL_ENABLE_INSTRUCTIONS",
    "ONEDNN_MAX_CPU_ISA",
];

/// A program with all that it is called with, to be run many times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Program {
    pub(super) path: PathBuf,
    pub(super) args: Vec<OsString>,
    pub(super) env: Vec<(&'static str, OsString)>,
    /// Where it runs, if that matters.
    pub(super) folder: Option<PathBuf>,
}

/// Limits of a run.
#[derive(Debug, Clone)]
pub(super) struct Runner {
    /// A program that runs longer is killed.
    pub(super) time_max: Duration,
    /// What a program prints is kept here until it ends.
    pub(super) scratch: PathBuf,
}

impl Program {
    pub(super) fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), args: Vec::new(), env: Vec::new(), folder: None }
    }

    pub(super) fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    pub(super) fn env(mut self, name: &'static str, value: impl Into<OsString>) -> Self {
        self.env.push((name, value.into()));
        self
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        TUNING.iter().for_each(|name| {
            command.env_remove(name);
        });
        command.args(&self.args).envs(self.env.iter().map(|(name, value)| (name, value)));
        if let Some(folder) = &self.folder {
            command.current_dir(folder);
        }
        command
    }
}

impl Runner {
    /// What `program` printed to standard output.
    ///
    /// # Errors
    /// It cannot be started, it failed, with the last line of its messages, or it was killed.
    pub(super) fn stdout(&self, program: &Program) -> anyhow::Result<String> {
        std::fs::create_dir_all(&self.scratch)
            .with_context(|| format!("cannot create {}", self.scratch.display()))?;
        let file = |name: &str| self.scratch.join(format!("{}.{name}", std::process::id()));
        let (stdout, stderr) = (file("stdout"), file("stderr"));
        let result = self.run(program, &stdout, &stderr);
        // Nothing depends on it: the next run empties them.
        let _ = std::fs::remove_file(&stdout);
        let _ = std::fs::remove_file(&stderr);
        result
    }

    /// Files and not pipes: a child of a killed program would keep a pipe open, and us waiting for its end.
    fn run(&self, program: &Program, stdout: &Path, stderr: &Path) -> anyhow::Result<String> {
        let create = |path: &Path| {
            File::create(path).with_context(|| format!("cannot write {}", path.display()))
        };
        let mut child = program
            .command()
            .stdin(Stdio::null())
            .stdout(create(stdout)?)
            .stderr(create(stderr)?)
            .spawn()
            .with_context(|| format!("cannot run {}", program.path.display()))?;
        let Some(status) = wait(&mut child, self.time_max)? else {
            bail!("hung: killed after {} s", self.time_max.as_secs_f64());
        };
        if !status.success() {
            let message = last_line(&read(stderr)?).unwrap_or("it printed no message").to_owned();
            return Err(anyhow!(message).context(status.to_string()));
        }
        read(stdout)
    }
}

/// `None` if the child was killed because it took longer than `time_max`.
fn wait(child: &mut Child, time_max: Duration) -> anyhow::Result<Option<ExitStatus>> {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().context("cannot wait for the program")? {
            return Ok(Some(status));
        }
        if started.elapsed() > time_max {
            child.kill().context("cannot kill the program")?;
            child.wait().context("cannot wait for the program")?;
            return Ok(None);
        }
        std::thread::sleep(POLL);
    }
}

/// Programs may print what is no UTF-8, such as the bytes of a token.
fn read(path: &Path) -> anyhow::Result<String> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The last line that is not blank.
pub(super) fn last_line(text: &str) -> Option<&str> {
    text.lines().map(str::trim).rfind(|line| !line.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_not_blank() {
        assert_eq!(
            last_line("Traceback\n  RuntimeError: no g++ \n\n"),
            Some("RuntimeError: no g++")
        );
        assert_eq!(last_line(" \n"), None);
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let error = runner("absent", 60).stdout(&Program::new("no-such-program")).unwrap_err();
        assert_eq!(error.to_string(), "cannot run no-such-program");
    }

    fn runner(name: &str, seconds: u64) -> Runner {
        let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/xtask-bench-test");
        Runner { time_max: Duration::from_secs(seconds), scratch: target.join(name) }
    }

    #[cfg(unix)]
    fn shell(script: &str) -> Program {
        Program::new("sh").args(["-c", script])
    }

    #[cfg(unix)]
    #[test]
    fn only_standard_output_is_taken() {
        let text = runner("output", 60).stdout(&shell("echo warning >&2; echo result")).unwrap();
        assert_eq!(text, "result\n");
    }

    #[cfg(unix)]
    #[test]
    fn a_failure_says_how_and_why() {
        let error = runner("failure", 60).stdout(&shell("echo a >&2; echo b >&2; exit 3"));
        assert_eq!(format!("{:#}", error.unwrap_err()), "exit status: 3: b");
        let error = runner("silent", 60).stdout(&shell("exit 4")).unwrap_err();
        assert_eq!(format!("{error:#}"), "exit status: 4: it printed no message");
    }

    #[cfg(unix)]
    #[test]
    fn a_program_that_hangs_is_killed_even_if_its_child_lives_on() {
        let started = Instant::now();
        let error = runner("hang", 0).stdout(&shell("sleep 5 & sleep 100")).unwrap_err();
        assert_eq!(error.to_string(), "hung: killed after 0 s");
        assert!(started.elapsed() < Duration::from_secs(4), "waited for the child");
    }

    #[cfg(unix)]
    #[test]
    fn tuning_comes_from_the_program_alone() {
        let echo = shell("echo \"$ATEN_CPU_CAPABILITY,$OMP_NUM_THREADS\"");
        let tuned = echo.clone().env("ATEN_CPU_CAPABILITY", "avx2").env("OMP_NUM_THREADS", "1");
        assert_eq!(runner("tuned", 60).stdout(&tuned).unwrap(), "avx2,1\n");
        let removed: Vec<_> = echo
            .command()
            .get_envs()
            .filter(|(_, value)| value.is_none())
            .map(|(name, _)| name.to_owned())
            .collect();
        assert_eq!(removed, TUNING);
    }
}
