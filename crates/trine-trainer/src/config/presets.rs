//! Run presets: for every model preset a complete configuration with the largest of its layouts.
//!
//! Each is the general configuration changed where it must be, so that a reader sees what differs.

use super::sections::{
    Batch, Checkpoint, Comm, Data, Device, Eval, Layout, Log, Lr, Optimizer, OptimizerKind, Output,
    Pin, Precision, Sample, Source, Threads, Times, Train,
};
use super::{Config, DEFAULT_PRESET, check};
use trine_mesh::Degrees;
use trine_nn::Numerics;
use trine_optim::LrKind;
use trine_schedule::{Order, ScheduleKind};
use trine_spec::ModelSpec;
use trine_spec::presets::Preset;

/// All names, in the order of `trine presets`.
pub(super) fn names() -> Vec<&'static str> {
    trine_spec::presets::all().iter().map(|preset| preset.name).collect()
}

/// The run preset of this name.
pub(super) fn find(name: &str) -> Option<Config> {
    let preset = trine_spec::presets::all().into_iter().find(|preset| preset.name == name)?;
    Some(if name == DEFAULT_PRESET { rust_default(&preset) } else { largest(&preset) })
}

/// Sequences of a micro-batch where nobody has tried a model: those of small ones.
const MICRO_USUAL: usize = 8;

/// The configuration of a model that is no preset, on one rank.
pub(super) fn of_model(name: &str, model: &ModelSpec) -> Config {
    let mut config = general(&check::nearest_name(name), model, (Degrees::SERIAL, MICRO_USUAL));
    config.data.vocab = config.data.vocab.min(model.vocab);
    config
}

/// Peak learning rates that GPT-3 used, by parameters (Brown et al., 2005.14165, table 2.1).
const GPT3_RATES: &[(f64, f64)] = &[
    (125e6, 6e-4),
    (350e6, 3e-4),
    (760e6, 2.5e-4),
    (1.3e9, 2e-4),
    (2.7e9, 1.6e-4),
    (6.7e9, 1.2e-4),
    (13e9, 1e-4),
    (175e9, 6e-5),
];

/// The rate of the published size nearest to `params` in proportion.
fn rate(params: u64) -> f64 {
    let far = |size: f64| (size.ln() - (params.max(1) as f64).ln()).abs();
    let nearest = GPT3_RATES.iter().min_by(|a, b| far(a.0).total_cmp(&far(b.0)));
    nearest.expect("invariant: the table has rows").1
}

/// Small enough for two cores and five minutes; tuned for bits per byte in that time.
fn rust_default(preset: &Preset) -> Config {
    let mut config = largest(preset);
    // Few tokens fit into the time: small steps make the most of them.
    config.data.seq = 128;
    (config.batch.global, config.batch.micro) = (16, 4);
    config.train.steps = 3000;
    config.train.minutes_max = 4.25;
    // Gradients of 2,048 tokens are noisy: their squares are averaged over a hundred steps, and nothing moves fast
    // before that average is one.
    (config.optimizer.lr, config.optimizer.beta2) = (2.5e-3, 0.99);
    config.lr = Lr { kind: LrKind::Linear, warmup_steps: 250, min_ratio: 0.01, ..config.lr };
    config.eval = Eval { every: 100, windows_max: 64, final_windows_max: 1024 };
    config
}

/// A preset's configuration with the largest of its layouts.
fn largest(preset: &Preset) -> Config {
    let layout = *preset.layouts.last().expect("invariant: a preset has a layout");
    general(preset.name, &preset.model, layout)
}

/// What suits any model: AdamW with the constants of GPT-3, warm-up and cosine.
fn general(name: &str, model: &ModelSpec, (degrees, micro): (Degrees, usize)) -> Config {
    // Bubbles of (pp − 1) / (m + pp − 1): with m = 4·pp at most a fifth.
    let micro_batches = if degrees.pp == 1 { 8 } else { 4 * degrees.pp };
    let params = model.param_count();
    Config {
        name: name.into(),
        seed: 1,
        data: data(model.seq_max),
        layout: Layout {
            dp: degrees.dp,
            pp: degrees.pp,
            tp: degrees.tp,
            // With shards, norms and additions are done once instead of by every rank of them.
            sequence_parallel: true,
            schedule: Order::Named(ScheduleKind::OneFOneB),
            times: Times::Given(Vec::new()),
            virtual_stages: 0,
            layers: Vec::new(),
            threads_per_rank: 0,
            elastic: false,
        },
        threads: Threads { pin: Pin::Off },
        batch: Batch { global: degrees.dp * micro * micro_batches, micro },
        train: Train {
            steps: 1000,
            minutes_max: 0.0,
            device: Device::Auto,
            precision: Precision::Bf16,
            numerics: Numerics::Fast,
            // Activations outgrow weights and state long before this size.
            recompute: (params > 1_000_000_000).into(),
            zero: 1,
            frozen: Vec::new(),
            clip_norm: 1.0,
            replica_check_every: 50,
            memory_check: true,
        },
        optimizer: optimizer(rate(params)),
        lr: Lr { kind: LrKind::Cosine, warmup_steps: 100, min_ratio: 0.1, decay_fraction: 0.2 },
        eval: Eval { every: 100, windows_max: 64, final_windows_max: 0 },
        checkpoint: Checkpoint { every: 0, minutes: 10.0, keep_last: 2, keep_best: false },
        comm: Comm { deadline_s: 60.0, long_deadline_s: 600.0, checksum: false },
        log: Log { every_seconds: 5.0 },
        output: Output { dir: "".into() },
        sample: sample(),
        model: model.clone(),
    }
}

fn data(seq: usize) -> Data {
    Data {
        source: Source::Crates,
        manifest: "".into(),
        file_bytes_max: 0,
        tokenizer: "".into(),
        vocab: 4096,
        seq,
        document_mask: false,
        cache: "target/trine".into(),
    }
}

fn optimizer(lr: f64) -> Optimizer {
    Optimizer {
        kind: OptimizerKind::AdamW,
        lr,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
        momentum: 0.9,
        groups: Vec::new(),
    }
}

fn sample() -> Sample {
    let prompts = ["/// Returns the number of", "impl<T> Iterator for", "#[test]\nfn"];
    Sample {
        prompts: prompts.map(String::from).into(),
        documents: 0,
        tokens: 64,
        temperature: 0.8,
        top_k: 40,
        top_p: 0.95,
    }
}
