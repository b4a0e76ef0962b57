//! What the commands print.

use crate::common::{fails, ok, trine};
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use trine_trainer::config::{Config, File, Typed};

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn load(text: &str) -> Config {
    let file = Some(File { name: "printed".into(), text: text.into() });
    Config::load(&Typed { file, ..Typed::default() }).expect("what is printed can be loaded")
}

#[test]
fn presets_are_listed_with_their_sizes() {
    let text = ok(here(), &["presets"]);
    let row = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    assert!(
        row("gpt2-124m ").contains("124,439,808      12     768     12    3072   50257   1024")
    );
    assert!(row("llama3-8b ").contains("8,030,261,248"));
    assert!(row("frontier-1t ").ends_with("6 × 64 × 8, 1"));
    assert!(row("rust-default ").contains("2 × 2 × 2, 4"));

    let json: serde_json::Value =
        serde_json::from_str(&ok(here(), &["presets", "--json"])).unwrap();
    let presets = json.as_array().unwrap();
    assert!(presets.len() >= 16, "{}", presets.len());
    assert_eq!(presets[1]["parameters"], 124_439_808);
    assert_eq!(presets[1]["model"]["hidden"], 768);
    assert_eq!(presets[1]["layouts"][1]["tp"], 2);
}

#[test]
fn the_doctor_takes_stock_and_finds_the_numbers_right() {
    let quick = ok(here(), &["doctor", "--quick"]);
    let row = |name: &str| quick.lines().find(|line| line.starts_with(name)).map(str::to_owned);
    let cores = row("cores").unwrap();
    assert!(cores.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() > 0, "{cores}");
    for name in ["instruction set", "memory that may be used", "free disk", "MPI", "Rust compiler"]
    {
        assert!(row(name).is_some_and(|row| row.len() > name.len()), "{name} in\n{quick}");
    }
    assert!(!quick.contains("candle"), "{quick}");

    let all = ok(here(), &["doctor"]);
    assert!(all.starts_with("this machine"), "{all}");
    for part in ["attention with everything", "recompute", "dp 2 × pp 2 × tp 2", "reference"] {
        assert!(all.contains(part), "{part} in\n{all}");
    }
    assert!(all.ends_with("All numbers are right.\n"), "{all}");
}

/// Nothing is found in an empty folder, and that is no failure.
#[test]
fn the_doctor_says_what_a_machine_without_gpus_lacks() {
    let empty = tempfile::tempdir().unwrap();
    let folder = empty.path().to_str().unwrap();
    let text = ok(here(), &["doctor", "--quick", "--gpu-libraries", folder]);
    let row = |name: &str| {
        let row = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        row.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(row("GPUs and"), "GPUs and libraries has what that costs");
    let lacks = [
        "CUDA driver missing no GPU can be used",
        "cuBLASLt missing no products on a GPU",
        "NCCL missing no collectives between GPUs",
        "NVRTC missing no kernels compiled on this host",
    ];
    for lack in lacks {
        assert_eq!(row(lack.split(" missing").next().unwrap()), lack, "{text}");
    }
    assert!(text.contains("\nGPUs                missing  runs compute on the CPU\n"), "{text}");
    let searched = [
        "the CUDA driver was not found; looked for libcuda.so.1 and libcuda.so",
        "cuBLASLt was not found; looked for libcublasLt.so.13, libcublasLt.so.12 and libcublasLt.so.11",
        "NCCL was not found; looked for libnccl.so.2",
        "NVRTC was not found; looked for libnvrtc.so.13, libnvrtc.so.12 and libnvrtc.so.11.2",
    ];
    for line in searched {
        assert!(text.contains(&format!("\n  {line} in {folder}\n")), "{line} in\n{text}");
    }
    assert!(text.ends_with(
        "Training on GPUs (--device cuda) has run on simulated ones only, never on a real one.\n"
    ));
}

#[test]
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn the_doctor_says_which_gpus_and_libraries_it_found() {
    use trine_testkit::gpu::{stub, stubs};
    let doctor = |folders: &[&Path]| {
        let mut args = vec!["doctor", "--quick"];
        let folders = folders.iter().map(|folder| folder.to_str().unwrap());
        args.extend(folders.flat_map(|folder| ["--gpu-libraries", folder]));
        ok(here(), &args)
    };
    let whole = tempfile::tempdir().unwrap();
    stubs(whole.path()).unwrap();
    let text = doctor(&[whole.path()]);
    let at = |file: &str| whole.path().join(file).display().to_string();
    let rows = [
        ("GPU 0", "Stub 80, 80.0 GiB, capability 9.0".to_owned()),
        ("GPU 1", "Stub 24, 24.0 GiB, capability 8.6".to_owned()),
        ("CUDA driver", format!("12.4, {}", at("libcuda.so.1"))),
        ("cuBLASLt", format!("12.8.3, {}", at("libcublasLt.so.12"))),
        ("NCCL", format!("2.19.3, {}", at("libnccl.so.2"))),
        ("NVRTC", format!("12.0, {}", at("libnvrtc.so.12"))),
    ];
    for (name, found) in rows {
        assert!(text.contains(&format!("\n{name:<18}  {found}\n")), "{name} in\n{text}");
    }
    let of_gpus = text.split_once("\nGPUs ").unwrap().1;
    assert!(!of_gpus.contains("missing") && !of_gpus.contains("was not found"), "{text}");

    // A driver that does not start, and an old library.
    let broken = tempfile::tempdir().unwrap();
    stub(broken.path(), "libcuda.so.1", &["-DINIT=803"]).unwrap();
    stub(broken.path(), "libnccl.so.2", &["-DNCCL=2804"]).unwrap();
    let text = doctor(&[broken.path(), whole.path()]);
    let says = [
        "GPUs                missing",
        "  the CUDA driver does not tell its GPUs: cuInit failed with CUDA_ERROR_SYSTEM_DRIVER_MISMATCH (803)",
        "libnccl.so.2 is of version 2.8.4; the oldest that can be used is 2.18",
        "cuBLASLt            12.8.3",
    ];
    for line in says {
        assert!(text.contains(line), "{line} in\n{text}");
    }
}

#[test]
fn a_folder_of_gpu_libraries_that_is_none_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("libcuda.so.1");
    std::fs::write(&file, "").unwrap();
    let hint = format!("is a file, not a folder; its folder is {}", folder.path().display());
    fails(here(), &["doctor", "--gpu-libraries", file.to_str().unwrap()], 2, &[&hint]);
    fails(here(), &["doctor", "--gpu-libraries", "gone"], 2, &["gone is no folder"]);
}

/// The bytes of a small model, worked out by hand from its shapes.
#[test]
fn a_dry_run_prints_what_each_rank_holds() {
    let sizes = [
        "--set",
        "model.vocab=4096",
        "--set",
        "model.layers=2",
        "--tp",
        "2",
        "--pp",
        "1",
        "--dp",
        "2",
    ];
    let mut args = vec!["train", "--dry-run"];
    args.extend(sizes);
    let text = ok(here(), &args);
    let (h, f, v, s) = (256, 1024, 4096, 256);
    // Two norms; q, k, v and the MLP's first matrix by columns; the others by rows, biases whole.
    let block =
        4 * h + (3 * h * h + 3 * h) / 2 + (h * h / 2 + h) + (h * f + f) / 2 + (f * h / 2 + h);
    let parameters = v / 2 * h + s * h + 2 * block + 2 * h;
    let elements = |text: &str| -> Vec<usize> {
        text.split_whitespace().filter_map(|word| word.replace(',', "").parse().ok()).collect()
    };
    let ranks: Vec<&str> =
        text.lines().filter(|line| line.contains("embedding, blocks 0–1, head")).collect();
    assert_eq!(ranks.len(), 4);
    for (rank, line) in ranks.iter().enumerate() {
        let words = elements(line.split("head").next().unwrap());
        assert_eq!(words[..4], [rank, rank / 2, 0, rank % 2], "{line}");
        let numbers = elements(line.split("head").nth(1).unwrap());
        let [held, weights, gradients, optimizer, total, buffers, activations] = numbers[..] else {
            panic!("{line}")
        };
        assert_eq!(held, parameters);
        // Buckets are padded to multiples of dp · 16 elements, so a little is added.
        let padded = weights / 2;
        assert!(padded >= held && padded < held + 4 * 32, "{padded} {held}");
        assert_eq!(gradients, 4 * padded, "gradients in f32");
        assert_eq!(optimizer, 3 * 4 * padded / 2, "master and two moments, each rank half");
        assert_eq!(total, weights + gradients + optimizer);
        // Half of the gradients and of the new weights on their way, and more than the logits.
        assert_eq!(buffers, (4 + 2) * padded / 2);
        assert!(activations > 4 * s * v / 2 * 2, "{activations}");
    }
    // f32 without ZeRO: no master, whole moments.
    args.extend(["--precision", "f32", "--set", "train.zero=0"]);
    let text = ok(here(), &args);
    let line = text.lines().find(|line| line.contains("embedding, blocks 0–1, head")).unwrap();
    let numbers = elements(line.split("head").nth(1).unwrap());
    assert_eq!(numbers[1], numbers[2]);
    assert_eq!(numbers[3], 2 * numbers[1]);
}

#[test]
fn a_dry_run_is_a_configuration_again() {
    let folder = tempfile::tempdir().unwrap();
    let cases: &[&[&str]] = &[
        &[],
        &[
            "--preset",
            "gpt2-124m",
            "--tp",
            "1",
            "--micro-batches",
            "16",
            "--numerics",
            "reference",
            "--precision",
            "f32",
        ],
        &[
            "--preset",
            "llama3-8b",
            "--seed",
            "7",
            "--out",
            "here",
            "--data",
            "some text.txt",
            "--schedule",
            "gpipe",
        ],
        &["--corpus-manifest", "corpus.json", "--cache", "kept", "--steps", "3"],
    ];
    for case in cases {
        let mut args = vec!["train", "--dry-run"];
        args.extend(*case);
        let text = ok(folder.path(), &args);
        let config = load(&text);
        assert_eq!(load(&config.to_toml().unwrap()), config);
        fs::write(folder.path().join("again.toml"), &text).unwrap();
        let again = ok(folder.path(), &["train", "again.toml", "--dry-run"]);
        // How much memory is free changes, and a layout is chosen once.
        let lasts = |line: &&str| !line.contains(" may be used") && !line.contains("this machine");
        let lasting =
            |text: &str| text.lines().filter(lasts).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(lasting(&again), lasting(&text));
    }
    let config = load(&ok(
        folder.path(),
        &["train", "--dry-run", "--corpus-manifest", "c.json", "--cache", "kept"],
    ));
    assert_eq!(
        (config.data.manifest.as_path(), config.data.cache.as_path()),
        (Path::new("c.json"), Path::new("kept"))
    );
}

#[test]
fn a_trillion_parameters_are_planned_in_no_time() {
    let started = std::time::Instant::now();
    let text = ok(here(), &["train", "--preset", "frontier-1t", "--dry-run"]);
    assert!(started.elapsed().as_secs() < 2, "{:?}", started.elapsed());
    assert!(text.contains("1,008,014,617,600 parameters"));
    assert!(text.contains("3,072 ranks: dp 6 × pp 64 × tp 8"));
    let ranks: Vec<&str> = text.lines().filter(|line| line.contains("  0–7  ")).collect();
    assert_eq!(ranks.len(), 3, "first, middle and last stages");
    assert!(ranks[1].starts_with("# 2,976  1–62  0–7  2 blocks "), "{}", ranks[1]);
}

#[test]
fn resume_takes_the_configuration_of_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    fs::create_dir(&run).unwrap();
    let text = ok(folder.path(), &["train", "--dry-run", "--steps", "77", "--set", "name=abc"]);
    fs::write(run.join("config.toml"), text).unwrap();
    let config = load(&ok(folder.path(), &["train", "--resume", "run", "--dry-run"]));
    assert_eq!((config.name.as_str(), config.train.steps), ("abc", 77));
    assert_eq!(config.run_dir(), Path::new("run"));
}

#[test]
fn the_configuration_is_documented_key_by_key() {
    let text = ok(here(), &["train", "--help-config"]);
    let config = load(&text);
    assert_eq!(config, Config::preset("rust-default").unwrap());
    for key in trine_trainer::config::keys() {
        let name = key.path.rsplit('.').next().unwrap();
        assert!(text.contains(&format!("{name} = ")), "{} is missing", key.path);
        assert!(text.contains(key.rule), "the rule of {} is missing", key.path);
    }
}

#[test]
fn schedules_are_drawn_written_and_verified() {
    let folder = tempfile::tempdir().unwrap();
    let text =
        ok(folder.path(), &["schedule", "show", "1f1b", "--stages", "4", "--micro-batches", "8"]);
    assert!(text.contains("1f1b: 4 stages on 4 ranks, 8 micro-batches"), "{text}");
    assert!(text.contains("bubble 27.3 %"), "{text}");
    assert_eq!(text.lines().filter(|line| line.starts_with("rank ")).count(), 4);

    ok(folder.path(), &["schedule", "show", "gpipe", "--svg", "gpipe.svg"]);
    let svg = fs::read_to_string(folder.path().join("gpipe.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));

    for (name, stages) in [
        ("gpipe", 4),
        ("1f1b", 4),
        ("interleaved", 8),
        ("breadth-first", 8),
        ("zb-h1", 4),
        ("zb-h2", 4),
        ("zb-v", 8),
        ("forward-only", 4),
    ] {
        let text = ok(folder.path(), &["schedule", "show", name, "--text"]);
        fs::write(folder.path().join("schedule.txt"), text).unwrap();
        let report = ok(folder.path(), &["schedule", "verify", "schedule.txt"]);
        let expected = format!("{name} is right: {stages} stages on 4 ranks, 8 micro-batches");
        assert!(report.contains(&expected), "{report}");
    }
    let shaped = ["schedule", "verify", "zb-v", "--stages", "3", "--micro-batches", "7"];
    let report = ok(folder.path(), &shaped);
    assert!(
        report.starts_with("zb-v is right: 6 stages on 3 ranks, 7 micro-batches\n"),
        "{report}"
    );
    let text = ok(folder.path(), &["schedule", "show", "interleaved", "--virtual", "4"]);
    assert!(text.contains("interleaved: 16 stages on 4 ranks, 8 micro-batches"), "{text}");
    assert!(text.contains("bubble 8.6 %"), "{text}");
}

#[test]
fn a_schedule_of_ones_own_needs_its_computations_only() {
    let folder = tempfile::tempdir().unwrap();
    let mine = "schedule mine\nrank 0\nF0.0 F0.1 B0.0 W0.0 B0.1 W0.1\nrank 1\nF1.0 B1.0 W1.0 F1.1 B1.1 W1.1\n";
    fs::write(folder.path().join("mine.txt"), mine).unwrap();
    let said = ok(folder.path(), &["schedule", "verify", "file:mine.txt"]);
    let report = "mine.txt: mine is right: 2 stages on 2 ranks, 2 micro-batches\n\
                  4 pairs of stage and micro-batch, 4 messages, 2 exchanges, 0 buckets reduced\n\
                  activations in flight at most [2, 1]; ";
    assert!(said.starts_with(report), "{said}");
    // The same without `file:`, and with the messages written out.
    assert_eq!(ok(folder.path(), &["schedule", "verify", "mine.txt"]), said);
    let text = ok(folder.path(), &["schedule", "show", "file:mine.txt", "--text"]);
    assert!(text.contains("RG0.0<1"), "{text}");
    fs::write(folder.path().join("whole.txt"), &text).unwrap();
    assert_eq!(ok(folder.path(), &["schedule", "show", "file:whole.txt", "--text"]), text);
    let whole = ok(folder.path(), &["schedule", "verify", "file:whole.txt"]);
    assert_eq!(whole.replace("whole.txt", "mine.txt"), said);
    let drawn = ok(folder.path(), &["schedule", "show", "file:mine.txt"]);
    let named = ["schedule", "show", "1f1b", "--stages", "2", "--micro-batches", "2"];
    assert_eq!(drawn.replace("mine", "1f1b"), ok(folder.path(), &named));
    // Some editors begin a text with a mark.
    fs::write(folder.path().join("mine.txt"), format!("\u{feff}{mine}")).unwrap();
    assert_eq!(ok(folder.path(), &["schedule", "verify", "mine.txt"]), said);
    // A file that is called like a schedule is still a file where it was one.
    fs::write(folder.path().join("gpipe"), mine).unwrap();
    assert!(
        ok(folder.path(), &["schedule", "verify", "gpipe"]).starts_with("gpipe: mine is right")
    );
    let gpipe = ["schedule", "show", "gpipe", "--stages", "2"];
    assert!(ok(folder.path(), &gpipe).starts_with("gpipe: 2 stages"));
}

/// Every schedule of training is executed; how long it takes is not held against anything here.
#[test]
fn the_bubble_of_every_schedule_is_measured_beside_the_simulated_one() {
    let shape = ["--ranks=2", "--micro-batches=4", "--milliseconds=1", "--rounds=1"];
    let text = ok(Path::new("."), &[&["bench", "schedules"], &shape[..]].concat());
    assert!(text.starts_with("2 ranks, 4 micro-batches, 1 ms each for F, B and W"), "{text}");
    let simulated = |name: &str| {
        let row = text.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap();
        let words: Vec<&str> = row.split_whitespace().collect();
        let took: f64 = words[2].parse().unwrap();
        let least: f64 = words[3].parse().unwrap();
        assert!(took >= least, "nothing sleeps less than it is told to: {row}");
        (words[1].to_owned(), words[3].to_owned(), words[6].to_owned())
    };
    for (name, stages, step, bubble) in [
        ("gpipe", "2", "15.0", "20.0"),
        ("1f1b", "2", "15.0", "20.0"),
        ("interleaved", "4", "27.0", "11.1"),
        ("breadth-first", "4", "27.0", "11.1"),
        ("zb-h1", "2", "13.0", "7.7"),
        ("zb-h2", "2", "13.0", "7.7"),
        ("zb-v", "4", "25.0", "4.0"),
        ("dualpipe-v", "4", "25.0", "4.0"),
    ] {
        let expected = [stages, step, bubble].map(str::to_owned);
        assert_eq!(<[String; 3]>::from(simulated(name)), expected, "{name}: {text}");
    }
}

/// A line of metrics.
fn metrics(step: u64, loss: f64, val_loss: Option<f64>) -> String {
    let val_loss = val_loss.map_or_else(String::new, |loss| format!(",\"val_loss\":{loss}"));
    format!(
        "{{\"step\":{step},\"loss\":{loss},\"grad_norm\":0.5,\"lr\":1e-3,\"tokens\":{},\
         \"tokens_per_s\":2000.0,\"step_ms\":50.0{val_loss}}}\n",
        step * 100
    )
}

#[test]
fn inspect_says_what_a_run_holds() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    fs::create_dir_all(run.join("checkpoints/step-9")).unwrap();
    fs::create_dir_all(run.join("checkpoints/.tmp-step-11")).unwrap();
    fs::write(run.join("config.toml"), "preset = \"gpt2-124m\"\ntrain.steps = 40\n").unwrap();
    let inspect = || ok(folder.path(), &["inspect", "run"]);
    let text = inspect();
    for part in
        ["run        run\n", "no step is done; 0 of 40", "124,439,808 parameters", "damaged: "]
    {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
    assert!(!text.contains(" runs/"), "a directory that does not exist: {text}");

    // Bytes that are no text, a line of something else, and half a line of a killed run.
    let mut file = Vec::new();
    for step in 1..=30 {
        let loss = 9.0 - step as f64 / 5.0;
        let val_loss = (step % 10 == 0).then_some(if step == 20 { 4.5 } else { 5.5 });
        file.extend(metrics(step, loss, val_loss).bytes());
    }
    file.extend(b"\xff\xfe\n{\"loss\":1}\n{\"step\":31,");
    fs::write(run.join("metrics.jsonl"), file).unwrap();
    let text = inspect();
    for part in [
        "ended without a summary: killed, or the machine went down; 30 of 40 steps",
        "left out here: 2 lines of metrics.jsonl that are no metrics (31, 32)",
        "the last line of metrics.jsonl is cut off",
        "last step  30: loss 3.0000",
        "5.5000 at step 30, best 4.5000 at step 20",
        "2,000 tokens/s, 0.050 s a step (medians of the last 30); 3,000 tokens in 0:01",
        // A damaged checkpoint is none to go on from.
        "there is no whole checkpoint; to begin anew: ",
    ] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
    check_curve(&text);

    fs::write(run.join("summary.json"), "{\"steps\":30,\"stopped_early\":\"a signal\"}").unwrap();
    assert!(inspect().contains("stopped (a signal); 30 of 40"));
    fs::write(run.join("summary.json"), "{\"steps\":30,\"steps_total\":30,\"val_loss\":5.25}")
        .unwrap();
    let text = inspect();
    assert!(text.contains("complete; 30 of 30") && text.contains("5.2500 at the end"), "{text}");
    fs::create_dir(run.join("flight")).unwrap();
    fs::write(run.join("flight/diagnosis.txt"), "rank 3: it was the disk\n").unwrap();
    let text = inspect();
    assert!(text.contains("failed: rank 3: it was the disk; 30 of"), "{text}");

    let json = ok(folder.path(), &["inspect", "run", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["state"], &json["steps_done"]), (&"failed".into(), &30.into()));
    assert_eq!(json["best"], serde_json::json!({"step": 20, "val_loss": 4.5}));
    assert_eq!(json["evaluations"].as_array().unwrap().len(), 3);
    assert_eq!(json["config"]["train"]["steps"], 40);
    assert_eq!(json["checkpoints"][0]["step"], 9);
    assert_eq!(json["notes"].as_array().unwrap().len(), 2);
}

/// The losses fall from the upper left to the lower right, between the right numbers.
fn check_curve(text: &str) {
    let rows: Vec<&str> = text.lines().filter(|line| line.contains(['┤', '│'])).collect();
    assert_eq!(rows.len(), 12, "{text}");
    assert!(rows[0].starts_with("   8.800 ┤·"), "{text}");
    assert!(rows[11].starts_with("   3.000 ┤") && rows[11].ends_with('·'), "{text}");
    let drawn = |what: char| rows.iter().flat_map(|row| row.chars()).filter(|c| *c == what).count();
    assert!(drawn('·') >= 25 && drawn('o') == 3, "{text}");
}

#[test]
fn keys_are_found_by_a_word() {
    let text = ok(here(), &["train", "--help-config", "warm"]);
    assert!(text.contains("warmup_steps = 250") && !text.contains("[layout]"), "{text}");
    // The rule of tensor parallelism is there as the check has it.
    let text = ok(here(), &["train", "--help-config", "layout.tp"]);
    assert!(text.contains("above model.kv_heads a multiple of them"), "{text}");
}

#[test]
fn manual_pages_are_written_for_each_command() {
    let folder = tempfile::tempdir().unwrap();
    ok(folder.path(), &["man", "--out", "man pages"]);
    for page in ["trine.1", "trine-train.1", "trine-schedule-show.1"] {
        let text = fs::read_to_string(folder.path().join("man pages").join(page)).unwrap();
        assert!(text.contains(".TH trine"), "{page}: {text}");
    }
    // Again, but not over something else.
    ok(folder.path(), &["man", "--out", "man pages"]);
    fs::write(folder.path().join("man pages/trine-train.1"), "my notes").unwrap();
    let parts = ["man pages/trine-train.1: it is there, and not a manual page that trine wrote"];
    fails(folder.path(), &["man", "--out", "man pages"], 2, &parts);
}

/// `trine presets | head -1` is no failure.
#[test]
fn a_closed_pipe_is_no_failure() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_trine"))
        .args(["train", "--help-config"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut errors = String::new();
    child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    assert!(child.wait().unwrap().success(), "{errors}");
    assert_eq!(errors, "");
}

#[test]
fn help_and_version_end_well() {
    let cases = [
        &["--help"][..],
        &["--version"],
        &["train", "--help"],
        &["help", "train"],
        &["bench", "layouts", "--help"],
        &["help", "bench", "layouts"],
        &["man"],
        &["completions", "bash"],
        &["completions", "fish"],
    ];
    for args in cases {
        assert!(ok(here(), args).contains("trine"), "{args:?}");
    }
    assert_eq!(ok(here(), &["help", "train"]), ok(here(), &["train", "--help"]));
    // Flags of xtask are not the user's business.
    assert!(!ok(here(), &["train", "--help"]).contains("corpus-manifest"));
    assert_eq!(trine(here(), &[]).status.code(), Some(2));
}
