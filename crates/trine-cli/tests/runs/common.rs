//! Small runs in a scratch folder: each takes a fraction of a second.

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use trine_data::toy;

/// A small model on the scratch folder's text, in f32.
const SMALL: &[&str] = &[
    "--set=data.source=data",
    "--set=train.precision=f32",
    "--set=data.cache=cache",
    "--set=data.vocab=300",
    "--set=data.seq=32",
    "--set=model.vocab=300",
    "--set=model.hidden=32",
    "--set=model.heads=4",
    "--set=model.layers=2",
    "--set=batch.global=4",
    "--set=batch.micro=1",
    "--set=lr.warmup_steps=5",
    "--set=train.minutes_max=0",
    "--set=eval.every=0",
    "--set=eval.final_windows_max=8",
    "--set=sample.prompts=[\"pub fn\"]",
    "--set=sample.tokens=8",
];

/// One rank.
pub(crate) const SERIAL: &[&str] = &["--tp=1", "--pp=1", "--dp=1"];
/// Eight ranks.
pub(crate) const ALL_AXES: &[&str] = &["--tp=2", "--pp=2", "--dp=2"];

/// Whatever a run is waited for happens within this time, or the test fails.
const DEADLINE: Duration = Duration::from_secs(60);

/// Bad input ends within two seconds. The rest is for starting the process, preparing the text, and
/// for tests that run at the same time.
const PATIENCE: Duration = Duration::from_secs(5);

/// A folder with text in `data`, which is where the runs run.
#[derive(Debug)]
pub(crate) struct Scratch {
    folder: TempDir,
}

impl Scratch {
    /// A new one.
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("data")).unwrap();
        for document in toy::documents(10, 4000) {
            fs::write(folder.path().join("data").join(document.name), document.text).unwrap();
        }
        Self { folder }
    }

    /// A path in it.
    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The run in `out`, which may not have begun.
    pub(crate) fn at(&self, out: &str) -> Run {
        Run { path: self.path(out) }
    }

    /// A program that runs in it.
    #[cfg(feature = "mpi")]
    pub(crate) fn program(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.folder.path()).stdin(Stdio::null());
        command
    }

    /// `trine`, with backtraces switched on to see that none appears.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_trine"));
        command.args(args).current_dir(self.folder.path()).env("RUST_BACKTRACE", "1");
        command
    }

    /// Runs `trine`.
    pub(crate) fn trine(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs `trine` in a folder of it.
    pub(crate) fn trine_in(&self, folder: &str, args: &[&str]) -> Output {
        self.command(args).current_dir(self.path(folder)).output().unwrap()
    }

    /// Runs `trine`, which must succeed, and returns what it printed: (standard output, standard
    /// error).
    #[track_caller]
    pub(crate) fn ok(&self, args: &[&str]) -> (String, String) {
        let output = self.trine(args);
        let errors = text(&output.stderr);
        assert!(output.status.success(), "{args:?}: {errors}");
        assert!(!errors.contains("panicked") && !errors.contains("error:"), "{args:?}: {errors}");
        (text(&output.stdout), errors)
    }

    /// Trains the small model from the start to the end.
    #[track_caller]
    pub(crate) fn train(&self, out: &str, args: &[&str]) -> Run {
        self.ok(&small(out, args));
        self.at(out)
    }

    /// Goes on with a run to its end.
    #[track_caller]
    pub(crate) fn resume(&self, out: &str, args: &[&str]) -> Run {
        self.ok(&[&["train", "--resume", out], args].concat());
        self.at(out)
    }

    /// Starts `trine`, which runs while the test does something.
    pub(crate) fn start(&self, args: &[&str]) -> Started {
        let mut command = self.command(args);
        Started(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    /// Starts `trine`, whose messages go to a file.
    pub(crate) fn start_logged(&self, args: &[&str]) -> (Started, PathBuf) {
        let log = self.path("log.txt");
        let mut command = self.command(args);
        command.stdout(Stdio::null()).stderr(fs::File::create(&log).unwrap());
        (Started(command.spawn().unwrap()), log)
    }

    /// Runs `trine`, which must fail soon with `code` and one message that holds all `parts`, and
    /// must leave all files that are there as they are.
    #[track_caller]
    pub(crate) fn fails(&self, args: &[&str], code: i32, parts: &[&str]) -> String {
        let before = files(self.folder.path());
        let started = Instant::now();
        let output = self.trine(args);
        let took = started.elapsed();
        let errors = text(&output.stderr);
        assert!(took < PATIENCE, "{args:?} took {took:?}: {errors}");
        assert_eq!(output.status.code(), Some(code), "{args:?}: {errors}");
        assert_eq!(errors.matches("error:").count(), 1, "{args:?}: {errors}");
        // The last thing that is said; a failed rank's has a line for each of the others.
        let message = errors.find("error: ").map_or("", |start| &errors[start..]);
        let is_first_in_line = errors.starts_with("error: ") || errors.contains("\nerror: ");
        assert!(is_first_in_line, "{args:?}: {errors}");
        for unwanted in ["panicked", "backtrace", "Stack"] {
            assert!(!errors.contains(unwanted), "{args:?}: {errors}");
        }
        for part in parts {
            assert!(message.contains(part), "{args:?}: {errors}\n  expected: {part}");
        }
        for (path, bytes) in before {
            let now = fs::read(&path).unwrap_or_default();
            assert!(now == bytes, "{args:?} changed {}", path.display());
        }
        message.to_owned()
    }
}

/// The arguments that train the small model.
pub(crate) fn small<'a>(out: &'a str, args: &[&'a str]) -> Vec<&'a str> {
    [&["train", "--out", out], SMALL, args].concat()
}

/// Printed bytes as text.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// All files below a folder with their contents.
pub(crate) fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push((path.clone(), fs::read(&path).unwrap()));
        }
    }
    found
}

/// The names in a folder, sorted; none if there is no folder.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Copies a folder with all that is in it.
pub(crate) fn copy(from: &Path, to: &Path) {
    for (path, bytes) in files(from) {
        let target = to.join(path.strip_prefix(from).unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::write(target, bytes).unwrap();
    }
}

/// A process that ends with its owner.
#[derive(Debug)]
pub(crate) struct Started(Child);

impl Started {
    /// Sends a signal, such as `TERM`.
    pub(crate) fn signal(&self, name: &str) {
        let (flag, id) = (format!("-{name}"), self.0.id().to_string());
        assert!(Command::new("kill").args([&flag, &id]).status().unwrap().success(), "{flag}");
    }

    /// Ends it as `kill -9` does.
    pub(crate) fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Its exit code, once it ends by itself.
    pub(crate) fn code(mut self) -> Option<i32> {
        let mut code = None;
        wait_for("the run ends", || {
            code = self.0.try_wait().unwrap().map(|status| status.code());
            code.is_some()
        });
        code.flatten()
    }

    /// Whether it has not ended.
    pub(crate) fn is_running(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // A test that failed leaves nothing running; a process that has ended cannot be killed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Looks often until something is true.
#[track_caller]
pub(crate) fn wait_for(what: &str, mut is_true: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_true() {
        assert!(started.elapsed() < DEADLINE, "{what}: not within {DEADLINE:?}");
        sleep(Duration::from_micros(200));
    }
}

/// A run directory.
#[derive(Debug)]
pub(crate) struct Run {
    /// Where it is.
    pub(crate) path: PathBuf,
}

impl Run {
    /// The complete lines of its metrics.
    pub(crate) fn lines(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path.join("metrics.jsonl")).unwrap_or_default();
        text.split_inclusive('\n').filter(|line| line.ends_with('\n')).map(str::to_owned).collect()
    }

    /// Its metrics.
    pub(crate) fn metrics(&self) -> Vec<Value> {
        self.lines().iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// A number of every step.
    pub(crate) fn numbers(&self, name: &str) -> Vec<f64> {
        self.metrics().iter().map(|line| line[name].as_f64().unwrap()).collect()
    }

    /// The losses as they stand in the file: equal texts are equal bits.
    pub(crate) fn loss_texts(&self) -> Vec<String> {
        let loss = |line: &String| {
            line.split_once("\"loss\":").unwrap().1.split(',').next().unwrap().to_owned()
        };
        self.lines().iter().map(loss).collect()
    }

    /// Its metrics without what depends on the time of day.
    pub(crate) fn timeless(&self) -> Vec<String> {
        let timeless = |line: &Value| {
            let mut line = line.clone();
            let fields = line.as_object_mut().unwrap();
            for time in ["tokens_per_s", "step_ms", "time"] {
                assert!(fields.remove(time).is_some(), "{time}");
            }
            line.to_string()
        };
        self.metrics().iter().map(timeless).collect()
    }

    /// Its summary.
    pub(crate) fn summary(&self) -> Value {
        serde_json::from_str(&fs::read_to_string(self.path.join("summary.json")).unwrap()).unwrap()
    }

    /// A file of the checkpoint after a step.
    pub(crate) fn checkpoint_file(&self, step: u64, name: &str) -> Vec<u8> {
        let path = self.checkpoints().join(format!("step-{step}")).join(name);
        fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// The folder of its checkpoints.
    pub(crate) fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }
}

/// The largest relative difference between the losses of two runs.
pub(crate) fn difference(a: &Run, b: &Run) -> f64 {
    let (a, b) = (a.numbers("loss"), b.numbers("loss"));
    assert_eq!(a.len(), b.len());
    a.iter().zip(&b).map(|(a, b)| (a - b).abs() / b.abs()).fold(0.0, f64::max)
}
