//! What is planned: names looked up, options checked.

use crate::failure::Failure;
use crate::machine::{self, THIS_MACHINE};
use crate::plan_args::TaskArgs;
use trine_buffer::DType;
use trine_plan::{
    Attention, Choice, Cluster, Constants, Fixed, Impossible, Limit, Model, PlanError, Planner,
    Precision, Recompute, Request, SearchError, Stack, clusters, default_global_batch,
    find_cluster, find_stack, stacks,
};
use trine_schedule::{Purpose, ScheduleKind};
use trine_trainer::config::{Config, Typed};

/// A model on a machine, with all that [`Planner`] borrows.
#[derive(Debug)]
pub(crate) struct Task {
    /// Name of the model's preset.
    pub(crate) preset: &'static str,
    model: Model,
    cluster: Cluster,
    stack: Stack,
    constants: Constants,
    /// What is asked.
    pub(crate) request: Request,
}

impl Task {
    /// Looks names up and checks values.
    pub(crate) fn new(args: &TaskArgs) -> Result<Self, Failure> {
        let is_here = args.cluster == THIS_MACHINE;
        let usual = if is_here { "rust-default" } else { "frontier-1t" };
        let name = args.model.as_deref().unwrap_or(usual);
        let preset = trine_spec::presets::find(name).map_err(Failure::usage)?;
        let model = Model::new(&preset.model).map_err(Failure::usage)?;
        let request = request(args, &model)?;
        let cluster = cluster(args)?;
        let usual = match &cluster.device.name {
            name if name.contains("MI250X") => "megatron-deepspeed",
            _ if is_here => "trine",
            _ => "megatron-core",
        };
        let all = stacks().map_err(run_failure)?;
        let name = args.stack.as_deref().unwrap_or(usual);
        let stack = find_stack(&all, name).map_err(Failure::usage)?.clone();
        let constants = Constants::built_in().map_err(run_failure)?;
        let request =
            if is_here { as_trained(args, preset.name, &cluster, request)? } else { request };
        Ok(Self { preset: preset.name, model, cluster, stack, constants, request })
    }

    /// The planner of this task.
    pub(crate) fn planner(&self) -> Result<Planner<'_>, Failure> {
        Planner::new(&self.model, &self.cluster, &self.stack, &self.constants)
            .map_err(Failure::usage)
    }

    /// One line that says what is planned.
    pub(crate) fn headline(&self) -> String {
        let Request { devices, global_batch, seq, headroom, .. } = self.request;
        format!(
            "{} ({:.1} B parameters) on {}: {devices} × {}, {} sequences of {seq} tokens a step, software {}, \
             {:.0} % of memory left free\n",
            self.preset,
            self.model.params / 1e9,
            self.cluster.name,
            self.cluster.device.name,
            global_batch,
            self.stack.name,
            100.0 * headroom,
        )
    }

    /// Why a search has no result: the limit, by how much, and what would do.
    pub(crate) fn failure(&self, error: SearchError) -> Failure {
        match error {
            SearchError::Impossible(why) => Failure::usage(self.impossible(&why)),
            SearchError::Plan(error) => Failure::usage(error),
        }
    }

    fn impossible(&self, why: &Impossible) -> String {
        let Request { devices, global_batch, headroom, .. } = self.request;
        match &why.limit {
            Limit::Devices => format!(
                "{devices} devices: {} has 1 to {}; the nearest possible request is --gpus {}",
                self.cluster.name,
                self.cluster.levels.last().map_or(1, |level| level.devices),
                why.devices.unwrap_or(1)
            ),
            Limit::Batch => format!(
                "the batch binds: {global_batch} sequences cannot be shared out over {devices} devices (replicas × \
                 micro-batch must divide them); the nearest possible request is --global-batch {}",
                why.global_batch.unwrap_or(1)
            ),
            Limit::Memory { leanest } => self.too_little_memory(leanest, why, headroom),
            Limit::Fixed => {
                "no layout has all that is fixed (--tp, --pp, --schedule, …); leave one of them \
                             out"
                .to_owned()
            }
        }
    }

    fn too_little_memory(&self, leanest: &Choice, why: &Impossible, headroom: f64) -> String {
        let allowed = leanest.estimate.memory_bytes * (1.0 - headroom);
        let needed = leanest.estimate.memory.total();
        let mut text = format!(
            "memory binds: the leanest layout ({}) needs {:.1} GB on each device and {:.1} GB are allowed, {:.1} GB too \
             few",
            describe(leanest),
            needed / 1e9,
            allowed / 1e9,
            (needed - allowed) / 1e9
        );
        match why.devices {
            Some(devices) => {
                text += &format!("; the nearest possible request is --gpus {devices}");
            }
            None => text += "; no number of devices of this machine is enough",
        }
        if let Some(share) = why.headroom {
            text += &format!(", or --memory-headroom {:.3}", (share * 1000.0).floor() / 1000.0);
        }
        text
    }
}

/// A layout in a few words.
pub(crate) fn describe(choice: &Choice) -> String {
    let layout = &choice.layout;
    let d = &layout.degrees;
    let context = if d.cp > 1 { format!(" cp {}", d.cp) } else { String::new() };
    let chunks = match layout.virtual_stages {
        1 => String::new(),
        chunks => format!(" × {chunks}"),
    };
    format!(
        "tp {} pp {} dp {}{context}, {}{chunks}, micro-batch {}, zero {}, recompute {}{}",
        d.tp,
        d.pp,
        d.dp,
        layout.pipeline,
        layout.micro_batch,
        layout.zero,
        recompute_word(layout.recompute),
        if layout.sequence_parallel { ", sequence parallel" } else { "" }
    )
}

/// A recompute mode in a word.
pub(crate) fn recompute_word(recompute: Recompute) -> &'static str {
    match recompute {
        Recompute::None => "none",
        Recompute::Selective => "selective",
        Recompute::SelectiveOps => "selective-ops",
        Recompute::Full { .. } => "full",
    }
}

fn run_failure(error: PlanError) -> Failure {
    Failure::Run(error.into())
}

fn cluster(args: &TaskArgs) -> Result<Cluster, Failure> {
    let mine = match &args.cluster_file {
        Some(path) => Some(std::fs::read_to_string(path).map_err(|error| {
            Failure::usage(format!("{}: cannot read the clusters: {error}", path.display()))
        })?),
        None => None,
    };
    let more: Vec<&str> = mine.iter().map(String::as_str).collect();
    let all = clusters(&more).map_err(Failure::usage)?;
    let is_known = all.iter().any(|cluster| cluster.name == args.cluster);
    if args.cluster == THIS_MACHINE && !is_known {
        return machine::measure(measured_type(&args.precision)?);
    }
    Ok(find_cluster(&all, &args.cluster).map_err(Failure::usage)?.clone())
}

/// The type of `--precision` that kernels of this machine are measured in.
pub(super) fn measured_type(precision: &str) -> Result<DType, Failure> {
    choose("--precision", precision, &[("bf16", DType::Bf16), ("f32", DType::F32)])
}

/// On this machine, what is not given is as `trine train` has it.
fn as_trained(
    args: &TaskArgs,
    preset: &str,
    cluster: &Cluster,
    request: Request,
) -> Result<Request, Failure> {
    let typed = Typed { preset: Some(preset.into()), ..Typed::default() };
    let config = Config::load(&typed)?;
    Ok(Request {
        devices: args.gpus.unwrap_or(cluster.devices()),
        global_batch: args.global_batch.unwrap_or(config.batch.global),
        seq: args.seq.unwrap_or(config.data.seq),
        ..request
    })
}

/// Devices where none are given.
const DEVICES: usize = 3072;

fn request(args: &TaskArgs, model: &Model) -> Result<Request, Failure> {
    let seq = args.seq.unwrap_or(model.spec.seq_max);
    if seq == 0 {
        return Err(Failure::usage("--seq 0: must be at least 1"));
    }
    if args.global_batch == Some(0) {
        return Err(Failure::usage("--global-batch 0: must be at least 1"));
    }
    if !(0.0..1.0).contains(&args.memory_headroom) {
        let given = args.memory_headroom;
        return Err(Failure::usage(format!(
            "--memory-headroom {given}: a share of the memory, at least 0 and below 1"
        )));
    }
    let precision = choose(
        "--precision",
        &args.precision,
        &[
            ("bf16", Precision::Bf16),
            ("f16", Precision::F16),
            ("f32", Precision::F32),
            ("fp8", Precision::Fp8),
        ],
    )?;
    let devices = args.gpus.unwrap_or(DEVICES);
    Ok(Request {
        devices,
        global_batch: args.global_batch.unwrap_or_else(|| default_global_batch(devices, seq)),
        seq,
        headroom: args.memory_headroom,
        precision,
        attention: Attention::Flash2,
        fixed: fixed(args)?,
    })
}

fn fixed(args: &TaskArgs) -> Result<Fixed, Failure> {
    let pipeline = match &args.schedule {
        None => None,
        Some(name) => {
            let kind: ScheduleKind = name.parse().map_err(Failure::usage)?;
            if kind.info().purpose != Purpose::Train {
                return Err(Failure::usage(format!("--schedule {name}: does not train")));
            }
            Some(kind)
        }
    };
    let recompute = match &args.recompute {
        None => None,
        Some(word) => Some(choose(
            "--recompute",
            word,
            &[
                ("none", Recompute::None),
                ("selective", Recompute::Selective),
                ("full", Recompute::Full { every: 1 }),
            ],
        )?),
    };
    if args.zero.is_some_and(|zero| zero > 3) {
        return Err(Failure::usage("--zero: ZeRO has stages 0 to 3; nearest: 3"));
    }
    Ok(Fixed {
        tp: args.tp,
        pp: args.pp,
        cp: args.cp,
        virtual_stages: args.r#virtual,
        pipeline,
        micro_batch: args.micro_batch,
        zero: args.zero,
        recompute,
        sequence_parallel: args.sequence_parallel,
        runnable: args.runnable,
    })
}

/// The value of a word.
fn choose<T: Copy>(option: &str, word: &str, all: &[(&str, T)]) -> Result<T, Failure> {
    all.iter().find(|(name, _)| *name == word).map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<&str> = all.iter().map(|(name, _)| *name).collect();
        Failure::usage(format!("{option} {word}: must be one of {}", names.join(", ")))
    })
}
