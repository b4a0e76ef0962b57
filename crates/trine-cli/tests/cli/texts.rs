//! What is said to people: words that fit, and output that documents show as it is.

use crate::common::{TINY, fails, ok};
use std::fs;
use std::path::Path;

/// The arguments of a small dry run.
fn dry<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["train", "--dry-run"], TINY, more].concat()
}

#[test]
fn one_thing_is_singular() {
    let folder = tempfile::tempdir().unwrap();
    let one = [
        "--set=batch.global=1",
        "--set=model.layers=1",
        "--set=model.heads=1",
        "--tp=1",
        "--pp=1",
        "--dp=1",
        "--steps=1",
    ];
    let text = ok(folder.path(), &dry(&one));
    for part in [
        "1 layer, hidden 32, 1 head (1 KV)",
        "1 rank:",
        "1 sequence of 16; each rank 1 micro-batch of 1",
        "# run     1 step",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let text = ok(
        folder.path(),
        &["schedule", "show", "1f1b", "--stages=1", "--micro-batches=1", "--text"],
    );
    fs::write(folder.path().join("one.txt"), text).unwrap();
    let said = ok(folder.path(), &["schedule", "verify", "one.txt"]);
    assert!(said.contains("1 stage on 1 rank, 1 micro-batch\n1 pair of stage"), "{said}");
    let one = ["schedule", "show", "1f1b", "--stages=1", "--micro-batches=1"];
    let said = ok(folder.path(), &one);
    assert!(said.contains("1f1b: 1 stage on 1 rank, 1 micro-batch; makespan"), "{said}");
    let few = ["schedule", "show", "dualpipe-v", "--stages=1", "--micro-batches=1"];
    fails(folder.path(), &few, 2, &["at least 2 micro-batches on 1 rank, not 1"]);
}

#[test]
fn a_missing_text_is_noted_by_a_dry_run() {
    let folder = tempfile::tempdir().unwrap();
    let text = ok(folder.path(), &dry(&["--data", "nope"]));
    assert!(text.contains("# note: data.source = nope is not there; a run needs it\n"), "{text}");
    fs::write(folder.path().join("nope"), "text").unwrap();
    let text = ok(folder.path(), &dry(&["--data", "nope"]));
    assert!(!text.contains("is not there"), "{text}");
}

#[test]
fn keys_say_what_is_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let text = ok(folder.path(), &["train", "--help-config"]);
    for part in ["#   true or false\n", "#   a whole number, 0 or more\n", "at least 1\nsteps = "] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(!text.contains("; any") && !text.contains("rule:"), "{text}");
    let schema = ok(folder.path(), &["schema"]);
    assert!(schema.contains("Rule: at least 1.") && !schema.contains("Rule: any"), "{schema}");
}

#[test]
fn values_that_begin_with_a_dash_get_our_message() {
    let folder = tempfile::tempdir().unwrap();
    let at_least_one = ["train.steps must be a whole number, at least 1", "-3"];
    fails(folder.path(), &["train", "--steps", "-3"], 2, &at_least_one);
    fails(
        folder.path(),
        &["bench", "comm", "--seconds", "-1"],
        2,
        &["--seconds -1: must be above 0"],
    );
    fails(folder.path(), &["bench", "step", "--seconds", "-1"], 2, &["--seconds -1: must be 0 to"]);
    let seed = ["data", "build", "text", "--out=x", "--seed", "-1"];
    fails(folder.path(), &seed, 2, &["'-1' for '--seed <N>': must be a whole number, 0 to"]);
    fails(folder.path(), &["train", "--out", "-x"], 2, &["as the value of --out: --out=-x"]);
    fails(folder.path(), &["train", "--batch", "4"], 2, &["--set batch.global=N"]);
}

#[test]
fn a_message_about_a_name_with_lines_is_one_line() {
    let folder = tempfile::tempdir().unwrap();
    for key in ["train.st\neps=3", "train.steps=\"a\nb\"", "layout.schedule=a\nb"] {
        let said = fails(folder.path(), &["train", "--set", key], 2, &["\\n"]);
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    let said =
        fails(folder.path(), &["train", "no\nfile.toml"], 2, &["no\\nfile.toml: cannot read"]);
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn the_run_of_a_checkpoint_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = "runs/first/checkpoints/step-280";
    fs::create_dir_all(folder.path().join(checkpoint)).unwrap();
    fs::write(folder.path().join("runs/first/config.toml"), "").unwrap();
    for below in [checkpoint, "runs/first/checkpoints"] {
        let message = format!("{below}: not a run directory, but in one: runs/first");
        fails(folder.path(), &["inspect", below], 2, &[&message]);
        fails(folder.path(), &["generate", "--run", below, "--prompt=a"], 2, &[&message]);
    }
}

#[test]
fn a_directory_in_use_is_said_to_be_so() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("run/checkpoints")).unwrap();
    fs::write(folder.path().join("run/config.toml"), "").unwrap();
    fs::write(folder.path().join("text"), "some text\n".repeat(4000)).unwrap();
    let lock = fs::File::create(folder.path().join("run/.lock")).unwrap();
    let train =
        [&["train", "--data=text", "--out=run", "--set=train.memory_check=false"], TINY].concat();
    fails(folder.path(), &train, 2, &["run already holds a run"]);
    lock.lock().unwrap();
    fails(folder.path(), &train, 2, &["run is in use by another process"]);
}

#[test]
fn written_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let plan = ["plan", "--model=gpt2-124m", "--cluster=h100", "--gpus=8", "--write-config=c.toml"];
    let text = ok(folder.path(), &plan);
    assert!(text.contains("\nWritten: c.toml\n"), "{text}");
    assert!(folder.path().join("c.toml").exists());
}

/// A command of a document, and the lines that the document shows of its output.
struct Example {
    words: Vec<String>,
    lines: Vec<String>,
}

/// Blocks of one `trine` command with the texts that follow, up to the next command.
fn examples(document: &str) -> Vec<Example> {
    let mut found: Vec<Example> = Vec::new();
    let mut pieces = document.split("```").skip(1).step_by(2);
    let mut is_open = false;
    for (language, body) in pieces.by_ref().filter_map(|piece| piece.split_once('\n')) {
        let lines: Vec<String> = body.lines().map(str::to_owned).collect();
        match (language, lines.as_slice()) {
            ("sh", [line]) if line.starts_with("trine ") => {
                let words = line.split(' ').skip(1).map(str::to_owned).collect();
                found.push(Example { words, lines: Vec::new() });
                is_open = true;
            }
            ("text", _) if is_open => {
                let example = found.last_mut().expect("invariant: one is open");
                example.lines.extend(lines);
            }
            _ => is_open = false,
        }
    }
    found
}

/// A line without its numbers and widths: predictions and measured figures change, words do not.
fn shape(line: &str) -> String {
    let words =
        line.split_whitespace().map(|word| match word.contains(|c: char| c.is_ascii_digit()) {
            true => "#",
            false => word,
        });
    words.collect::<Vec<_>>().join(" ")
}

/// Drawings are compared to the letter, plans by their words.
#[test]
fn documents_show_what_is_printed() {
    let folder = tempfile::tempdir().unwrap();
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let mut compared = 0;
    for name in ["tutorials/see-parallelism.md", "tutorials/size-a-run.md"] {
        let text = fs::read_to_string(docs.join(name)).unwrap();
        for Example { words, lines } in examples(&text) {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let is_plan = words[0] == "plan";
            if lines.is_empty() || !(is_plan || words[..2] == ["schedule", "show"]) {
                continue;
            }
            let printed = ok(folder.path(), &words);
            let look = |line: &str| if is_plan { shape(line) } else { line.to_owned() };
            let printed: Vec<String> = printed.lines().map(look).collect();
            for line in lines {
                assert!(printed.contains(&look(&line)), "{name}: {words:?} does not print {line}");
                compared += 1;
            }
        }
    }
    assert!(compared >= 11, "{compared} lines compared");
}
