//! The layout that a run gets where its degrees are not given.

use crate::common::{Scratch, small, text};

/// The degrees of a configuration as TOML: dp, pp, tp.
fn degrees(config: &str) -> [usize; 3] {
    ["dp = ", "pp = ", "tp = "].map(|key| {
        let number = config.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        number.parse().unwrap()
    })
}

fn ranks(config: &str) -> usize {
    degrees(config).iter().product()
}

fn cores() -> usize {
    std::thread::available_parallelism().unwrap().get()
}

/// The line that says what was chosen.
fn chosen(said: &str) -> Option<&str> {
    said.lines().find(|line| {
        line.trim_start_matches("# ").starts_with("chosen  dp ")
            && line.contains("micro-batches of")
    })
}

#[test]
fn a_preset_for_other_machines_gets_the_layout_of_this_one() {
    let scratch = Scratch::new();
    let dry = |args: &[&str]| scratch.ok(&[&["train", "--dry-run"], args].concat()).0;
    let small = ["--preset=gpt2-124m", "--set=model.layers=2"];
    let text = dry(&small);
    let line = chosen(&text).unwrap_or_else(|| panic!("{text}"));
    assert!(
        line.contains("that fit this machine") && cores().is_multiple_of(ranks(&text)),
        "{line}"
    );
    if ranks(&text) != 8 {
        assert!(line.contains("; --layout preset takes dp 2 × pp 2 × tp 2"), "{line}");
    }
    // What is printed has numbers, so that a repeat is the same run.
    std::fs::write(scratch.path("again.toml"), &text).unwrap();
    let again = dry(&["again.toml"]);
    assert_eq!((degrees(&again), chosen(&again)), (degrees(&text), None));
    for given in [&["--layout=preset"][..], &["--set=layout.degrees=preset"], &["--tp=2"]] {
        let text = dry(&[&small[..], given].concat());
        assert_eq!((degrees(&text), chosen(&text)), ([2, 2, 2], None));
    }
    // What the user gives is kept.
    assert!(dry(&[&small[..], &["--set=batch.micro=2"]].concat()).contains("\nmicro = 2\n"));
    assert_eq!(chosen(&dry(&[])), None);
}

#[test]
fn auto_is_asked_for_by_name_and_resume_keeps_what_was() {
    let scratch = Scratch::new();
    let (_, said) = scratch.ok(&small("run", &["--layout=auto", "--steps=2"]));
    assert!(chosen(&said).is_some(), "{said}");
    let config = std::fs::read_to_string(scratch.path("run/config.toml")).unwrap();
    assert!(cores().is_multiple_of(ranks(&config)) && !config.contains("degrees"), "{config}");
    let (_, said) = scratch.ok(&["train", "--resume=run", "--steps=3"]);
    assert_eq!(chosen(&said), None);
    let resumed = std::fs::read_to_string(scratch.path("run/config.toml")).unwrap();
    assert_eq!(degrees(&resumed), degrees(&config));
    let both = small("both", &["--layout=auto", "--tp=2"]);
    let parts =
        ["layout.degrees = \"auto\"", "layout.tp is given (--tp 2)", "either of them alone"];
    scratch.fails(&both, 2, &parts);
    scratch.fails(&small("word", &["--layout=best"]), 2, &["\"best\"", "\"auto\", \"preset\""]);
}

/// Where the machine decides, one rank and any micro-batch that divides are enough.
#[test]
fn what_the_machine_decides_is_checked_once_it_has() {
    let scratch = Scratch::new();
    let dry = |settings: &[&str]| {
        let all = [&["train", "--dry-run", "--layout=auto"], settings].concat();
        scratch.ok(&all).0
    };
    let text = dry(&[
        "--set=batch.global=7",
        "--set=batch.micro=1",
        "--set=train.clip_norm=18446744073709551615",
    ]);
    assert!(chosen(&text).is_some() && degrees(&text)[0] == 1, "{text}");
    assert!(7 % degrees(&dry(&["--set=batch.global=7"]))[0] == 0);
    let [_, pp, tp] = degrees(&dry(&["--set=model.heads=1", "--set=model.layers=1"]));
    assert_eq!((pp, tp), (1, 1));
    let bad = ["train", "--layout=auto", "--set=batch.global=7", "--set=batch.micro=2"];
    scratch.fails(&bad, 2, &["batch.global = 7: must be a multiple of", "batch.micro = 1"]);
}

#[test]
fn a_model_that_no_layout_of_this_machine_fits_keeps_its_own() {
    let scratch = Scratch::new();
    let output = scratch.trine(&["train", "--preset=frontier-1t", "--dry-run"]);
    let said = text(&output.stdout);
    assert!(said.contains("no layout fits this machine; the leanest needs at least "), "{said}");
    assert_eq!(degrees(&said), [6, 64, 8]);
}
