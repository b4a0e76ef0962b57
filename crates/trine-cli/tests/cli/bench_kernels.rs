//! `trine bench kernels`, for real but short.

use crate::common::ok;
use std::path::Path;

/// One row of each kernel, the shapes that are done soonest: (filter, rows).
const ROWS: &[(&str, usize)] = &[
    ("matmul y = x·wᵀ 512 x 768 x 768", 1),
    ("matmul dx = dy·w 512 x 768 x 768", 1),
    ("matmul dw += dyᵀ·x 512 x 768 x 768", 1),
    ("attention 4 x 256,", 2),
    ("attention_backward 4 x 256,", 2),
    ("layer_norm 2048", 1),
    ("layer_norm_backward 2048", 1),
    ("rms_norm 2048", 1),
    ("rms_norm_backward 2048", 1),
    ("gelu 2048", 1),
    ("gelu_backward 2048", 1),
    ("swiglu 2048", 1),
    ("swiglu_backward 2048", 1),
    ("rope 2048", 1),
    ("add_bias 2048", 1),
    ("sum_rows 2048", 1),
    ("add 2048", 1),
    ("add_assign 2048", 1),
    ("scale 2048", 1),
    ("copy 2048", 1),
    ("dropout 2048", 1),
    ("embedding 2048", 1),
    ("embedding_backward 2048", 1),
    ("softcap 512 x 50304", 1),
    ("ce_max 512 x 50304", 1),
    ("ce_sum 512 x 50304", 1),
    ("ce_grad 512 x 50304", 1),
    ("cast 32768", 1),
    ("adamw 32768", 1),
    ("sgd 32768", 1),
    ("sum_squares 32768", 1),
    ("row_sums 32768", 1),
    ("first_non_finite 32768", 1),
];

/// What is typed for these rows, in bf16.
fn arguments(rows: &[(&'static str, usize)]) -> Vec<&'static str> {
    let mut args = vec!["bench", "kernels", "--milliseconds", "1", "--precision", "bf16"];
    args.extend(rows.iter().flat_map(|(filter, _)| ["--filter", filter]));
    args
}

#[test]
fn every_kernel_is_measured() {
    let text = ok(Path::new("."), &arguments(ROWS));
    let lines: Vec<String> =
        text.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    let mut rows = 0;
    for (name, count) in ROWS {
        let found: Vec<_> = lines.iter().filter(|line| line.starts_with(name)).collect();
        assert_eq!(found.len(), *count, "{name}: {text}");
        for line in found {
            assert!(line.contains(" bf16 ") && line.ends_with(" %"), "{line}");
        }
        rows += count;
    }
    assert_eq!(lines.iter().filter(|line| line.ends_with(" %")).count(), rows);
    // Ceilings, at the start and again at the end.
    for name in ["multiply-adds bf16 ", "copy 256.0 MiB ", "triad 256.0 MiB ", "copy 8.0 MiB "] {
        let found: Vec<_> = lines.iter().filter(|line| line.starts_with(name)).collect();
        let words = |line: &String| line.split(' ').count();
        assert_eq!(found.len(), 2, "{name}: {text}");
        assert_eq!(words(found[0]) + 1, words(found[1]), "{name}: {text}");
    }
}

#[test]
fn json_holds_the_same_numbers() {
    let mut args = arguments(&[("sum_rows 3072", 1), ("matmul y = x·wᵀ 512 x 768 x 768", 1)]);
    args.extend(["--isa", "portable", "--threads", "1", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&ok(Path::new("."), &args)).unwrap();
    assert_eq!(json["isa"], "portable");
    assert_eq!((json["threads"].as_u64(), json["milliseconds"].as_u64()), (Some(1), Some(1)));
    let number = |value: &serde_json::Value| value.as_f64().unwrap();
    for when in ["ceilings_at_the_start", "ceilings_at_the_end"] {
        for name in ["copy_gb_per_s", "triad_gb_per_s", "cached_copy_gb_per_s"] {
            assert!(number(&json[when][name]) > 0.0, "{json}");
        }
        assert!(number(&json[when]["multiply_adds_gflop_per_s"]["bf16"]) > 0.0, "{json}");
    }
    let rows = json["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 2);
    assert_eq!(
        (&rows[0]["kernel"], &rows[1]["kernel"]),
        (&"matmul y = x·wᵀ".into(), &"sum_rows".into())
    );
    // The rate is the work over the best time.
    let flops = number(&rows[0]["gflop_per_s"]) * number(&rows[0]["best_ms"]) * 1e6;
    assert!((flops / (2 * 512 * 768 * 768) as f64 - 1.0).abs() < 1e-9, "{json}");
    let bytes = number(&rows[1]["gb_per_s"]) * number(&rows[1]["best_ms"]) * 1e6;
    assert!((bytes / (3072 * 1536 * 2 + 2 * 1536 * 4) as f64 - 1.0).abs() < 1e-9, "{json}");
    for row in rows {
        assert!(number(&row["median_ms"]) >= number(&row["best_ms"]), "{json}");
        assert!(number(&row["percent_of_ceiling"]) > 0.0, "{json}");
        assert!(row["calls"].as_u64() >= Some(1), "{json}");
    }
}
