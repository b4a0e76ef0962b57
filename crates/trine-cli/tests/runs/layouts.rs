//! The same run in other layouts, from its own configuration, and with another seed.

use crate::common::{ALL_AXES, SERIAL, Scratch, difference, small, text};

#[test]
fn eight_ranks_have_the_losses_of_one() {
    let scratch = Scratch::new();
    let steps = ["--steps=30"];
    let serial = scratch.train("serial", &[SERIAL, &steps].concat());
    let parallel = scratch.train("parallel", &[ALL_AXES, &steps].concat());
    let losses = serial.numbers("loss");
    assert_eq!(losses.len(), 30);
    assert!(losses[29] < losses[0] - 0.5, "it learns: {losses:?}");
    assert_eq!(serial.numbers("tokens"), parallel.numbers("tokens"));
    assert_eq!(serial.numbers("lr"), parallel.numbers("lr"));
    assert!(difference(&parallel, &serial) < 1e-4, "{}", difference(&parallel, &serial));
    // Another order of the data or other weights would be seen.
    let other = scratch.train("other", &[SERIAL, &steps, &["--seed=2"]].concat());
    assert!(difference(&other, &serial) > 1e-3, "{}", difference(&other, &serial));
}

/// Five heads and 65 features on two and three ranks: the same losses, a checkpoint that every layout goes on from, and
/// text of it.
#[test]
fn heads_that_do_not_divide_have_the_losses_of_one_rank() {
    let scratch = Scratch::new();
    let model = ["--set=model.heads=5", "--set=model.head_dim=8", "--set=model.ffn=65"];
    let on = |tp, steps| {
        [&["--pp=1", "--dp=1", "--set=lr.kind=constant", tp, steps], &model[..]].concat()
    };
    let serial = scratch.train("serial", &on("--tp=1", "--steps=12"));
    let generated = |name: &str| {
        let args =
            ["generate", "--run", name, "--prompt", "pub fn", "--tokens", "8", "--seed", "1"];
        scratch.ok(&args).0
    };
    for (name, first, then) in
        [("two", "--tp=2", "--tp=3"), ("three", "--tp=3", "--tp=1"), ("four", "--tp=4", "--tp=2")]
    {
        scratch.train(name, &on(first, "--steps=6"));
        let run = scratch.resume(name, &[then, "--steps=12"]);
        assert!(difference(&run, &serial) < 1e-4, "{name}: {}", difference(&run, &serial));
        assert_eq!(generated(name), generated("serial"), "{name}");
    }
}

#[test]
fn reference_numerics_are_equal_to_the_last_bit_in_every_layout() {
    let scratch = Scratch::new();
    let common = ["--steps=30", "--numerics=reference", "--set=model.layers=4"];
    let serial = scratch.train("serial", &[SERIAL, &common].concat());
    let layouts: &[&[&str]] = &[
        ALL_AXES,
        &["--tp=4", "--pp=1", "--dp=2"],
        &["--tp=1", "--pp=2", "--dp=4", "--schedule=gpipe"],
        &["--tp=2", "--pp=1", "--dp=1", "--set=batch.micro=4", "--set=train.recompute=true"],
        &["--tp=2", "--pp=2", "--dp=2", "--schedule=interleaved"],
        &["--tp=1", "--pp=2", "--dp=2", "--schedule=zb-v"],
        &["--tp=1", "--pp=1", "--dp=2", "--schedule=breadth-first", "--virtual=3"],
    ];
    for (index, layout) in layouts.iter().enumerate() {
        let run = scratch.train(&format!("layout-{index}"), &[layout, &common[..]].concat());
        assert_eq!(run.loss_texts(), serial.loss_texts(), "{layout:?}");
        assert_eq!(run.numbers("grad_norm"), serial.numbers("grad_norm"), "{layout:?}");
        let [ours, theirs] =
            [&run, &serial].map(|run| run.checkpoint_file(30, "model.safetensors"));
        assert!(ours == theirs, "the weights of {layout:?}");
    }
    assert_eq!(layouts.len(), 7);
}

#[test]
fn a_runs_configuration_reproduces_it() {
    let scratch = Scratch::new();
    for precision in ["f32", "bf16"] {
        let args = [ALL_AXES, &["--steps=12", "--precision", precision, "--seed=7"]].concat();
        let first = scratch.train(precision, &args);
        let config = format!("{precision}/config.toml");
        let again = format!("{precision}-again");
        scratch.ok(&["train", &config, "--out", &again]);
        let again = scratch.at(&again);
        assert_eq!(first.loss_texts().len(), 12);
        assert_eq!(again.timeless(), first.timeless(), "{precision}");
        let [ours, theirs] =
            [&again, &first].map(|run| std::fs::read(run.path.join("config.toml")).unwrap());
        assert!(ours == theirs, "{precision}: the configuration is the same again");
        let losses = first.numbers("loss");
        assert!(losses[11] < losses[0] - 0.2, "{precision}: {losses:?}");
    }
}

#[test]
fn tokens_that_cannot_be_split_are_not_left_whole_in_silence() {
    let scratch = Scratch::new();
    let run = |out, seq| {
        let layout = ["--tp=2", "--pp=1", "--dp=1", "--steps=1", seq];
        let output = scratch.trine(&small(out, &layout));
        assert!(output.status.success());
        text(&output.stdout) + &text(&output.stderr)
    };
    let said = "layout.tp = 2 does not divide the 33 tokens of a micro-batch";
    assert!(run("odd", "--set=data.seq=33").contains(said));
    assert!(!run("even", "--set=data.seq=32").contains("does not divide"));
}

#[test]
fn a_shape_that_others_cannot_open_is_said_at_the_start() {
    let scratch = Scratch::new();
    let run = |out, setting| {
        let output = scratch.trine(&small(out, &[SERIAL, &["--steps=1", setting]].concat()));
        assert!(output.status.success());
        text(&output.stdout) + &text(&output.stderr)
    };
    let said = "which transformers does not open: its gpt has no way to say model.head_dim";
    assert!(run("wide", "--set=model.head_dim=16").contains(said));
    assert!(!run("usual", "--set=model.head_dim=8").contains(said));
}

#[test]
fn a_prepared_dataset_is_the_same_data() {
    let scratch = Scratch::new();
    let args = [SERIAL, &["--steps=6"]].concat();
    let text = scratch.train("text", &args);
    let mut prepared = crate::common::names(&scratch.path("cache"));
    prepared.retain(|name| name.starts_with("data-") && scratch.path("cache").join(name).is_dir());
    assert_eq!(prepared.len(), 1, "{prepared:?}");
    let folder = format!("cache/{}", prepared[0]);
    let tokens = scratch.train("tokens", &[&args[..], &["--data", &folder]].concat());
    assert_eq!(tokens.timeless(), text.timeless());
    assert_eq!(tokens.summary()["val_bits_per_byte"], text.summary()["val_bits_per_byte"]);
}
