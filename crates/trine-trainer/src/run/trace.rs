//! A Chrome/Perfetto trace: one track a rank.

use crate::TrainError;
use crate::run::measure::TraceEvent;
use crate::run::rank::RankReport;
use serde_json::json;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// Writes all ranks' actions as trace events (`chrome://tracing`, ui.perfetto.dev).
pub(crate) fn write(path: &Path, ranks: &[RankReport]) -> Result<(), TrainError> {
    let io = |what| move |source| TrainError::Io { what, path: path.to_path_buf(), source };
    let file = File::create(path).map_err(io("create the trace"))?;
    let mut out = BufWriter::new(file);
    let mut separator = "{\"traceEvents\":[\n";
    for (rank, report) in ranks.iter().enumerate() {
        let name = json!({
            "name": "thread_name", "ph": "M", "pid": 0, "tid": rank,
            "args": {"name": format!("rank {rank} ({})", report.coordinate)},
        });
        write!(out, "{separator}{name}").map_err(io("write the trace"))?;
        separator = ",\n";
        for event in &report.events {
            write!(out, "{separator}{}", line(rank, event)).map_err(io("write the trace"))?;
        }
    }
    let end = if separator.starts_with('{') { "{\"traceEvents\":[]}\n" } else { "\n]}\n" };
    out.write_all(end.as_bytes()).and_then(|()| out.flush()).map_err(io("write the trace"))
}

fn line(rank: usize, event: &TraceEvent) -> serde_json::Value {
    json!({
        "name": event.action, "ph": "X", "pid": 0, "tid": rank,
        "ts": event.start_us, "dur": event.duration_us, "args": {"step": event.step},
    })
}
