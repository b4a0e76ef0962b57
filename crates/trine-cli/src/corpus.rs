//! A run's text in words: what was taken of the source, and what was left out.

use crate::output::{grouped, human_bytes};
use trine_data::{SkipCount, SkipReason};
use trine_trainer::run::DataSummary;

/// Names given for each reason.
const NAMES_MAX: usize = 2;

/// Whether what was left out is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Names {
    /// Some of each reason.
    Some,
    /// Counts alone.
    None,
}

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

/// How much was left out for which reason; nothing if all was taken.
pub(crate) fn left_out(data: &DataSummary, names: Names) -> Option<String> {
    let parts: Vec<String> = data.left_out.iter().map(|part| reason(part, names)).collect();
    (!parts.is_empty()).then(|| format!("left out {}", parts.join("; ")))
}

fn reason((reason, skip): (SkipReason, &SkipCount), names: Names) -> String {
    let bytes = match skip.bytes {
        0 => String::new(),
        bytes => format!(" ({})", human_bytes(bytes)),
    };
    let text = format!("{} {}{bytes}", grouped(skip.count), reason.describe(skip.count));
    if names == Names::None {
        return text;
    }
    // A name may hold what would move the cursor.
    let plain = |name: &String| name.replace(char::is_control, "\u{fffd}");
    let names: Vec<String> = skip.examples.iter().take(NAMES_MAX).map(plain).collect();
    let more = if skip.count > names.len() as u64 { ", …" } else { "" };
    format!("{text}: {}{more}", names.join(", "))
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
            left_out(&data, Names::Some).unwrap(),
            "left out 1 hidden file or folder: .git; 1,200 files in a format that is not plain \
             text (4.0 KiB): a.gz, b\u{fffd}.gz, …"
        );
        assert_eq!(
            left_out(&data, Names::None).unwrap(),
            "left out 1 hidden file or folder; 1,200 files in a format that is not plain text (4.0 KiB)"
        );
        data.left_out = Default::default();
        assert_eq!(left_out(&data, Names::Some), None);
    }
}
