//! `trine plan --model` with what others have: the `config.json` of a model on Hugging Face.

use crate::common::{fails, ok};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// A search that is over in a moment.
const SMALL: [&str; 6] =
    ["--cluster=h100", "--gpus=8", "--global-batch=64", "--tp=1", "--pp=1", "--micro-batch=1"];

fn plan(model: &str, more: &[&str]) -> Vec<String> {
    let words = ["plan", "--model", model].into_iter().chain(SMALL).chain(more.iter().copied());
    words.map(str::to_owned).collect()
}

fn planned(folder: &Path, model: &str, more: &[&str]) -> String {
    let args = plan(model, more);
    ok(folder, &args.iter().map(String::as_str).collect::<Vec<_>>())
}

fn refused(folder: &Path, model: &str, parts: &[&str]) {
    let args = plan(model, &[]);
    fails(folder, &args.iter().map(String::as_str).collect::<Vec<_>>(), 2, parts);
}

/// As GPT-2 small was published.
fn gpt2() -> Value {
    json!({
        "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
        "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12,
        "n_positions": 1024, "resid_pdrop": 0.1, "summary_activation": null, "summary_first_dropout": 0.1,
        "task_specific_params": { "text-generation": { "do_sample": true, "max_length": 50 } }, "vocab_size": 50257,
    })
}

/// As Llama 3 8B was published.
fn llama3() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 128000, "eos_token_id": 128001, "hidden_act": "silu", "hidden_size": 4096,
        "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 8192, "model_type": "llama",
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "pretraining_tp": 1,
        "rms_norm_eps": 1e-05, "rope_scaling": null, "rope_theta": 500000.0, "tie_word_embeddings": false,
        "torch_dtype": "bfloat16", "use_cache": true, "vocab_size": 128256,
    })
}

/// A folder with such a file.
fn model(folder: &Path, name: &str, config: &Value) {
    fs::create_dir_all(folder.join(name)).unwrap();
    fs::write(folder.join(name).join("config.json"), config.to_string()).unwrap();
}

#[test]
fn a_model_of_hugging_face_is_planned_as_the_preset_of_its_shape() {
    let folder = tempfile::tempdir().unwrap();
    model(folder.path(), "gpt2", &gpt2());
    model(folder.path(), "Meta Llama-3", &llama3());
    let json = |model: &str| -> Value {
        serde_json::from_str(&planned(folder.path(), model, &["--json", "--top=1"])).unwrap()
    };
    let cases = [
        ("gpt2", "gpt2", "gpt2-124m", 124_439_808, 1024),
        ("gpt2/config.json", "gpt2", "gpt2-124m", 124_439_808, 1024),
        ("./Meta Llama-3/", "Meta-Llama-3", "llama3-8b", 8_030_261_248u64, 8192),
    ];
    for (path, name, preset, parameters, seq) in cases {
        let (theirs, ours) = (json(path), json(preset));
        assert_eq!(theirs["parameters"].as_f64(), Some(parameters as f64), "{path}");
        assert_eq!((&theirs["model"], &theirs["seq"]), (&name.into(), &seq.into()));
        for key in ["parameters", "seq", "evaluated", "feasible", "best", "days"] {
            assert_eq!(theirs[key], ours[key], "{key} of {path}");
        }
    }
    // A preset's name is the preset, even beside such a folder.
    model(folder.path(), "gpt2-124m", &llama3());
    assert_eq!(json("gpt2-124m")["parameters"], 124_439_808.0);
    let scaled = ["plan", "scale", "--model=gpt2", "--cluster=h100", "--gpus=8", "--to=16"];
    assert!(ok(folder.path(), &scaled).contains("weak scaling"));
}

#[test]
fn the_configuration_of_such_a_model_has_every_key_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = json!({ "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_hidden_layers": 3 });
    let mut config = llama3();
    for (key, value) in tiny.as_object().unwrap() {
        config[key] = value.clone();
    }
    (config["num_key_value_heads"], config["head_dim"]) = (2.into(), 32.into());
    model(folder.path(), "tiny", &config);
    let text = planned(folder.path(), "tiny", &["--write-config=tiny.toml"]);
    assert!(text.contains("The best that trine itself runs"), "{text}");
    let dry = ok(folder.path(), &["train", "tiny.toml", "--dry-run"]);
    for line in [
        "name = \"tiny\"",
        "family = \"llama\"",
        "hidden = 64",
        "layers = 3",
        "heads = 4",
        "kv_heads = 2",
        "head_dim = 32",
        "ffn = 96",
        "vocab = 128256",
        "seq_max = 8192",
        "tied = false",
        "rope_theta = 500000.0",
        "seq = 8192",
        "global = 64",
        "dp = 8",
    ] {
        assert!(dry.lines().any(|other| other == line), "{line} is missing in\n{dry}");
    }
    // What is read is not written over.
    let at_model = ["plan", "--model=tiny", "--write-config=tiny/config.json"];
    fails(folder.path(), &at_model, 2, &["--write-config tiny/config.json: the command reads it"]);
}

/// The best layout of a configuration.
fn best(folder: &Path, config: &str) -> Value {
    let words = [&["plan", config, "--json", "--top=1"][..], &SMALL].concat();
    let found: Value = serde_json::from_str(&ok(folder, &words)).unwrap();
    found["best"][0].clone()
}

/// Paths start at the configuration that was read, wherever the new one is written and read.
#[test]
fn a_planned_configuration_has_the_texts_of_the_one_that_it_is_made_from() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    for sub in ["given", "written", "elsewhere"] {
        fs::create_dir(at.join(sub)).unwrap();
    }
    let text = "preset = \"gpt2-124m\"\ndata.source = \"book.txt\"\n";
    fs::write(at.join("given/run.toml"), text).unwrap();
    fs::write(at.join("given/book.txt"), "Some words.").unwrap();
    let words = ["plan", "given/run.toml", "--write-config=written/planned.toml"];
    ok(at, &[&words[..], &SMALL].concat());
    let dry = ok(&at.join("elsewhere"), &["train", "../written/planned.toml", "--dry-run"]);
    let source = fs::canonicalize(at.join("given/book.txt")).unwrap();
    let line = dry.lines().find_map(|line| line.strip_prefix("source = ")).unwrap();
    let found = Path::new(line.trim_matches(['"', '\'']));
    assert_eq!(fs::canonicalize(found).unwrap(), source, "{line}");
    assert!(!dry.contains("is not there"), "{dry}");
}

/// What is frozen has weights, and nothing of what training needs beside them.
#[test]
fn a_plan_counts_what_is_frozen_of_a_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let text = "preset = \"gpt2-124m\"\n";
    fs::write(at.join("whole.toml"), text).unwrap();
    let frozen = format!("{text}train.frozen = [\"block.*\", \"embedding.token\"]\n");
    fs::write(at.join("frozen.toml"), frozen).unwrap();
    let [whole, frozen] = ["whole.toml", "frozen.toml"].map(|config| best(at, config));
    let bytes = |of: &Value, item: &str| of["memory_bytes"][item].as_f64().unwrap();
    assert_eq!(bytes(&frozen, "weights"), bytes(&whole, "weights"));
    // Positions and the last norm are left: 0.8 of 124 million.
    for item in ["gradients", "moments"] {
        assert!(bytes(&frozen, item) < 0.02 * bytes(&whole, item), "{item}");
    }
    let seconds = |of: &Value, item: &str| of["time_s"][item].as_f64().unwrap();
    assert!(seconds(&frozen, "backward") < seconds(&whole, "backward"));
    assert!(seconds(&frozen, "optimizer") < 0.1 * seconds(&whole, "optimizer"));
}

#[test]
fn what_trine_cannot_express_is_refused_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let changed = [
        (
            gpt2(),
            "model_type",
            json!("mamba"),
            "\"model_type\" is \"mamba\"; trine has gpt2, llama, mistral, qwen2",
        ),
        (gpt2(), "model_type", json!("mixtral"), "\"model_type\" is \"mixtral\""),
        (
            gpt2(),
            "activation_function",
            json!("mish"),
            "\"activation_function\" is \"mish\"; trine has silu, gelu",
        ),
        (gpt2(), "n_layer", json!(-1), "\"n_layer\" is -1; it must be a whole number"),
        (gpt2(), "n_embd", json!(null), "\"n_embd\" is missing"),
        (
            gpt2(),
            "n_layer",
            json!(1u64 << 60),
            "\"n_layer\" is 1152921504606846976: must be at most 16384",
        ),
        (
            llama3(),
            "rope_scaling",
            json!({ "rope_type": "llama3" }),
            "\"rope_scaling\" is {\"rope_type\":\"llama3\"}",
        ),
        (
            llama3(),
            "attention_bias",
            json!("yes"),
            "\"attention_bias\" is \"yes\"; it must be true or false",
        ),
        (llama3(), "sliding_window", json!(4096), "\"sliding_window\" is 4096"),
        (llama3(), "num_hidden_layers", json!(16384), "a model has at most 2⁴²"),
    ];
    for (mut config, key, value, said) in changed {
        config[key] = value;
        if key == "num_hidden_layers" {
            config["intermediate_size"] = 4_000_000.into();
        }
        model(at, "other", &config);
        refused(at, "other", &["other/config.json ", said]);
    }
    fs::write(at.join("other/config.json"), "{ \"model_type\": ").unwrap();
    refused(at, "other", &["other/config.json is malformed: EOF"]);
    fs::create_dir(at.join("empty")).unwrap();
    refused(at, "empty", &["reading empty/config.json: No such file"]);
    refused(at, "no/where", &["reading no/where/config.json: No such file"]);
    refused(at, "none.json", &["reading none.json: No such file"]);
    refused(at, "gpt2-124", &["no preset is called \"gpt2-124\"; nearest: \"gpt2-124m\""]);
    // The folder of a run has another kind of file.
    fs::write(at.join("empty/config.toml"), "preset = \"rust-default\"\n").unwrap();
    refused(at, "empty", &["a configuration of trine is there: --model empty/config.toml"]);
}

#[test]
fn a_mark_at_the_start_of_a_configuration_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    model(folder.path(), "gpt2", &gpt2());
    let said = planned(folder.path(), "gpt2", &[]);
    fs::write(folder.path().join("gpt2/config.json"), format!("\u{feff}{}", gpt2())).unwrap();
    assert_eq!(planned(folder.path(), "gpt2", &[]), said);
    // A file by another name is read, too.
    fs::copy(folder.path().join("gpt2/config.json"), folder.path().join("gpt2/described")).unwrap();
    assert_eq!(planned(folder.path(), "gpt2/described", &[]), said);
}
