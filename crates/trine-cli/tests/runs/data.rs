//! A user's text: what is taken of it, what is said of the rest, and datasets made of it.

use crate::common::{SERIAL, Scratch, names, small};
use std::fs;
use std::process::Command;
use trine_data::toy;

/// A run of one step.
const ONE_STEP: &[&str] = &["--steps=1", "--tp=1", "--pp=1", "--dp=1"];

/// Trains a step in `out` on other data, and returns what was said.
#[track_caller]
fn said(scratch: &Scratch, out: &str, args: &[&str]) -> String {
    scratch.ok(&small(out, &[ONE_STEP, args].concat())).1
}

#[test]
fn a_folder_is_read_whole_and_what_is_left_out_is_said() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("books")).unwrap();
    // Over a MiB; an index of pages; kinds that are no plain text; a copy.
    let book = toy::text(1_100_000);
    fs::write(scratch.path("books/a.txt"), &book).unwrap();
    fs::write(scratch.path("books/copy.txt"), &book).unwrap();
    fs::write(scratch.path("books/index.json"), "{\"title\": \"a page\"}\n").unwrap();
    fs::write(scratch.path("books/more.jsonl"), "{\"text\": \"x\"}\n").unwrap();
    fs::write(scratch.path("books/.hidden"), "x").unwrap();
    let errors = said(&scratch, "run", &["--data=books", "--set=eval.final_windows_max=1"]);
    let taken = format!("{} training and 20 validation bytes (0.0 % held out)", grouped(&book));
    assert!(errors.contains(&taken), "{errors}\n{taken}");
    let counts = "left out 1 file equal or nearly equal to another (1.0 MiB); 1 hidden file or folder (1 B); \
                  1 file in a format that is not plain text (14 B)\n";
    assert!(errors.contains(counts), "{errors}");
    // Names come with --verbose, and where the run is looked at.
    let left_out = "left out 1 file equal or nearly equal to another (1.0 MiB): copy.txt; \
                    1 hidden file or folder (1 B): .hidden; \
                    1 file in a format that is not plain text (14 B): more.jsonl";

    let data = &scratch.at("run").summary()["data"];
    assert_eq!(data["train_bytes"], book.len());
    assert_eq!(data["validation_documents"], 1);
    assert_eq!(data["left_out"]["format"]["bytes"], 14);
    assert_eq!(data["left_out"]["near_duplicate"]["examples"][0], "copy.txt");
    let inspected = scratch.ok(&["inspect", "run"]).0;
    assert!(inspected.contains(&taken) && inspected.contains(left_out), "{inspected}");

    let errors = said(&scratch, "limited", &["--data=data", "--set=data.file_bytes_max=4100"]);
    assert!(errors.contains("files over data.file_bytes_max"), "{errors}");
}

/// The length of a text with commas.
fn grouped(text: &str) -> String {
    let digits = text.len().to_string();
    let (head, tail) = digits.split_at(digits.len() % 3);
    let groups = tail.as_bytes().chunks(3).map(|three| String::from_utf8(three.to_vec()).unwrap());
    let all: Vec<String> =
        [head.to_owned()].into_iter().filter(|h| !h.is_empty()).chain(groups).collect();
    all.join(",")
}

#[test]
fn what_is_no_text_is_refused_by_name() {
    let scratch = Scratch::new();
    fs::write(scratch.path("a.jsonl"), "{\"text\": \"x\"}\n").unwrap();
    fs::write(scratch.path("a.txt.gz"), b"\x1f\x8b\x08\0").unwrap();
    fs::write(scratch.path("packed.txt"), b"\x28\xb5\x2f\xfd\0").unwrap();
    // Not in the folder itself, of which all files are read to see that they stay.
    let elsewhere = tempfile::tempdir().unwrap();
    let pipe = elsewhere.path().join("pipe").display().to_string();
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    // A dataset that has lost its index.
    fs::create_dir(scratch.path("tokens")).unwrap();
    fs::write(scratch.path("tokens/train.bin"), "tokens").unwrap();
    fs::write(scratch.path("tokens/tokenizer.json"), "{}").unwrap();
    let cases: &[(&str, &[&str])] = &[
        ("a.jsonl", &["a.jsonl is a file of JSON Lines", "jq -r .text"]),
        ("a.txt.gz", &["a.txt.gz is gzip-compressed", "unpack it"]),
        ("packed.txt", &["packed.txt is Zstandard-compressed"]),
        (pipe.as_str(), &["pipe is a pipe, not a regular file"]),
        ("/dev/zero", &["/dev/zero is a device"]),
        ("tokens", &["tokens/index.json", "no index.json of format", "restore"]),
    ];
    let mut refused = 0;
    for (path, parts) in cases {
        scratch.fails(&small("run", &["--data", path]), 2, parts);
        refused += 1;
    }
    assert_eq!(refused, 6);
}

#[test]
fn a_dataset_is_built_once_and_trained_on() {
    let scratch = Scratch::new();
    fs::write(scratch.path("more.txt"), toy::text(9_000)).unwrap();
    fs::create_dir(scratch.path("many")).unwrap();
    for document in toy::documents(60, 1000) {
        fs::write(scratch.path("many").join(document.name), document.text).unwrap();
    }
    let build = ["data", "build", "many", "more.txt", "--out", "sets/one", "--vocab", "300"];
    let (report, _) = scratch.ok(&[&build[..], &["--validation", "0.2"]].concat());
    assert!(report.contains("(20.") || report.contains("(21."), "{report}");
    assert!(report.contains("trine train --data sets/one --set model.vocab=300"), "{report}");
    assert_eq!(names(&scratch.path("sets")), ["one"]);
    let files = [
        "index.json",
        "tokenizer.json",
        "train.bin",
        "train.documents.bin",
        "val.bin",
        "val.documents.bin",
    ];
    assert_eq!(names(&scratch.path("sets/one")), files);
    scratch.fails(&build, 2, &["sets/one is not empty"]);

    let errors = said(&scratch, "run", &["--data=sets/one"]);
    assert!(errors.contains("data: using sets/one"), "{errors}");
    // The same documents, in other places by another seed.
    let other = ["--out", "sets/two", "--seed", "1", "--validation", "0.2"];
    let tokenizer = ["--tokenizer", "sets/one/tokenizer.json"];
    scratch.ok(&[&["data", "build", "many", "more.txt"], &other[..], &tokenizer].concat());
    let read = |name: &str| fs::read(scratch.path(name)).unwrap();
    assert_eq!(read("sets/two/tokenizer.json"), read("sets/one/tokenizer.json"));
    assert_ne!(read("sets/two/val.bin"), read("sets/one/val.bin"));

    let bad = ["data", "build", "data", "--out", "sets/three", "--validation", "0.9"];
    scratch.fails(&bad, 2, &["validation share 0.9", "the nearest is 0.5"]);
    scratch.fails(&["data", "build", "nowhere", "--out", "x"], 2, &["no such file or folder"]);
    let nested = ["data", "build", "data", "sets/one", "--out", "x"];
    scratch.fails(&nested, 2, &["sets/one", "prepared dataset, which has tokens only"]);
}

#[test]
fn a_tokenizer_is_taken_for_raw_text() {
    let scratch = Scratch::new();
    let first = scratch.train("first", &[SERIAL, &["--steps=1"]].concat());
    let of_run = first.checkpoint_file(1, "tokenizer.json");
    fs::write(scratch.path("given.json"), &of_run).unwrap();
    fs::write(scratch.path("other.txt"), toy::text(20_000)).unwrap();
    let given = ["--set=data.tokenizer=given.json", "--data=other.txt"];
    said(&scratch, "second", &given);
    assert_eq!(scratch.at("second").checkpoint_file(1, "tokenizer.json"), of_run);
    let missing = ["--set=data.tokenizer=none.json"];
    scratch.fails(&small("third", &missing), 2, &["no such file or folder: none.json"]);
    // A dataset's tokens are not those of another tokenizer.
    scratch.ok(&["data", "build", "other.txt", "--out", "set", "--vocab", "280"]);
    let parts = ["set", "made by another tokenizer than given.json"];
    scratch.fails(&small("third", &["--data=set", given[0]]), 2, &parts);
}

#[test]
fn rows_that_no_token_uses_are_said() {
    let scratch = Scratch::new();
    let note = "the tokenizer has 300 entries and model.vocab is 3000, so 90 % of the embedding's \
                rows can never be used; --set model.vocab=300";
    let errors = said(&scratch, "run", &["--set=model.vocab=3000"]);
    assert!(errors.contains(note), "{errors}");
    assert!(!said(&scratch, "full", &["--set=model.vocab=310"]).contains("can never be used"));
    let (plan, _) = scratch.ok(&["train", "--preset=gpt2-124m", "--data=data", "--dry-run"]);
    assert!(plan.contains("91 % of the embedding's rows can never be used"), "{plan}");
}

/// What a run and its cache write must not become its text.
#[test]
fn a_run_inside_its_data_goes_on() {
    let scratch = Scratch::new();
    let inside = ["--set=data.cache=data/cache"];
    let first = scratch.train("data/run", &[ONE_STEP, &inside].concat());
    let (_, told) = scratch.ok(&["train", "--resume", "data/run", "--steps=2", "-v"]);
    assert!(told.contains("1 prepared dataset: cache/data-"), "{told}");
    assert!(told.contains("1 run directory: run"), "{told}");
    let second = scratch.train("data/other", &[ONE_STEP, &inside].concat());
    assert_eq!(first.summary()["corpus_hash"], second.summary()["corpus_hash"]);
    assert_eq!(first.summary()["data"]["left_out"]["run"]["count"], 1);
}
