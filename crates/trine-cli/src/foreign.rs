//! Words that other programs have, and what trine has instead: the tips of a command line that is
//! not understood.

/// Words that mean the same, without dashes and with `-` between parts, and what to type.
type Row = (&'static [&'static str], &'static str);

/// Options for training.
const TRAIN: &[Row] = &[
    (&["lr", "learning-rate", "max-lr", "base-lr"], "--set optimizer.lr=RATE"),
    (&["min-lr", "lr-min"], "--set lr.min_ratio=PART, as a part of optimizer.lr"),
    (
        &["lr-scheduler", "lr-scheduler-type", "lr-decay-style", "scheduler"],
        "--set lr.kind=NAME: constant, cosine, linear or wsd",
    ),
    (
        &["warmup", "warmup-steps", "num-warmup-steps", "lr-warmup-iters", "warmup-iters"],
        "--set lr.warmup_steps=N",
    ),
    (&["warmup-ratio", "lr-warmup-fraction"], "--set lr.warmup_steps=N, in steps"),
    (
        &["batch", "batch-size", "global-batch-size", "train-batch-size", "bs", "b"],
        "--set batch.global=N: sequences of a step, over all ranks",
    ),
    (
        &["micro-batch-size", "per-device-train-batch-size", "device-batch-size", "micro-batch"],
        "--set batch.micro=N: sequences that one rank computes with at once",
    ),
    (
        &["gradient-accumulation-steps", "grad-accum", "accumulate-grad-batches", "accum"],
        "--micro-batches N: micro-batches of a rank in a step",
    ),
    (
        &["epochs", "epoch", "num-epochs", "num-train-epochs", "max-epochs"],
        "--steps N: trine counts steps, not epochs",
    ),
    (
        &["max-steps", "num-steps", "iters", "max-iters", "train-iters", "iterations", "n-iters"],
        "--steps N",
    ),
    (
        &["gpus", "num-gpus", "ngpus", "gpu", "devices", "nproc-per-node", "world-size", "workers"],
        "--dp N --pp N --tp N: ranks follow from the layout",
    ),
    (
        &["cuda", "cpu", "mps", "accelerator"],
        "--device auto, cpu or cuda: NVIDIA's GPUs or the processor's cores",
    ),
    (&["threads", "num-threads", "num-workers", "j", "jobs"], "--set layout.threads_per_rank=N"),
    (
        &["tensor-parallel-size", "tensor-model-parallel-size", "tp-size", "tensor-parallel"],
        "--tp N",
    ),
    (&["pipeline-parallel-size", "pipeline-model-parallel-size", "pp-size", "stages"], "--pp N"),
    (&["data-parallel-size", "dp-size", "replicas"], "--dp N"),
    (&["lora", "qlora", "peft", "adapter"], "trine trains all weights; it has no adapters (LoRA)"),
    (&["fp16", "half", "amp", "mixed-precision", "16bit"], "--precision bf16"),
    (&["bf16", "bfloat16"], "--precision bf16"),
    (&["fp32", "f32", "float32"], "--precision f32"),
    (&["dtype", "torch-dtype"], "--precision TYPE: f32, bf16 or f64"),
    (&["zero-stage", "zero", "deepspeed", "fsdp"], "--set train.zero=STAGE: 0 or 1"),
    (
        &["gradient-checkpointing", "activation-checkpointing", "recompute-activations"],
        "--set train.recompute=true",
    ),
    (
        &["max-grad-norm", "grad-clip", "clip-grad", "gradient-clip-val", "clip"],
        "--set train.clip_norm=NORM",
    ),
    (&["optim", "optimizer", "optimizer-name"], "--set optimizer.kind=NAME: adamw or sgd"),
    (&["adam-beta1"], "--set optimizer.beta1=DECAY"),
    (&["adam-beta2"], "--set optimizer.beta2=DECAY"),
    (&["wd"], "--set optimizer.weight_decay=DECAY"),
    (
        &["config", "config-file", "cfg", "c", "f", "file"],
        "the file alone: trine train CONFIG.toml",
    ),
    (
        &[
            "output",
            "output-dir",
            "out-dir",
            "save",
            "save-dir",
            "run-dir",
            "o",
            "default-root-dir",
        ],
        "--out DIR",
    ),
    (
        &["log-dir", "logging-dir", "tensorboard", "wandb", "report-to", "wandb-project"],
        "metrics of each step are in DIR/metrics.jsonl; `trine inspect DIR` shows them",
    ),
    (
        &[
            "dataset",
            "dataset-name",
            "data-path",
            "data-dir",
            "train-data",
            "train-file",
            "input",
            "text",
            "corpus",
            "d",
        ],
        "--data PATH",
    ),
    (
        &["model", "model-name", "model-name-or-path", "arch", "model-type", "m"],
        "--preset NAME; `trine presets` lists them",
    ),
    (
        &["tokenizer", "tokenizer-path", "tokenizer-model", "tokenizer-type"],
        "--set data.tokenizer=FILE: a tokenizer.json; without one it is trained on the text",
    ),
    (
        &[
            "checkpoint",
            "ckpt",
            "ckpt-path",
            "load",
            "load-dir",
            "resume-from",
            "from-checkpoint",
            "resume-from-checkpoint",
            "continue",
            "restart",
        ],
        "--resume DIR: the run's directory",
    ),
    (
        &["save-every", "save-steps", "save-interval", "save-freq", "checkpoint-every"],
        "--set checkpoint.every=STEPS",
    ),
    (&["save-total-limit", "keep-last"], "--set checkpoint.keep_last=N"),
    (
        &["eval-every", "eval-steps", "eval-interval", "val-check-interval"],
        "--set eval.every=STEPS",
    ),
    (&["log-every", "logging-steps", "log-interval"], "--verbose: a line for each step"),
    (
        &[
            "seq-len",
            "seq-length",
            "sequence-length",
            "block-size",
            "context-length",
            "ctx",
            "max-length",
            "max-seq-len",
            "max-seq-length",
        ],
        "--set data.seq=TOKENS",
    ),
    (&["vocab", "vocab-size"], "--set data.vocab=N, and model.vocab at least as large"),
    (&["n-layer", "n-layers", "num-layers", "num-hidden-layers", "depth"], "--set model.layers=N"),
    (&["n-head", "n-heads", "num-heads", "num-attention-heads"], "--set model.heads=N"),
    (&["num-kv-heads", "num-key-value-heads", "n-kv-heads"], "--set model.kv_heads=N"),
    (&["n-embd", "hidden-size", "d-model", "dim", "embed-dim", "width"], "--set model.hidden=N"),
    (&["ffn-hidden-size", "intermediate-size", "d-ff"], "--set model.ffn=N"),
    (&["time", "max-time", "minutes", "time-limit"], "--set train.minutes_max=MINUTES"),
    (&["name", "run-name", "experiment-name"], "--set name=NAME"),
    (&["deterministic"], "--numerics reference: the same bits in every layout"),
    (&["dryrun", "check", "n"], "--dry-run"),
    (&["debug"], "--verbose"),
];

/// Options for generating.
const GENERATE: &[Row] = &[
    (&["max-tokens", "max-new-tokens", "num-tokens", "length", "n-predict", "n"], "--tokens N"),
    (&["temp", "t"], "--temperature T"),
    (
        &["model", "checkpoint", "ckpt", "dir", "model-path", "m", "out", "resume"],
        "--run DIR: the run's directory",
    ),
    (&["text", "input", "p", "start"], "--prompt TEXT"),
    (&["k"], "--top-k K"),
    (&["greedy"], "--temperature 0"),
];

/// Commands.
const COMMANDS: &[Row] = &[
    (&["run", "fit", "pretrain", "finetune", "fine-tune", "start"], "trine train"),
    (&["resume", "continue", "restart"], "trine train --resume DIR"),
    (&["sample", "complete", "chat", "infer", "predict", "inference"], "trine generate"),
    (
        &["show", "info", "status", "stat", "ls", "log", "logs", "plot", "metrics"],
        "trine inspect DIR",
    ),
    (&["models", "list", "zoo"], "trine presets"),
    (&["mpirun", "torchrun", "distributed", "spawn", "accelerate"], "trine launch"),
    (&["estimate", "size", "search", "layout", "cost", "auto"], "trine plan"),
    (&["benchmark", "profile", "measure"], "trine bench"),
    (&["config", "keys", "options"], "trine train --help-config"),
    (
        &["eval", "evaluate", "validate", "test"],
        "trine train evaluates by itself (eval.every); `trine inspect DIR` shows the losses",
    ),
    (&["version"], "trine --version"),
    (&["draw", "pipeline"], "trine schedule show"),
    (
        &["export", "convert", "save"],
        "a checkpoint is a Hugging Face folder as it stands: DIR/checkpoints/step-N",
    ),
];

/// What to type instead of an option that `command` does not have.
pub(crate) fn option(command: &str, typed: &str) -> Option<&'static str> {
    let rows = match command {
        "train" | "launch" | "bench" => TRAIN,
        "generate" => GENERATE,
        _ => return None,
    };
    find(rows, typed)
}

/// What to type instead of a command that does not exist.
pub(crate) fn command(typed: &str) -> Option<&'static str> {
    find(COMMANDS, typed)
}

fn find(rows: &'static [Row], typed: &str) -> Option<&'static str> {
    let word = typed.trim_start_matches('-').replace('_', "-").to_lowercase();
    rows.iter().find(|(words, _)| words.contains(&word.as_str())).map(|(_, tip)| *tip)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Cli;
    use clap::CommandFactory;
    use std::collections::BTreeSet;

    /// No word stands twice, and none is an option that exists.
    #[test]
    fn the_words_are_foreign() {
        let cli = Cli::command();
        let options = |name: &str| -> Vec<String> {
            let command = cli.find_subcommand(name).unwrap();
            command.get_arguments().filter_map(|arg| arg.get_long().map(str::to_owned)).collect()
        };
        let commands = cli.get_subcommands().map(|command| command.get_name().to_owned()).collect();
        let tables =
            [(TRAIN, options("train")), (GENERATE, options("generate")), (COMMANDS, commands)];
        for (rows, known) in tables {
            let words: Vec<&str> = rows.iter().flat_map(|(words, _)| *words).copied().collect();
            let set: BTreeSet<&str> = words.iter().copied().collect();
            assert_eq!(set.len(), words.len(), "a word stands twice in {words:?}");
            assert!(!known.is_empty());
            for word in known {
                assert!(!set.contains(word.as_str()), "{word} exists");
            }
        }
    }

    /// What a tip names exists.
    #[test]
    fn tips_name_keys_that_exist() {
        let mut keys = 0;
        for (_, tip) in TRAIN {
            for part in tip.split("--set ").skip(1) {
                let path = part.split('=').next().unwrap();
                assert!(trine_trainer::config::keys().any(|key| key.path == path), "{tip}");
                keys += 1;
            }
        }
        assert!(keys > 20, "{keys}");
    }
}
