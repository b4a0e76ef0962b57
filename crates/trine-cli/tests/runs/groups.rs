//! Groups of parameters with a rate, a decay or a schedule of their own.

use crate::common::{ALL_AXES, SERIAL, Scratch, small};

#[test]
fn a_group_of_everything_is_the_run_with_other_numbers_in_every_layout() {
    let scratch = Scratch::new();
    let cosine = ["--steps=4", "--set=lr.kind=cosine", "--set=optimizer.lr=0.004"];
    let by_hand = [
        "--steps=4",
        "--set=lr.kind=constant",
        "--set=optimizer.lr=0.002",
        "--set=optimizer.weight_decay=0.5",
    ];
    // The last line that names a parameter wins for what it sets.
    let groups =
        "--set=optimizer.groups=[\"*: lr=7 decay=0.5\", \"*.?*: lr=0.5 schedule=constant\"]";
    for (name, layout) in [("serial", SERIAL), ("parallel", ALL_AXES)] {
        let plain = scratch.train(&format!("{name}-plain"), &[layout, &cosine].concat());
        let grouped =
            scratch.train(&format!("{name}-grouped"), &[layout, &cosine, &[groups]].concat());
        let expected = scratch.train(&format!("{name}-by-hand"), &[layout, &by_hand].concat());
        assert_eq!(grouped.loss_texts(), expected.loss_texts(), "{name}");
        assert_eq!(grouped.numbers("grad_norm"), expected.numbers("grad_norm"), "{name}");
        assert_ne!(grouped.loss_texts(), plain.loss_texts(), "{name}");
        // What is shown is the run's rate.
        assert_eq!(grouped.numbers("lr"), plain.numbers("lr"), "{name}");
    }
    let more = ["train", "--resume", "serial-plain", "--steps=6", groups];
    let (_, told) = scratch.ok(&more);
    assert!(told.contains("resume: optimizer.groups [] → [\"*: lr=7 decay=0.5\""), "{told}");
}

#[test]
fn a_dry_run_says_what_each_group_names() {
    let scratch = Scratch::new();
    let groups =
        "--set=optimizer.groups=[\"embedding.token: lr=0.1\", \"block.1.*.weight: decay=0\"]";
    let frozen = "--set=train.frozen=[\"embedding.posi*\"]";
    let args = [&small("dry", SERIAL)[..], &["--dry-run", groups, frozen]].concat();
    let (text, _) = scratch.ok(&args);
    let line = "# frozen \"embedding.posi*\": 1 parameter with 8,192 elements";
    assert!(text.contains(line), "{text}");
    let line = "# group \"embedding.token: lr=0.1\": 1 parameter with 9,600 elements\n";
    assert!(text.contains(line), "{text}");
    assert!(text.contains("# group \"block.1.*.weight: decay=0\": 8 parameters with "), "{text}");
}

/// A run that an older release began with settings that do nothing goes on; the same file begins no new one.
#[test]
fn settings_that_do_nothing_end_no_run_that_has_them() {
    let scratch = Scratch::new();
    let frozen = "--set=train.frozen=[\"embedding.token\"]";
    scratch.ok(&[&small("old", SERIAL)[..], &["--steps=2", frozen]].concat());
    let stored = scratch.path("old/config.toml");
    let text = std::fs::read_to_string(&stored).unwrap();
    let changed = [
        ("rope_theta = 10000.0", "rope_theta = 500000.0"),
        ("recompute = false", "recompute = 9"),
        ("groups = []", "groups = [\"embedding.token: lr=0.5\"]"),
    ];
    let old = changed.iter().fold(text, |text, (now, then)| {
        assert!(text.contains(now), "{now} is missing in {text}");
        text.replacen(now, then, 1)
    });
    std::fs::write(&stored, &old).unwrap();
    let (_, told) = scratch.ok(&["train", "--resume", "old", "--steps=4"]);
    assert!(told.contains("resume: train.recompute false → 9"), "{told}");
    assert_eq!(scratch.at("old").summary()["steps"], 4);
    scratch.ok(&["inspect", "old"]);
    scratch.ok(&["generate", "--run", "old", "--prompt", "a", "--tokens", "2"]);
    let idle = ["model.rope_theta = 500000.0", "train.recompute = 9", "optimizer.groups = "];
    scratch.fails(&["train", "old/config.toml", "--out=new", "--dry-run"], 2, &idle);
}
