//! Runs of the binary on simulated GPUs.

use crate::common::{ALL_AXES, SERIAL, Scratch, difference, small};
use std::path::Path;
use trine_gpu_sim::{Checks, Installed, Settings, Source, compile};
use trine_kernels_gpu::SOURCES;

/// GPUs for the runs of a test, and the options that name their libraries.
struct Gpus {
    installed: Installed,
    options: [String; 2],
}

impl Gpus {
    fn new(settings: Settings) -> Self {
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("trine-gpu-sim");
        let sources: Vec<_> = SOURCES.iter().map(|&(name, text)| Source { name, text }).collect();
        let library =
            compile(&kept, &sources, Checks::Off).unwrap_or_else(|error| panic!("{error}"));
        let installed = Installed::new(&library, &settings).unwrap();
        let folder = installed.folder().display();
        let options = ["--device=cuda".to_owned(), format!("--gpu-libraries={folder}")];
        Self { installed, options }
    }

    fn with<'a>(&'a self, args: &[&'a str]) -> Vec<&'a str> {
        self.options.iter().map(String::as_str).chain(args.iter().copied()).collect()
    }

    /// Asserts that so many processes have had GPUs, and that nothing was found wrong in them.
    #[track_caller]
    fn are_clean(&self, processes: usize) {
        assert_eq!(self.installed.reports().unwrap(), vec![String::new(); processes]);
    }
}

fn one() -> Settings {
    Settings { devices: 1, patience_seconds: 30.0, ..Settings::default() }
}

/// Saved on the processor, continued on a GPU by one rank, then by eight that share it, and back: the losses are those
/// of the run that never moved.
#[test]
fn a_run_moves_between_processor_and_gpu() {
    let scratch = Scratch::new();
    let gpus = Gpus::new(one());
    let steps = |steps| [SERIAL, &[steps]].concat();
    let constant = "--set=lr.kind=constant";
    let stayed = scratch.train("stayed", &[&steps("--steps=8")[..], &[constant]].concat());
    scratch.train("moved", &[&steps("--steps=2")[..], &[constant]].concat());
    scratch.resume("moved", &gpus.with(&steps("--steps=4")));
    let shared = scratch.resume("moved", &gpus.with(&[ALL_AXES, &["--steps=6"]].concat()));
    // One rank's time is that of all, and the host's says nothing.
    for name in ["bubble_measured", "wait_share"] {
        assert!(shared.summary()[name].is_null(), "{name}: {}", shared.summary());
    }
    let moved = scratch.resume("moved", &[&["--device=cpu"], &steps("--steps=8")[..]].concat());
    assert!(difference(&moved, &stayed) < 1e-4, "{}", difference(&moved, &stayed));
    gpus.are_clean(2);
}

/// Times that ranks on GPUs measure are those of their streams: a run that is given them has the same losses. The
/// trace tells what each stream was at.
#[test]
fn times_of_actions_are_those_of_the_gpus() {
    let scratch = Scratch::new();
    let gpus = Gpus::new(Settings { devices: 2, ..one() });
    let layout = ["--tp=1", "--pp=2", "--dp=1", "--schedule=zb-v", "--set=model.layers=4"];
    let layout = [&layout[..], &["--set=lr.kind=constant", "--steps=2"]].concat();
    let run = |out: &str, more: &[&str]| {
        let (_, said) = scratch.ok(&small(out, &gpus.with(&[&layout[..], more].concat())));
        (scratch.at(out), said)
    };
    let (measured, said) = run("measured", &["--times=measured", "--trace=t.json"]);
    let line = said.lines().find_map(|line| line.strip_prefix("times measured: ")).expect(&said);
    let times: Vec<&str> = line.split(", ").map(|one| one.rsplit(' ').next().unwrap()).collect();
    let (given, _) = run("given", &[&format!("--times={}", times.join(","))]);
    assert_eq!(measured.loss_texts(), given.loss_texts());
    let summary = measured.summary();
    let bubble = summary["bubble_measured"].as_f64().unwrap();
    assert!((0.0..1.0).contains(&bubble) && summary["wait_share"].is_null(), "{summary}");

    let trace = std::fs::read_to_string(scratch.path("t.json")).unwrap();
    let trace: Vec<serde_json::Value> = serde_json::from_str(&trace).unwrap();
    for rank in 0..2 {
        let mine: Vec<_> = trace.iter().filter(|event| event["tid"] == rank).collect();
        let computed = mine.iter().filter(|event| {
            let is_work = event["name"].as_str().unwrap().starts_with(['F', 'B', 'W']);
            is_work && event["dur"].as_f64().is_some_and(|took| took > 0.0)
        });
        assert!(computed.count() > 4 * 3 * 2, "{mine:?}");
        let begins: Vec<f64> = mine.iter().filter_map(|event| event["ts"].as_f64()).collect();
        assert!(begins.is_sorted(), "{begins:?}");
    }
    gpus.are_clean(2);
}

/// GPUs are measured by their own clocks. What a simulated one takes means nothing: that it is found, written, read and
/// planned with does.
#[test]
fn a_run_is_planned_for_the_measured_gpus() {
    let scratch = Scratch::new();
    let gpus = Gpus::new(one());
    let [device, libraries] = gpus.options.each_ref().map(String::as_str);
    scratch.ok(&["plan", "--measure", "--precision=f32", "--out=gpu.toml", device, libraries]);
    let written = std::fs::read_to_string(scratch.path("gpu.toml")).unwrap();
    assert!(written.contains("driver_names = [\"simulated GPU\"]"), "{written}");
    assert!(written.contains("measured: peaks are products of 128 × 128"), "{written}");

    let with_file = [SERIAL, &["--steps=3", "--machine=gpu.toml"]].concat();
    let (_, said) = scratch.ok(&small("file", &gpus.with(&with_file)));
    assert!(said.contains("a step, ") && !said.contains("no time is planned"), "{said}");
    assert!(said.contains("no data sheet of simulated GPU is known"), "{said}");
    let summary = scratch.at("file").summary();
    let seconds = summary["plan"]["step_s_planned"].as_f64().unwrap();
    assert!(seconds > 0.0 && seconds.is_finite(), "{summary}");
    let shares = summary["utilization"].as_array().unwrap();
    assert_eq!(shares.len(), 1, "{summary}");
    let of = |name: &str| shares[0][name].as_f64().unwrap();
    let model = summary["model_flops_per_s"].as_f64().unwrap();
    assert!((of("mfu") * of("peak_flops_per_s") / model - 1.0).abs() < 1e-9, "{summary}");
    assert_eq!(of("mfu"), of("hfu"));
    assert!(shares[0]["peak"].as_str().unwrap().starts_with("this-machine (gpu.toml: 1 × "));
    // A machine of GPUs is none of cores.
    let on_cpu = small("cpu", &[&with_file[..], &["--device=cpu"]].concat());
    let parts = ["the machine is one of GPUs", "--measure --device cpu --out gpu.toml"];
    scratch.fails(&on_cpu, 2, &parts);
    gpus.are_clean(2);

    // Two GPUs: how fast they exchange is measured too, and one or two ranks are chosen.
    let two = Gpus::new(Settings { devices: 2, ..one() });
    let auto = two.with(&["--layout=auto", "--steps=1", "--set=batch.global=4"]);
    let (_, said) = scratch.ok(&small("auto", &auto));
    assert!(said.contains("that fit this machine, planned "), "{said}");
    two.are_clean(1);
}

#[test]
fn a_layout_that_nobody_asked_for_shrinks_to_the_gpus() {
    let scratch = Scratch::new();
    let gpus = Gpus::new(Settings { devices: 2, ..one() });
    let libraries = gpus.options[1].as_str();
    let (_, said) = scratch.ok(&small("two", &[libraries, "--steps=1"]));
    assert!(said.contains("device  2 × simulated GPU"), "{said}");
    assert!(
        said.contains("would need more of them, so the layout is dp 1 × pp 1 × tp 2"),
        "{said}"
    );
    gpus.are_clean(1);
    let args = small("eight", &gpus.with(&[ALL_AXES, &["--steps=1"]].concat()));
    scratch.fails(
        &args,
        2,
        &["8 ranks on 2 GPUs", "ranks have a GPU each, or all share a single one", "2 ranks"],
    );
}

#[test]
fn gpus_that_are_not_there_are_no_failure_unless_they_are_asked_for() {
    let scratch = Scratch::new();
    let empty = scratch.path("empty");
    std::fs::create_dir(&empty).unwrap();
    let nowhere = format!("--gpu-libraries={}", empty.display());
    let looked = "the CUDA driver was not found; looked for libcuda.so.1 and libcuda.so";
    let (_, said) =
        scratch.ok(&small("auto", &[&nowhere, "--tp=1", "--pp=1", "--dp=1", "--steps=1"]));
    assert!(said.contains(&format!("device  the processor: {looked}")), "{said}");
    for dry_run in [&[][..], &["--dry-run"]] {
        let args = small("cuda", &[&[nowhere.as_str(), "--device=cuda"], dry_run].concat());
        scratch.fails(&args, 2, &["train.device = \"cuda\"", looked, "\"cpu\""]);
    }
    let gpus = Gpus::new(Settings { devices: 0, ..one() });
    scratch.fails(&small("none", &gpus.with(&[])), 2, &["the CUDA driver has no GPU"]);
}

#[test]
fn what_a_gpu_does_not_compute_is_refused_by_name() {
    let scratch = Scratch::new();
    let gpus = Gpus::new(one());
    let f64s = gpus.with(&[SERIAL, &["--precision=f64"]].concat());
    scratch.fails(&small("f64", &f64s), 2, &["train.precision = \"f64\"", "\"bf16\" and \"f32\""]);
    let small_memory = Gpus::new(Settings { memory_bytes: 34 << 20, ..one() });
    let args =
        small_memory.with(&[SERIAL, &["--set=model.hidden=512", "--set=model.layers=8"]].concat());
    scratch.fails(
        &small("memory", &args),
        2,
        &[
            "for 1 rank",
            "may be used (free memory of GPU 0, of rank 0); no other layout, micro-batch or recompute",
        ],
    );
    // Beside 32 MiB for products, half of what is kept for the backward pass is enough.
    let settings = ["--set=model.hidden=64", "--set=data.seq=128", "--set=batch.micro=4"];
    let tight = Gpus::new(Settings { memory_bytes: 39 << 20, ..one() });
    let said = scratch.fails(
        &small("tight", &tight.with(&[SERIAL, &settings].concat())),
        2,
        &["needs ", "GPU 0, of rank 0); the nearest that fits has "],
    );
    let changes =
        said.split("the nearest that fits has ").nth(1).unwrap().split(';').next().unwrap();
    let changes: Vec<String> =
        changes.split(", ").map(|one| format!("--set={}", one.replace(" = ", "="))).collect();
    let changes: Vec<&str> = changes.iter().map(String::as_str).collect();
    let args = [SERIAL, &settings, &changes, &["--steps=1"]].concat();
    scratch.ok(&small("fits", &tight.with(&args)));
}
