//! Files that options name: nothing that somebody needs is replaced.

use crate::common::{fails, ok, trine};
use std::fs;

/// A command that writes a file, but for the option that names it, and the option.
type Writes = (&'static [&'static str], &'static str);

const PLAN: &[&str] = &["plan", "--model=gpt2-124m", "--cluster=a100-80gb", "--gpus=8"];

const ALL: &[Writes] = &[
    (&["schedule", "show", "gpipe"], "--svg"),
    (PLAN, "--svg"),
    (PLAN, "--write-config"),
    (&["plan", "--measure"], "--out"),
    (&["plan", "evaluate"], "--svg"),
    (&["plan", "scale"], "--svg"),
    (&["plan", "calibrate"], "--out"),
    (&["train", "--set=name=x"], "--trace"),
];

/// Texts that begin like some of what trine writes.
const OTHERS: &[&str] = &[
    "a text to train on",
    "name = \"mine\"\n",
    "[1, 2]",
    "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 24 24\"><path d=\"M0 0\"/></svg>\n",
];

#[test]
fn what_trine_did_not_write_is_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let (path, run) = (folder.path().join("file"), folder.path().join("run"));
    fs::create_dir_all(run.join("checkpoints")).unwrap();
    fs::write(run.join("config.toml"), "").unwrap();
    for (command, option) in ALL {
        for text in OTHERS {
            fs::write(&path, text).unwrap();
            let parts = [&format!("{option} file: it is there, and not a"), "another file"];
            fails(folder.path(), &[command, &[*option, "file"][..]].concat(), 2, &parts);
            assert_eq!(fs::read_to_string(&path).unwrap(), *text);
        }
        let parts = [&format!("{option} run/config.toml: it is a file of the run in"), "run;"];
        fails(folder.path(), &[command, &[*option, "run/config.toml"][..]].concat(), 2, &parts);
        let parts = [&format!("{option} run: it is a folder")[..]];
        fails(folder.path(), &[command, &[*option, "run"][..]].concat(), 2, &parts);
        let parts = [&format!("{option} no/file: cannot create it")[..]];
        fails(folder.path(), &[command, &[*option, "no/file"][..]].concat(), 2, &parts);
    }
}

#[test]
fn what_trine_wrote_is_replaced_by_its_like_only() {
    let folder = tempfile::tempdir().unwrap();
    for (command, option) in &ALL[..3] {
        let args = [command, &[*option, option.trim_start_matches('-')][..]].concat();
        ok(folder.path(), &args);
        ok(folder.path(), &args);
    }
    let parts = ["--svg write-config: it is there, and not a drawing that trine wrote"];
    fails(folder.path(), &[PLAN, &["--svg=write-config"]].concat(), 2, &parts);
    let parts = ["--write-config svg: it is there, and not a configuration that trine wrote"];
    fails(folder.path(), &[PLAN, &["--write-config=svg"]].concat(), 2, &parts);
    // A configuration that is read, by any name of it.
    let read = ["plan", "write-config", "--write-config", "./write-config"];
    fails(folder.path(), &read, 2, &["--write-config ./write-config: the command reads it"]);
    ok(folder.path(), &["train", "write-config", "--dry-run"]);
    // Devices lose nothing.
    let made = std::process::Command::new("mkfifo").arg(folder.path().join("pipe")).status();
    assert!(made.unwrap().success());
    fails(folder.path(), &["schedule", "show", "gpipe", "--svg", "pipe"], 2, &["it is a pipe"]);
    let output = trine(folder.path(), &["schedule", "show", "gpipe", "--svg", "/dev/null"]);
    assert!(output.status.success());
}

#[test]
fn a_refused_start_leaves_no_trace() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("z")).unwrap();
    for inside in ["z/config.toml", "./z/trace.json"] {
        let parts = [&format!("--trace {inside}: it lies in the directory of the new run")[..]];
        fails(folder.path(), &["train", "--out=z", "--trace", inside], 2, &parts);
    }
    fails(folder.path(), &["train", "--data=none", "--trace=t.json"], 2, &["none"]);
    fs::write(folder.path().join("kept.json"), "").unwrap();
    fails(folder.path(), &["train", "--data=none", "--trace=kept.json"], 2, &["none"]);
    let exists = |path: &str| folder.path().join(path).exists();
    assert!(!exists("z/config.toml") && !exists("z/trace.json") && !exists("t.json"));
    assert!(exists("kept.json"));
}
