//! Runs by a schedule of one's own: its order is what is executed, its numbers are those of any other, and it stays
//! with the run. Also runs by a schedule that was made for times that were given, or measured.

use crate::common::{Run, SERIAL, Scratch, small, text};
use serde_json::Value;
use std::fs;

/// Two ranks, four micro-batches of a step.
const TWO: &[&str] = &["--tp=1", "--pp=2", "--dp=1"];
const COMMON: &[&str] = &["--numerics=reference", "--set=lr.kind=constant"];

/// All forwards, then the backward passes from the last micro-batch to the first.
const BACKWARDS: &str = "schedule backwards # no named one does so
rank 0
  F0.0 F0.1 F0.2 F0.3
  B0.3 W0.3 B0.2 W0.2 B0.1 W0.1 B0.0 W0.0
rank 1
  F1.0 F1.1 F1.2 F1.3 B1.3 W1.3 B1.2 W1.2 B1.1 W1.1 B1.0 W1.0
";

/// Three stages: rank 1 has both ends of the model, rank 0 the middle.
const UNEVEN: &str = "schedule uneven
rank 0
F1.0 F1.1 B1.0 B1.1 W1.0 W1.1 F1.2 F1.3 B1.2 B1.3 W1.3 W1.2
rank 1
F0.0 F0.1 F2.0 B2.0 F2.1 B2.1 W2.0 W2.1 B0.0 B0.1 W0.0 W0.1
F0.2 F0.3 F2.2 B2.2 F2.3 B2.3 W2.2 W2.3 B0.2 W0.2 B0.3 W0.3
";

/// What a rank computed in a step of a trace, in order.
fn computed(scratch: &Scratch, trace: &str, rank: u64, step: u64) -> Vec<String> {
    let events: Vec<Value> =
        serde_json::from_str(&fs::read_to_string(scratch.path(trace)).unwrap()).unwrap();
    let of_rank = |event: &&Value| event["tid"] == rank && event["args"]["step"] == step;
    let mut found: Vec<(f64, String)> = events
        .iter()
        .filter(of_rank)
        .map(|event| (event["ts"].as_f64().unwrap(), event["name"].as_str().unwrap().to_owned()))
        .filter(|(_, name)| name.starts_with(['F', 'B', 'W']))
        .collect();
    found.sort_by(|a, b| a.0.total_cmp(&b.0));
    // The last backward of a stage is cut into buckets; here as one.
    let mut names: Vec<String> = Vec::new();
    for (_, name) in found {
        let whole = name.split('/').next().unwrap().to_owned();
        if !names.contains(&whole) {
            names.push(whole);
        }
    }
    names
}

/// The words of a list.
fn list(schedule: &str, rank: usize) -> Vec<String> {
    let lists = schedule.split("rank ").nth(rank + 1).unwrap();
    lists.split_whitespace().skip(1).map(str::to_owned).collect()
}

#[test]
fn the_order_of_a_file_is_executed_and_changes_no_number() {
    let scratch = Scratch::new();
    let common = [COMMON, &["--steps=6", "--set=model.layers=4"]].concat();
    let serial = scratch.train("serial", &[SERIAL, &common].concat());
    let named = scratch.train("named", &[TWO, &common].concat());
    let (messages, _) =
        scratch.ok(&["schedule", "show", "zb-h2", "--stages=2", "--micro-batches=4", "--text"]);
    assert!(messages.contains(" SA0.0>1"), "{messages}");
    for (name, schedule) in [("backwards", BACKWARDS), ("uneven", UNEVEN), ("messages", &messages)]
    {
        fs::write(scratch.path(format!("{name}.txt")), schedule).unwrap();
        let (given, trace) = (format!("--schedule=file:{name}.txt"), format!("{name}.json"));
        let traced = format!("--trace={trace}");
        let run = scratch.train(name, &[TWO, &common, &[given.as_str(), &traced]].concat());
        for other in [&serial, &named] {
            assert_eq!(run.loss_texts(), other.loss_texts(), "{name}");
            assert_eq!(run.numbers("grad_norm"), other.numbers("grad_norm"), "{name}");
            let [ours, theirs] =
                [&run, other].map(|run| run.checkpoint_file(6, "model.safetensors"));
            assert!(ours == theirs, "the weights of {name}");
        }
        let val = |run: &Run| run.summary()["final_val_loss"].clone();
        assert_eq!(val(&run), val(&serial), "{name}");
        for rank in 0..2 {
            let expected = match name {
                "messages" => list(&messages, rank)
                    .into_iter()
                    .filter(|word| word.starts_with(['F', 'B', 'W']))
                    .collect(),
                _ => list(schedule, rank),
            };
            assert_eq!(computed(&scratch, &trace, rank as u64, 0), expected, "{name} {rank}");
        }
    }
}

#[test]
fn a_run_keeps_its_schedule_when_the_file_is_gone() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("mine")).unwrap();
    fs::write(scratch.path("mine/backwards.txt"), BACKWARDS).unwrap();
    // The path starts at the configuration.
    let config = "[layout]\nschedule = \"file:backwards.txt\"\n";
    fs::write(scratch.path("mine/run.toml"), config).unwrap();
    let args = [TWO, COMMON].concat();
    let whole = scratch.train("whole", &[&["mine/run.toml", "--steps=6"], &args[..]].concat());
    scratch.train("cut", &[&["mine/run.toml", "--steps=3"], &args[..]].concat());
    fs::remove_dir_all(scratch.path("mine")).unwrap();
    let stored = fs::read_to_string(scratch.path("cut/config.toml")).unwrap();
    assert!(stored.contains("schedule = \"\"\"\nschedule backwards\n"), "{stored}");
    let resumed = scratch.resume("cut", &["--steps=6", "--trace=t.json"]);
    assert_eq!(resumed.loss_texts(), whole.loss_texts());
    assert_eq!(
        resumed.checkpoint_file(6, "model.safetensors"),
        whole.checkpoint_file(6, "model.safetensors")
    );
    let trace = fs::read_to_string(scratch.path("t.json")).unwrap();
    let at = |action: &str| trace.find(&format!("\"name\":\"{action}\"")).unwrap();
    assert!(at("B0.3") < at("B0.2") && at("B0.2") < at("B0.1"));
    // Everything else reads it too.
    let (said, _) = scratch.ok(&["inspect", "cut"]);
    assert!(said.contains("backwards, a schedule of one's own"), "{said}");
    scratch.ok(&["generate", "--run=cut", "--prompt=pub fn", "--tokens=2"]);
    let (dry, _) = scratch.ok(&["train", "cut/config.toml", "--dry-run"]);
    assert!(dry.contains("schedule backwards\n"), "{dry}");
    assert!(dry.contains("backwards, a schedule of one's own"), "{dry}");
    // Another order is another setting, and is said in a line.
    fs::write(scratch.path("other.txt"), BACKWARDS.replace("backwards", "other")).unwrap();
    let args = ["train", "--resume=cut", "--steps=7", "--schedule=file:other.txt"];
    let output = scratch.trine(&args);
    let errors = text(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let line = "layout.schedule \"schedule backwards …\" → \"schedule other …\"";
    assert!(errors.contains(line), "{errors}");
}

/// The plan of activations follows the order: all forwards first keep four micro-batches, 1F1B two.
#[test]
fn memory_is_planned_for_the_order_of_the_file() {
    let scratch = Scratch::new();
    fs::write(scratch.path("backwards.txt"), BACKWARDS).unwrap();
    let activations = |schedule: &str| {
        let args = [TWO, &["--steps=10", "--schedule", schedule]].concat();
        let run = scratch.train(&schedule.replace([':', '.'], "-"), &args);
        let check = run.summary()["plan"]["ranks"].clone();
        let of = |what: &str| check[0][what]["activations"].as_u64().unwrap();
        (of("planned"), of("measured"))
    };
    let (own, gpipe, named) =
        (activations("file:backwards.txt"), activations("gpipe"), activations("1f1b"));
    assert_eq!(own.0, gpipe.0);
    assert!(own.0 > named.0 && own.1 > named.1, "{own:?} {named:?}");
}

/// A zero-bubble schedule is made for the times that are given, and they stay with the run.
#[test]
fn times_change_the_order_and_no_number() {
    let scratch = Scratch::new();
    let layout = ["--tp=1", "--pp=4", "--dp=1", "--schedule=zb-v", "--set=model.layers=8"];
    let common = [&layout[..], COMMON].concat();
    let shape = ["schedule", "show", "zb-v", "--stages=4", "--micro-batches=4", "--text"];
    let text = |more: &[&str]| scratch.ok(&[&shape, more].concat()).0;
    let (usual, timed) = (text(&[]), text(&["--times=1,1,2,0"]));
    assert_ne!(usual, timed);
    let run = |out: &str, more: &[&str]| scratch.train(out, &[&common, more].concat());
    let plain = run("plain", &["--steps=4", "--trace=plain.json"]);
    run("timed", &["--steps=2", "--times=1,1,2,0"]);
    let stored = fs::read_to_string(scratch.path("timed/config.toml")).unwrap();
    assert!(stored.contains("times = [1.0, 1.0, 2.0, 0.0]"), "{stored}");
    let resumed = scratch.resume("timed", &["--steps=4", "--trace=timed.json"]);
    assert_eq!(resumed.loss_texts(), plain.loss_texts());
    for (trace, step, lists) in [("plain.json", 0, &usual), ("timed.json", 2, &timed)] {
        for rank in 0..4 {
            let words = list(lists, rank).into_iter();
            let expected: Vec<String> =
                words.filter(|word| word.starts_with(['F', 'B', 'W'])).collect();
            assert_eq!(computed(&scratch, trace, rank as u64, step), expected, "{trace} {rank}");
        }
    }
}

/// What `layout.times` of a run are.
fn times_of(scratch: &Scratch, run: &str) -> String {
    let config = fs::read_to_string(scratch.path(run).join("config.toml")).unwrap();
    let times = config.lines().find_map(|line| line.strip_prefix("times = [")).expect(&config);
    times.strip_suffix(']').expect(times).replace(' ', "")
}

/// Times that a run measures at its start are those of a run that is given them: all ranks work in the order that is
/// made for them, no number differs, and both runs go on with them.
#[test]
fn a_run_measures_its_times_and_keeps_them() {
    let scratch = Scratch::new();
    let layout = ["--tp=1", "--pp=2", "--dp=2", "--schedule=zb-v", "--set=model.layers=4"];
    let common = [&layout[..], &["--set=batch.global=8", "--set=lr.kind=constant"]].concat();
    let measuring = [&common[..], &["--times=measured"]].concat();
    let (dry, _) = scratch.ok(&small("dry", &[&measuring[..], &["--dry-run"]].concat()));
    assert!(dry.contains("times = \"measured\"\n"), "{dry}");
    assert!(dry.contains("layout.times are measured when a run starts, and all is"), "{dry}");

    let first = [&measuring[..], &["--steps=5", "--trace=first.json"]].concat();
    let (_, said) = scratch.ok(&small("measured", &first));
    let times = times_of(&scratch, "measured");
    let numbers: Vec<f64> = times.split(',').map(|time| time.parse().unwrap()).collect();
    assert_eq!((numbers.len(), numbers[0]), (4, 1.0), "{times}");
    assert!(numbers.iter().all(|time| time.is_finite() && *time > 0.0), "{times}");
    let [f, b, w, message] = numbers[..] else { unreachable!() };
    let line = format!("times measured: F {f}, B {b}, W {w}, message {message}\n");
    assert!(said.contains(&line), "{said}");

    let given = format!("--times={times}");
    let given = scratch.train("given", &[&common[..], &["--steps=7", &given]].concat());
    assert_eq!(times_of(&scratch, "given"), times);
    // Memory is planned for the order that is executed.
    let planned = |run: &Run| {
        let ranks = run.summary()["plan"]["ranks"].as_array().unwrap().clone();
        ranks.into_iter().map(|rank| rank["planned"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(planned(&scratch.at("measured")), planned(&given));
    let (_, said) = scratch.ok(&["train", "--resume=measured", "--steps=7", "--trace=next.json"]);
    assert!(!said.contains("times measured") && !said.contains("layout.times"), "{said}");
    assert_eq!(times_of(&scratch, "measured"), times);
    let measured = scratch.at("measured");
    assert_eq!(measured.loss_texts(), given.loss_texts());
    assert_eq!(measured.numbers("grad_norm"), given.numbers("grad_norm"));
    let [ours, theirs] = [&measured, &given].map(|run| run.checkpoint_file(7, "model.safetensors"));
    assert!(ours == theirs, "the weights");

    let shape = ["schedule", "show", "zb-v", "--stages=2", "--micro-batches=4", "--text"];
    let lists = scratch.ok(&[&shape[..], &["--times", &times]].concat()).0;
    for (trace, step) in [("first.json", 0), ("next.json", 5)] {
        for rank in 0..4 {
            let words = list(&lists, rank / 2).into_iter();
            let expected: Vec<String> =
                words.filter(|word| word.starts_with(['F', 'B', 'W'])).collect();
            assert_eq!(computed(&scratch, trace, rank as u64, step), expected, "{trace} {rank}");
        }
    }
}

/// A file, more options, and what is said.
const REFUSED: &[(&str, &[&str], &[&str])] = &[
    ("missing.txt", &[], &["missing.txt: cannot read the schedule: "]),
    (
        "typo.txt",
        &[],
        &["typo.txt: line 4, column 13: `B0,2` is not an action", "the nearest is `B0.2`"],
    ),
    (
        "stuck.txt",
        &[],
        &["stuck.txt: line 6: wrong order: rank 1, position 0, `B1.3`: expected `F1.3` before it"],
    ),
    (
        "circle.txt",
        &["--micro-batches=2"],
        &[
            "circle.txt: line 3: the schedule cannot be executed",
            "rank 0 at step 1 (B0.0) waits for rank 1 at step 3 (W1.0); \
                 rank 1 at step 1 (F1.1) waits for rank 0 at step 3 (F0.1)",
        ],
    ),
    (
        "reduced.txt",
        &[],
        &[
            "reduced.txt: it reduces gradients (rank 1, position ",
            "leave out `segments`, `tied`, every T, G and A",
        ],
    ),
    ("forward.txt", &[], &["forward.txt: ", "it is an evaluation"]),
    (
        "right.txt",
        &["--set=layout.pp=1"],
        &[
            "layout.pp = 1: layout.schedule = \"backwards\" (--schedule file:right.txt) has lists of 2 ranks",
            "nearest valid: 2",
        ],
    ),
    (
        "right.txt",
        &["--set=batch.global=8"],
        &[
            "batch.global = 8: gives 8 micro-batches of a rank with layout.dp × batch.micro = 1 (--dp 1) × 1",
            "and layout.schedule = \"backwards\" (--schedule file:right.txt) has 4",
            "nearest valid: batch.micro = 2 or batch.global = 4",
        ],
    ),
    (
        "right.txt",
        &["--virtual=2"],
        &["layout.virtual = 2: ", "has [1, 1] stages on its ranks; nearest valid: 0"],
    ),
    (
        "uneven.txt",
        &[],
        &[
            "layout.schedule = \"uneven\": has 3 stages, and model.layers = 2",
            "every stage needs a layer",
        ],
    ),
    (
        "uneven.txt",
        &["--set=model.layers=4", "--set=layout.layers=[2,2]"],
        &[
            "layout.layers = [2, 2]: must be the 3 stages of layout.schedule = \"uneven\"",
            "nearest valid: [",
        ],
    ),
];

#[test]
fn what_no_run_can_train_by_is_refused_before_it_starts() {
    let scratch = Scratch::new();
    let write = |name: &str, text: &str| fs::write(scratch.path(name), text).unwrap();
    write("right.txt", BACKWARDS);
    write("uneven.txt", UNEVEN);
    write(
        "stuck.txt",
        &BACKWARDS.replace("F1.0 F1.1 F1.2 F1.3 B1.3 W1.3", "B1.3 W1.3 F1.0 F1.1 F1.2 F1.3"),
    );
    write(
        "circle.txt",
        "schedule circle\nrank 0\n  F0.0 B0.0\n  W0.0 F0.1 B0.1 W0.1\nrank 1\n  F1.0 F1.1 B1.0 W1.0 B1.1 W1.1\n",
    );
    write("typo.txt", &BACKWARDS.replace("B0.2", "B0,2"));
    let (whole, _) =
        scratch.ok(&["schedule", "show", "gpipe", "--stages=2", "--micro-batches=4", "--text"]);
    let reduced = format!("{whole}  G1/0 A1/0\n").replace("rank 0\n", "segments 1 1\nrank 0\n");
    write("reduced.txt", &reduced);
    let (forward, _) = scratch.ok(&["schedule", "show", "forward-only", "--stages=2", "--text"]);
    write("forward.txt", &forward);
    for (file, more, parts) in REFUSED {
        let schedule = format!("--schedule=file:{file}");
        let two = ["--set=layout.tp=1", "--set=layout.pp=2", "--dp=1", "--steps=2"];
        let args = [&two[..], &[schedule.as_str()], more].concat();
        scratch.fails(&small("run", &args), 2, parts);
    }
    assert!(!scratch.path("run").exists());
    let plan = ["plan", "--schedule", "file:right.txt"];
    scratch.fails(
        &plan,
        2,
        &["a plan makes its schedules by name; `trine train` and `trine schedule` take a file"],
    );
}
