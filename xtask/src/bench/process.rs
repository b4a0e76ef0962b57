//! Runs a program to its end, or turn by turn, within a time limit, and takes what it printed.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};

/// How long the end of a program or of its turn may go unnoticed; looking more often would take time from it.
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
    /// A program that takes longer, to its end or for a turn, is killed.
    pub(super) time_max: Duration,
    /// What a program prints is kept here until it ends.
    pub(super) scratch: PathBuf,
}

/// A program that has been started. It is killed when nobody holds it any more.
#[derive(Debug)]
pub(super) struct Running {
    child: Child,
    /// `None` when it is to end.
    stdin: Option<ChildStdin>,
    stdout: PathBuf,
    stderr: PathBuf,
    /// Bytes of its output that earlier turns have taken.
    taken: usize,
    time_max: Duration,
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
    /// What `program` printed to standard output until it ended.
    ///
    /// # Errors
    /// It cannot be started, it failed, with the last line of its messages, or it was killed.
    pub(super) fn stdout(&self, program: &Program) -> anyhow::Result<String> {
        self.start(program, "run")?.end()
    }

    /// Starts `program`; `name` is of its own among those that run at the same time.
    ///
    /// # Errors
    /// It cannot be started.
    pub(super) fn start(&self, program: &Program, name: &str) -> anyhow::Result<Running> {
        std::fs::create_dir_all(&self.scratch)
            .with_context(|| format!("cannot create {}", self.scratch.display()))?;
        let file = |kind: &str| self.scratch.join(format!("{}-{name}.{kind}", std::process::id()));
        let (stdout, stderr) = (file("stdout"), file("stderr"));
        // Files and not pipes: a child of a killed program would keep a pipe open, and us waiting for its end.
        let create = |path: &Path| {
            File::create(path).with_context(|| format!("cannot write {}", path.display()))
        };
        let mut child = program
            .command()
            .stdin(Stdio::piped())
            .stdout(create(&stdout)?)
            .stderr(create(&stderr)?)
            .spawn()
            .with_context(|| format!("cannot run {}", program.path.display()))?;
        let stdin = child.stdin.take();
        Ok(Running { child, stdin, stdout, stderr, taken: 0, time_max: self.time_max })
    }
}

impl Running {
    /// What the program printed since its last turn, as soon as it `is_whole` or the program has ended.
    ///
    /// # Errors
    /// It failed, with the last line of its messages, or it was killed.
    pub(super) fn turn(&mut self, is_whole: impl Fn(&str) -> bool) -> anyhow::Result<String> {
        let started = Instant::now();
        loop {
            // Asked first: what it printed before its end is read after it.
            let ended = self.child.try_wait().context("cannot wait for the program")?;
            let text = read(&self.stdout)?;
            let new = text.get(self.taken..).unwrap_or("").to_owned();
            match ended {
                Some(status) if !status.success() => return Err(self.failure(status)),
                None if !new.ends_with('\n') || !is_whole(&new) => {}
                _ => {
                    self.taken = text.len();
                    return Ok(new);
                }
            }
            self.wait(started)?;
        }
    }

    /// Lets a program that waits for a line go on with its next turn.
    ///
    /// # Errors
    /// It has ended, or it was killed because it does not read and does not end.
    pub(super) fn go_on(&mut self) -> anyhow::Result<()> {
        if self.stdin.as_mut().is_some_and(|stdin| stdin.write_all(b"\n").is_ok()) {
            return Ok(());
        }
        // It no longer reads: it has ended, or is about to.
        let status = self.status()?;
        Err(self.failure(status))
    }

    /// All that the program has printed when it has ended; one that waits for a line gets none.
    ///
    /// # Errors
    /// It failed, with the last line of its messages, or it was killed.
    pub(super) fn end(mut self) -> anyhow::Result<String> {
        self.stdin = None;
        let status = self.status()?;
        if status.success() { read(&self.stdout) } else { Err(self.failure(status)) }
    }

    /// How it ends.
    fn status(&mut self) -> anyhow::Result<ExitStatus> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().context("cannot wait for the program")? {
                return Ok(status);
            }
            self.wait(started)?;
        }
    }

    /// Looks away for a moment, unless what was begun at `started` takes too long.
    fn wait(&self, started: Instant) -> anyhow::Result<()> {
        let seconds = self.time_max.as_secs_f64();
        ensure!(started.elapsed() <= self.time_max, "hung: killed after {seconds} s");
        std::thread::sleep(POLL);
        Ok(())
    }

    /// How it ended, and the last that it said.
    fn failure(&self, status: ExitStatus) -> anyhow::Error {
        let said = read(&self.stderr).unwrap_or_default();
        let message = last_line(&said).unwrap_or("it printed no message").to_owned();
        anyhow!(message).context(status.to_string())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself, and the next program of this name empties the files.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.stdout);
        let _ = std::fs::remove_file(&self.stderr);
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
    fn line(text: &str) -> bool {
        text.contains("turn")
    }

    #[cfg(unix)]
    #[test]
    fn a_program_goes_on_turn_by_turn() {
        let script = "echo hello; echo turn 1; read a; echo turn 2; read b || echo over";
        let runner = runner("turns", 60);
        let mut running = runner.start(&shell(script), "a").unwrap();
        assert_eq!(running.turn(line).unwrap(), "hello\nturn 1\n");
        running.go_on().unwrap();
        assert_eq!(running.turn(line).unwrap(), "turn 2\n");
        assert_eq!(running.end().unwrap(), "hello\nturn 1\nturn 2\nover\n");
        assert_eq!(std::fs::read_dir(&runner.scratch).unwrap().count(), 0, "files are left");
    }

    #[cfg(unix)]
    #[test]
    fn programs_that_wait_stand_beside_each_other_and_end_when_nobody_holds_them() {
        let runner = runner("beside", 60);
        let started = Instant::now();
        let start = |name| runner.start(&shell("echo turn $$; sleep 100"), name).unwrap();
        let (mut a, mut b) = (start("a"), start("b"));
        assert_ne!(a.turn(line).unwrap(), b.turn(line).unwrap());
        drop((a, b));
        assert!(started.elapsed() < Duration::from_secs(50), "waited for their end");
    }

    #[cfg(unix)]
    #[test]
    fn a_turn_that_fails_or_hangs_says_so() {
        let run = |script, seconds| {
            let mut running = runner("bad turns", seconds).start(&shell(script), "a").unwrap();
            running.turn(line)?;
            running.go_on()?;
            running.turn(line)
        };
        let error = run("echo turn; read a; echo b >&2; exit 3", 60).unwrap_err();
        assert_eq!(format!("{error:#}"), "exit status: 3: b");
        // Without an error of its own it has printed what it has.
        assert_eq!(run("echo turn; read a; echo other", 60).unwrap(), "other\n");
        let error = run("sleep 100", 0).unwrap_err().to_string();
        assert_eq!(error, "hung: killed after 0 s");
        // One that closes its input and goes on is not waited for without end either.
        let mut deaf =
            runner("deaf", 1).start(&shell("exec <&-; echo turn; sleep 100"), "a").unwrap();
        deaf.turn(line).unwrap();
        assert_eq!(deaf.go_on().unwrap_err().to_string(), "hung: killed after 1 s");
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
