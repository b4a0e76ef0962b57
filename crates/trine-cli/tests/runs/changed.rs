//! Runs that go on with another configuration, in another place, or without their checkpoints.

use crate::common::{ALL_AXES, Run, SERIAL, Scratch, copy, files, names, small, text};
use std::fs;
use std::os::unix::fs::symlink;

/// Everything in a run directory.
fn contents(run: &Run) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut all = files(&run.path);
    all.sort();
    all
}

#[test]
fn what_gives_the_numbers_another_meaning_is_refused_and_nothing_changes() {
    let scratch = Scratch::new();
    let run = scratch.train("run", &[ALL_AXES, &["--steps=4"]].concat());
    let before = contents(&run);
    let cases: &[(&[&str], &[&str])] = &[
        (&["--set=data.vocab=280"], &["made with the tokenizer", "go on with data.vocab = 300"]),
        (&["--set=data.seq=16"], &["data.seq = 16", "step 4", "leave data.seq = 32"]),
        (
            &["--set=optimizer.kind=sgd", "--steps=20"],
            &["optimizer.kind = \"sgd\"", "leave optimizer.kind = \"adamw\""],
        ),
        (&["--set=model.layers=3"], &["model.layers is 2 there and 3 here"]),
    ];
    for (changed, parts) in cases {
        let args = [&["train", "--resume", "run"], *changed].concat();
        let message = scratch.fails(&args, 2, parts);
        assert_eq!(message.trim_end().lines().count(), 1, "{message}");
        assert!(contents(&run) == before, "{changed:?}");
    }
    // What was refused has no consequences.
    scratch.resume("run", &["--steps=6"]);
    assert_eq!(run.lines().len(), 6);
}

#[test]
fn another_batch_goes_on_from_the_samples_seen() {
    let scratch = Scratch::new();
    // Weights that stay as they are: the loss of a step is that of its samples.
    let still = [SERIAL, &["--set=optimizer.lr=1e-30", "--set=checkpoint.every=4"]].concat();
    let whole =
        scratch.train("whole", &[&still[..], &["--steps=6", "--set=batch.global=8"]].concat());
    let run = scratch.train("run", &[&still[..], &["--steps=4"]].concat());
    copy(&run.path, &scratch.path("small"));
    scratch.resume("run", &["--steps=6", "--set=batch.global=8"]);
    // Four steps of 4 are two of 8.
    assert_eq!(run.loss_texts()[4..], whole.loss_texts()[2..4]);
    assert_eq!(
        run.numbers("tokens"),
        [4, 8, 12, 16, 24, 32].map(|samples| 32.0 * f64::from(samples))
    );
    assert_eq!(run.summary()["tokens"], 32 * 32);
    assert_eq!(run.summary()["bigram_bits_per_byte"], {
        let same =
            scratch.train("same", &[&still[..], &["--steps=4", "--set=batch.global=8"]].concat());
        same.summary()["bigram_bits_per_byte"].clone()
    });
    let smaller = scratch.resume("small", &["--steps=8", "--set=batch.global=2"]);
    assert_eq!(smaller.numbers("tokens")[4..], [18, 20, 22, 24].map(|n| 32.0 * f64::from(n)));
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    let (four, eight) = (mean(&smaller.numbers("loss")[4..]), whole.numbers("loss")[2]);
    assert!((four - eight).abs() < 1e-6, "the same eight samples: {four} {eight}");
}

#[test]
fn every_other_difference_is_a_line() {
    let scratch = Scratch::new();
    let run = scratch.train("run", &[SERIAL, &["--steps=8"]].concat());
    let args = ["train", "--resume", "run", "--steps=12", "--set=model.dropout=0.1", "--seed=2"];
    let (_, told) = scratch.ok(&args);
    let lines: Vec<&str> = told.lines().filter(|line| line.starts_with("resume: ")).collect();
    let lr = run.numbers("lr");
    let jump = format!("resume: lr at step 9: {:.2e} → {:.2e}", lr[7], lr[8]);
    let expected = [
        "resume: seed 1 → 2",
        "resume: model.dropout 0.0 → 0.1",
        "resume: train.steps 8 → 12",
        &jump,
    ];
    assert_eq!(lines, expected);
    // As it is, it goes on without a word.
    let (_, told) = scratch.ok(&["train", "--resume", "run"]);
    assert!(told.contains("resume: all 12 steps are done, the run is at step 12"), "{told}");
    assert_eq!(told.matches("resume: ").count(), 1, "{told}");
    let config = fs::read(run.path.join("config.toml")).unwrap();
    let (_, told) = scratch.ok(&["train", "--resume", "run", "--steps=6"]);
    assert!(told.contains("resume: train.steps 12 → 6"), "{told}");
    assert!(told.contains("resume: all 6 steps are done, the run is at step 12"), "{told}");
    assert!(fs::read(run.path.join("config.toml")).unwrap() == config);
    assert_eq!(run.lines().len(), 12);
}

#[test]
fn a_run_that_has_lost_its_checkpoints_is_not_begun_anew() {
    let scratch = Scratch::new();
    let run = scratch.train("run", &[SERIAL, &["--steps=4"]].concat());
    let whole = run.timeless();
    fs::remove_dir_all(run.checkpoints()).unwrap();
    let before = contents(&run);
    let resume = ["train", "--resume", "run"];
    let anew = "trine train run/config.toml --out NEW";
    scratch.fails(&resume, 2, &["it is at step 4, and has no whole checkpoint", "mounted?", anew]);
    assert!(contents(&run) == before);
    symlink("/not/mounted", run.checkpoints()).unwrap();
    let output = scratch.trine(&resume);
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains("a link to /not/mounted, which is not there"), "{message}");
    fs::remove_file(run.checkpoints()).unwrap();
    assert!(contents(&run) == before);
    scratch.ok(&["train", "run/config.toml", "--out", "anew"]);
    assert_eq!(scratch.at("anew").timeless(), whole);

    // One that was killed before it saved anything loses nothing.
    fs::create_dir(run.checkpoints()).unwrap();
    fs::write(run.checkpoints().join("none-yet"), "").unwrap();
    let (_, told) = scratch.ok(&resume);
    assert!(told.contains("no checkpoint was saved yet: the run begins again at step 1"), "{told}");
    assert_eq!(run.timeless(), whole);
    assert_eq!(names(&run.checkpoints()), ["step-4"]);
}

#[test]
fn paths_mean_the_same_from_any_folder() {
    let scratch = Scratch::new();
    let run = scratch.train("run", &[SERIAL, &["--steps=2"]].concat());
    fs::create_dir_all(scratch.path("some/where")).unwrap();
    let output = scratch.trine_in("some/where", &["train", "--resume", "../../run", "--steps=4"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(run.lines().len(), 4);
    // In a file they start at the file.
    let config = fs::read_to_string(run.path.join("config.toml")).unwrap();
    let absolute = scratch.path("").canonicalize().unwrap().display().to_string() + "/";
    assert!(config.contains(&format!("source = \"{absolute}data\"")), "{config}");
    let relative = config.replace(&absolute, "../");
    fs::write(scratch.path("some/run.toml"), &relative).unwrap();
    let args = ["train", "../run.toml", "--out", "out"];
    let output = scratch.trine_in("some/where", &args);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(scratch.at("some/where/out").loss_texts().len(), 4);
    // A stored one of an older release starts at the working directory.
    fs::write(run.path.join("config.toml"), config.replace(&absolute, "")).unwrap();
    scratch.resume("run", &["--steps=5"]);
    assert_eq!(run.lines().len(), 5);
}

#[test]
fn data_may_be_moved_and_renamed_as_a_whole() {
    let scratch = Scratch::new();
    let run = scratch.train("run", &[SERIAL, &["--steps=2"]].concat());
    fs::rename(scratch.path("data"), scratch.path("elsewhere")).unwrap();
    scratch.resume("run", &["--steps=3", "--data=elsewhere"]);
    assert_eq!(run.lines().len(), 3);
    let from = scratch.path("elsewhere/part0000.rs");
    fs::rename(from, scratch.path("elsewhere/zzz.rs")).unwrap();
    let parts = ["made with the corpus", "renamed as a whole; with files renamed"];
    scratch.fails(&["train", "--resume", "run"], 2, &parts);
    // One file is its text, whatever it is called.
    fs::copy(scratch.path("elsewhere/zzz.rs"), scratch.path("one.rs")).unwrap();
    let args = [SERIAL, &["--steps=2", "--data=one.rs", "--set=data.vocab=280"]].concat();
    let run = scratch.train("file", &args);
    fs::rename(scratch.path("one.rs"), scratch.path("other.rs")).unwrap();
    scratch.resume("file", &["--steps=3", "--data=other.rs"]);
    assert_eq!(run.lines().len(), 3);
    let text = fs::read_to_string(scratch.path("other.rs")).unwrap();
    fs::write(scratch.path("other.rs"), text + "// more\n").unwrap();
    scratch.fails(&["train", "--resume", "file"], 2, &["made with the corpus"]);
}

#[test]
fn a_folder_with_files_of_somebody_is_refused() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("mine")).unwrap();
    fs::write(scratch.path("mine/notes.txt"), "").unwrap();
    fs::write(scratch.path("mine/todo.txt"), "").unwrap();
    let parts = ["mine is not empty: it has notes.txt and 1 other", "choose another --out"];
    scratch.fails(&small("mine", &[]), 2, &parts);
    assert_eq!(names(&scratch.path("mine")), ["notes.txt", "todo.txt"]);
    // An empty one will do, and one with room for checkpoints.
    fs::create_dir_all(scratch.path("empty")).unwrap();
    fs::create_dir_all(scratch.path("disk")).unwrap();
    symlink("../disk", scratch.path("empty/checkpoints")).unwrap();
    scratch.train("empty", &[SERIAL, &["--steps=1"]].concat());
    assert_eq!(names(&scratch.path("disk")), ["step-1"]);
}

#[test]
fn two_runs_started_at_once_get_two_directories() {
    let scratch = Scratch::new();
    let args = small("", &[SERIAL, &["--steps=2"]].concat());
    let args = [&["train"], &args[3..]].concat();
    let both = [scratch.start(&args), scratch.start(&args)];
    assert_eq!(both.map(|run| run.code()), [Some(0), Some(0)]);
    assert_eq!(names(&scratch.path("runs")), ["rust-default", "rust-default-2"]);
    for name in names(&scratch.path("runs")) {
        assert_eq!(scratch.at(&format!("runs/{name}")).lines().len(), 2);
    }
}

#[test]
fn a_byte_that_is_no_text_spoils_its_own_line_alone() {
    let scratch = Scratch::new();
    let run = scratch.train("run", &[SERIAL, &["--steps=4"]].concat());
    let path = run.path.join("metrics.jsonl");
    let mut metrics = fs::read(&path).unwrap();
    let third = metrics.iter().enumerate().filter(|(_, byte)| **byte == b'\n').nth(1).unwrap().0;
    metrics[third + 4] = 0xff;
    fs::write(&path, &metrics).unwrap();
    assert!(scratch.ok(&["inspect", "run"]).0.contains("step 4"));
    scratch.resume("run", &["--steps=6"]);
    let now = fs::read(&path).unwrap();
    assert!(now.starts_with(&metrics), "nothing that was there is lost");
    assert_eq!(now.iter().filter(|byte| **byte == b'\n').count(), 6);
}
