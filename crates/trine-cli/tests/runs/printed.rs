//! What a run prints: commands that can be copied, results that must arrive, and how much is said.

use crate::common::{SERIAL, Scratch, small, text};
use std::fs::File;
use std::process::Command;

/// The commands of a summary, by what they are for.
fn command<'a>(shown: &'a str, what: &str) -> &'a str {
    let line = shown.lines().find_map(|line| line.trim_start().strip_prefix(what));
    line.unwrap_or_else(|| panic!("no {what} in {shown}")).trim()
}

/// Each of them runs in a shell as it stands, whatever the directory is called.
#[test]
fn printed_commands_can_be_copied_into_a_shell() {
    let scratch = Scratch::new();
    for out in ["my run", "it's", "-x"] {
        let out_option = format!("--out={out}");
        let args = [&["train", &out_option][..], &small("unused", SERIAL)[3..], &["--steps=2"]];
        let (shown, _) = scratch.ok(&args.concat());
        for what in ["resume:", "generate:", "inspect:"] {
            let line = command(&shown, what);
            assert!(line.starts_with(env!("CARGO_BIN_EXE_trine")), "{line}");
            let ran = Command::new("sh").args(["-c", line]).current_dir(scratch.path("")).output();
            let ran = ran.unwrap();
            assert!(ran.status.success(), "{line}: {}", text(&ran.stderr));
        }
        assert!(scratch.path(out).join("summary.json").exists());
    }
}

#[cfg(unix)]
#[test]
fn a_path_that_no_configuration_can_hold_is_named() {
    use std::os::unix::ffi::OsStrExt;
    let scratch = Scratch::new();
    let bad = std::ffi::OsStr::from_bytes(b"caf\xe9");
    std::fs::create_dir(scratch.path(bad)).unwrap();
    for option in ["--out", "--data", "--resume"] {
        let mut trine = Command::new(env!("CARGO_BIN_EXE_trine"));
        trine.args(["train", option]).arg(bad).current_dir(scratch.path(""));
        let ended = trine.output().unwrap();
        let said = text(&ended.stderr);
        assert_eq!(ended.status.code(), Some(2), "{said}");
        assert!(said.contains(&format!("{option} \"caf\\xe9\": not UTF-8")), "{said}");
    }
}

/// A summary that nobody gets is a failure, as with all other commands; the run itself is whole.
#[cfg(target_os = "linux")]
#[test]
fn a_summary_that_cannot_be_printed_is_a_failure() {
    let scratch = Scratch::new();
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut trine = Command::new(env!("CARGO_BIN_EXE_trine"));
    trine.args(small("run", SERIAL)).arg("--steps=2").current_dir(scratch.path(""));
    let ended = trine.stdout(full).output().unwrap();
    let said = text(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(said.contains("error: cannot write to the standard output"), "{said}");
    assert_eq!(scratch.at("run").summary()["steps"], 2);
}

#[test]
fn quiet_and_verbose_say_less_and_more() {
    let scratch = Scratch::new();
    let steps = |said: &str| said.lines().filter(|line| line.starts_with("step ")).count();
    let run = |out: &str, args: &[&str]| {
        let (shown, said) = scratch.ok(&[&small(out, SERIAL), args].concat());
        assert!(shown.contains("validation loss") && shown.contains("--- completion"), "{shown}");
        said
    };
    let evaluated = ["--steps=6", "--set=eval.every=4", "--set=log.every_seconds=1000"];
    let said = run("normal", &evaluated);
    // The first, the one with an evaluation, the last; an older evaluation says its step.
    assert_eq!(steps(&said), 3, "{said}");
    assert!(said.contains("step 4/6") && said.contains("data: "), "{said}");
    let said = run("verbose", &[&evaluated[..], &["-v"]].concat());
    assert_eq!(steps(&said), 6, "{said}");
    assert!(said.contains("gradient norm ") && said.contains("(step 4)"), "{said}");
    assert_eq!(run("quiet", &[&evaluated[..], &["--quiet"]].concat()), "");
    let (help, _) = scratch.ok(&["--help"]);
    assert!(help.contains("a run too: its summary and its completions"), "{help}");
}

/// Where no line is drawn anew, what was begun is said to its end.
#[test]
fn progress_off_a_terminal_reaches_its_end() {
    let scratch = Scratch::new();
    let often = ["--steps=1", "--set=log.every_seconds=1e-6", "--set=eval.final_windows_max=9"];
    let (_, said) = scratch.ok(&[&small("run", SERIAL)[..], &often].concat());
    let last = |start: &str| {
        let line = said.lines().rfind(|line| line.starts_with(start));
        let (done, all) = line.and_then(|line| line[start.len()..].split_once(" of ")).unwrap();
        (done.to_owned(), all.trim_end_matches(" batches").to_owned())
    };
    for start in ["data: encoding ", "evaluating: "] {
        let (done, all) = last(start);
        assert_eq!(done, all, "{said}");
    }
}
