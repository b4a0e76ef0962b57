//! All parts, each in a process of its own with a limit of time.

use super::{Options, Outcome, Part, text};
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// No part may take longer: who waits for a GPU pays for it.
const PART_SECONDS_MAX: u64 = 120;

/// How often a part is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How a part went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Its name.
    pub part: String,
    /// How long it took.
    pub seconds: f64,
    /// How it ended.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// How all parts went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Whether the GPUs were simulated.
    pub simulated: bool,
    /// In the order in which they ran.
    pub parts: Vec<Row>,
}

impl Report {
    /// Whether no part has failed, and one has passed.
    pub fn is_good(&self) -> bool {
        let failed = |row: &Row| matches!(row.outcome, Outcome::Failed(_));
        let passed = |row: &Row| matches!(row.outcome, Outcome::Passed(_));
        !self.parts.iter().any(failed) && self.parts.iter().any(passed)
    }
}

impl Row {
    /// A line of the table.
    pub fn line(&self) -> String {
        let (outcome, seen) = match &self.outcome {
            Outcome::Passed(seen) => ("passed", seen),
            Outcome::Failed(seen) => ("FAILED", seen),
            Outcome::DidNotRun(why) => ("did not run", why),
        };
        format!("{:<13} {outcome:<12} {:>6.1} s  {seen}", self.part, self.seconds)
    }
}

/// Runs parts one after the other, each by `program --alone NAME`, and tells each row.
///
/// # Errors
/// If a process cannot be started or watched.
pub fn run(
    program: &Path,
    parts: &[Part],
    options: &Options,
    tell: &mut dyn FnMut(&Row),
) -> Result<Report, String> {
    let limit = Duration::from_secs(PART_SECONDS_MAX);
    let mut rows = Vec::new();
    for part in parts {
        let mut command = Command::new(program);
        command.args(["--alone", part.name]).args(arguments(options));
        let row = watched(part.name, &mut command, limit)?;
        tell(&row);
        rows.push(row);
    }
    Ok(Report { simulated: options.simulated, parts: rows })
}

fn arguments(options: &Options) -> Vec<PathBuf> {
    let Options { simulated, gpu_libraries, trine, sanitizer } = options;
    let mut all: Vec<PathBuf> = Vec::new();
    all.extend(simulated.then(|| "--simulated".into()));
    let mut named = |name: &str, path: &PathBuf| all.extend([name.into(), path.clone()]);
    gpu_libraries.iter().for_each(|path| named("--gpu-libraries", path));
    trine.iter().for_each(|path| named("--trine", path));
    sanitizer.iter().for_each(|path| named("--sanitizer", path));
    all
}

/// The row that a process prints, or what became of it instead.
fn watched(name: &str, command: &mut Command, limit: Duration) -> Result<Row, String> {
    let begun = Instant::now();
    // Files do not fill up, as pipes do.
    let (mut out, mut errors) =
        (tempfile::tempfile().map_err(text)?, tempfile::tempfile().map_err(text)?);
    let to = |file: &std::fs::File| file.try_clone().map(Stdio::from).map_err(text);
    let child = command.stdin(Stdio::null()).stdout(to(&out)?).stderr(to(&errors)?).spawn();
    let mut child = child.map_err(|error| format!("{command:?}: {error}"))?;
    let status = ended(&mut child, limit).map_err(text)?;
    let (out, errors) = (all_of(&mut out)?, all_of(&mut errors)?);
    let row = out.lines().find_map(|line| serde_json::from_str::<Row>(line).ok());
    let failed = |what: String| Row {
        part: name.to_owned(),
        seconds: begun.elapsed().as_secs_f64(),
        outcome: Outcome::Failed(what),
    };
    Ok(match (status, row) {
        (None, _) => failed(format!("it did not end within {} s", limit.as_secs())),
        (Some(status), Some(row)) if status.success() => row,
        (Some(status), _) => {
            let mut what = format!("its process ended: {status}");
            let last = errors.lines().rfind(|line| !line.trim().is_empty());
            last.into_iter().for_each(|line| write!(what, ": {line}").unwrap_or_default());
            failed(what)
        }
    })
}

/// `None`: it was still running, and is no more.
fn ended(child: &mut Child, limit: Duration) -> std::io::Result<Option<ExitStatus>> {
    let begun = Instant::now();
    while begun.elapsed() < limit {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        sleep(LOOK_EVERY);
    }
    child.kill()?;
    child.wait()?;
    Ok(None)
}

fn all_of(file: &mut std::fs::File) -> Result<String, String> {
    let mut bytes = Vec::new();
    file.rewind().map_err(text)?;
    file.read_to_end(&mut bytes).map_err(text)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_shell(script: &str, limit: Duration) -> Outcome {
        watched("part", Command::new("sh").args(["-c", script]), limit).unwrap().outcome
    }

    #[test]
    fn what_becomes_of_a_part_is_its_row() {
        let minute = Duration::from_secs(60);
        let row =
            r#"echo noise; echo '{"part":"a","seconds":1,"outcome":"did-not-run","seen":"x"}'"#;
        assert_eq!(of_shell(row, minute), Outcome::DidNotRun("x".into()));
        let Outcome::Failed(what) = of_shell(&format!("{row}; echo worse >&2; kill -9 $$"), minute)
        else {
            panic!("a killed process has passed")
        };
        assert!(what.contains("signal: 9") && what.ends_with(": worse"), "{what}");
        let Outcome::Failed(what) = of_shell("exit 0", minute) else {
            panic!("nothing has passed")
        };
        assert!(what.contains("exit status: 0"), "{what}");
        let late = of_shell("sleep 60", Duration::from_millis(100));
        assert_eq!(late, Outcome::Failed("it did not end within 0 s".into()));
    }

    #[test]
    fn what_did_not_run_alone_is_not_good() {
        let row = |outcome| Row { part: "a".into(), seconds: 0.0, outcome };
        let report = |parts| Report { simulated: false, parts };
        let why = || row(Outcome::DidNotRun("why".into()));
        let passed = || row(Outcome::Passed("all".into()));
        assert!(!report(vec![why()]).is_good());
        assert!(report(vec![why(), passed()]).is_good());
        assert!(!report(vec![passed(), row(Outcome::Failed("x".into()))]).is_good());
        assert!(why().line().contains("did not run     0.0 s  why"), "{}", why().line());
    }
}
