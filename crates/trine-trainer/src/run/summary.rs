//! `summary.json`: what a run came to.

use crate::TrainError;
use crate::engine::EngineConfig;
use crate::planned::{PlanCheck, flops_per_token};
use crate::run::clock::rfc3339;
use crate::run::measure::peak_rss_bytes;
use crate::run::rank::{RankReport, RankRun, RunResult, Times};
use rustix::system::uname;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::SystemTime;
use trine_data::{CorpusReport, Skips};
use trine_schedule::{Delivery, UniformCosts, simulate};
use trine_spec::RankBytes;

/// Planned and measured bytes of one rank.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RankSummary {
    /// World rank.
    pub rank: usize,
    /// Where it stands.
    pub place: String,
    /// Its machine; empty where all ranks are threads of one process.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub host: String,
    /// Bytes that the plan says it holds between steps.
    pub bytes_planned: RankBytes,
    /// Bytes that its stores held.
    pub bytes_measured: RankBytes,
    /// Most activation bytes that were in use at once.
    pub activation_bytes_max: usize,
}

/// What a run's text is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataSummary {
    /// Documents of the training split.
    pub train_documents: u64,
    /// Documents of the validation split.
    pub validation_documents: u64,
    /// UTF-8 bytes of the training split.
    pub train_bytes: u64,
    /// UTF-8 bytes of the validation split.
    pub validation_bytes: u64,
    /// What was left out of the source: for each reason how many files, their bytes, and some names.
    pub left_out: Skips,
}

impl From<&CorpusReport> for DataSummary {
    fn from(report: &CorpusReport) -> Self {
        Self {
            train_documents: report.train_documents,
            validation_documents: report.validation_documents,
            train_bytes: report.train_bytes,
            validation_bytes: report.validation_bytes,
            left_out: report.skipped.clone(),
        }
    }
}

/// Where the wall time of a run's process went, in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct PhaseSeconds {
    /// Making the data ready.
    pub data: f64,
    /// Everything else before the first step: configuration, model, restoring.
    pub start: f64,
    /// Training steps.
    pub training: f64,
    /// Evaluations, on the way and at the end.
    pub evaluation: f64,
    /// Checkpoints.
    pub saving: f64,
}

impl PhaseSeconds {
    fn new(data: f64, times: &Times) -> Self {
        Self {
            data,
            start: (times.before.as_secs_f64() - data).max(0.0),
            training: times.train.as_secs_f64(),
            evaluation: times.evaluate.as_secs_f64(),
            saving: times.save.as_secs_f64(),
        }
    }
}

/// What share of a peak a run has reached.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Utilization {
    /// Whose peak: of a data sheet, or of a machine that was measured.
    pub peak: String,
    /// FLOP/s of all devices, or of all cores that computed.
    pub peak_flops_per_s: f64,
    /// Model FLOP/s over the peak.
    pub mfu: f64,
    /// The same with what is computed again.
    pub hfu: f64,
}

/// What a run came to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Summary {
    /// Unique parameters of the model, padding not counted.
    pub params: u64,
    /// The layout, in words.
    pub layout: String,
    /// Steps done in all.
    pub steps: u64,
    /// Steps that were done before the process that measured speed, time and memory.
    #[serde(default)]
    pub steps_before: u64,
    /// Steps that the run has when nothing stops it: the configured ones, or as many as fit into its
    /// time.
    pub steps_total: u64,
    /// Whether the configured steps were cut to fit the time.
    pub steps_cut: bool,
    /// Why the run ended before its last step, if it did.
    pub stopped_early: Option<String>,
    /// Training tokens in all.
    pub tokens: u64,
    /// Loss of the last step, nats per token.
    pub final_loss: f64,
    /// The step with the lowest validation loss, where `checkpoint.keep_best` keeps its checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best_step: Option<u64>,
    /// That loss, over the windows that are used on the way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best_val_loss: Option<f64>,
    /// Validation loss at the end, nats per token.
    pub val_loss: Option<f64>,
    /// The same in bits per byte of raw text.
    pub val_bits_per_byte: Option<f64>,
    /// Bits per byte of an interpolated bigram model fitted on the tokens that the model has seen.
    pub bigram_bits_per_byte: Option<f64>,
    /// Bits per byte of one fitted on the whole training split.
    pub bigram_full_bits_per_byte: Option<f64>,
    /// Training tokens per second of training steps (evaluation and saving not counted).
    pub tokens_per_s: f64,
    /// Model FLOP/s: [`trine_spec::ModelSpec::flops_per_token`], without the weight gradients of what is frozen, ×
    /// tokens per second.
    pub model_flops_per_s: f64,
    /// The same with what is computed again; none in older summaries.
    #[serde(default)]
    pub hardware_flops_per_s: Option<f64>,
    /// What share of the peaks that are known these two are.
    #[serde(default)]
    pub utilization: Vec<Utilization>,
    /// Wall time of the whole process so far, in seconds.
    pub wall_s: f64,
    /// Where that time went.
    #[serde(default)]
    pub seconds: PhaseSeconds,
    /// When the process began: UTC by RFC 3339.
    #[serde(default)]
    pub started: String,
    /// When it had done its last step and saved.
    #[serde(default)]
    pub ended: String,
    /// The machine of rank 0.
    #[serde(default)]
    pub host: String,
    /// The release of trine.
    #[serde(default)]
    pub version: String,
    /// The commit that it was built from, where the build knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// Most memory that the processes held, added up, in bytes, where the system tells.
    pub peak_rss_bytes: Option<u64>,
    /// The pipeline's bubble when the simulator replays the measured times of all actions: of the processor, or of
    /// devices. None where ranks share a device.
    #[serde(default)]
    pub bubble_measured: Option<f64>,
    /// The bubble of the schedule with equal stages, a backward costing twice a forward.
    pub bubble_predicted: f64,
    /// Share of the cores' time, while ranks trained, in which no rank computed. None on devices, whose hosts only
    /// queue the work.
    #[serde(default)]
    pub wait_share: Option<f64>,
    /// Memory, rank by rank.
    pub ranks: Vec<RankSummary>,
    /// The plan beside the first steps; none if there were too few to time.
    #[serde(default)]
    pub plan: Option<PlanCheck>,
    /// xxh3-128 of the corpus.
    pub corpus_hash: String,
    /// What was taken of the source, and what was left out; none in older summaries.
    #[serde(default)]
    pub data: Option<DataSummary>,
}

impl Summary {
    pub(crate) fn new(shared: &RankRun<'_>, run: &RunResult) -> Result<Self, TrainError> {
        let (engine, data, ranks) = (shared.engine, shared.data, &run.ranks);
        let schedule = &shared.plan.training;
        let uniform = UniformCosts::new(schedule);
        let predicted = simulate(schedule, Delivery::Buffered, &uniform)?.bubble_fraction();
        let (bigram, full) = match run.validation {
            Some(_) => {
                let (bigram, full) = data.bigram_bits_per_byte(run.samples)?;
                (Some(bigram), Some(full))
            }
            None => (None, None),
        };
        let (elapsed, ended) = (shared.request.started.elapsed(), SystemTime::now());
        let nats_to_bits = |sum: f64| sum / std::f64::consts::LN_2;
        let bytes = data.validation_bytes(true) as f64;
        let train_wall_s = run.times.train.as_secs_f64();
        let tokens_per_s = run.trained_tokens as f64 / train_wall_s.max(1e-9);
        let (model_flops, hardware_flops) = flops_per_s(engine, tokens_per_s);
        let summary = Self {
            params: engine.model.param_count(),
            layout: engine.degrees.to_string(),
            steps: run.steps_done,
            steps_before: run.steps_before,
            steps_total: run.steps_total,
            steps_cut: run.steps_cut,
            stopped_early: run.stopped.why().map(str::to_owned),
            tokens: data.tokens(run.samples),
            final_loss: run.final_loss,
            best_step: run.best.map(|best| best.step),
            best_val_loss: run.best.map(|best| best.val_loss),
            val_loss: run.validation.map(|loss| loss.mean()),
            val_bits_per_byte: run.validation.map(|loss| nats_to_bits(loss.sum) / bytes),
            bigram_bits_per_byte: bigram,
            bigram_full_bits_per_byte: full,
            tokens_per_s,
            model_flops_per_s: model_flops,
            hardware_flops_per_s: hardware_flops,
            utilization: hardware_flops.map_or_else(Vec::new, |hardware| {
                let peaks = shared.peaks().into_iter();
                peaks.map(|peak| peak.utilization([model_flops, hardware])).collect()
            }),
            wall_s: elapsed.as_secs_f64(),
            seconds: PhaseSeconds::new(shared.data_s, &run.times),
            started: rfc3339(ended.checked_sub(elapsed).unwrap_or(ended)),
            ended: rfc3339(ended),
            host: uname().nodename().to_string_lossy().into_owned(),
            version: env!("CARGO_PKG_VERSION").into(),
            commit: shared.request.commit.map(str::to_owned),
            peak_rss_bytes: peak_rss_bytes_of(ranks),
            bubble_measured: shared.bubble(ranks)?,
            bubble_predicted: predicted,
            wait_share: shared.wait_share(ranks, train_wall_s),
            ranks: ranks
                .iter()
                .enumerate()
                .map(|(rank, report)| RankSummary {
                    rank,
                    place: report.coordinate.to_string(),
                    host: report.host.clone(),
                    bytes_planned: report.planned.state,
                    bytes_measured: report.measured.state,
                    activation_bytes_max: report.measured.activations.unwrap_or(0),
                })
                .collect(),
            plan: run.plan.clone(),
            corpus_hash: data.report().corpus_hash.clone(),
            data: Some(data.report().into()),
        };
        let earlier = shared.directory.summary().filter(|_| run.trained_tokens == 0);
        Ok(earlier.map_or(summary.clone(), |earlier| summary.with_speeds_of(earlier)))
    }

    /// A process that took no step, such as one that resumed a finished run, has measured nothing:
    /// the measurements of the one before it stand.
    fn with_speeds_of(self, earlier: Self) -> Self {
        Self {
            steps_before: earlier.steps_before,
            tokens_per_s: earlier.tokens_per_s,
            model_flops_per_s: earlier.model_flops_per_s,
            hardware_flops_per_s: earlier.hardware_flops_per_s,
            utilization: earlier.utilization,
            wall_s: earlier.wall_s,
            seconds: earlier.seconds,
            started: earlier.started,
            ended: earlier.ended,
            host: earlier.host,
            version: earlier.version,
            commit: earlier.commit,
            peak_rss_bytes: earlier.peak_rss_bytes,
            bubble_measured: earlier.bubble_measured,
            wait_share: earlier.wait_share,
            plan: earlier.plan,
            ..self
        }
    }
}

/// FLOP/s of so many tokens: what the model needs, and with what is computed again, as far as the planner knows it.
fn flops_per_s(engine: &EngineConfig, tokens_per_s: f64) -> (f64, Option<f64>) {
    match flops_per_token(engine) {
        Ok(flops) => (tokens_per_s * flops.model, Some(tokens_per_s * flops.hardware)),
        // No reason for a run to fail at its end.
        Err(_) => (tokens_per_s * engine.model.flops_per_token(engine.seq), None),
    }
}

/// Most memory of all processes together; of this one, until now.
fn peak_rss_bytes_of(ranks: &[RankReport]) -> Option<u64> {
    // Ranks that are threads of one process have the same memory.
    let one = |rank: &RankReport| Some(((rank.host.clone(), rank.process), rank.peak_rss_bytes?));
    let processes: Option<BTreeMap<_, _>> = ranks.iter().map(one).collect();
    let mut processes = processes?;
    let here = (ranks.first()?.host.clone(), std::process::id());
    if let (Some(bytes), Some(now)) = (processes.get_mut(&here), peak_rss_bytes()) {
        *bytes = now.max(*bytes);
    }
    Some(processes.values().sum())
}
