//! `trine plan`: what it prints, writes and refuses.

use crate::common::{fails, ok};
use std::fs;
use trine_plan::{clusters, find_cluster};

/// A search that is over in a moment.
const SMALL: [&str; 7] = ["plan", "--model", "frontier-22b", "--gpus", "64", "--tp", "2"];

fn small(folder: &std::path::Path, more: &[&str]) -> String {
    ok(folder, &[&SMALL[..], more].concat())
}

#[test]
fn the_best_layouts_are_ranked_with_reasons_days_and_a_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let text =
        small(folder.path(), &["--tokens", "440B", "--top", "4", "--explain", "--sensitivity"]);
    for part in [
        "frontier-22b (22.1 B parameters) on frontier: 64 × MI250X GCD, 8,192 sequences of 2048 tokens",
        "layouts evaluated",
        "HFU what is computed again too",
        "Why each beats the next:",
        "  1 by ",
        "440.00 B tokens: ",
        "no price known for frontier",
        "Where the ",
        "tensor parallelism",
        "What a rank of the fullest stage",
        "mean |Shapley value|",
        "The best that trine itself runs",
        "preset = \"frontier-22b\"",
    ] {
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }
    let rows: Vec<f64> = text
        .lines()
        .skip_while(|line| !line.trim_start().starts_with('#'))
        .skip(1)
        .take(4)
        .map(|line| {
            let cells: Vec<&str> = line.split_whitespace().collect();
            let percent = cells.iter().position(|cell| *cell == "%").unwrap();
            // seconds, TFLOP/s, MFU
            cells[percent - 3].parse().unwrap()
        })
        .collect();
    assert!(rows.len() == 4 && rows.is_sorted(), "{rows:?}");
}

/// Where memory is short, something is computed again: with what it costs, and as a configuration has it.
#[test]
fn recompute_is_chosen_where_memory_is_short_and_its_cost_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let node =
        ["plan", "--model", "llama3-8b", "--cluster", "h100", "--gpus", "8", "--stack", "trine"];
    let one = ["--global-batch", "64", "--micro-batch", "2", "--tp", "2", "--pp", "1"];
    let layout = [&node[..], &one[..], &["--zero", "1", "--schedule", "1f1b"]].concat();
    let plan = |more: &[&str]| ok(folder.path(), &[&layout[..], more].concat());
    let text = plan(&["--runnable", "--seq", "8192"]);
    let line =
        text.lines().find(|line| line.starts_with("Recompute (elementwise) costs ")).unwrap();
    assert!(line.contains(" % time. Without it the fullest device needs "), "{line}");
    assert!(text.contains("\nrecompute = [\"norms\", \"mlp.activation\"]\n"), "{text}");
    let wide = plan(&["--runnable", "--memory-headroom", "0", "--seq", "2048"]);
    assert!(wide.contains("\nrecompute = false\n") && !wide.contains("Recompute ("), "{wide}");
    let value: serde_json::Value =
        serde_json::from_str(&plan(&["--runnable", "--seq", "8192", "--json"])).unwrap();
    let best = &value["best"][0];
    let number = |key: &str| best[key].as_f64().unwrap();
    assert_eq!(best["recompute"], "elementwise");
    assert_eq!(&value["runnable"], best);
    assert!(
        number("recompute_bytes_saved") > 1e9 && number("recompute_time_share") < 0.05,
        "{best}"
    );
}

#[test]
fn json_says_the_same_as_the_table() {
    let folder = tempfile::tempdir().unwrap();
    let text = small(folder.path(), &["--json", "--top", "3"]);
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&value["model"], &value["devices"]), (&"frontier-22b".into(), &64.into()));
    assert_eq!(value["global_batch"], 8192);
    let best = value["best"].as_array().unwrap();
    assert_eq!(best.len(), 3);
    for one in best {
        let degrees = ["tp", "pp", "dp", "cp"].map(|name| one[name].as_u64().unwrap());
        assert_eq!((degrees.iter().product::<u64>(), degrees[0]), (64, 2));
        let total = one["memory_bytes"]["total"].as_f64().unwrap();
        assert!(total < 0.9 * 64.0 * 1.1e9, "{total}");
        let [mfu, hfu] = ["mfu", "hfu"].map(|name| one[name].as_f64().unwrap());
        assert!(mfu > 0.05 && mfu <= hfu && hfu < 0.7, "{mfu} {hfu}");
    }
    let rate = 8192.0 * 2048.0 / best[0]["step_s"].as_f64().unwrap();
    let days = value["tokens"].as_f64().unwrap() / rate / 86400.0;
    assert!((value["days"].as_f64().unwrap() / days - 1.0).abs() < 1e-9);
    assert_eq!(value["dollars"], serde_json::Value::Null);
}

#[test]
fn the_written_configuration_is_one_that_trine_takes() {
    let folder = tempfile::tempdir().unwrap();
    small(folder.path(), &["--write-config", "run.toml", "--svg", "plan.svg"]);
    let dry = ok(folder.path(), &["train", "run.toml", "--dry-run"]);
    assert!(dry.contains("tp = 2") || dry.contains("tp 2"), "{dry}");
    let svg = fs::read_to_string(folder.path().join("plan.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
    assert_eq!(svg.matches("<svg").count(), svg.matches("</svg>").count());
    assert!(svg.contains("memory of each pipeline rank") && svg.contains("micro-batches drawn"));
}

#[test]
fn scaling_says_where_and_why_it_bends() {
    let folder = tempfile::tempdir().unwrap();
    let args = [
        "plan",
        "scale",
        "--model",
        "frontier-175b",
        "--gpus",
        "1024",
        "--tp",
        "4",
        "--pp",
        "16",
        "--schedule",
        "1f1b",
    ];
    let text = ok(folder.path(), &[&args[..], &["--global-batch", "3200"]].concat());
    for part in ["weak scaling", "strong scaling", "100.0 %", "It bends at ", "the bubble takes"] {
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }
    let json = ok(folder.path(), &[&args[..], &["--json"]].concat());
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    let weak = value["curves"]["weak"].as_array().unwrap();
    assert_eq!(weak[0]["efficiency"], 1.0);
    assert!(weak.last().unwrap()["devices"].as_u64().unwrap() > 60_000, "{json}");
}

#[test]
fn impossible_requests_name_the_limit_and_the_nearest_request() {
    let folder = tempfile::tempdir().unwrap();
    let cases: [(&[&str], &[&str]); 7] = [
        (
            &["plan", "--gpus", "64", "--global-batch", "1024"],
            &["memory binds", "GB too few", "the nearest possible request is --gpus "],
        ),
        (&["plan", "--gpus", "100000"], &["frontier has 1 to 75776; nearest: --gpus 75776"]),
        (
            &["plan", "--tp", "8", "--pp", "64", "--global-batch", "1000"],
            &["the batch binds: 1,000 sequences", "--global-batch 1002"],
        ),
        (
            &["plan", "--tp", "7"],
            &["no layout of 3,072 devices has --tp 7; there is one without --tp 7: tp 7: tensor \
                 ranks of megatron-deepspeed have equal parts, and 7 divides neither the 128 heads \
                 nor ffn = 102400; nearest valid: 4 or 8"],
        ),
        (
            &["plan", "--tp", "7", "--pp", "2"],
            &["no layout of 3,072 devices has --tp 7 --pp 2; there is one without --tp 7: tp 7: "],
        ),
        (
            &["plan", "--tp", "4", "--pp", "5"],
            &["pp 5: tp × pp × cp = 20 does not divide the 3072 devices; nearest valid: 4 or 6"],
        ),
        (
            &["plan", "--memory-headroom", "0.95", "--global-batch", "6144", "--tp", "8"],
            &["memory binds", " --memory-headroom 0."],
        ),
    ];
    for (args, said) in cases {
        fails(folder.path(), args, 2, said);
    }
}

/// The keys of the summary are promises to programs.
#[test]
fn published_runs_are_evaluated_and_incomplete_rows_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mine.csv");
    let csv = "row_id,source,layers,hidden,heads,seq_len,gpus,tp,pp,dp,mbs,gbs_seqs,gpu_type,recompute,iter_time_s\n\
               a,mine,24,2048,16,2048,8,1,1,8,1,64,A100-80GB,full,1.5\n\
               b,mine,24,2048,16,2048,8,2,1,4,1,64,A100-80GB,full,1.6\n\
               c,mine,24,2048,16,2048,8,2,1,4,,64,A100-80GB,full,1.6\n";
    fs::write(&file, csv).unwrap();
    let text = ok(folder.path(), &["plan", "evaluate", "--runs", "mine.csv", "--json", "--by-row"]);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    for key in [
        "rows",
        "time_rows",
        "time_median_abs_err",
        "time_p90_abs_err",
        "memory_rows",
        "memory_median_abs_err",
        "memory_p90_abs_err",
        "oom_rows",
        "oom_accuracy",
        "spearman_by_group",
        "best_layout_regret_by_group",
    ] {
        assert!(json.get(key).is_some(), "{key} is missing in {json:#}");
    }
    assert_eq!((&json["rows"], &json["time_rows"]), (&3.into(), &2.into()));
    assert_eq!(json["not_planned"][0]["reason"], "mbs is empty");
    assert_eq!(json["by_row"].as_array().unwrap().len(), 2);
    let plain = ok(folder.path(), &["plan", "evaluate", "--runs", "mine.csv"]);
    assert!(plain.contains("not planned: c: mbs is empty") && plain.contains("time_rows 2"));
    let missing = ["plan", "evaluate", "--runs", "none.csv"];
    fails(folder.path(), &missing, 2, &["cannot read none.csv"]);
}

#[test]
fn this_machine_is_measured_written_and_planned_with() {
    let folder = tempfile::tempdir().unwrap();
    let at = |args: &[&str]| ok(folder.path(), args);
    let printed = at(&["plan", "--measure", "--precision", "f32"]);
    assert!(at(&["plan", "--measure", "--out", "machine.toml"]).contains("--machine machine.toml"));
    let written = fs::read_to_string(folder.path().join("machine.toml")).unwrap();
    let mut cores = 0;
    for (text, precision) in [(&printed, "f32"), (&written, "bf16")] {
        let all = clusters(&[text]).unwrap();
        let machine = find_cluster(&all, "this-machine").unwrap();
        assert!(machine.about.contains(precision), "{}", machine.about);
        assert!(machine.device.peak_bf16 > 0.0 && machine.device.memory_bytes > 0);
        assert!(machine.levels[0].bandwidth > 0.0 && machine.levels[0].latency > 0.0);
        cores = machine.devices();
    }
    let here = ["plan", "--cluster", "this-machine", "--json"];
    for more in [&["--cluster-file", "machine.toml"][..], &[]] {
        let value: serde_json::Value =
            serde_json::from_str(&at(&[&here[..], more].concat())).unwrap();
        assert_eq!((&value["model"], &value["stack"]), (&"rust-default".into(), &"trine".into()));
        assert_eq!(value["devices"], cores);
        // As `trine train` has it.
        assert_eq!((&value["global_batch"], &value["seq"]), (&16.into(), &128.into()));
        let best = &value["best"][0];
        assert!(best["step_s"].as_f64().unwrap() > 0.0, "{best}");
    }
    let plan = ["plan", "--cluster", "this-machine", "--cluster-file", "machine.toml", "--gpus"];
    let many = format!("nearest: --gpus {cores}");
    fails(folder.path(), &[&plan[..], &["100000"]].concat(), 2, &[&many]);
}

#[test]
fn a_machine_that_cannot_be_written_or_read_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("empty.toml"), "").unwrap();
    fs::write(folder.path().join("bad.toml"), "[[device]]\nname = 1").unwrap();
    let cases: [(&[&str], &[&str]); 6] = [
        (&["plan", "--measure", "--out", "no/file"], &["--out no/file: cannot create it"]),
        (
            &["plan", "--measure", "--precision", "fp8"],
            &["--precision fp8: must be one of bf16, f32"],
        ),
        (&["plan", "--out", "file"], &["--measure"]),
        (
            &["train", "--machine", "none.toml", "--dry-run"],
            &[
                "none.toml: cannot read the machine",
                "`trine plan --measure --device cpu --out none.toml`",
            ],
        ),
        (
            &["train", "--machine", "empty.toml", "--dry-run"],
            &["empty.toml: no cluster is called \"this-machine\""],
        ),
        (&["train", "--machine", "bad.toml", "--dry-run"], &["bad.toml: cluster file 1"]),
    ];
    for (args, said) in cases {
        fails(folder.path(), args, 2, said);
    }
}

#[test]
fn a_dry_run_says_how_long_a_step_takes() {
    let folder = tempfile::tempdir().unwrap();
    ok(folder.path(), &["plan", "--measure", "--out", "machine.toml"]);
    let dry = ["train", "--dry-run", "--machine", "machine.toml"];
    let text = ok(folder.path(), &dry);
    assert!(text.contains("# a step on this-machine (machine.toml: "), "{text}");
    assert!(text.contains(" tokens/s, bubble "), "{text}");
    let exact = ["--precision", "f32", "--numerics", "reference"];
    let text = ok(folder.path(), &[&dry[..], &exact].concat());
    assert!(
        text.contains("not planned: the planner knows no times for reference numerics"),
        "{text}"
    );
    // What is printed is a configuration still.
    fs::write(folder.path().join("again.toml"), &text).unwrap();
    ok(folder.path(), &["train", "again.toml", "--dry-run"]);
}

/// A model and a machine on which a search is over in a moment.
const PLAN: [(&str, &str); 4] =
    [("--model", "gpt2-124m"), ("--cluster", "h100"), ("--gpus", "8"), ("--global-batch", "64")];

/// `trine plan` of that, with options of which some may take the place of others.
fn plan_with<'a>(options: &[(&'a str, &'a str)]) -> Vec<&'a str> {
    let is_given = |flag: &str| options.iter().any(|(given, _)| *given == flag);
    let rest = PLAN.iter().filter(|(flag, _)| !is_given(flag));
    let pairs = rest.chain(options).flat_map(|(flag, value)| [*flag, *value]);
    let words = std::iter::once("plan").chain(pairs);
    words.filter(|word| !word.is_empty()).collect()
}

/// What `--write-config` does with an option of `trine plan`.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Writes {
    /// What `trine train` runs.
    Runs,
    /// Nothing: trine runs no layout with it, and what it has instead.
    NoneOfThese(&'static str),
    /// Nothing: the option is for something else than searches.
    NoSearch,
}

/// Every option of `trine plan`, with values.
const OPTIONS: [(&str, &[(&str, Writes)]); 32] = {
    use Writes::{NoSearch, NoneOfThese, Runs};
    const TYPES: Writes = NoneOfThese("computes in bf16 and f32");
    const ZERO: Writes = NoneOfThese("has ZeRO stages 0 and 1");
    const CP: Writes = NoneOfThese("splits no sequence over ranks");
    const AGAIN: Writes = NoneOfThese("computes again none, elementwise, half or full");
    [
        ("--model", &[("rust-default", Runs), ("mine.toml", Runs)]),
        ("--cluster", &[("frontier", Runs), ("h100", Runs)]),
        ("--cluster-file", &[("empty.toml", Runs)]),
        ("--stack", &[("trine", Runs), ("megatron-core", Runs)]),
        ("--gpus", &[("1", Runs), ("12", Runs), ("64", Runs)]),
        ("--global-batch", &[("8", Runs), ("96", Runs), ("400000", Runs)]),
        ("--seq", &[("1", Runs), ("1024", Runs), ("4096", Runs), ("16384", Runs)]),
        ("--memory-headroom", &[("0", Runs), ("0.5", Runs)]),
        ("--precision", &[("bf16", Runs), ("f32", Runs), ("f16", TYPES), ("fp8", TYPES)]),
        ("--tp", &[("1", Runs), ("2", Runs), ("4", Runs)]),
        ("--pp", &[("1", Runs), ("4", Runs), ("8", Runs)]),
        ("--cp", &[("1", Runs), ("2", CP)]),
        ("--virtual", &[("1", Runs), ("3", Runs)]),
        (
            "--schedule",
            &[
                ("gpipe", Runs),
                ("1f1b", Runs),
                ("zb-h1", Runs),
                ("zb-h2", Runs),
                ("interleaved", Runs),
                ("breadth-first", Runs),
                ("zb-v", Runs),
            ],
        ),
        ("--micro-batch", &[("1", Runs), ("8", Runs)]),
        ("--zero", &[("0", Runs), ("1", Runs), ("2", ZERO), ("3", ZERO)]),
        (
            "--recompute",
            &[
                ("none", Runs),
                ("elementwise", Runs),
                ("half", Runs),
                ("full", Runs),
                ("selective", AGAIN),
            ],
        ),
        ("--sequence-parallel", &[("true", Runs), ("false", Runs)]),
        ("--runnable", &[("", Runs)]),
        ("--tokens", &[("3k", Runs), ("20T", Runs)]),
        ("--top", &[("1", Runs), ("1000", Runs)]),
        ("--explain", &[("", Runs)]),
        ("--sensitivity", &[("", Runs)]),
        ("--svg", &[("plan.svg", Runs)]),
        ("--write-config", &[("other.toml", NoSearch)]),
        ("--json", &[("", Runs)]),
        ("--measure", &[("", NoSearch)]),
        // Of a machine that is measured.
        ("--device", &[("cpu", Runs)]),
        ("--gpu-libraries", &[(".", Runs)]),
        ("--out", &[("machine.toml", NoSearch)]),
        // Positions: the configuration, and the subcommand's name.
        ("CONFIG.toml", &[("mine.toml", Runs)]),
        ("--config", &[("other.toml", NoSearch)]),
    ]
};

/// The options of `trine plan` as the command line has them.
fn golden_options() -> Vec<&'static str> {
    let all = include_str!("../golden/options.txt").lines();
    let own = all.filter_map(|line| line.strip_prefix("trine plan "));
    let own = own.filter(|line| line.starts_with("--") || line.starts_with("CONFIG"));
    own.filter_map(|line| line.split(' ').next()).collect()
}

#[test]
fn what_any_option_of_plan_writes_is_what_trine_trains() {
    let mut listed: Vec<&str> = OPTIONS.iter().map(|(option, _)| *option).collect();
    // The old name of --write-config is no option that is shown.
    listed.retain(|option| *option != "--config");
    let mut golden = golden_options();
    listed.sort_unstable();
    golden.sort_unstable();
    assert_eq!(listed, golden, "a new option of plan needs a row");
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("empty.toml"), "").unwrap();
    let mine = "preset = \"rust-default\"\nmodel = { layers = 6 }\nbatch = { global = 64 }\n";
    fs::write(folder.path().join("mine.toml"), mine).unwrap();
    let mut counts = [0, 0];
    for (option, values) in OPTIONS {
        for (value, writes) in values.iter().filter(|(_, writes)| *writes != Writes::NoSearch) {
            let flag = if option.starts_with("--") { option } else { "" };
            let mut args = plan_with(&[(flag, value), ("--write-config", "p.toml")]);
            if flag.is_empty() {
                args.retain(|word| !matches!(*word, "--model" | "gpt2-124m"));
            }
            if let Writes::NoneOfThese(has) = writes {
                let without = format!(
                    "trine {has} and runs none of these; without {option} {value} the best is "
                );
                fails(folder.path(), &args, 2, &[&without]);
                assert!(!folder.path().join("p.toml").exists(), "{args:?}");
                let asked = plan_with(&[(option, value)]);
                let shown = ok(folder.path(), &asked);
                assert!(shown.contains(&without), "{shown}");
                counts[1] += 1;
                continue;
            }
            ok(folder.path(), &args);
            let dry = ok(folder.path(), &["train", "p.toml", "--dry-run"]);
            let degrees: usize = ["tp = ", "pp = ", "dp = "]
                .map(|key| dry.lines().find_map(|line| line.strip_prefix(key)).unwrap())
                .iter()
                .map(|number| number.parse::<usize>().unwrap())
                .product();
            let devices = if option == "--gpus" { value.parse().unwrap() } else { 8 };
            assert_eq!(degrees, devices, "{args:?}\n{dry}");
            fs::remove_file(folder.path().join("p.toml")).unwrap();
            counts[0] += 1;
        }
    }
    assert_eq!(counts, [59, 6]);
    // The old name still works, and what was asked for by mistake is said with the option alone.
    small(folder.path(), &["--config", "old.toml"]);
    ok(folder.path(), &["train", "old.toml", "--dry-run"]);
    let both = plan_with(&[("--runnable", ""), ("--zero", "3"), ("--cp", "2")]);
    fails(
        folder.path(),
        &both,
        2,
        &["trine splits no sequence over ranks, has ZeRO stages 0 and 1 and runs none of these; \
           without --cp 2 --zero 3 the best is "],
    );
}

#[test]
fn absurd_numbers_are_refused_by_the_name_of_their_option() {
    let folder = tempfile::tempdir().unwrap();
    let huge = "18446744073709551615";
    let numeric = [
        "--gpus",
        "--global-batch",
        "--seq",
        "--memory-headroom",
        "--tp",
        "--pp",
        "--cp",
        "--virtual",
        "--micro-batch",
        "--zero",
        "--top",
        "--tokens",
    ];
    let takes = [("--memory-headroom", "0"), ("--zero", "0"), ("--tokens", huge)];
    let mut cases = 0;
    for option in numeric {
        for value in ["0", "-1", huge, "1e999", "NaN"] {
            let args = plan_with(&[(option, value)]);
            if takes.contains(&(option, value)) {
                ok(folder.path(), &args);
            } else {
                fails(
                    folder.path(),
                    &args,
                    2,
                    &[&format!("invalid value '{value}' for '{option}")],
                );
            }
            cases += 1;
        }
    }
    for value in ["0", "-1", huge] {
        fails(folder.path(), &["plan", "scale", "--to", value], 2, &["for '--to <N>'"]);
    }
    let scale = ["plan", "scale", "--micro-batch", "0"];
    fails(folder.path(), &scale, 2, &["invalid value '0' for '--micro-batch <N>'"]);
    assert_eq!(cases, 60);
}

/// What is offered instead is another request, and one that can be met.
#[test]
fn the_nearest_possible_request_is_possible() {
    let folder = tempfile::tempdir().unwrap();
    let large = "400000";
    let tpu = [("--model", "llama2-70b"), ("--cluster", "tpu-v5p"), ("--gpus", "1")];
    let asked: [&[(&str, &str)]; 11] = [
        &[("--virtual", large)],
        &[("--micro-batch", "48")],
        &[("--global-batch", "7"), ("--pp", "1"), ("--tp", "1")],
        &[("--model", "llama2-7b"), ("--gpus", "1"), ("--global-batch", "4")],
        &[("--gpus", "1000000")],
        &[("--memory-headroom", "0.999")],
        &[("--schedule", "interleaved"), ("--pp", "4"), ("--global-batch", "3")],
        &[&tpu[..], &[("--micro-batch", "7")]].concat(),
        &[&tpu[..], &[("--micro-batch", "7"), ("--global-batch", "4095")]].concat(),
        &[("--model", "llama2-70b"), ("--cluster", "h200"), ("--gpus", "3"), ("--tp", "8")],
        &[
            ("--model", "gpt3-175b"),
            ("--cluster", "frontier"),
            ("--gpus", "3"),
            ("--zero", "1"),
            ("--write-config", "w.toml"),
        ],
    ];
    let mut offered = 0;
    for options in asked {
        let args = plan_with(options);
        let errors = fails(folder.path(), &args, 2, &[]);
        let Some((_, offer)) = errors.split_once("nearest possible request is ") else { continue };
        let words: Vec<&str> = offer.split([' ', '\n', ',']).collect();
        let pairs = words.chunks_exact(2).take_while(|pair| pair[0].starts_with("--"));
        let instead: Vec<(&str, &str)> = pairs.map(|pair| (pair[0], pair[1])).collect();
        assert!(
            !instead.is_empty() && !instead.iter().any(|pair| options.contains(pair)),
            "{errors}"
        );
        let kept = options.iter().filter(|(flag, _)| !instead.iter().any(|(new, _)| new == flag));
        let all: Vec<(&str, &str)> = kept.chain(&instead).copied().collect();
        ok(folder.path(), &plan_with(&all));
        offered += 1;
    }
    assert_eq!(offered, 9);
}

#[test]
fn small_models_have_units_that_fit() {
    let folder = tempfile::tempdir().unwrap();
    let text = ok(folder.path(), &plan_with(&[("--model", "rust-default"), ("--explain", "")]));
    assert!(text.contains("rust-default (4.3 M parameters) on h100"), "{text}");
    assert!(text.contains(" ms "), "{text}");
    for empty in ["0.00 s", "0.0 B ", "0.000 GB", "0.000 T"] {
        assert!(!text.contains(empty), "{empty} in {text}");
    }
}

/// Any model can be planned: that of a configuration, with its batch and sequence.
#[test]
fn the_model_of_a_configuration_is_planned() {
    let folder = tempfile::tempdir().unwrap();
    let tinyllama = "preset = \"llama2-7b\"\nname = \"tinyllama\"\n\
                     [model]\nhidden = 2048\nlayers = 22\nheads = 32\nkv_heads = 4\nffn = 5632\n\
                     vocab = 32000\nseq_max = 2048\n[data]\nseq = 2048\n[batch]\nglobal = 1024\nmicro = 8\n";
    fs::write(folder.path().join("tiny.toml"), tinyllama).unwrap();
    let more = ["--cluster", "a100-80gb", "--gpus", "16", "--write-config", "p.toml"];
    for source in [&["plan", "tiny.toml"][..], &["plan", "--model", "tiny.toml"]] {
        let text = ok(folder.path(), &[source, &more].concat());
        let head = "tinyllama (1.1 B parameters) on a100-80gb: 16 × A100-80GB, 1,024 sequences of 2048 tokens";
        assert!(text.starts_with(head), "{text}");
        let dry = ok(folder.path(), &["train", "p.toml", "--dry-run"]);
        assert!(dry.contains("name = \"tinyllama\"") && dry.contains("layers = 22"), "{dry}");
    }
    let scaled =
        ["plan", "scale", "tiny.toml", "--cluster", "a100-80gb", "--gpus", "16", "--to", "64"];
    assert!(ok(folder.path(), &scaled).contains("weak scaling"));
    fails(folder.path(), &["plan", "none.toml"], 2, &["none.toml"]);
    fails(
        folder.path(),
        &["plan", "tiny.toml", "--model", "gpt2-124m"],
        2,
        &["cannot be used with"],
    );
}

/// Tokens become steps; the time of another machine is not that of trine; what a table leaves out is said.
#[test]
fn a_plan_for_another_machine_says_what_it_is_of() {
    let folder = tempfile::tempdir().unwrap();
    let model = [("--model", "gpt2-124m"), ("--global-batch", "64"), ("--top", "1")];
    let more = [("--tokens", "1B"), ("--write-config", "w.toml")];
    let text = ok(folder.path(), &plan_with(&[&model[..], &more].concat()));
    assert!(text.contains("This time is that of software"), "{text}");
    assert!(!text.contains("Why each beats the next"), "{text}");
    // 1e9 / (64 × 1024), rounded up.
    let dry = ok(folder.path(), &["train", "w.toml", "--dry-run"]);
    assert!(dry.contains("\nsteps = 15259\n"), "{dry}");
    let scale = ["plan", "scale", "--model=gpt2-124m", "--cluster=h100", "--gpus=8", "--to=200000"];
    let text = ok(folder.path(), &scale);
    assert!(text.contains("h100 has 131,072 devices: the curves end there"), "{text}");
}
