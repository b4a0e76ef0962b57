//! Files of published runs as people write them: every row is predicted, or listed with its reason.
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, its helpers too")]

use trine_plan::evaluate::{World, summarize};
use trine_plan::{Attention, Constants, Layout, PlanError, Precision, Recompute, published};
use trine_plan::{clusters, stacks};
use trine_schedule::ScheduleKind;

const HEAD: [&str; 21] = [
    "row_id",
    "source",
    "model",
    "layers",
    "hidden",
    "heads",
    "kv_heads",
    "ffn",
    "gated_mlp",
    "seq_len",
    "vocab",
    "precision",
    "gpu_type",
    "gpus",
    "tp",
    "pp",
    "vpp",
    "mbs",
    "gbs_seqs",
    "seq_parallel",
    "recompute",
];
/// A row that can be planned; the time column is last.
const ROW: [&str; 21] = [
    "a",
    "somebody",
    "GPT",
    "32",
    "4096",
    "32",
    "",
    "",
    "no",
    "2048",
    "50304",
    "bf16",
    "A100-80GB",
    "64",
    "4",
    "2",
    "",
    "2",
    "512",
    "yes",
    "none",
];

/// The file with these fields changed, planned: the layout, or the reason.
fn plan(changes: &[(&str, &str)]) -> Result<Layout, String> {
    let (mut head, mut row) = (HEAD.to_vec(), ROW.to_vec());
    for (name, value) in changes {
        match head.iter().position(|column| column == name) {
            Some(at) => row[at] = value,
            None => {
                head.push(name);
                row.push(value);
            }
        }
    }
    let quoted: Vec<String> = row.iter().map(|field| format!("\"{field}\"")).collect();
    plan_file(&format!("{},iter_time_s\n{},10\n", head.join(","), quoted.join(",")))
}

/// The only row of a file, planned. What is planned has a time and a memory; what is not has a reason.
fn plan_file(text: &str) -> Result<Layout, String> {
    let (clusters, stacks) = (clusters(&[]).unwrap(), stacks().unwrap());
    let constants = Constants::built_in().unwrap();
    let rows = published::read(text, &clusters, &stacks).unwrap();
    let world = World { clusters: &clusters, stacks: &stacks, constants: &constants };
    let compared = world.compare(&rows).unwrap();
    let summary = summarize(&compared);
    assert_eq!((summary.rows, compared.len()), (1, 1));
    match &compared[0].estimate {
        Ok(estimate) => {
            let (step, bytes) = (estimate.time.step, estimate.memory.total());
            assert!(step > 0.0 && step.is_finite() && bytes > 0.0 && bytes.is_finite(), "{text}");
            Ok(rows[0].run.as_ref().unwrap().layout)
        }
        Err(why) => {
            assert!(!why.is_empty(), "{text}");
            Err(why.clone())
        }
    }
}

#[test]
fn spellings_of_the_same_mean_the_same() {
    let usual = plan(&[]).unwrap();
    assert!(usual.sequence_parallel && usual.degrees.dp == 8);
    for change in [
        ("precision", "BFloat16"),
        ("precision", ""),
        ("gpu_type", "NVIDIA A100-SXM4-80GB"),
        ("gpu_type", "a100 80gb"),
        ("seq_parallel", "True"),
        ("gbs_seqs", "512.0"),
        ("hidden", "4,096"),
        ("recompute", "no"),
        ("vpp", "n/a"),
        ("vocab", "-"),
        ("head_dim", "128"),
        ("a column of their own", "x, \u{e9}"),
    ] {
        assert_eq!(plan(&[change]), Ok(usual), "{change:?}");
    }
    let precision = |text| plan(&[("precision", text)]).map(|layout| layout.precision);
    assert_eq!(precision("float16"), Ok(Precision::F16));
    assert_eq!(precision("FP32"), Ok(Precision::F32));
    assert_eq!(precision("fp8 (E4M3) + bf16"), Ok(Precision::Fp8));
    assert_eq!(precision("float8 rowwise"), Ok(Precision::Fp8Rows));
    let zero = |text| plan(&[("zero_stage", text)]).map(|layout| layout.zero);
    let stages = ["ZeRO-1", "2 (optimizer and gradients)", "FSDP2", "none", "3"].map(zero);
    assert_eq!(stages, [Ok(1), Ok(2), Ok(3), Ok(0), Ok(3)]);
    let recompute = |text| plan(&[("recompute", text)]).map(|layout| layout.recompute);
    assert_eq!(recompute("full, every 2nd block"), Ok(Recompute::Full { every: 2 }));
    assert_eq!(recompute("True"), Ok(Recompute::Full { every: 1 }));
    let attention = plan(&[("flash_attn", "False")]).unwrap().attention;
    assert_eq!(attention, Attention::FusedSoftmax);
}

#[test]
fn what_follows_from_other_columns_is_taken_from_them() {
    let usual = plan(&[]).unwrap();
    let eight = ("num_microbatches", "32");
    assert_eq!(plan(&[("mbs", ""), eight]), Ok(usual));
    assert_eq!(plan(&[("gbs_seqs", ""), eight]), Ok(usual));
    assert_eq!(plan(&[("gpus", ""), ("dp", "8")]), Ok(usual));
    // Layers that do not divide over the stages; grouped queries; ZB-V has two stages a rank.
    assert!(plan(&[("layers", "33"), ("kv_heads", "8"), ("gated_mlp", "yes")]).is_ok());
    let v = plan(&[("schedule", "ZB-V")]).unwrap();
    assert_eq!((v.pipeline, v.virtual_stages), (ScheduleKind::ZbV, 2));
}

#[test]
fn a_byte_order_mark_and_crlf_change_nothing() {
    let line = |row: &[&str]| row.join(",");
    let text = format!("\u{feff}{}\r\n{}\r\n\r\n", line(&HEAD), line(&ROW));
    assert_eq!(plan_file(&text), plan(&[]));
}

#[test]
fn rows_that_cannot_be_planned_say_why() {
    for (changes, said) in [
        (&[("model", "Mixtral 8x7B")][..], "mixtures of experts"),
        (&[("num_experts", "8")], "num_experts = 8"),
        (&[("gpu_type", "B300")], "B300"),
        (&[("gpu_type", "GH200 96GB")], "GH200"),
        (&[("gpu_type", "TPU v5e")], "TPU v5e"),
        (&[("precision", "nvfp4")], "nvfp4"),
        (&[("recompute", "sometimes")], "sometimes"),
        (&[("schedule", "dualpipe")], "dualpipe"),
        (&[("kv_heads", "5")], "kv_heads"),
        (&[("tp", "3"), ("gpus", "48")], "tp"),
        (&[("tp", "-4")], "not a positive number"),
        (&[("tp", "2.5")], "not a whole number"),
        (&[("tp", "1e18")], "more than"),
        (&[("gpus", "60")], "not 60 gpus"),
        (&[("gbs_seqs", "500")], "multiple of"),
        (&[("mbs", "")], "mbs is empty"),
        (&[("vpp", "4"), ("gbs_seqs", "528")], "multiple"),
        (&[("zero_stage", "7")], "ZeRO has stages 0 to 3"),
    ] {
        let why = plan(changes).unwrap_err();
        assert!(why.contains(said), "{changes:?}: {why}");
    }
}

#[test]
fn no_value_of_any_column_panics() {
    let odd = [
        "", "0", "-1", "1", "7", "1e3", "1e6", "1e9", "1e99", "inf", "NaN", "x", "\u{fffd}", "yes",
        "999999", "0.5",
    ];
    let more = [
        "dp",
        "cp",
        "zero_stage",
        "flash_attn",
        "schedule",
        "mem_per_gpu",
        "mem_unit",
        "tflops_per_gpu",
    ];
    let mut planned = 0;
    for column in HEAD.iter().chain(&more) {
        for value in odd {
            planned += usize::from(plan(&[(column, value)]).is_ok());
            planned += usize::from(plan(&[(column, value), ("dp", value), ("pp", value)]).is_ok());
        }
    }
    assert!(planned > 100, "{planned}");
}

#[test]
fn a_file_that_is_no_table_is_refused_with_its_line() {
    let (clusters, stacks) = (clusters(&[]).unwrap(), stacks().unwrap());
    for (text, said) in [
        ("", "empty"),
        ("name\n1\n", "no column row_id"),
        ("row_id,tp\na,1\nb\n", "line 3"),
        ("row_id,tp\n\"a,1\n", "never closed"),
    ] {
        let error: PlanError = published::read(text, &clusters, &stacks).unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
    }
}
