//! Bad input that only shows when a run begins, and runs that fail: one message, and everything that
//! was there stays.

use crate::common::{ALL_AXES, SERIAL, Scratch, copy, names, small};
use std::fs;
use std::path::Path;

#[test]
fn data_that_cannot_be_used_is_refused() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("empty")).unwrap();
    fs::create_dir(scratch.path("images")).unwrap();
    fs::write(scratch.path("images/a.png"), [0x89, b'P', 0xff, 0]).unwrap();
    fs::write(scratch.path("empty.txt"), "").unwrap();
    fs::write(scratch.path("binary.txt"), [b'a', b'b', 0xff, 0xfe]).unwrap();
    fs::write(scratch.path("short.txt"), "a few words\n".repeat(4)).unwrap();
    let cases: &[(&str, &[&str])] = &[
        ("nowhere.txt", &["no such file or folder: nowhere.txt", "nearest folder"]),
        ("data/nowhere/at/all", &["no such file", "the nearest folder that exists is data"]),
        ("empty", &["no usable text in empty"]),
        ("images", &["no usable text in images"]),
        ("empty.txt", &["no usable text in empty.txt"]),
        ("binary.txt", &["binary.txt is not UTF-8 text: byte 2", "give a UTF-8 file"]),
        (
            "short.txt",
            &[
                "is shorter than a window: tokens in it: 16, in a window: 32",
                "set data.seq to 16 at most",
            ],
        ),
        ("crates", &["data.source = \"crates\"", "cargo xtask train", "--data PATH"]),
    ];
    let mut refused = 0;
    for (path, parts) in cases {
        scratch.fails(&small("run", &["--data", path]), 2, parts);
        refused += 1;
    }
    assert_eq!(refused, 8);
    assert!(!scratch.path("run/config.toml").exists());
}

#[test]
fn a_vocabulary_larger_than_the_models_is_refused() {
    let scratch = Scratch::new();
    let typed = small("run", &["--set=data.vocab=512"]);
    let parts = ["data.vocab = 512", "larger than the model's vocabulary", "model.vocab = 512"];
    scratch.fails(&typed, 2, &parts);
    // A prepared dataset brings its own tokenizer, whatever the configuration says.
    let large = ["--set=data.vocab=512", "--set=model.vocab=512", "--steps=1"];
    scratch.train("large", &[SERIAL, &large].concat());
    let dataset = prepared(&scratch);
    let parts = ["tokenizer has 512 entries", "vocabulary 300", "model.vocab = 512"];
    scratch.fails(&small("run", &["--data", &dataset]), 2, &parts);

    // The same folder with a file that is not as it was.
    let tokens = scratch.path(&dataset).join("train.bin");
    let bytes = fs::read(&tokens).unwrap();
    fs::write(&tokens, &bytes[..bytes.len() - 2]).unwrap();
    let args = ["--data", &dataset, "--set=model.vocab=512"];
    scratch.fails(&small("run", &args), 2, &["train.bin", "truncated"]);
}

/// The only prepared dataset of the cache.
fn prepared(scratch: &Scratch) -> String {
    let mut found = names(&scratch.path("cache"));
    found.retain(|name| name.starts_with("data-") && scratch.path("cache").join(name).is_dir());
    assert_eq!(found.len(), 1, "{found:?}");
    format!("cache/{}", found[0])
}

#[test]
fn directories_that_do_not_fit_are_refused() {
    let scratch = Scratch::new();
    scratch.train("run", &[ALL_AXES, &["--steps=2"]].concat());
    fs::create_dir(scratch.path("bare")).unwrap();
    let exists = ["run already holds a run", "--resume run", "another --out"];
    scratch.fails(&small("run", &[]), 2, &exists);
    for nowhere in ["bare", "nowhere", "data"] {
        let parts = [nowhere, "not a run directory"];
        scratch.fails(&["train", "--resume", nowhere], 2, &parts);
    }
    for file in ["data/part0000.rs", "data/part0000.rs/run"] {
        let parts = [file, "cannot be the run directory", "choose another --out"];
        scratch.fails(&small(file, &[]), 2, &parts);
    }
    for other in ["--out=other", "--set=output.dir=other"] {
        let parts = ["--resume run --", "a run goes on in its own directory", "cp -r run COPY"];
        scratch.fails(&["train", "--resume=run", other], 2, &parts);
        assert!(!scratch.path("other").exists());
    }
    let parts = ["--trace nowhere/t.json: cannot create it: No such file"];
    scratch.fails(&small("new", &["--trace=nowhere/t.json"]), 2, &parts);
    assert!(!scratch.path("new").exists());

    // A run with another configuration than its checkpoint's, and with other text.
    copy(&scratch.path("run"), &scratch.path("wider"));
    let config = scratch.path("wider/config.toml");
    let text = fs::read_to_string(&config).unwrap();
    let edited =
        text.replace("hidden = 32", "hidden = 64").replace("head_dim = 8", "head_dim = 16");
    assert_ne!(edited, text);
    fs::write(config, edited).unwrap();
    let parts = ["another model: model.hidden is 32 there and 64 here", "set model.hidden = 32"];
    scratch.fails(&["train", "--resume", "wider"], 2, &parts);
    fs::write(scratch.path("data/more.rs"), "fn more() {}\n".repeat(50)).unwrap();
    let parts = ["made with the corpus", "resume needs the same text"];
    scratch.fails(&["train", "--resume", "run"], 2, &parts);
}

#[test]
fn a_disk_that_is_too_small_is_found_out_before_the_first_step() {
    let scratch = Scratch::new();
    let args = [
        "train",
        "--preset=frontier-1t",
        "--data=data",
        "--out=run",
        "--set=data.cache=cache",
        "--set=data.vocab=300",
        "--set=data.seq=32",
        "--set=train.memory_check=false",
    ];
    // Twelve terabytes: f32 weights and two moments.
    let parts = ["no disk space for a checkpoint: it needs 12", "are free in run", "free at least"];
    scratch.fails(&args, 1, &parts);
}

#[test]
fn a_damaged_checkpoint_is_refused() {
    let scratch = Scratch::new();
    scratch.train("run", &[SERIAL, &["--steps=4"]].concat());
    let mut cases = 0;
    for file in [
        "config.json",
        "manifest.json",
        "model.safetensors",
        "optimizer.safetensors",
        "tokenizer.json",
    ] {
        let intact = fs::read(scratch.path("run/checkpoints/step-4").join(file)).unwrap();
        for (damage, damaged) in damages(&intact) {
            let out = format!("{damage}-{file}");
            copy(&scratch.path("run"), &scratch.path(&out));
            let path = scratch.path(&out).join("checkpoints/step-4").join(file);
            write_or_remove(&path, damaged.as_deref());
            // A checkpoint without its manifest is called what it is: none.
            let name = if file == "manifest.json" { "step-4" } else { file };
            scratch.fails(&["train", "--resume", &out], 1, &[name]);
            let generate = ["generate", "--run", &out, "--prompt", "a"];
            assert!(!scratch.trine(&generate).status.success(), "{out}");
            cases += 1;
        }
    }
    assert_eq!(cases, 15);
}

/// What can happen to a file; `None`: it is gone.
fn damages(intact: &[u8]) -> [(&'static str, Option<Vec<u8>>); 3] {
    let mut altered = intact.to_vec();
    altered[intact.len() / 2] ^= 1;
    let truncated = intact[..intact.len() - 1].to_vec();
    [("truncated", Some(truncated)), ("altered", Some(altered)), ("removed", None)]
}

fn write_or_remove(path: &Path, bytes: Option<&[u8]>) {
    match bytes {
        Some(bytes) => fs::write(path, bytes).unwrap(),
        None => fs::remove_file(path).unwrap(),
    }
}

#[test]
fn an_earlier_checkpoint_stands_in_for_a_damaged_one() {
    let scratch = Scratch::new();
    let args = [ALL_AXES, &["--steps=8", "--set=checkpoint.every=4"]].concat();
    let whole = scratch.train("whole", &args);
    let run = scratch.train("run", &args);
    let model = run.checkpoints().join("step-8/model.safetensors");
    write_or_remove(&model, damages(&fs::read(&model).unwrap())[1].1.as_deref());
    let (_, told) = scratch.ok(&["train", "--resume", "run"]);
    assert!(told.contains("step-8/model.safetensors was altered"), "{told}");
    assert!(told.contains("from step 4"), "{told}");
    assert_eq!(run.timeless(), whole.timeless());
    let name = "model.safetensors";
    assert!(run.checkpoint_file(8, name) == whole.checkpoint_file(8, name));
}

#[test]
fn a_rank_that_fails_names_itself_and_leaves_the_rest() {
    let scratch = Scratch::new();
    let args = [ALL_AXES, &["--steps=30", "--set=checkpoint.every=1", "--set=optimizer.lr=1e30"]];
    let message = scratch.fails(&small("run", &args.concat()), 1, &["rank ", "is not finite"]);
    let run = scratch.at("run");
    let losses = run.numbers("loss");
    let step = format!("step {}: the gradient of \"", losses.len() + 1);
    assert!(message.contains(&step), "{message}");
    assert!((1..30).contains(&losses.len()), "{losses:?}");
    assert!(losses.iter().all(|loss| loss.is_finite()), "{losses:?}");
    // What was saved before it is whole; nothing else is called a checkpoint.
    let last = format!("step-{}", losses.len());
    assert_eq!(names(&run.checkpoints()).last(), Some(&last));
    assert!(!run.path.join("summary.json").exists());
}
