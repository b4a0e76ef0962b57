//! A run's text in words: what was taken of the source, and what was left out.

use crate::output::{grouped, human_bytes};
use trine_data::{SkipCount, SkipReason};
use trine_trainer::run::DataSummary;

/// Names given for each reason.
const NAMES_MAX: usize = 2;

/// Bytes and documents of both splits, and the share that is held out.
pub(crate) fn taken(data: &DataSummary) -> String {
    let all = (data.train_bytes + data.validation_bytes).max(1);
    format!(
        "{} training and {} validation bytes ({:.1} % held out) in {} + {} documents",
        grouped(data.train_bytes),
        grouped(data.validation_bytes),
        100.0 * data.validation_bytes as f64 / all as f64,
        grouped(data.train_documents),
        grouped(data.validation_documents),
    )
}

/// How much was left out for which reason, with some names; nothing if all was taken.
pub(crate) fn left_out(data: &DataSummary) -> Option<String> {
    let parts: Vec<String> = data.left_out.iter().map(reason).collect();
    (!parts.is_empty()).then(|| format!("left out {}", parts.join("; ")))
}

fn reason((reason, skip): (SkipReason, &SkipCount)) -> String {
    let bytes = match skip.bytes {
        0 => String::new(),
        bytes => format!(" ({})", human_bytes(bytes)),
    };
    // A name may hold what would move the cursor.
    let plain = |name: &String| name.replace(char::is_control, "\u{fffd}");
    let names: Vec<String> = skip.examples.iter().take(NAMES_MAX).map(plain).collect();
    let more = if skip.count > names.len() as u64 { ", …" } else { "" };
    format!("{} {}{bytes}: {}{more}", grouped(skip.count), reason.describe(), names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_said_by_reason() {
        let json = serde_json::json!({
            "train_documents": 9, "validation_documents": 1,
            "train_bytes": 9500, "validation_bytes": 500,
            "left_out": {
                "hidden": { "count": 1, "bytes": 0, "examples": [".git"] },
                "format": {
                    "count": 1200, "bytes": 4096, "examples": ["a.gz", "b\n.gz", "c.gz", "d.gz"]
                },
            },
        });
        let mut data: DataSummary = serde_json::from_value(json).unwrap();
        assert_eq!(
            taken(&data),
            "9,500 training and 500 validation bytes (5.0 % held out) in 9 + 1 documents"
        );
        assert_eq!(
            left_out(&data).unwrap(),
            "left out 1 hidden files or folders: .git; 1,200 files in a format that is not plain \
             text (4.0 KiB): a.gz, b\u{fffd}.gz, …"
        );
        data.left_out = Default::default();
        assert_eq!(left_out(&data), None);
    }
}
