//! The examples at the end of each command's help. A test reads every one of them as a command.

pub(crate) const TRINE: &str = "\
Examples:
  trine presets
  trine train --data book.txt
  trine schedule show 1f1b --stages 4
  trine plan --model llama2-7b --cluster h100 --gpus 64

`trine help COMMAND` says more of each.";

pub(crate) const TRAIN: &str = "\
Examples:
  trine train --data book.txt                              a small GPT on a text of your own
  trine train run.toml --set optimizer.lr=3e-4             a configuration, one key changed
  trine train --data texts --tp 2 --pp 2 --dp 2            eight ranks that share the model
  trine train --preset gpt2-124m --data texts --dry-run    what a run would do and hold
  trine train --resume runs/rust-default --steps 5000      go on, for longer
  trine train --help-config lr                             the keys that speak of lr";

pub(crate) const LAUNCH: &str = "\
Examples:
  trine launch -- --data book.txt --tp 1 --pp 2 --dp 2
  trine launch --restarts 3 -- run.toml
  trine launch --mpirun-arg=--hostfile=hosts --interface 10.0.0.1 -- run.toml";

pub(crate) const PLAN: &str = "\
Examples:
  trine plan --model llama2-7b --cluster h100 --gpus 64
  trine plan --model llama2-7b --cluster h100 --gpus 64 --explain --tokens 300B
  trine plan --cluster this-machine --model rust-default
  trine plan scale --model frontier-22b --gpus 512 --to 4096";

pub(crate) const DATA: &str = "\
Examples:
  trine data build texts --tokenizer tokenizer.json --out dataset
  trine train --data dataset";

pub(crate) const PRESETS: &str = "\
Examples:
  trine presets
  trine presets --json";

pub(crate) const SCHEDULE: &str = "\
Examples:
  trine schedule show 1f1b --stages 4 --micro-batches 8
  trine schedule show zb-h1 --svg zb-h1.svg
  trine schedule show gpipe --text
  trine schedule verify zb-v --stages 8
  trine schedule verify file:schedule.txt";

pub(crate) const GENERATE: &str = "\
Examples:
  trine generate --run runs/rust-default --prompt 'fn main() {'
  trine generate --run runs/rust-default --prompt 'Once' --temperature 0 --tokens 200";

pub(crate) const INSPECT: &str = "\
Examples:
  trine inspect runs/rust-default
  trine inspect runs/rust-default --json";

pub(crate) const DOCTOR: &str = "\
Examples:
  trine doctor
  trine doctor --quick
  trine doctor --quick --gpu-libraries /opt/cuda --gpu-libraries /usr/lib/x86_64-linux-gnu";

pub(crate) const BENCH: &str = "\
Examples:
  trine bench step --preset gpt2-124m --tp 1 --pp 1 --dp 1
  trine bench layouts --layout 2x1x1 --layout 1x2x1
  trine bench kernels --precision f32 --filter matmul";

pub(crate) const COMPLETIONS: &str = "\
Examples:
  trine completions bash > ~/.local/share/bash-completion/completions/trine
  trine completions zsh > ~/.zfunc/_trine
  trine completions fish > ~/.config/fish/completions/trine.fish";

pub(crate) const MAN: &str = "\
Examples:
  trine man | man -l -
  trine man --out ~/.local/share/man/man1";

pub(crate) const SCHEMA: &str = "\
Examples:
  trine schema > trine.schema.json

An editor that knows TOML and JSON schemas completes and checks configurations with it.";
