//! Tests of the configuration: precedence, the round trip, and every message.

use super::*;
use crate::engine::ZeroStage;
use std::collections::BTreeSet;
use trine_buffer::DType;
use trine_schedule::{KindInfo, Purpose, ScheduleKind, UniformStage};
use trine_spec::{ModelSpec, Recompute};

fn typed(file: &str, settings: &[&str]) -> Typed {
    let file = (!file.is_empty()).then(|| File { name: "run.toml".into(), text: file.into() });
    let settings = settings.iter().map(|text| Setting::set(text)).collect();
    Typed { file, settings, ..Typed::default() }
}

fn load(file: &str, settings: &[&str]) -> Config {
    Config::load(&typed(file, settings)).unwrap()
}

#[track_caller]
fn error(file: &str, settings: &[&str]) -> String {
    Config::load(&typed(file, settings)).unwrap_err().to_string()
}

#[test]
fn options_win_over_the_file_and_the_file_over_the_preset() {
    let file = "preset = \"gpt2-124m\"\nseed = 7\n[train]\nsteps = 5\nclip_norm = 2\n";
    let config = load(file, &["train.steps=9", "train.steps=10"]);
    assert_eq!((config.seed, config.train.steps, config.train.clip_norm), (7, 10, 2.0));
    assert_eq!((config.name.as_str(), config.model.layers), ("gpt2-124m", 12));

    let mut by_option = typed(file, &["preset=gpt2-355m"]);
    assert_eq!(Config::load(&by_option).unwrap().model.layers, 24);
    by_option.preset = Some("rust-default".into());
    assert_eq!(Config::load(&by_option).unwrap().model.layers, 4);
}

#[test]
fn a_name_is_one_that_a_folder_can_have() {
    let of = |length: usize| format!("name={}", "n".repeat(length));
    assert_eq!(load("", &[&of(255)]).name.len(), 255);
    let message = error("", &[&of(256)]);
    assert!(message.contains("at most 255 of them; nearest valid: \"nnn"), "{message}");
}

#[test]
fn the_time_limit_of_a_preset_goes_with_its_steps() {
    let limit = |file, settings: &[&str]| load(file, settings).train.minutes_max;
    assert_eq!(limit("", &[]), 4.25);
    assert_eq!(limit("", &["train.steps=400"]), 0.0);
    assert_eq!(limit("[train]\nsteps = 400\n", &[]), 0.0);
    assert_eq!(limit("", &["train.steps=400", "train.minutes_max=2"]), 2.0);
    assert_eq!(limit("[train]\nminutes_max = 2.0\n", &["train.steps=400"]), 2.0);
}

#[test]
fn paths_in_a_file_start_at_the_file_and_those_of_options_do_not() {
    let dir = std::env::temp_dir();
    let text = "[data]\nsource = \"a.txt\"\nmanifest = \"\"\ncache = \"/c\"\n";
    let mut typed = typed(text, &["output.dir=runs/x"]);
    typed.file_dir = dir.clone();
    let config = Config::load(&typed).unwrap();
    assert_eq!(config.data.source, Source::Path(dir.join("a.txt")));
    assert_eq!((config.data.manifest, config.data.cache), ("".into(), "/c".into()));
    assert_eq!(config.output.dir, std::path::PathBuf::from("runs/x"));
    // The word for the default corpus is no path; what is only there from here on is found.
    typed.file.as_mut().unwrap().text = "data.source = \"crates\"\ndata.cache = \"src\"".into();
    let config = Config::load(&typed).unwrap();
    assert_eq!((config.data.source, config.data.cache), (Source::Crates, "src".into()));
}

#[test]
fn a_stored_configuration_means_the_same_from_any_folder() {
    let config = load("", &["data.source=a/b.txt", "output.dir=run", "data.cache=cache"]);
    let stored = config.stored().unwrap();
    let here = std::env::current_dir().unwrap();
    assert_eq!(stored.data.source, Source::Path(here.join("a/b.txt")));
    assert_eq!(stored.data.cache, here.join("cache"));
    assert_eq!((&stored.output.dir, &stored.data.manifest), (&"".into(), &"".into()));
    assert_eq!(stored.stored().unwrap(), stored);
    let changed = load("", &["lr.warmup_steps=3", "data.source=a/b.txt", "data.cache=cache"]);
    let rows = changed.stored().unwrap().differences(&stored).unwrap();
    assert_eq!(rows, [("lr.warmup_steps", "250".to_owned(), "3".to_owned())]);
}

#[test]
fn a_model_preset_replaces_the_model_alone() {
    let config = load("[model]\npreset = \"llama2-7b\"\nlayers = 2\n", &["model.tied=true"]);
    assert_eq!((config.name.as_str(), config.data.seq), ("rust-default", 128));
    assert_eq!((config.model.layers, config.model.ffn, config.model.tied), (2, 11008, true));
}

#[test]
fn widths_follow_as_in_the_preset_unless_given() {
    let sizes = |config: Config| {
        let model = config.model;
        (model.hidden, model.heads, model.kv_heads, model.head_dim, model.ffn)
    };
    let frontier = "preset = \"frontier-22b\"";
    let config = load(frontier, &["model.hidden=1536", "model.layers=4"]);
    assert_eq!(sizes(config), (1536, 48, 48, 32, 6144));
    let config = load(frontier, &["model.heads=24"]);
    assert_eq!(sizes(config), (6144, 24, 24, 256, 24576));
    let config = load(frontier, &["model.hidden=1536", "model.head_dim=64", "model.ffn=100"]);
    assert_eq!(sizes(config), (1536, 48, 48, 64, 100));
    // Llama 3 shares KV heads and has its own MLP width: both stay.
    let config = load("preset = \"llama3-8b\"", &["model.hidden=2048"]);
    assert_eq!(sizes(config), (2048, 32, 8, 64, 14336));
    let text = error("", &["model.hidden=250"]);
    assert!(text.contains("nearest valid: model.hidden = 248 or 252"), "{text}");
}

#[test]
fn a_resolved_configuration_gives_itself() {
    let mut cases = 0;
    for preset in trine_spec::presets::all() {
        let config = Config::preset(preset.name).unwrap();
        let text = config.to_toml().unwrap();
        assert_eq!(load(&text, &[]), config, "{text}");
        assert_eq!(config.model, preset.model);
        assert_eq!(config.name, preset.name);
        config.check().unwrap();
        cases += 1;
    }
    assert!(cases >= 16, "{cases} presets");

    // Everything away from its default, numbers that need all their digits, texts with quotes.
    let file = "name = \"a.b\"\nseed = 9223372036854775807\n\
        [model]\nhidden = 96\nheads = 6\nvocab = 5000\ndropout = 0.1\n\
        [data]\nsource = \"some/text \\\"x\\\".txt\"\ndocument_mask = true\n\
        [layout]\nschedule = \"gpipe\"\nlayers = [1, 3]\nsequence_parallel = true\n\
        [batch]\nmicro_batches = 2\n\
        [train]\nprecision = \"f64\"\nminutes_max = 0.1\n\
        [optimizer]\nkind = \"sgd\"\nlr = 0.30000000000000004\n\
        [lr]\nkind = \"wsd\"\n\
        [sample]\nprompts = [\"a\\nb\", \"\"]\n";
    let config = load(file, &["output.dir=out"]);
    assert_eq!((config.batch.micro, config.layout.layers.as_slice()), (4, &[1, 3][..]));
    assert_eq!(config.optimizer.lr, 0.300_000_000_000_000_04);
    assert_eq!(load(&config.to_toml().unwrap(), &[]), config);
}

#[test]
fn prompts_suit_the_text_unless_they_are_given() {
    let sample = |file: &str| {
        let sample = load(file, &[]).sample;
        (sample.prompts.len(), sample.documents)
    };
    assert_eq!(sample(""), (3, 0));
    assert_eq!(sample("data.source = \"crates\"\n"), (3, 0));
    assert_eq!(sample("data.source = \"book.txt\"\n"), (0, 3));
    assert_eq!(sample("data.source = \"b\"\nsample.prompts = [\"x\"]\n"), (1, 0));
    assert_eq!(sample("data.source = \"b\"\nsample.documents = 0\n"), (0, 0));
    assert_eq!(sample("data.source = \"b\"\nsample.documents = 5\n"), (0, 5));
}

#[test]
fn micro_batches_set_the_micro_batch() {
    assert_eq!(load("", &["batch.micro_batches=2"]).batch.micro, 4);
    assert_eq!(load("", &["batch.micro_batches=8"]).micro_batches(), 8);
    // The later of the two counts.
    assert_eq!(load("", &["batch.micro_batches=8", "batch.micro=2"]).batch.micro, 2);
    assert_eq!(load("[batch]\nmicro = 4\n", &["batch.micro_batches=4"]).batch.micro, 2);
    let text = error("[batch]\nmicro = 2\nmicro_batches = 4\n", &[]);
    assert!(text.starts_with("run.toml:3:1: batch.micro_batches = 4:"), "{text}");
    let text = error("", &["batch.micro_batches=5"]);
    let nearest =
        "nearest valid: batch.micro_batches = 4 or batch.micro_batches = 8 or batch.global = 20";
    assert!(text.ends_with(nearest), "{text}");
}

#[test]
fn sizes_follow_from_the_configuration() {
    let config = load("", &["batch.global=48", "batch.micro=6", "data.seq=128"]);
    assert_eq!((config.world(), config.degrees().to_string().as_str()), (8, "dp 2 × pp 2 × tp 2"));
    assert_eq!((config.sequences_per_replica(), config.micro_batches()), (24, 4));
    assert_eq!((config.tokens_per_micro_batch(), config.tokens_per_step()), (768, 6144));
    assert_eq!(config.mesh().unwrap().world(), 8);
    let engine = config.engine(1).unwrap();
    let stages = engine.stages(&engine.model.parts(2).unwrap()).unwrap();
    let pieces: Vec<usize> = stages.iter().map(|stage| stage.pieces.len()).collect();
    assert_eq!(pieces, [4, 2]);
    assert_eq!(config.run_dir(), std::path::Path::new("runs/rust-default"));

    let config = load("", &["layout.layers=[1,3]", "train.zero=0", "lr.kind=wsd"]);
    let engine = config.engine(24).unwrap();
    assert_eq!((engine.micro_batches(), engine.threads, engine.compute), (2, 3, DType::Bf16));
    assert_eq!((engine.layers.as_deref(), engine.zero), (Some(&[1, 3][..]), ZeroStage::Zero0));
    assert_eq!(engine.optimizer.moments().len(), 2);
    assert_eq!(config.engine(2).unwrap().threads, 1, "more ranks than cores");
    assert_eq!(load("", &["layout.threads_per_rank=5"]).engine(2).unwrap().threads, 5);
    assert_eq!(load("", &["optimizer.kind=sgd"]).optimizer_config().moments().len(), 1);
    let rate = config.lr_schedule();
    let peak = config.optimizer.lr;
    assert_eq!(rate.rate(peak, config.lr.warmup_steps as u64, 400), peak);
    let mut changed = config.clone();
    changed.batch.micro = 0;
    assert!(changed.engine(1).is_err());
}

#[test]
fn unknown_keys_name_place_and_nearest_key() {
    let cases = [
        (
            "[train]\nsteps = 1\n  stepz = 2\n",
            "run.toml:3:3: unknown key train.stepz; nearest: train.steps",
        ),
        ("sed = 1\n", "run.toml:1:1: unknown key sed; nearest: seed"),
        ("tp = 2\n", "run.toml:1:1: unknown key tp; nearest: layout.tp"),
        ("[trian]\nsteps = 1\n", "run.toml:1:2: unknown key trian; nearest: [train]"),
        ("[train]\nlr = 1\n", "run.toml:2:1: unknown key train.lr; nearest: optimizer.lr"),
        ("[layout]\nmicro_batches = 4\n", "nearest: batch.micro_batches"),
        ("[model]\nlayer = 4\n", "run.toml:2:1: unknown key model.layer; nearest: model.layers"),
        (
            "data.source.x = 4\n",
            "run.toml:1:6: data.source must be a path in quotes, found a table",
        ),
        (
            "[log]\n\"every seconds\" = 4\n",
            "run.toml:2:1: unknown key log.every seconds; nearest: log.every_seconds",
        ),
    ];
    for (file, expected) in cases {
        let text = error(file, &[]);
        assert!(text.contains(expected), "{text}");
    }
    assert_eq!(cases.len(), 9);
    let text = error("", &["optimiser.lr=1"]);
    assert_eq!(text, "--set optimiser.lr=1: unknown key optimiser.lr; nearest: optimizer.lr");
}

#[test]
fn everything_that_is_wrong_is_listed_unless_it_may_follow_from_another() {
    let text = error("seeed = 1\n[train]\nsteps = 0\n[data]\nseq = 4000\n", &["train.steps=x"]);
    for part in ["2 problems", "unknown key seeed", "train.steps must be a whole number"] {
        assert!(text.contains(part), "{text}");
    }
    let text = error("seeed = 1\n[data]\nseq = 4000\n", &[]);
    for part in ["2 problems", "unknown key seeed", "run.toml:3:1: data.seq = 4000: a sequence"] {
        assert!(text.contains(part), "{text}");
    }
    // What was meant by the unknown key may make these right.
    for file in [
        "[model]\nsekmax = 4096\n[data]\nseq = 4000\n",
        "[model]\nseq_max = \"4096\"\n[data]\nseq = 4000\n",
        "[model]\nlayer = 9\n[layout]\npp = 8\n",
        "[batch]\nglobl = 24\n[layout]\ndp = 3\n",
    ] {
        let text = error(file, &[]);
        assert!(text.starts_with("run.toml:2:1: ") && !text.contains('\n'), "{text}");
    }
}

#[test]
fn many_problems_are_counted_in_no_time() {
    let file: String = (0..40_000).map(|key| format!("key{key} = 1\n")).collect();
    let started = std::time::Instant::now();
    let text = error(&file, &[]);
    assert!(text.starts_with("40000 problems in the configuration:\n  run.toml:1:1: "), "{text}");
    assert!(text.ends_with("\n  … and 39950 more"), "{text}");
    assert_eq!(text.lines().count(), 52);
    // Linear: with the place of each counted from the start it took minutes.
    assert!(started.elapsed().as_secs() < 10, "{:?}", started.elapsed());
}

#[test]
fn wrong_types_and_words_say_what_was_expected() {
    let cases = [
        (
            "[train]\nsteps = \"many\"\n",
            "run.toml:2:1: train.steps must be a whole number, at least 1, found the text \"many\"; for example: train.steps = ",
        ),
        ("[train]\nsteps = -3\n", "must be a whole number, at least 1, found the whole number -3"),
        ("[train]\nsteps = 1.5\n", "found the number 1.5"),
        (
            "[train]\nrecompute = 1.5\n",
            "train.recompute must be true or false, \"none\", \"elementwise\", \"half\", \"full\", a whole number of blocks, or a list of texts in quotes, found the number 1.5",
        ),
        ("[train]\nrecompute = [1]\n", "found the list [1]"),
        (
            "[train]\nrecompute = \"ful\"\n",
            "train.recompute = \"ful\": must be one of \"none\", \"elementwise\", \"half\", \"full\", true or false, a number of blocks, or a list of names; nearest: \"full\"",
        ),
        ("[train]\nrecompute = \"file:x\"\n", "nearest: \"full\""),
        (
            "[layout]\nlayers = [1, \"2\"]\n",
            "layout.layers must be a list of whole numbers, found the list [1, \"2\"]",
        ),
        ("[optimizer]\nlr = \"high\"\n", "optimizer.lr must be a number"),
        ("name = 3\n", "name must be a text in quotes"),
        (
            "train = 3\n",
            "run.toml:1:1: train must be a section, its keys set one by one (train.steps, …), found the whole number 3",
        ),
        (
            "[layout]\nschedule = \"1f2b\"\n",
            "run.toml:2:1: layout.schedule = \"1f2b\": must be one of \"gpipe\", \"1f1b\", \"interleaved\", \"breadth-first\", \"zb-h1\", \"zb-h2\", \"zb-v\", \"dualpipe-v\", or \"file:\" and the path of a schedule; nearest: \"1f1b\"",
        ),
        (
            "[layout]\nschedule = \"forward-only\"\n",
            "run.toml:2:1: layout.schedule = \"forward-only\": must be one of \"gpipe\", \"1f1b\",",
        ),
        ("[model]\nfamily = \"lama\"\n", "nearest: \"llama\""),
        (
            "preset = \"gpt2-124\"\n",
            "run.toml:1:1: preset = \"gpt2-124\": must be one of \"rust-default\", \"gpt2-124m\",",
        ),
        ("[model]\npreset = \"gpt4\"\n", "run.toml:2:1: model.preset = \"gpt4\": must be one of"),
        ("seed = 1\nseed = 2\n", "run.toml:2:1: not valid TOML: duplicate key"),
        ("[train\n", "run.toml:1:7: not valid TOML:"),
        ("seed = 9223372036854775808\n", "run.toml:1:8: not valid TOML:"),
    ];
    for (file, expected) in cases {
        let text = error(file, &[]);
        assert!(text.contains(expected), "{text}\n  expected: {expected}");
    }
    assert_eq!(cases.len(), 19);
}

#[test]
fn set_takes_toml_and_bare_words() {
    let settings = [
        "name=2024-01-01",
        "train.precision=f32",
        "data.source = some/path",
        "sample.prompts=[\"a\", 'b']",
        "layout.layers=[1,3]",
        "optimizer.lr=1e-4",
        "train.recompute=true",
        "seed=0x10",
        "output.dir=\"with space\"",
    ];
    let config = load("", &settings);
    assert_eq!((config.name.as_str(), config.train.precision), ("2024-01-01", Precision::F32));
    assert_eq!(config.data.source, Source::Path("some/path".into()));
    assert_eq!((config.sample.prompts.len(), config.layout.layers.len()), (2, 2));
    assert_eq!((config.optimizer.lr, config.train.recompute, config.seed), (1e-4, true.into(), 16));

    for (setting, expected) in [
        (
            "train.steps",
            "--set train.steps: must be a key's path, `=` and a value; for example: --set train.steps=500",
        ),
        ("=3", "the key's path is missing"),
        ("layout.layers=[1,", "the value is not valid TOML"),
        (
            "train.steps=ten",
            "train.steps must be a whole number, at least 1, found the text \"ten\"",
        ),
        ("train.steps=", "found the text \"\""),
        ("train={steps=3}", "train must be a section"),
        ("train.precision=f23", "nearest: \"f32\""),
        ("train.steps.x=1", "unknown key train.steps.x; nearest: train.steps"),
    ] {
        let text = error("", &[setting]);
        assert!(text.contains(expected), "{text}");
    }
}

/// What is computed again, as files of today and before have it, and as it is written.
#[test]
fn recompute_has_many_forms() {
    let names = |all: &[&str]| Recompute::tensors(all.iter().copied());
    let cases = [
        ("false", Recompute::None, "false"),
        ("true", Recompute::FULL, "true"),
        ("\"full\"", Recompute::FULL, "true"),
        ("full", Recompute::FULL, "true"),
        ("none", Recompute::None, "false"),
        ("half", Recompute::Blocks { every: 2 }, "2"),
        ("elementwise", names(&Recompute::ELEMENTWISE), "[\"norms\", \"mlp.activation\"]"),
        ("1", Recompute::FULL, "true"),
        ("3", Recompute::Blocks { every: 3 }, "3"),
        ("[]", Recompute::None, "false"),
        ("['norms', \"mlp.*\"]", names(&["norms", "mlp.*"]), "[\"norms\", \"mlp.*\"]"),
    ];
    for (typed, expected, written) in cases {
        let config = load("", &[&format!("train.recompute={typed}")]);
        assert_eq!(config.train.recompute, expected, "{typed}");
        assert_eq!(expected.to_string(), written);
        let file = config.to_toml().unwrap();
        assert!(file.contains(&format!("\nrecompute = {written}\n")), "{file}");
        assert_eq!(load(&file, &[]), config, "{typed}");
        assert_eq!(load("", &[&format!("train.recompute={expected}")]).train, config.train);
    }
}

/// Settings, a part of the message, its end.
const RULES: &[(&[&str], &str, &str)] = &[
    (
        &["layout.tp=6"],
        "--set layout.tp=6: layout.tp = 6: every rank needs a query head and the model has 4",
        "tp 4",
    ),
    (&["layout.pp=5"], "layout.pp = 5: every stage needs a layer and the model has 4", "pp 4"),
    (&["layout.dp=0"], "layout.dp = 0: must be at least 1", "1"),
    (
        &["layout.dp=3"],
        "preset rust-default: batch.global = 16: must be a multiple of layout.dp × batch.micro = 3 (--set layout.dp=3) × 4 (preset rust-default)",
        "batch.global = 12 or batch.global = 24 or layout.dp = 2 or layout.dp = 4",
    ),
    (
        &["batch.global=30"],
        "batch.global = 30: must be a multiple of",
        "batch.global = 24 or batch.global = 32 or batch.micro = 3 or batch.micro = 5",
    ),
    (&["batch.micro=0"], "batch.micro = 0: must be at least 1", "1"),
    (
        &["layout.layers=[1,2]"],
        "layout.layers = [1, 2]: must be layout.pp = 2 (preset rust-default) positive numbers",
        "[3, 1], or [] for that",
    ),
    (&["layout.layers=[4,0]"], "layout.layers = [4, 0]", "[3, 1], or [] for that"),
    (
        &["layout.virtual=2"],
        "layout.virtual = 2: with layout.schedule = \"1f1b\" must be 0 or 1",
        "1",
    ),
    (
        &["layout.schedule=zb-v", "layout.virtual=1"],
        "layout.virtual = 1: with layout.schedule = \"zb-v\" must be 0 or 2",
        "2",
    ),
    (
        &["layout.schedule=breadth-first", "layout.virtual=3"],
        "layout.pp = 2 (preset rust-default) × 3 on each rank gives 6 stages, and model.layers = 4",
        "2",
    ),
    (
        &["layout.schedule=zb-v", "model.layers=3"],
        "layout.virtual = 0: layout.pp = 2 (preset rust-default) × 2 on each rank gives 4 stages",
        "another layout.schedule",
    ),
    (
        &["layout.schedule=interleaved", "layout.layers=[2,2]"],
        "must be layout.pp = 2 (preset rust-default) × 2 on each rank positive numbers",
        "[1, 1, 1, 1], or [] for that",
    ),
    (
        &["layout.schedule=interleaved", "batch.global=24"],
        "batch.global = 24: layout.schedule = \"interleaved\" takes micro-batches in multiples of layout.pp = 2",
        "32",
    ),
    (
        &["layout.schedule=dualpipe-v"],
        "takes micro-batches at least 2 × layout.pp = 2 (preset rust-default), not 2",
        "32",
    ),
    (&["data.seq=512"], "data.seq = 512: a sequence must fit model.seq_max = 256", "256"),
    (
        &["data.vocab=8192"],
        "data.vocab = 8192: the tokenizer is larger than the model's vocabulary",
        "data.vocab = 4096 or model.vocab = 8192",
    ),
    (&["data.vocab=100"], "data.vocab = 100: a tokenizer needs the 256 bytes", "257"),
    (
        &["train.numerics=reference"],
        "train.precision = \"bf16\": reference numerics (--set train.numerics=reference) are defined for f32 and f64",
        "\"f32\"",
    ),
    (
        &["train.numerics=reference", "train.precision=f32", "model.ffn=1020"],
        "model.ffn = 1020: reference numerics sum over 8 equal blocks",
        "1024",
    ),
    (
        &[
            "train.numerics=reference",
            "train.precision=f32",
            "model.hidden=240",
            "model.heads=12",
            "layout.tp=3",
        ],
        "layout.tp = 3: reference numerics",
        "tp 2",
    ),
    (
        &["model.hidden=240", "model.heads=12", "model.kv_heads=2", "layout.tp=8"],
        "layout.tp = 8: each KV head is shared by 4 ranks, which must divide its 6 query heads",
        "tp 6 or tp 12",
    ),
    (
        &[
            "train.numerics=reference",
            "train.precision=f32",
            "model.hidden=200",
            "model.heads=5",
            "layout.tp=2",
        ],
        "layout.tp = 2: reference numerics sum over 8 equal blocks, so every rank needs as many heads",
        "tp 1",
    ),
    (&["model.kv_heads=3"], "model.kv_heads = 3: must divide heads = 4", "2"),
    (&["train.steps=0"], "train.steps = 0: must be at least 1", "1"),
    (&["train.zero=2"], "train.zero = 2: must be at most 1", "1"),
    (&["train.clip_norm=-1"], "train.clip_norm = -1: must be 0 or more", "0"),
    (&["train.minutes_max=inf"], "train.minutes_max = inf", "0"),
    (&["optimizer.lr=0"], "optimizer.lr = 0: must be above 0", "0.001"),
    (&["optimizer.lr=nan"], "optimizer.lr = NaN: must be above 0", "0.001"),
    (&["optimizer.beta2=1"], "optimizer.beta2 = 1: must be 0 or more and below 1", "0.999"),
    (&["lr.min_ratio=1.5"], "lr.min_ratio = 1.5: must lie in 0..=1", "1"),
    (&["checkpoint.keep_last=0"], "checkpoint.keep_last = 0", "1"),
    (&["log.every_seconds=0"], "log.every_seconds = 0", "5"),
    (&["comm.deadline_s=0"], "comm.deadline_s = 0", "60"),
    (
        &["comm.deadline_s=4e7", "comm.long_deadline_s=1e9"],
        "comm.deadline_s = 40000000",
        "31536000",
    ),
    (&["comm.long_deadline_s=30"], "comm.long_deadline_s = 30", "60"),
    (&["sample.top_p=0"], "sample.top_p = 0: must be above 0 and at most 1", "1"),
    (&["name=a/b"], "name = \"a/b\": the name of a directory", "\"a-b\""),
    (&["name=.."], "name = \"..\"", "\"run\""),
    (&["data.source="], "data.source = \"\"", "\"crates\""),
    (&["model.hidden=9223372036854775807"], "must be at most 4194304", "4194304"),
    (&["layout.layers=[1,99999999999]"], "must be at most 4294967296", "[]"),
    (
        &["batch.micro_batches=0"],
        "batch.micro_batches = 0: must divide",
        "batch.micro_batches = 1 or batch.global = 16",
    ),
    (&["batch.micro_batches=4000000000"], "must divide", "batch.micro_batches = 8"),
    (&["train.recompute=0"], "train.recompute = 0: must be at least 1", "1"),
    (
        &["train.recompute=['norms', 'attention.qvk']"],
        "train.recompute = [\"attention.qvk\"]: \"attention.qvk\" names nothing that can be computed again; there are attention.core, attention.input, ",
        "attention.qkv",
    ),
    (&["train.recompute=['']"], "\"\" names nothing", "norms"),
    (
        &["train.recompute=18446744073709551615"],
        "train.recompute = 18446744073709551615: must be at most 16384",
        "16384",
    ),
    (
        &["train.recompute=5"],
        "--set train.recompute=5: train.recompute = 5: names every 5th block, and model.layers = 4",
        "4",
    ),
    (
        &["train.recompute=half", "model.layers=1", "layout.pp=1"],
        "train.recompute = 2: names every 2nd block, and model.layers = 1 (--set model.layers=1)",
        "true",
    ),
    (
        &["model.rope_theta=5e5"],
        "--set model.rope_theta=5e5: model.rope_theta = 500000.0: does nothing, as no block has \
         rotary positions: model.positions = \"learned\" (preset rust-default)",
        "model.rope_theta = 10000.0 or model.positions = \"rotary\"",
    ),
    (
        &["model.family=llama", "model.positions=none", "model.rope_fraction=0.5"],
        "model.rope_fraction = 0.5: does nothing",
        "model.rope_fraction = 1.0 or model.positions = \"rotary\"",
    ),
    (
        &["model.rope_scaling=linear 2"],
        "model.rope_scaling = \"linear 2\": does nothing",
        "model.rope_scaling = \"none\" or model.positions = \"rotary\"",
    ),
    (
        &[
            "train.frozen=['block.0.*']",
            "optimizer.groups=['*.weight: lr=2', 'block.0.mlp.*: lr=0.5', '*norm*: decay=0']",
        ],
        "optimizer.groups = \"block.0.mlp.*: lr=0.5\": does nothing, as all that it names is frozen: \
         train.frozen = [\"block.0.*\"] (--set train.frozen=['block.0.*'])",
        "optimizer.groups = [\"*.weight: lr=2\", \"*norm*: decay=0\"]",
    ),
    (
        &["optimizer.groups=['blok.*: lr=0.5']"],
        "\"blok.*: lr=0.5\": names no parameter of the model",
        "\"block.*: lr=0.5\"",
    ),
    (
        &["train.frozen=['*.atention.*']"],
        "train.frozen = \"*.atention.*\": names no parameter of the model",
        "\"*.attention.*\"",
    ),
];

/// The longest lists of patterns.
#[test]
fn a_list_that_is_too_long_is_told_by_its_length() {
    for key in ["train.recompute", "train.frozen", "optimizer.groups"] {
        let text = error("", &[&format!("{key}=[{}]", "'norms',".repeat(101))]);
        let said = format!("{key} = a list of 101: must be at most 100 lines; nearest valid: one");
        assert!(text.contains(&said), "{text}");
    }
}

/// The blocks are looked through once, not for each name: the deepest model takes seconds with a hundred of them, where
/// it took minutes.
#[test]
fn a_long_list_of_names_is_checked_in_the_time_of_a_short_one() {
    let names = |count: usize| format!("train.recompute=[{}'nothing']", "'norms',".repeat(count));
    let took = |count| {
        let begun = std::time::Instant::now();
        let text = error("", &["model.layers=16384", "model.hidden=64", &names(count)]);
        assert!(text.contains("\"nothing\" names nothing"), "{text}");
        begun.elapsed().as_secs_f64()
    };
    let (short, long) = (took(1), took(99));
    assert!(long < 5.0 * short, "{short} s, {long} s");
}

/// The settings that do nothing beside others, which older releases took.
const IDLE: &str = "[model]\npositions = \"learned\"\nrope_theta = 5e5\n[train]\nrecompute = 9\nfrozen = \
                    [\"head.*\"]\n[optimizer]\ngroups = [\"head.norm.*: lr=2\"]\n";

#[test]
fn what_does_nothing_is_refused_but_in_the_file_of_a_run_that_goes_on() {
    let text = error(IDLE, &[]);
    assert!(text.starts_with("3 problems"), "{text}");
    for place in ["run.toml:3:1: model.rope_theta", "run.toml:5:1: train.", "run.toml:8:1: opt"] {
        assert!(text.contains(place), "{text}");
    }
    let old = Typed { is_stored: true, ..typed(IDLE, &[]) };
    let config = Config::load(&old).unwrap();
    assert_eq!((config.model.rope_theta, config.train.recompute.to_string()), (5e5, "9".into()));
    config.check().unwrap();
    let again = Typed { is_stored: true, ..typed(&config.to_toml().unwrap(), &[]) };
    assert_eq!(Config::load(&again).unwrap(), config);
    // What is typed to go on is not from then.
    for (typed_now, says) in [
        ("train.recompute=7", "train.recompute = 7"),
        ("model.rope_theta=7", "model.rope_theta = 7"),
        ("train.frozen=['head.*']", "optimizer.groups = "),
    ] {
        let now = Typed { is_stored: true, ..typed(IDLE, &[typed_now]) };
        let text = Config::load(&now).unwrap_err().to_string();
        assert!(text.starts_with("--set") || text.starts_with("run.toml:8"), "{text}");
        assert!(text.contains(says), "{text}");
    }
}

#[test]
fn what_follows_from_other_values_is_never_refused() {
    // A preset's rotation goes with its positions, a family's list with its blocks.
    let learned = load("", &["preset=llama3-8b", "model.positions=learned", "layout.tp=1"]);
    assert_eq!(learned.model.rope_theta, 1e4);
    assert_eq!(load(&learned.to_toml().unwrap(), &[]), learned);
    let neox = load("", &["model.family=gpt-neox", "model.positions=none"]);
    assert_eq!(neox.model.rope_fraction, 1.0.into());
    let kept = load("", &["preset=llama3-8b", "layout.tp=1"]);
    assert_eq!(kept.model.rope_theta, 5e5);
    let one = ["model.layers=1", "layout.pp=1"];
    for model in ["model.family=gemma2", "preset=gemma2-2b"] {
        let config = load("", &[&[model][..], &one].concat());
        assert_eq!(config.model.window.values().len(), 1, "{model}");
        assert_eq!(load(&config.to_toml().unwrap(), &[]), config);
    }
    let text = error("", &[&["model.family=gemma2", "model.window=[8, 9]"][..], &one].concat());
    assert!(text.contains("--set model.window=[8, 9]: model.window = a list of 2"), "{text}");
}

#[test]
fn every_rule_names_what_where_and_the_nearest_valid_value() {
    for (settings, part, end) in RULES {
        let text = error("", settings);
        assert!(text.contains(part), "{text}\n  expected: {part}");
        assert!(text.ends_with(&format!("nearest valid: {end}")), "{text}\n  expected: {end}");
    }
    assert_eq!(RULES.len(), 57);
}

#[test]
fn no_number_is_infinite_or_absurd_where_it_is_used() {
    let mut cases = 0;
    fn is_number(kind: &Kind) -> bool {
        match kind {
            Kind::Each(kind) | Kind::OrNone(kind) => is_number(kind),
            kind => matches!(kind, Kind::Number | Kind::Rates),
        }
    }
    for key in keys::keys().filter(|key| is_number(&key.kind)) {
        for value in ["nan", "inf", "-inf", "1e300", "-1e300", "1e39"] {
            let text = error("", &[&format!("{}={value}", key.path)]);
            assert!(text.contains(key.path) && text.contains("nearest valid: "), "{text}");
            cases += 1;
        }
    }
    assert!(cases >= 6 * 24, "{cases}");
    for (setting, part, end) in [
        ("optimizer.lr=1e300", "optimizer.lr = 1e300: must be a number between -3.4", "0.0025"),
        ("optimizer.lr=1e-300", "must be above 0", "0.001"),
        ("layout.threads_per_rank=100000", "must be at most 4096", "4096"),
        ("log.every_seconds=1e30", "must be at most a year", "31536000"),
        ("train.minutes_max=1e30", "must be at most 1e9", "1000000000"),
        ("model.init_std=1e-300", "must be a positive number of f32", "0.02"),
    ] {
        let text = error("", &[setting]);
        assert!(text.contains(part), "{text}\n  expected: {part}");
        assert!(text.ends_with(&format!("nearest valid: {end}")), "{text}\n  expected: {end}");
    }
}

/// Places are found by bisection: the time of a long file is that of its keys, not of their square.
#[test]
fn a_file_of_many_unknown_keys_says_the_place_of_each() {
    let mut file = String::from("[train]\n");
    for index in 0..4_000 {
        file.push_str(&format!("size{index} = 1\n"));
    }
    let text = error(&file, &[]);
    assert!(text.contains(":2:1: unknown key train.size0"), "{}", &text[..200]);
    assert!(text.contains(":1043:1: unknown key train.size1041"), "{text}");
    assert!(text.contains("4000 problems") && text.lines().count() < 60, "{text}");
}

#[test]
fn tokens_are_split_where_there_are_as_many_for_each() {
    let splits = |settings: &[&str]| load("", settings).splits_tokens();
    assert!(splits(&[]));
    assert!(splits(&["layout.tp=4", "batch.micro=1", "data.seq=32"]));
    assert!(!splits(&["layout.tp=4", "batch.micro=1", "data.seq=30"]));
    assert!(!splits(&["layout.tp=1"]));
    assert!(!splits(&["layout.sequence_parallel=false"]));
}

#[test]
fn several_problems_are_listed_together() {
    let text = error("stepz = 1\n[train]\nsteps = true\n", &["a.b=1"]);
    assert!(text.starts_with("3 problems in the configuration:\n  run.toml:1:1"), "{text}");
    assert_eq!(text.lines().count(), 4);
    let text = error("", &["layout.tp=6", "layout.pp=9", "optimizer.lr=-1"]);
    assert!(text.starts_with("3 problems"), "{text}");
}

#[test]
fn a_changed_configuration_can_be_checked_again() {
    let mut config = Config::preset("rust-default").unwrap();
    config.layout.tp = 6;
    let text = config.check().unwrap_err().to_string();
    assert!(text.starts_with("config: layout.tp = 6: every rank needs a query head"), "{text}");
    config.layout.tp = 2;
    config.seed = u64::MAX;
    let text = config.check().unwrap_err().to_string();
    assert!(text.contains("seed = 18446744073709551615"), "{text}");
    assert!(config.to_toml().is_err());
}

#[test]
fn the_keys_are_those_of_the_configuration() {
    let table = Config::preset("rust-default").unwrap().to_table().unwrap();
    let mut in_config = BTreeSet::new();
    for (name, value) in &table {
        match value.as_table() {
            Some(section) => in_config.extend(section.keys().map(|key| format!("{name}.{key}"))),
            None => {
                in_config.insert(name.clone());
            }
        }
    }
    let declared: Vec<&Key> = keys().filter(|key| !key.shorthand).collect();
    let paths: BTreeSet<String> = declared.iter().map(|key| key.path.to_owned()).collect();
    assert_eq!(paths, in_config);
    assert_eq!(paths.len(), declared.len(), "a key twice");
    for key in &declared {
        let value = default_value(key.path).unwrap();
        assert!(key.kind.has_type(&value), "{} = {value}", key.path);
        assert!(!key.about.trim().is_empty() && !key.rule.is_empty(), "{}", key.path);
    }
    assert_eq!(keys().filter(|key| key.shorthand).count(), 4);
}

/// A choice is spelled in files as in messages.
#[test]
fn every_choice_can_be_set() {
    let mut words = 0;
    // Shorthands are no part of what is resolved.
    for key in keys().filter(|key| !key.shorthand) {
        let kind = if let Kind::Each(kind) = key.kind { *kind } else { key.kind };
        if let Kind::Choice(choices) | Kind::Order(choices) = kind {
            for word in choices {
                let word_set = format!("{}={word}", key.path);
                let config = load("", &["train.precision=f32", "batch.global=64", &word_set]);
                let table = config.to_table().unwrap();
                assert_eq!(load::lookup(&table, key.path).unwrap().as_str(), Some(*word));
                words += 1;
            }
        }
    }
    let runs = |info: &&KindInfo| {
        assert_eq!(trine_plan::runs_schedule(info.kind), info.purpose == Purpose::Train);
        trine_plan::runs_schedule(info.kind)
    };
    let schedules = ScheduleKind::all().iter().filter(runs);
    let others = "auto cpu cuda f32 bf16 f64 fast reference adamw sgd constant cosine linear wsd auto off \
         layer rms rms-one before after both learned rotary none none head all gelu-tanh gelu silu relu";
    let named = others.split_whitespace().count() + ModelSpec::FAMILIES.len();
    assert_eq!(words, schedules.count() + named);
}

/// Times are none, four numbers, or still to be measured; a configuration keeps which.
#[test]
fn times_are_given_or_measured() {
    let zb_v = ["layout.schedule=zb-v", "model.layers=8"];
    let of = |times: &str| load("", &[&zb_v[..], &[&format!("layout.times={times}")]].concat());
    let made_for = |times| format!("zb-v with 2 stages on each rank{times}");
    let four = Times::Given(vec![1.0, 2.0, 0.5, 0.1]);
    let of_four = UniformStage::new([1.0, 2.0, 0.5, 0.1]).unwrap();
    let (said, of_run) =
        (format!(", made for {of_four}"), ", made for times that are measured when the run starts");
    for (text, times, engine, order) in [
        ("[]", Times::Given(vec![]), None, made_for("")),
        ("[1, 2, 0.5, 0.1]", four.clone(), Some(of_four), made_for(&said)),
        ("measured", Times::Measured, None, made_for(of_run)),
        ("\"measured\"", Times::Measured, None, made_for(of_run)),
    ] {
        let config = of(text);
        assert_eq!((&config.layout.times, config.order_of_work()), (&times, order), "{text}");
        assert_eq!(config.engine(1).unwrap().times, engine, "{text}");
        assert_eq!(load(&config.to_toml().unwrap(), &[]), config, "{text}");
    }
    assert_eq!(Times::from(of_four), four);
    for schedule in ["gpipe", "1f1b", "interleaved", "breadth-first", "dualpipe-v"] {
        let set = format!("layout.schedule={schedule}");
        let sizes = ["model.layers=8", "batch.global=64", "layout.times=measured"];
        let text = error("", &[&[&*set], &sizes[..]].concat());
        let rule = format!(
            "layout.times = \"measured\": {schedule} is made without times; those that take them: zb-h1, zb-h2, zb-v; \
             nearest valid: []"
        );
        assert!(text.ends_with(&rule), "{text}");
    }
    for (file, expected) in [
        (
            "layout.times = \"mesured\"",
            "run.toml:1:8: layout.times = \"mesured\": must be one of \"measured\", or a list of numbers; \
             nearest: \"measured\"",
        ),
        (
            "layout.times = 3",
            "run.toml:1:8: layout.times must be a list of numbers, or \"measured\", found the whole number 3; for \
             example: layout.times = []",
        ),
    ] {
        assert_eq!(error(file, &zb_v), expected);
    }
}

/// The machine decides the degrees of presets for other machines, and where that is asked for.
#[test]
fn who_decides_the_layout_follows_from_what_is_given() {
    let decides = |preset: &str, settings: &[&str]| {
        let settings = settings.iter().map(|text| Setting::set(text)).collect();
        let preset = Some(preset.to_owned());
        Loaded::load(&Typed { preset, settings, ..Typed::default() }).map(|loaded| loaded.layout_by)
    };
    use LayoutBy::{Configuration, Machine};
    for (preset, settings, expected) in [
        ("rust-default", &[][..], Configuration),
        ("rust-default", &["layout.degrees=auto"], Machine),
        ("gpt2-124m", &[], Machine),
        ("gpt2-124m", &["batch.micro=1"], Machine),
        ("gpt2-124m", &["layout.degrees=preset"], Configuration),
        ("gpt2-124m", &["layout.tp=1"], Configuration),
        ("gpt2-124m", &["layout.degrees=preset", "layout.tp=1"], Configuration),
    ] {
        assert_eq!(decides(preset, settings).unwrap(), expected, "{preset} {settings:?}");
    }
    let both = decides("gpt2-124m", &["layout.degrees=auto", "layout.pp=1"]);
    let text = both.unwrap_err().to_string();
    assert!(text.contains("decides all degrees, and layout.pp is given"), "{text}");
}

#[test]
fn missing_files_are_told() {
    let text = File::read("no/such.toml".as_ref()).unwrap_err().to_string();
    assert!(text.starts_with("no/such.toml: cannot read the configuration:"), "{text}");
}

#[test]
fn an_elastic_run_goes_on_with_the_replicas_that_are_left() {
    let load = |settings: &[&str]| {
        let settings = settings.iter().map(|text| Setting::set(text)).collect();
        Config::load(&Typed { settings, ..Typed::default() }).unwrap()
    };
    let layout = ["layout.dp=4", "layout.tp=2", "layout.pp=2", "batch.global=24", "batch.micro=2"];
    let elastic = load(&[&layout[..], &["layout.elastic=true"]].concat());
    let replicas = |ranks| elastic.with_ranks_left(ranks).map(|config| config.layout.dp);
    let lost: Vec<_> = [16, 15, 11, 7, 3].map(replicas).into();
    assert_eq!(lost, [Some(4), Some(3), Some(2), Some(1), None]);
    // More ranks than before are no more replicas.
    assert_eq!(replicas(64), Some(4));
    let left = elastic.with_ranks_left(15).unwrap();
    assert_eq!((left.batch, left.data), (elastic.batch, elastic.data.clone()));
    // 16 sequences in micro-batches of 2 do not divide over three replicas.
    let elastic = load(
        &[&layout[..3], &["batch.global=16", "batch.micro=2", "layout.elastic=true"]].concat(),
    );
    assert_eq!(elastic.with_ranks_left(15).unwrap().layout.dp, 2);
    assert_eq!(load(&layout).with_ranks_left(16), None);
}
