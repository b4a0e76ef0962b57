//! A Chrome/Perfetto trace: one track a rank, written while the run goes on.
//!
//! A trace is a JSON array with an event a line. Viewers take it without its last bracket, so that a run that
//! failed has one too. Ranks hand their actions to a thread that writes; what waits for it is bounded.
//!
//! Of a run of several processes, that of rank 0 writes `PATH`, and each other one its part, `PATH.rank-N`: lines to be
//! put behind those of rank 0, which does so at the end. After a failure `cat PATH PATH.rank-*` gives the whole.

use crate::TrainError;
use crate::run::Ranks;
use crossbeam::channel::{Receiver, Sender, bounded};
use serde_json::json;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};
use trine_mesh::Coordinate;
use trine_schedule::Action;

/// Entries that may wait for the writer; ranks that are faster wait for it.
const WAITING_MAX: usize = 1024;

/// How the part of another process begins.
pub const TRACE_PART_FIRST: &str = ",\n{\"args\":";

/// The first line of a trace; each further one begins with a comma.
pub const TRACE_FIRST: &str =
    r#"[{"name":"process_name","ph":"M","pid":0,"tid":0,"args":{"name":"trine"}}"#;
const LAST: &str = "\n]\n";

/// What a rank hands over.
#[derive(Debug)]
enum Entry {
    /// It is here.
    Rank { rank: usize, place: Coordinate },
    /// An action is done. Times in microseconds, since the run's trace began.
    Action { rank: usize, action: Action, step: u64, start_us: f64, duration_us: f64 },
    /// There will be no more.
    End,
}

/// The trace of a process. Dropping it writes what has been handed over.
#[derive(Debug)]
pub(crate) struct Trace {
    path: PathBuf,
    /// When this process's trace began: here, and since that of rank 0.
    began: Instant,
    offset_us: f64,
    entries: Sender<Entry>,
    /// What the writer came to.
    outcome: Receiver<io::Result<()>>,
}

impl Trace {
    /// Creates that of this process. A collective call of processes.
    ///
    /// # Errors
    /// A file that cannot be created or no thread, on any rank, or a failed collective.
    pub(crate) fn create(path: &Path, ranks: Ranks<'_>) -> Result<Self, TrainError> {
        let now_us =
            || SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_micros() as u64);
        let began_us = ranks.rank_0_says(now_us().to_string())?.parse().unwrap_or(0);
        let offset_us = now_us() as f64 - began_us as f64;
        ranks.agree(match ranks.rank() {
            0 => Self::open(path, TRACE_FIRST, 0.0),
            rank => Self::open(&trace_part(path, rank), "", offset_us),
        })
    }

    fn open(path: &Path, first: &str, offset_us: f64) -> Result<Self, TrainError> {
        let io = |what| move |source| TrainError::Io { what, path: path.to_path_buf(), source };
        let mut file = File::create(path).map_err(io("create the trace"))?;
        file.write_all(first.as_bytes()).map_err(io("write the trace"))?;
        let ((entries, handed), (ended, outcome)) = (bounded(WAITING_MAX), bounded(1));
        let body = move || {
            let written = write(file, &handed);
            // Who hands over to a writer that has failed must not wait for it.
            drop(handed);
            let _ = ended.send(written);
        };
        let writer = thread::Builder::new().name("trace".into()).spawn(body);
        writer.map_err(|source| TrainError::Thread { what: "trace", source })?;
        Ok(Self { path: path.to_path_buf(), began: Instant::now(), offset_us, entries, outcome })
    }

    /// The track of a rank of this process.
    pub(crate) fn track(&self, rank: usize, place: Coordinate) -> Track {
        let entries = self.entries.clone();
        let track = Track { rank, began: self.began, offset_us: self.offset_us, entries };
        track.hand_over(Entry::Rank { rank, place });
        track
    }

    /// Writes what has been handed over, and takes no more.
    ///
    /// # Errors
    /// The first failure to write: what was handed over since is missing.
    pub(crate) fn finish(&self) -> Result<(), TrainError> {
        // A writer that has failed does not take it, and has left its outcome.
        let _ = self.entries.send(Entry::End);
        let outcome = self.outcome.recv().unwrap_or(Ok(()));
        let path = self.path.clone();
        outcome.map_err(|source| TrainError::Io { what: "write the trace", path, source })
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        // Of a run that has failed: its own cause counts.
        let _ = self.finish();
    }
}

/// Where a rank's actions go.
#[derive(Debug)]
pub(crate) struct Track {
    rank: usize,
    began: Instant,
    offset_us: f64,
    entries: Sender<Entry>,
}

impl Track {
    /// An action of a step (from 0) that began at a moment and took so long.
    pub(crate) fn action(&self, action: Action, step: u64, began: Instant, took: Duration) {
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        let start_us = self.offset_us + micros(began.saturating_duration_since(self.began));
        let duration_us = micros(took);
        self.hand_over(Entry::Action { rank: self.rank, action, step, start_us, duration_us });
    }

    fn hand_over(&self, entry: Entry) {
        // A writer that has failed takes no more: the run goes on, and its end says why.
        let _ = self.entries.send(entry);
    }
}

/// Writes what comes. Whole lines reach the file as soon as no more wait.
fn write(file: File, handed: &Receiver<Entry>) -> io::Result<()> {
    let mut out = BufWriter::new(file);
    loop {
        let entry = match handed.try_recv() {
            Ok(entry) => entry,
            Err(_) => {
                out.flush()?;
                handed.recv().unwrap_or(Entry::End)
            }
        };
        match line(&entry) {
            Some(line) => out.write_all(line.as_bytes())?,
            None => return out.flush(),
        }
    }
}

fn line(entry: &Entry) -> Option<String> {
    let event = match entry {
        Entry::Rank { rank, place } => json!({
            "name": "thread_name", "ph": "M", "pid": 0, "tid": rank,
            "args": {"name": format!("rank {rank} ({place})")},
        }),
        Entry::Action { rank, action, step, start_us, duration_us } => json!({
            "name": action.to_string(), "ph": "X", "pid": 0, "tid": rank,
            "ts": start_us, "dur": duration_us, "args": {"step": step},
        }),
        Entry::End => return None,
    };
    Some(format!(",\n{event}"))
}

/// The file of another process than rank 0's.
pub fn trace_part(path: &Path, rank: usize) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".rank-{rank}"));
    name.into()
}

/// Ends a trace whose writers have all finished: puts the parts of ranks `1..ranks` behind it, where they are here,
/// and closes the list. Gives back the first part that is on another host.
///
/// # Errors
/// Files that cannot be read or written.
pub(crate) fn close(path: &Path, ranks: usize) -> Result<Option<PathBuf>, TrainError> {
    let io = |what, path: &Path| {
        let path = path.to_path_buf();
        move |source| TrainError::Io { what, path, source }
    };
    let opened = File::options().append(true).open(path);
    let mut out = opened.map_err(io("open the trace", path))?;
    let mut elsewhere = None;
    for own in (1..ranks).map(|rank| trace_part(path, rank)) {
        match File::open(&own) {
            Ok(mut lines) => {
                io::copy(&mut lines, &mut out).map_err(io("add to the trace", &own))?;
                fs::remove_file(&own).map_err(io("remove", &own))?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                elsewhere.get_or_insert(own);
            }
            Err(error) => return Err(io("read", &own)(error)),
        }
    }
    out.write_all(LAST.as_bytes()).map_err(io("write the trace", path))?;
    Ok(elsewhere)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use trine_schedule::Compute;

    const PLACE: Coordinate = Coordinate { dp: 0, pp: 0, cp: 0, ep: 0, tp: 0 };

    fn actions(track: &Track, count: u64) {
        for step in 0..count {
            let forward = Compute::Forward { stage: 0, micro_batch: 1 };
            track.action(forward.into(), step, Instant::now(), Duration::ZERO);
        }
    }

    fn events(text: &str) -> Vec<Value> {
        serde_json::from_str(text).unwrap()
    }

    /// A trace that nobody has closed is one but for its bracket, as viewers take it.
    #[test]
    fn what_is_handed_over_is_in_the_file_while_the_run_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.json");
        let trace = Trace::create(&path, Ranks::Threads).unwrap();
        let track = trace.track(0, PLACE);
        actions(&track, 3 * WAITING_MAX as u64);
        let began = Instant::now();
        let written = || fs::read_to_string(&path).unwrap();
        while written().lines().count() < 3 * WAITING_MAX + 2 {
            assert!(began.elapsed() < Duration::from_secs(20));
        }
        assert_eq!(events(&(written() + "]")).len(), 3 * WAITING_MAX + 2);
        trace.finish().unwrap();
        // What comes after the end is left out, and keeps nobody waiting.
        actions(&track, 3 * WAITING_MAX as u64);
        assert_eq!(close(&path, 1).unwrap(), None);
        assert_eq!(events(&written()).len(), 3 * WAITING_MAX + 2);
    }

    #[test]
    fn parts_come_together_in_order_and_a_missing_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.json");
        for (path, first, count) in [(path.clone(), TRACE_FIRST, 2), (trace_part(&path, 2), "", 3)]
        {
            let trace = Trace::open(&path, first, 0.0).unwrap();
            actions(&trace.track(count as usize, PLACE), count);
            trace.finish().unwrap();
        }
        let together =
            [path.clone(), trace_part(&path, 2)].map(|path| fs::read_to_string(path).unwrap());
        assert_eq!(events(&(together.concat() + "]")).len(), 8);
        assert_eq!(close(&path, 4).unwrap(), Some(trace_part(&path, 1)));
        assert_eq!(events(&fs::read_to_string(&path).unwrap()).len(), 8);
        assert!(!trace_part(&path, 2).exists());
    }
}
