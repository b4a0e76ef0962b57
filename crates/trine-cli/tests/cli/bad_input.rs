//! Bad input: each ends at once, with one message that says what, where and the nearest valid value.

use crate::common::{fails, ok};
use std::fs;

/// The configuration file that the cases below read: (name, text).
const FILES: &[(&str, &str)] = &[
    ("unknown.toml", "seed = 1\n[train]\nstepz = 10\n"),
    ("section.toml", "[trian]\nsteps = 10\n"),
    ("type.toml", "[train]\nsteps = \"many\"\n"),
    ("word.toml", "[layout]\nschedule = \"1f2b\"\n"),
    ("syntax.toml", "[train\nsteps = 10\n"),
    ("preset.toml", "preset = \"gpt2-124\"\n"),
    ("several.toml", "sed = 1\n[layout]\ntp = true\n[data]\nvokab = 3\n"),
    ("good.toml", "[train]\nsteps = 10\n"),
    ("both.toml", "seeed = 1\n[layout]\ntp = 6\n[optimizer]\nlr = -1\n"),
    ("doubt.toml", "[model]\nheds = 3\n[layout]\ntp = 6\n"),
    ("a book.txt", "Call me Ishmael. Some years ago\n"),
    ("run.yaml", "train:\n  steps: 10\n"),
    ("run.json", "{\"train\": {\"steps\": 10}}\n"),
    ("pasted", "{\"train\": {\"steps\": 10}}\n"),
    (
        "groups.toml",
        "[optimizer]\ngroups = ['blok.*: lr=1', 'embedding.* lr=1', '*:', '*: rl=1', '*: lr=fast', '*: decay=-1', \
         '*: schedule=cosin', '*: lr=1 lr=2', '*.norm.*: decay=0.1', '*: lr=1e38']\nlr = 1e5\n",
    ),
    ("large.toml", "seed = 18446744073709551615\n"),
];

/// What is typed after `trine`, and what the message must hold: what, where, nearest.
const CASES: &[(&[&str], &[&str])] = &[
    (&["train", "unknown.toml"], &["unknown.toml:3:1", "train.stepz", "nearest: train.steps"]),
    (&["train", "section.toml"], &["section.toml:1:2", "trian", "nearest: [train]"]),
    (
        &["train", "type.toml"],
        &[
            "type.toml:2:1",
            "train.steps must be a whole number",
            "found the text \"many\"",
            "for example: train.steps = ",
        ],
    ),
    (
        &["train", "word.toml"],
        &["word.toml:2:1", "\"1f2b\"", "\"gpipe\", \"1f1b\"", "nearest: \"1f1b\""],
    ),
    (&["train", "syntax.toml"], &["syntax.toml:1:7", "not valid TOML"]),
    (&["train", "preset.toml"], &["preset.toml:1:1", "gpt2-124", "nearest: \"gpt2-124m\""]),
    (
        &["train", "several.toml"],
        &[
            "3 problems",
            "several.toml:1:1",
            "nearest: seed",
            "layout.tp must be",
            "nearest: data.vocab",
        ],
    ),
    (
        &["train", "--set", "train.frozen=['embeding.token']"],
        &[
            "train.frozen = \"embeding.token\": names no parameter",
            "nearest valid: \"embedding.token\"",
        ],
    ),
    (
        &["train", "--set", "train.frozen=['block.1.attention.q.weight']"],
        &[
            "lie together and are frozen together; nearest valid: \"block.1.attention.q.weight\", \"block.1.attention.k.weight\"",
        ],
    ),
    (&["train", "--set", "train.frozen=['*']"], &["nothing is left to train; nearest valid:"]),
    (
        &["train", "groups.toml"],
        &[
            "10 problems",
            "groups.toml:2:1: optimizer.groups = \"blok.*: lr=1\": names no parameter of the model",
            "nearest valid: \"block.*: lr=1\"",
            "\"embedding.* lr=1\": must be names of parameters, `:`, and what is set for them; \
             nearest valid: \"embedding.* lr=1: lr=1\"",
            "\"*:\": sets none of lr, decay and schedule; nearest valid: \"*: lr=1\"",
            "\"*: rl=1\": \"rl\" is none of lr, decay and schedule; nearest valid: lr",
            "\"*: lr=fast\": lr must be a number, 0 or more, that f32 has, found \"fast\"; nearest valid: lr=1",
            "\"*: decay=-1\": decay must be a number, 0 or more, that f32 has, found \"-1\"; \
             nearest valid: decay=0",
            "\"*: schedule=cosin\": schedule must be one of constant, cosine, linear, wsd, found \
             \"cosin\"; nearest valid: schedule=cosine",
            "\"*: lr=1 lr=2\": sets lr twice; nearest valid: only lr=2",
            "\"*.norm.*: decay=0.1\": sets a decay, which matrices alone have",
            "\"*: lr=1e38\": lr × optimizer.lr",
        ],
    ),
    (&["train", "missing.toml"], &["missing.toml", "cannot read", "trine presets"]),
    (&["train", "."], &[".: cannot read", "a folder", "trine train --data ."]),
    (
        &["train", "both.toml"],
        &[
            "3 problems",
            "both.toml:1:1: unknown key seeed; nearest: seed",
            "both.toml:3:1: layout.tp = 6: every rank needs a query head and the model has 4",
            "both.toml:5:1: optimizer.lr = -1: must be above 0",
        ],
    ),
    // Whether there are heads for all is not known before their key is.
    (&["train", "doubt.toml"], &["error: doubt.toml:2:1: unknown key model.heds"]),
    (
        &["train", "a book.txt"],
        &["a book.txt:1:6: not valid TOML", "to train on a text: trine train --data 'a book.txt'"],
    ),
    (&["train", "run.yaml"], &["not valid TOML", "the file is YAML", "--help-config"]),
    (&["train", "run.json"], &["not valid TOML", "the file is JSON"]),
    (&["train", "pasted"], &["not valid TOML", "the file is JSON"]),
    (&["train", "large.toml"], &["large.toml:1:8: "]),
    (
        &["train", "--seed", "18446744073709551615"],
        &["seed = 18446744073709551615: must be at most 9223372036854775807"],
    ),
    (
        &["train", "--set", "train.steps=18446744073709551615"],
        &["train.steps = 18446744073709551615: must be at most 4294967296"],
    ),
    (&["train", "--lr", "1"], &["'--lr'", "tip: --set optimizer.lr=RATE"]),
    (&["train", "--help-config", "xyzzy"], &["--help-config xyzzy: no key"]),
    (&["fit"], &["'fit'", "tip: trine train"]),
    (&["train", "gpt2-124m"], &["gpt2-124m is a preset", "--preset gpt2-124m"]),
    (&["train", "--preset", "lama2-7b"], &["--preset lama2-7b", "nearest: \"llama2-7b\""]),
    (
        &["train", "--tp", "6"],
        &["--tp 6: layout.tp = 6", "every rank needs a query head", "nearest valid: tp 4"],
    ),
    (
        &["train", "--tp", "-2"],
        &["--tp -2: layout.tp must be a whole number", "for example: layout.tp = 2"],
    ),
    (
        &["train", "--pp", "5"],
        &[
            "--pp 5: layout.pp = 5",
            "every stage needs a layer and the model has 4",
            "nearest valid: pp 4",
        ],
    ),
    (&["train", "--dp", "0"], &["--dp 0", "at least 1"]),
    (
        &["train", "--dp", "3"],
        &[
            "batch.global = 16",
            "layout.dp × batch.micro = 3 (--dp 3) × 4",
            "nearest valid: batch.global = 12 or",
        ],
    ),
    (
        &["train", "good.toml", "--micro-batches", "5"],
        &["--micro-batches 5", "must divide", "nearest valid: batch.micro_batches = 4 or"],
    ),
    (
        &["train", "--schedule", "zigzag"],
        &[
            "--schedule zigzag",
            "must be one of \"gpipe\", \"1f1b\", \"interleaved\", \"breadth-first\", \"zb-h1\"",
        ],
    ),
    (&["train", "--precision", "f16"], &["--precision f16", "\"f32\", \"bf16\", \"f64\""]),
    (
        &["train", "--numerics", "reference"],
        &["train.precision = \"bf16\"", "--numerics reference", "nearest valid: \"f32\""],
    ),
    (
        &["train", "--steps", "ten"],
        &["--steps ten: train.steps must be a whole number", "for example"],
    ),
    (&["train", "--steps", "0"], &["--steps 0", "at least 1", "nearest valid: 1"]),
    (&["train", "--set", "train.stepz=3"], &["--set train.stepz=3", "nearest: train.steps"]),
    (
        &["train", "--set", "train.steps"],
        &["--set train.steps", "a key's path, `=` and a value", "for example"],
    ),
    (
        &["train", "--set", "optimizer.lr=-1"],
        &["optimizer.lr = -1", "above 0", "nearest valid: 0.001"],
    ),
    (
        &["train", "--set", "data.vocab=9000"],
        &[
            "data.vocab = 9000",
            "larger than the model's vocabulary",
            "data.vocab = 4096 or model.vocab = 9000",
        ],
    ),
    (
        &["train", "--set", "data.seq=512"],
        &["data.seq = 512", "model.seq_max = 256", "nearest valid: 256"],
    ),
    (
        &["train", "--set", "layout.layers=[3,3]"],
        &["[3, 3]", "add up to model.layers = 4", "[3, 1]"],
    ),
    (&["train", "--set", "model.hidden=99999999999999"], &["at most 4194304"]),
    (&["train", "--resume", "nowhere"], &["nowhere: not a run directory"]),
    (&["train", "good.toml", "--resume", "nowhere"], &["cannot be used with"]),
    (&["train", "--stepz", "3"], &["--stepz", "--steps"]),
    (&["trian"], &["trian", "train"]),
    (&["generate", "--run", "nowhere", "--prompt", "a"], &["nowhere: not a run directory"]),
    (&["inspect", "nowhere"], &["nowhere: not a run directory"]),
    (&["bench", "layouts", "--rounds", "0"], &["--rounds 0", "nearest valid: 1"]),
    (&["bench", "layouts", "--tp", "5"], &["--tp 5"]),
    (&["bench", "kernels", "--threads", "0"], &["--threads 0", "nearest valid: 1"]),
    (&["bench", "kernels", "--threads", "-1"], &["-1", "--threads"]),
    (&["bench", "kernels", "--threads", "5000"], &["--threads 5000", "nearest valid: 4096"]),
    (&["bench", "kernels", "--milliseconds", "0"], &["--milliseconds 0", "nearest valid: 1"]),
    (
        &["bench", "kernels", "--isa", "porta"],
        &["--isa porta", "no such instruction set", "nearest valid: portable"],
    ),
    (
        &["bench", "kernels", "--precision", "f16"],
        &["--precision f16", "bf16, f32, f64 or all", "nearest valid: f32"],
    ),
    (&["bench", "kernels", "--filter", "gella"], &["--filter gella", "nearest valid: gelu"]),
    (&["schedule", "show", "gpip"], &["gpip", "gpipe"]),
    (
        &["schedule", "show", "1f1b", "--stages", "0"],
        &["'0' for '--stages <N>'", "must be a whole number, 1 to 4096"],
    ),
    (
        &["schedule", "show", "1f1b", "--stages", "20000"],
        &["'20000' for '--stages <N>'", "must be a whole number, 1 to 4096"],
    ),
    (
        &["schedule", "show", "1f1b", "--micro-batches", "-1"],
        &["'-1' for '--micro-batches <M>'", "1 to 4096"],
    ),
    (&["schedule", "show", "zb-v", "--virtual", "3"], &["zb-v", "not 3", "the nearest is 2"]),
    (
        &["schedule", "show", "interleaved", "--micro-batches", "9"],
        &["in multiples of its 4 ranks, not 9", "the nearest is 8"],
    ),
    (&["plan", "--model", "frontier-2t"], &["frontier-2t", "frontier-1t"]),
    (&["plan", "--cluster", "frontear"], &["no cluster is called", "frontear", "frontier"]),
    (
        &["plan", "--stack", "megatrom"],
        &["no software stack is called", "megatrom", "megatron-core"],
    ),
    (&["plan", "--cluster-file", "missing.toml"], &["missing.toml: cannot read the clusters"]),
    (&["plan", "--memory-headroom", "1.5"], &["'1.5' for '--memory-headroom <SHARE>'", "below 1"]),
    (&["plan", "--precision", "int8"], &["--precision int8", "bf16, f16, f32, fp8"]),
    (&["plan", "--schedule", "zb-h3"], &["zb-h3", "zb-h"]),
    (&["plan", "--schedule", "forward-only"], &["--schedule forward-only: does not train"]),
    (
        &["plan", "--recompute", "some"],
        &["--recompute some", "none, selective, elementwise, half, full"],
    ),
    (&["plan", "--zero", "4"], &["ZeRO has stages 0 to 3"]),
    (&["plan", "--tokens", "many"], &["'many' for '--tokens <N>'", "300B or 20T"]),
    (&["plan", "--gpus", "0"], &["'0' for '--gpus <N>'", "1 to 16777216"]),
    (&["plan", "--global-batch", "0"], &["'0' for '--global-batch <N>'", "1 to 524288"]),
    (&["plan", "--seq", "0"], &["'0' for '--seq <N>'", "1 to 4194304"]),
    (&["plan", "scale", "--to", "10"], &["--to 10", "at least --gpus 3072"]),
    (
        &["train", "--set=batch.global=262144", "--set=batch.micro=1", "--pp=2", "--dp=1"],
        &["at most 262144 pairs", "batch.global = 131072 or batch.micro = 2"],
    ),
    (
        &["train", "--set=layout.pp=16384", "--set=model.layers=16384"],
        &["must be at most 1024", "nearest valid: 1024"],
    ),
    (
        &["train", "--set=model.layers=16384", "--set=model.hidden=4194304", "--set=model.ffn=9"],
        &["model.hidden = 4194304: gives ", "a model has at most 2⁴²", "nearest valid: "],
    ),
    (
        &[
            "train",
            "--set=batch.global=524288",
            "--set=batch.micro=4096",
            "--set=model.seq_max=4194304",
            "--set=data.seq=4194304",
            "--set=model.layers=128",
        ],
        &["numbers of sequences of data.seq = 4194304", "at most 2⁵² in a step", "nearest valid: "],
    ),
    (&["train", "--set=comm.deadline_s=inf"], &["comm.deadline_s = inf", "nearest valid: 60"]),
    (&["train", "--set=comm.long_deadline_s=0"], &["nearest valid: 600"]),
    (&["train", "--set=train.zero=4294967297"], &["must be at most 1; nearest valid: 1"]),
    (&["train", "--set=model.seq_max=0"], &["model.seq_max = 0: must be at least 1"]),
    (&["train", "--set=optimizer.eps=1e-320"], &["optimizer.eps = 1e-320: "]),
    (&["train", "--set=model.norm_eps=1e-320"], &["model.norm_eps = 1e-320: "]),
    (&["launch", "-n", "10000000019", "--", "good.toml"], &["1 to 65536"]),
    (&["launch", "-n", "0", "--", "good.toml"], &["1 to 65536"]),
    (&["plan", "--cluster", "H100"], &["nearest: h100; there are", "this-machine"]),
    (
        &["plan", "--cluster-file", "unknown.toml"],
        &["unknown.toml: cluster file 1: line 1: unknown field `seed`"],
    ),
    (&["plan", "--measure", "--tp", "7"], &["'--measure' cannot be used with", "--tp"]),
    (
        &["data", "build", "good.toml", "--out", "set", "--vocab", "4294967295"],
        &["must be a whole number, 257 to 4194304"],
    ),
    (&["bench", "plan", "--rounds", "0"], &["--rounds 0", "at least 1"]),
    (&["schedule", "verify", "missing.txt"], &["missing.txt: cannot read the schedule"]),
    (&["schedule", "verify", "good.toml"], &["good.toml: "]),
    (&["schedule", "verify", "file:missing.txt"], &["missing.txt: cannot read the schedule"]),
    (&["schedule", "show", "file:missing.txt"], &["missing.txt: cannot read the schedule"]),
    (
        &["schedule", "show", "file:good.toml", "--stages", "2"],
        &["--stages 2: the shape of a schedule from a file is that of its lists; leave --stages"],
    ),
    (
        &["schedule", "show", "zb-v", "--times", "1,1,1"],
        &["must be four numbers, such as 1,1.5,0.5,0.1"],
    ),
    (
        &["schedule", "show", "zb-v", "--times", "1,1,-2,0"],
        &["times [1.0, 1.0, -2.0, 0.0]: F, B and W take more than 0, a message 0 or more"],
    ),
    (
        &["schedule", "verify", "1f1b", "--times", "1,1,2,0"],
        &["1f1b is made without times; those that take them: zb-h1, zb-h2, zb-v"],
    ),
    (&["schedule", "verify", "file:good.toml", "--times", "1,1,2,0"], &["good.toml: "]),
    (
        &["train", "--schedule", "zb-v", "--times", "1,x,1,0"],
        &["must be four numbers, such as 1,1.5,0.5,0.1; or the word measured"],
    ),
    (&["train", "--schedule", "zb-v", "--times", "mesured"], &["or the word measured"]),
    (&["schedule", "show", "zb-v", "--times", "measured"], &["must be four numbers, such as "]),
    (
        &["train", "--schedule", "dualpipe-v", "--times", "1,1,2,0"],
        &["dualpipe-v is made without times; those that take them: zb-h1, zb-h2, zb-v"],
    ),
    (
        &["train", "--schedule", "dualpipe-v", "--times", "measured"],
        &[
            "--times measured: layout.times = \"measured\": dualpipe-v is made without times; those that take them: \
             zb-h1, zb-h2, zb-v",
            "nearest valid: []",
        ],
    ),
    (
        &["bench", "step", "--schedule", "zb-h1", "--times", "measured"],
        &[
            "layout.times = \"measured\": ",
            "nearest valid: the times in the config.toml of such a run",
        ],
    ),
    (&["train", "--schedule", "zb-v", "--times", "0,1,1,0"], &["F, B and W take more than 0"]),
    (
        &["train", "--schedule", "1f1b", "--times", "1,1,2,0"],
        &[
            "--times 1,1,2,0: layout.times = [1.0, 1.0, 2.0, 0.0]: 1f1b is made without times; those that take them: \
             zb-h1, zb-h2, zb-v",
            "nearest valid: []",
        ],
    ),
    (
        &["train", "--schedule", "zb-v", "--set", "layout.times=[1, 2]"],
        &["layout.times = [1.0, 2.0]: 2 times; F, B, W and a message are four"],
    ),
    (
        &["train", "--schedule", "zb-v", "--set", "layout.times=[1, 1, 1, -1]"],
        &[
            "layout.times = [1.0, 1.0, 1.0, -1.0]: ",
            "a message 0 or more",
            "nearest valid: [1.0, 1.0, 1.0, 0.0]",
        ],
    ),
    (
        &["train", "--schedule", "zb-v", "--set", "layout.times=[\"1\"]"],
        &["layout.times must be a list of numbers, or \"measured\""],
    ),
    (
        &["schedule", "verify", "gpipe", "--stages", "4096", "--micro-batches", "4096"],
        &["4096 stages × 4096 micro-batches: 16777216 pairs", "at most 1048576"],
    ),
];

#[test]
fn every_bad_input_ends_at_once_with_one_helpful_message() {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in FILES {
        fs::write(folder.path().join(name), text).unwrap();
    }
    let mut cases = 0;
    for (args, parts) in CASES {
        fails(folder.path(), args, 2, parts);
        // A dry run checks the same things.
        if args[0] == "train" {
            let mut dry = args.to_vec();
            dry.push("--dry-run");
            fails(folder.path(), &dry, 2, parts);
        }
        cases += 1;
    }
    assert_eq!(cases, 119);
    // Nothing was written.
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), FILES.len());
}

/// A schedule that is well written but wrong is no usage error.
#[test]
fn a_wrong_schedule_is_refused_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let right = ok(folder.path(), &["schedule", "show", "1f1b", "--stages", "2", "--text"]);
    let wrong = right.replacen("W0.0 ", "", 1);
    assert_ne!(right, wrong);
    fs::write(folder.path().join("wrong.txt"), wrong).unwrap();
    let wrong = ["schedule", "verify", "wrong.txt"];
    fails(folder.path(), &wrong, 1, &["wrong.txt: action missing: rank 0, expected `W0.0`"]);
    // What no run can train by is not right.
    let idle = "schedule idle\nrank 0\n  F0.0 B0.0 W0.0\nrank 1\n";
    fs::write(folder.path().join("idle.txt"), idle).unwrap();
    let idle = "rank 1 of 2 has no stage";
    fails(folder.path(), &["schedule", "verify", "idle.txt"], 1, &["idle.txt: ", idle]);
    let train = ["train", "--schedule=file:idle.txt", "--pp=2", "--dry-run"];
    fails(folder.path(), &train, 2, &["idle.txt: ", idle]);
    // Ranks that wait for each other are told which action waits for which.
    let stuck = "schedule stuck\nrank 0\n  F0.0 B0.0\n  W0.0 F0.1 B0.1 W0.1\nrank 1\n  F1.0 F1.1 B1.0 W1.0 B1.1 W1.1\n";
    fs::write(folder.path().join("stuck.txt"), stuck).unwrap();
    let circle = "rank 0 at step 1 (B0.0) waits for rank 1 at step 3 (W1.0); \
                  rank 1 at step 1 (F1.1) waits for rank 0 at step 3 (F0.1)";
    for command in ["show", "verify"] {
        let args = ["schedule", command, "file:stuck.txt"];
        fails(folder.path(), &args, 1, &["stuck.txt: line 3: ", circle]);
    }
}

/// A binary without MPI starts nothing that every rank would refuse.
#[test]
#[cfg(not(feature = "mpi"))]
fn launch_without_mpi_starts_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let args = ["launch", "--mpirun", "no-such-program", "--", "--steps=2"];
    fails(folder.path(), &args, 2, &["cannot run ranks as processes", "--features mpi"]);
}
