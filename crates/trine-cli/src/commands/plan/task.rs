//! What is planned: names looked up, options checked.

use super::given::{self, Given, choose};
use super::source::Source;
use crate::failure::Failure;
use crate::gpus;
use crate::machine::{self, THIS_MACHINE};
use crate::output::{Unit, counted};
use crate::plan_args::TaskArgs;
use trine_buffer::DType;
use trine_files::{TEXT_BYTES_MAX, read_text};
use trine_plan::{
    Attention, Choice, Cluster, Constants, Impossible, Limit, Model, PlanError, Planner, Precision,
    Recompute, Request, SearchError, Stack, clusters, default_global_batch, find_cluster,
    find_stack, rank, stacks,
};
use trine_spec::ModelSpec;
use trine_trainer::config::{Config, DEFAULT_PRESET, Device};

/// A model on a machine, with all that [`Planner`] borrows.
#[derive(Debug)]
pub(crate) struct Task {
    /// The configuration that has the model: what a layout does not decide is as it is there.
    pub(crate) base: Config,
    /// Whether that is a preset, whose keys need not be written.
    pub(crate) is_preset: bool,
    model: Model,
    cluster: Cluster,
    stack: Stack,
    constants: Constants,
    /// What is asked.
    pub(crate) request: Request,
    /// The options that keep a value.
    pub(crate) given: Vec<Given>,
}

impl Task {
    /// Looks names up and checks values.
    pub(crate) fn new(args: &TaskArgs) -> Result<Self, Failure> {
        let machine = args.cluster.as_deref();
        let machine =
            machine.unwrap_or(if args.config.is_some() { THIS_MACHINE } else { "frontier" });
        let is_here = machine == THIS_MACHINE;
        let source = Source::new(args, if is_here { DEFAULT_PRESET } else { "frontier-1t" });
        let base = source.config()?;
        let is_configured = matches!(source, Source::Configuration(_));
        let precision = precision(args, is_configured.then_some(&base))?;
        let cluster = cluster(args, machine, precision)?;
        let as_trained = is_here || is_configured;
        let devices = args.gpus.unwrap_or(if is_here { cluster.devices() } else { DEVICES });
        let seq = if as_trained { base.data.seq } else { base.model.seq_max };
        let seq = args.seq.unwrap_or(seq);
        // A model for longer sequences, where they are.
        let seq_max = base.model.seq_max.max(seq);
        let spec = ModelSpec { seq_max, ..base.model.clone() };
        let mut model = Model::new(&spec).map_err(Failure::usage)?;
        model.freeze(&base.frozen()).map_err(Failure::usage)?;
        let global_batch = match as_trained {
            true => base.batch.global,
            false => default_global_batch(devices, seq),
        };
        let request = Request {
            devices,
            global_batch: args.global_batch.unwrap_or(global_batch),
            seq,
            headroom: args.memory_headroom,
            precision,
            attention: Attention::Flash2,
            fixed: given::fixed(args)?,
        };
        let usual = match &cluster.device.name {
            name if name.contains("MI250X") => "megatron-deepspeed",
            _ if is_here => "trine",
            _ => "megatron-core",
        };
        let all = stacks().map_err(run_failure)?;
        let stack = args.stack.as_deref().unwrap_or(usual);
        Ok(Self {
            model,
            stack: find_stack(&all, stack).map_err(Failure::usage)?.clone(),
            constants: Constants::built_in().map_err(run_failure)?,
            base,
            is_preset: matches!(source, Source::Preset(_)),
            cluster,
            request,
            given: given::all(args),
        })
    }

    /// The planner of this task.
    pub(crate) fn planner(&self) -> Result<Planner<'_>, Failure> {
        Planner::new(&self.model, &self.cluster, &self.stack, &self.constants)
            .map_err(Failure::usage)
    }

    /// What is to be known of times on another machine than this: trine does not compute there.
    pub(crate) fn not_here(&self) -> String {
        let Self { cluster, stack, .. } = self;
        match cluster.name == THIS_MACHINE {
            true => String::new(),
            false => format!(
                "\nThis time is that of software {} on {}, where trine has not run.",
                stack.name, cluster.device.name
            ),
        }
    }

    /// What the model is called.
    pub(crate) fn name(&self) -> &str {
        &self.base.name
    }

    /// One line that says what is planned.
    pub(crate) fn headline(&self) -> String {
        let Request { devices, global_batch, seq, headroom, .. } = self.request;
        let params = Unit::of_count(self.model.params);
        format!(
            "{} ({} parameters) on {}: {devices} × {}, {} of {seq} tokens a step, software {}, \
             {:.0} % of memory left free\n",
            self.name(),
            params.show(self.model.params, 1),
            self.cluster.name,
            self.cluster.device.name,
            counted(global_batch, "sequence"),
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
                "{}: {} has 1 to {}; nearest: --gpus {}",
                counted(devices, "device"),
                self.cluster.name,
                self.cluster.devices(),
                why.devices.unwrap_or(1)
            ),
            Limit::Batch => format!(
                "the batch binds: {} cannot be shared out over {} (replicas × micro-batch must divide the batch){}",
                counted(global_batch, "sequence"),
                counted(devices, "device"),
                Self::nearest(&[other(why)])
            ),
            Limit::Memory { leanest } => self.too_little_memory(leanest, why, headroom),
            Limit::Fixed { degree } => {
                let reason = degree.as_ref().map(|error| format!(": {error}"));
                self.too_much_fixed() + &reason.unwrap_or_default() + &Self::nearest(&[other(why)])
            }
        }
    }

    /// Which of the options that keep a value leaves nothing to choose from.
    fn too_much_fixed(&self) -> String {
        let all: Vec<&str> = self.given.iter().map(|one| one.typed.as_str()).collect();
        let possible = |one: &&Given| {
            let rest = one.without(&self.request);
            self.planner().is_ok_and(|planner| rank(&planner, &rest).is_ok())
        };
        let without: Vec<&str> =
            self.given.iter().filter(possible).map(|one| one.typed.as_str()).collect();
        let devices = counted(self.request.devices, "device");
        match (all.as_slice(), without.as_slice()) {
            ([], _) => format!("no layout of {} uses {devices}", self.name()),
            (all, []) => format!(
                "no layout of {devices} has {}, and without one of them none fits the memory",
                all.join(" ")
            ),
            (all, without) => format!(
                "no layout of {devices} has {}; there is one without {}",
                all.join(" "),
                without.join(", or without ")
            ),
        }
    }

    fn too_little_memory(&self, leanest: &Choice, why: &Impossible, headroom: f64) -> String {
        let allowed = leanest.estimate.memory_bytes * (1.0 - headroom);
        let needed = leanest.estimate.memory.total();
        let unit = Unit::of_bytes(needed);
        let mut text = format!(
            "memory binds: the leanest layout ({}) needs {} on each device and {} are allowed, {} too few",
            describe(leanest),
            unit.show(needed, 1),
            unit.show(allowed, 1),
            unit.show(needed - allowed, 1)
        );
        let offers = [
            other(why),
            // Rounded down, so that it is enough.
            why.headroom
                .map(|share| format!("--memory-headroom {:.3}", (share * 1000.0).floor() / 1000.0)),
        ];
        if why.devices.is_none() {
            let most = self.cluster.devices();
            text +=
                &format!("; twice as many devices, and so on up to {most}, are not enough either");
        }
        text + &Self::nearest(&offers)
    }

    /// What could be asked instead.
    fn nearest(offers: &[Option<String>]) -> String {
        let offers: Vec<&str> = offers.iter().flatten().map(String::as_str).collect();
        match offers.is_empty() {
            true => String::new(),
            false => format!("; the nearest possible request is {}", offers.join(", or ")),
        }
    }
}

/// Other devices, another batch, or both, with which a request has a layout.
fn other(why: &Impossible) -> Option<String> {
    let devices = why.devices.map(|devices| format!("--gpus {devices}"));
    let batch = why.global_batch.map(|size| format!("--global-batch {size}"));
    let both: Vec<String> = devices.into_iter().chain(batch).collect();
    (!both.is_empty()).then(|| both.join(" "))
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
        Recompute::ELEMENTWISE => "elementwise",
        Recompute::Tensors(_) => "by name",
        Recompute::Full { every: 2 } => "half",
        Recompute::Full { .. } => "full",
    }
}

fn run_failure(error: PlanError) -> Failure {
    Failure::Run(error.into())
}

/// What products are computed in: what is asked for, else what `base` computes in.
fn precision(args: &TaskArgs, base: Option<&Config>) -> Result<Precision, Failure> {
    let words = [
        ("bf16", Precision::Bf16),
        ("f16", Precision::F16),
        ("f32", Precision::F32),
        ("fp8", Precision::Fp8),
    ];
    let own = base.map(|config| config.train.precision.word());
    let (option, word) = match (&args.precision, own) {
        (Some(word), _) => ("--precision", word.as_str()),
        (None, Some(word)) => ("train.precision", word),
        (None, None) => ("--precision", "bf16"),
    };
    choose(option, word, &words)
}

fn cluster(args: &TaskArgs, name: &str, precision: Precision) -> Result<Cluster, Failure> {
    let mine = match &args.cluster_file {
        Some(path) => Some(read_text(path, TEXT_BYTES_MAX).map_err(|error| {
            Failure::usage(format!("{}: cannot read the clusters: {error}", path.display()))
        })?),
        None => None,
    };
    let more: Vec<&str> = mine.iter().map(String::as_str).collect();
    let all = clusters(&more).map_err(|error| match &args.cluster_file {
        Some(path) => Failure::usage(format!("{}: {error}", path.display())),
        None => Failure::usage(error),
    })?;
    let is_known = all.iter().any(|cluster| cluster.name == name);
    if name == THIS_MACHINE && !is_known {
        let kernels = match precision {
            Precision::F32 => Ok(DType::F32),
            Precision::Bf16 => Ok(DType::Bf16),
            Precision::F16 | Precision::Fp8 | Precision::Fp8Rows => {
                measured_type(args.precision.as_deref())
            }
        };
        return measured(args, kernels?);
    }
    let found = find_cluster(&all, name).map_err(|_| {
        let names = all.iter().map(|cluster| cluster.name.as_str());
        let names: Vec<&str> = names.chain([THIS_MACHINE]).collect();
        Failure::usage(PlanError::unknown("cluster", name, &names))
    });
    found.cloned()
}

/// This machine, measured: its GPUs or its cores.
pub(super) fn measured(args: &TaskArgs, compute: DType) -> Result<Cluster, Failure> {
    let words = [("auto", Device::Auto), ("cpu", Device::Cpu), ("cuda", Device::Cuda)];
    let device = choose("--device", &args.device, &words)?;
    let search = gpus::search(&args.gpu_libraries, &|name| std::env::var_os(name))?;
    match gpus::find(device, &search, "--device")? {
        Err(_) => machine::measure(compute),
        Ok(libraries) => {
            // A GPU alone is shared, so that reductions have a time too.
            let ranks = libraries.count().max(2);
            let ranks = gpus::ranks(libraries, ranks).map(|gpus| (gpus, ranks));
            let (gpus, ranks) = ranks?;
            machine::measure_gpus(&gpus, ranks, compute)
        }
    }
}

/// The type of `--precision` that kernels of this machine are measured in.
pub(super) fn measured_type(precision: Option<&str>) -> Result<DType, Failure> {
    let word = precision.unwrap_or("bf16");
    choose("--precision", word, &[("bf16", DType::Bf16), ("f32", DType::F32)])
}

/// Devices where none are given.
const DEVICES: usize = 3072;
