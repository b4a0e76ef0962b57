//! A training step that both sides know: model, batch, precision; and how trine is called for it.

use std::path::Path;
use std::thread::available_parallelism;

use clap::ValueEnum;
use serde::Serialize;

use super::contest::{Contestant, parse_json};
use super::process::Program;

/// A model under the name that `benches/peers/torch_step.py` has for it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Model {
    pub(super) name: &'static str,
    pub(super) source: Source,
}

/// Where trine has a model from.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Source {
    Preset(&'static str),
    /// A configuration, relative to the root folder.
    File(&'static str),
}

pub(super) const GPT2: Model = Model { name: "gpt2-124m", source: Source::Preset("gpt2-124m") };
pub(super) const CHAR: Model =
    Model { name: "char", source: Source::File("benches/models/char.toml") };
pub(super) const LLAMA: Model =
    Model { name: "llama-110m", source: Source::File("benches/models/llama-110m.toml") };

/// What is computed in a step.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) model: Model,
    /// Sequences.
    pub(super) batch: usize,
    /// Tokens of a sequence.
    pub(super) seq: usize,
    /// `bf16` or `f32`.
    pub(super) precision: &'static str,
}

/// The instruction set that both sides may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Isa {
    /// Whatever each side finds
    Best,
    /// AVX-512 with BF16 dot products, without AMX
    #[value(name = "avx512-bf16")]
    #[serde(rename = "avx512-bf16")]
    Avx512Bf16,
    Avx2,
}

impl Isa {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Best => "best",
            Self::Avx512Bf16 => "avx512-bf16",
            Self::Avx2 => "avx2",
        }
    }
}

/// All that is the same for every contestant of a case.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    pub(super) isa: Isa,
    pub(super) threads: usize,
    /// Time that steps are measured for in a turn.
    pub(super) seconds: f64,
}

/// Threads unless told otherwise: what the operating system lets this process use.
pub(super) fn all_cores() -> usize {
    available_parallelism().map_or(1, usize::from)
}

/// `trine bench COMMAND` of a shape, on one rank with all the threads.
pub(super) fn configured(
    binary: &Path,
    root: &Path,
    command: &str,
    shape: &Shape,
    threads: usize,
) -> Program {
    let Shape { model, batch, seq, precision } = shape;
    let mut program = Program::new(binary).args(["bench", command]);
    program = match model.source {
        Source::Preset(name) => program.args(["--preset", name]),
        Source::File(path) => program.args([root.join(path)]),
    };
    let sets = [
        format!("data.seq={seq}"),
        format!("batch.global={batch}"),
        format!("batch.micro={batch}"),
        format!("layout.threads_per_rank={threads}"),
    ];
    program
        .args(["--tp", "1", "--pp", "1", "--dp", "1"])
        .args(sets.into_iter().flat_map(|set| ["--set".to_owned(), set]))
        .args(["--precision", precision])
        .env("OMP_NUM_THREADS", threads.to_string())
}

/// trine, which times steps of a shape.
pub(super) fn trine(binary: &Path, root: &Path, shape: &Shape, terms: Terms) -> Contestant {
    let mut program = configured(binary, root, "step", shape, terms.threads)
        .args(["--seconds", &terms.seconds.to_string()]);
    if terms.isa != Isa::Best {
        program = program.args(["--isa", terms.isa.name()]);
    }
    let program = program.args(["--json", "--turns"]);
    Contestant { name: "trine", program, threads: terms.threads, parse: parse_json }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMS: Terms = Terms { isa: Isa::Best, threads: 2, seconds: 4.0 };

    fn args(shape: &Shape, terms: Terms) -> String {
        let program = trine(Path::new("trine"), Path::new("root"), shape, terms).program;
        let args: Vec<_> = program.args.iter().map(|arg| arg.to_string_lossy()).collect();
        args.join(" ")
    }

    #[test]
    fn trine_is_called_with_a_preset() {
        let shape = Shape { model: GPT2, batch: 2, seq: 256, precision: "bf16" };
        assert_eq!(
            args(&shape, TERMS),
            "bench step --preset gpt2-124m --tp 1 --pp 1 --dp 1 --set data.seq=256 \
             --set batch.global=2 --set batch.micro=2 --set layout.threads_per_rank=2 \
             --precision bf16 --seconds 4 --json --turns"
        );
    }

    #[test]
    fn trine_is_called_with_a_file_and_an_instruction_set() {
        let shape = Shape { model: CHAR, batch: 12, seq: 256, precision: "f32" };
        let args = args(&shape, Terms { isa: Isa::Avx2, ..TERMS });
        let file = Path::new("root").join("benches/models/char.toml");
        assert!(args.starts_with(&format!("bench step {} --tp 1", file.display())), "{args}");
        assert!(args.ends_with("--precision f32 --seconds 4 --isa avx2 --json --turns"), "{args}");
    }

    #[test]
    fn instruction_sets_have_one_name() {
        for isa in Isa::value_variants() {
            let typed = isa.to_possible_value().map(|value| value.get_name().to_owned());
            assert_eq!(typed.as_deref(), Some(isa.name()));
            assert_eq!(serde_json::to_value(isa).unwrap(), isa.name());
        }
    }
}
