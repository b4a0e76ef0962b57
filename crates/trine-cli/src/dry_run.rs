//! What a run would do and what each rank would hold, without allocating any of it.

use crate::failure::Failure;
use crate::output::{Align, Table, counted, grouped, human_bytes};
use crate::{machine, memory};
use anyhow::Context;
use std::path::Path;
use trine_spec::{ModelSpec, ParamSpec, Piece, RankBytes, StagePieces};
use trine_trainer::config::{Config, Source, Times};
use trine_trainer::{MemoryPlan, RankMemory, RunPlan, Time, planned_step};

/// More ranks than this are shown as groups of equal ones.
const RANKS_SHOWN_MAX: usize = 32;

/// What the data-parallel ranks at one (pipeline, tensor) coordinate hold, each.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Holding {
    pp: usize,
    tp: usize,
    stages: Vec<StagePieces>,
    /// Elements of its parameters, without the padding of buckets.
    parameters: usize,
    memory: RankMemory,
}

impl Holding {
    fn new(plan: &RunPlan, pp: usize, tp: usize) -> Self {
        let layout = &plan.ranks[pp][tp];
        let parameters = layout.params.iter().map(|param| param.len()).sum();
        Self { pp, tp, stages: layout.stages.clone(), parameters, memory: plan.memory(pp, tp) }
    }

    /// The pieces of all its stages.
    fn pieces(&self) -> impl Iterator<Item = Piece> + '_ {
        self.stages.iter().flat_map(|stage| &stage.pieces).copied()
    }

    /// What a rank takes at most, if its activations are planned.
    fn at_most(&self) -> Option<usize> {
        let RankMemory { state, buffers, activations, .. } = self.memory;
        Some(state.total() + buffers? + activations?)
    }

    /// Whether two hold the same amounts of the same kinds between steps.
    fn is_like(&self, other: &Self) -> bool {
        let kinds = |holding: &Self| {
            let pieces: Vec<Piece> = holding.pieces().collect();
            let ends = [Piece::Embedding, Piece::Head].map(|end| pieces.contains(&end));
            (ends, pieces.len(), holding.parameters, holding.memory.state)
        };
        kinds(self) == kinds(other)
    }
}

/// The resolved configuration, and, as comments in the same TOML, the layout, its bytes and, with
/// `hosts` of all ranks, their placement, why the layout was `chosen`, and the step that is planned for the
/// `machine` of a file, which is one of GPUs or of cores: the whole text is a configuration file again.
pub(crate) fn report(
    config: &Config,
    hosts: Option<&[String]>,
    chosen: Option<&str>,
    machine: Option<(&Path, bool)>,
) -> Result<String, Failure> {
    // Cores do not change what a rank holds.
    let engine = config.engine(1)?;
    let plan = RunPlan::new(&engine).map_err(|error| Failure::Usage(error.into()))?;
    let place = |pp| (0..config.layout.tp).map(move |tp| (pp, tp));
    let places = (0..config.layout.pp).flat_map(place);
    let holdings: Vec<Holding> = places.map(|(pp, tp)| Holding::new(&plan, pp, tp)).collect();
    let table = if config.world() > RANKS_SHOWN_MAX {
        group_table(config, &holdings)
    } else {
        rank_table(config, &holdings)?
    };
    let placement = hosts.map_or_else(String::new, |hosts| placement(config, hosts));
    let step = machine.map_or_else(|| Ok(String::new()), |machine| step(config, machine))?;
    // Of ranks that are threads here; others have memory of their own.
    let memory = if hosts.is_none() { memory(config, &holdings) } else { String::new() };
    let chosen = chosen.map_or_else(String::new, |line| format!("{line}\n"));
    let together = together(config, &holdings);
    let mut notes =
        format!("{}{chosen}\n{table}{placement}\n{together}\n{memory}{step}", summary(config));
    notes.extend(groups(config, &plan));
    notes.extend(missing_data(config));
    notes.extend(planned_for(config));
    notes.extend(trine_trainer::run::unused_rows_planned(config)?);
    let comments: String =
        notes.lines().map(|line| format!("# {line}").trim_end().to_owned() + "\n").collect();
    Ok(format!("{}\n{comments}", config.to_toml()?))
}

/// What each line of `optimizer.groups` and `train.frozen` names, a line each.
fn groups(config: &Config, plan: &RunPlan) -> impl Iterator<Item = String> {
    let patterns = plan.config.groups.iter().map(|group| &group.pattern);
    let groups = config.optimizer.groups.iter().zip(patterns).map(|row| ("group", row));
    let frozen = config.train.frozen.iter().zip(&plan.config.frozen).map(|row| ("frozen", row));
    groups.chain(frozen).map(|(kind, (line, pattern))| {
        let params = plan.parts.pieces.iter().flat_map(|part| &part.params);
        let own = params.filter(|param| param.tied_to.is_none() && pattern.fits(&param.name));
        let elements: Vec<usize> = own.map(ParamSpec::unpadded_len).collect();
        let (count, sum) = (elements.len(), elements.iter().sum::<usize>());
        let named = counted(count, "parameter");
        format!("{kind} {line:?}: {named} with {}\n", counted(sum, "element"))
    })
}

/// A note on a text that is not there. A dry run may stand on a machine without it.
fn missing_data(config: &Config) -> Option<String> {
    match &config.data.source {
        Source::Path(path) if !path.exists() => {
            Some(format!("note: data.source = {} is not there; a run needs it\n", path.display()))
        }
        Source::Path(_) | Source::Crates => None,
    }
}

/// A note on times that only a run finds out.
fn planned_for(config: &Config) -> Option<&'static str> {
    match config.layout.times {
        Times::Measured => Some(
            "note: layout.times are measured when a run starts, and all is planned again for them; here F, B and W \
             take equally long\n",
        ),
        Times::Given(_) => None,
    }
}

/// What all ranks hold, and what the one with most takes.
fn together(config: &Config, holdings: &[Holding]) -> String {
    let state: u64 = holdings.iter().map(|holding| holding.memory.state.total() as u64).sum();
    let state = state.saturating_mul(config.layout.dp as u64);
    let most: Option<Vec<usize>> = holdings.iter().map(Holding::at_most).collect();
    let most = most.and_then(|ranks| ranks.into_iter().max());
    let most = most.map_or_else(
        || "activations come on top; reference numerics have no plan of them".to_owned(),
        |bytes| format!("the fullest rank takes about {}", human_bytes(bytes as u64)),
    );
    let (text, bytes) = (human_bytes(state), grouped(state));
    format!("state of all ranks together: {text} ({bytes} bytes); {most}")
}

/// What all ranks need as threads of one process here, against what may be used.
fn memory(config: &Config, holdings: &[Holding]) -> String {
    let bytes: u64 = holdings.iter().map(|holding| holding.memory.planned_bytes()).sum();
    let is_least = holdings.iter().any(|holding| holding.memory.activations.is_none());
    let replicas = config.layout.dp as u64;
    let (ranks, bytes) = (config.world() as u64, bytes.saturating_mul(replicas));
    let plan = MemoryPlan::of_machine(ranks, bytes, is_least, &memory::limits());
    format!("{plan}{}\n", if plan.fits() { "" } else { ": too little" })
}

/// The time of a step on the machine that a file describes.
fn step(config: &Config, (path, on_gpus): (&Path, bool)) -> Result<String, Failure> {
    let machine = machine::from_file(path, on_gpus)?;
    let engine = config.engine(machine.cluster.devices())?;
    Ok(match planned_step(&engine, &machine)? {
        Ok(planned) => format!(
            "a step on {machine}: {:.3} s, {} for {}, {} tokens/s, bubble {:.1} %\n",
            planned.step,
            Time(planned.step * config.train.steps as f64),
            counted(config.train.steps, "step"),
            grouped((config.tokens_per_step() as f64 / planned.step) as u64),
            100.0 * planned.bubble_fraction
        ),
        Err(why) => format!("a step on {machine}: not planned: {why}\n"),
    })
}

/// A model's family, and the traits that the family does not have.
pub(crate) fn named(model: &ModelSpec) -> String {
    let own = model.own_traits().into_iter().map(|(name, value)| format!("{name} {value}"));
    let own: Vec<String> = own.collect();
    match own.is_empty() {
        true => model.family.to_string(),
        false => format!("{} with {}", model.family, own.join(", ")),
    }
}

/// The run in a few lines.
pub(crate) fn summary(config: &Config) -> String {
    let model = &config.model;
    let train = &config.train;
    let zero_or = |number: f64, text: String| if number == 0.0 { String::new() } else { text };
    format!(
        "model   {} parameters (unique, without padding): {}, {}, hidden {}, {} ({} KV), vocabulary {}\n\
         layout  {}: {}{}; {}, ZeRO-{}\n\
         step    {}: {} of {}; each rank {} of {}\n\
         run     {}{}, {} tokens; {}, {} numerics; in {}\n",
        grouped(model.param_count()),
        named(model),
        counted(model.layers, "layer"),
        model.hidden,
        counted(model.heads, "head"),
        model.kv_heads,
        model.vocab,
        counted(config.world(), "rank"),
        config.degrees(),
        if config.splits_tokens() { ", tokens split over tp" } else { "" },
        config.order_of_work(),
        train.zero,
        counted(config.tokens_per_step(), "token"),
        counted(config.batch.global, "sequence"),
        config.data.seq,
        counted(config.micro_batches(), "micro-batch"),
        config.batch.micro,
        counted(train.steps, "step"),
        zero_or(train.minutes_max, format!(" or {} min", train.minutes_max)),
        grouped((config.tokens_per_step() as u64).saturating_mul(train.steps as u64)),
        train.precision,
        lower(train.numerics),
        config.run_dir().display(),
    )
}

/// An enum's name as configurations spell it.
fn lower(name: impl std::fmt::Debug) -> String {
    format!("{name:?}").to_lowercase()
}

/// One row a rank, in the order of ranks.
fn rank_table(config: &Config, holdings: &[Holding]) -> Result<String, Failure> {
    let place = [
        ("rank", Align::Right),
        ("dp", Align::Right),
        ("pp", Align::Right),
        ("tp", Align::Right),
        ("holds", Align::Left),
    ];
    let mut table = Table::<12>::new(&joined(place, AMOUNTS));
    let mesh = config.mesh().context("invariant: a checked configuration has a mesh")?;
    for rank in 0..mesh.world() {
        let at = mesh.coordinate(rank);
        let holding = &holdings[at.pp * config.layout.tp + at.tp];
        let [rank, dp, pp, tp] = [rank, at.dp, at.pp, at.tp].map(|index| index.to_string());
        let place = [rank, dp, pp, tp, stages(&holding.stages)];
        table.row(joined(place, amounts(std::slice::from_ref(holding))));
    }
    Ok(table.render())
}

/// Which ranks each host has, and where they stand in the pipeline.
fn placement(config: &Config, hosts: &[String]) -> String {
    let mut text = String::from("\n");
    let mut first = 0;
    for run in hosts.chunk_by(|one, other| one == other) {
        let last = first + run.len() - 1;
        let each = config.layout.dp * config.layout.tp;
        let (ranks, pp) = (span(first, last), span(first / each, last / each));
        text.push_str(&format!("host {}: ranks {ranks}, pp {pp}\n", run[0]));
        first = last + 1;
    }
    text
}

/// One row for ranks that hold alike.
fn group_table(config: &Config, holdings: &[Holding]) -> String {
    let place = [
        ("ranks", Align::Right),
        ("pp", Align::Right),
        ("tp", Align::Right),
        ("each holds", Align::Left),
    ];
    let mut table = Table::<11>::new(&joined(place, AMOUNTS));
    for group in holdings.chunk_by(Holding::is_like) {
        let (first, last) = (&group[0], &group[group.len() - 1]);
        let ranks = grouped((group.len() * config.layout.dp) as u64);
        let pp = span(first.pp, last.pp);
        let pieces: Vec<Piece> = first.pieces().collect();
        let place = [ranks, pp, shards(group), kinds(&pieces)];
        table.row(joined(place, amounts(group)));
    }
    table.render()
}

/// Column heads of [`amounts`].
const AMOUNTS: [(&str, Align); 7] = [
    ("parameters", Align::Right),
    ("weights", Align::Right),
    ("gradients", Align::Right),
    ("optimizer", Align::Right),
    ("state", Align::Right),
    ("buffers", Align::Right),
    ("activations", Align::Right),
];

/// What each of some ranks that are alike holds; of what is under way between replicas and of activations the
/// most that one of them has.
fn amounts(alike: &[Holding]) -> [String; 7] {
    let Holding { parameters, memory, .. } = &alike[0];
    let RankBytes { weights, gradients, master, moments } = memory.state;
    let most = |of: fn(&RankMemory) -> Option<usize>| {
        alike.iter().filter_map(|holding| of(&holding.memory)).max()
    };
    let known = [*parameters, weights, gradients, master + moments, memory.state.total()].map(Some);
    let at_most = [most(|memory| memory.buffers), most(|memory| memory.activations)];
    joined(known, at_most)
        .map(|amount| amount.map_or_else(|| "–".to_owned(), |amount| grouped(amount as u64)))
}

/// The elements of two arrays in one; `N` is `A + B`.
fn joined<T, const A: usize, const B: usize, const N: usize>(one: [T; A], other: [T; B]) -> [T; N] {
    const { assert!(N == A + B) }
    let mut elements = one.into_iter().chain(other);
    std::array::from_fn(|_| elements.next().expect("invariant: as many elements"))
}

/// The shards of a group: all of them, unless it lies at one place of the pipeline.
fn shards(group: &[Holding]) -> String {
    let (low, high) =
        group.iter().fold((usize::MAX, 0), |(low, high), h| (low.min(h.tp), high.max(h.tp)));
    span(low, high)
}

/// `3`, or `3–5`.
fn span(first: usize, last: usize) -> String {
    if first == last { first.to_string() } else { format!("{first}–{last}") }
}

/// `embedding, blocks 0–3`; of several stages each, with its number: `0: embedding, block 0; 3: block 3, head`.
fn stages(stages: &[StagePieces]) -> String {
    let numbered = |held: &StagePieces| format!("{}: {}", held.stage, pieces(&held.pieces));
    match stages {
        [only] => pieces(&only.pieces),
        several => several.iter().map(numbered).collect::<Vec<_>>().join("; "),
    }
}

/// `embedding, blocks 0–3`.
fn pieces(pieces: &[Piece]) -> String {
    let blocks: Vec<usize> = pieces
        .iter()
        .filter_map(|piece| match piece {
            Piece::Block(index) => Some(*index),
            Piece::Embedding | Piece::Head => None,
        })
        .collect();
    let blocks = match blocks.as_slice() {
        [] => None,
        [one] => Some(format!("block {one}")),
        [first, .., last] => Some(format!("blocks {}", span(*first, *last))),
    };
    with_ends(pieces, blocks)
}

/// `embedding, 4 blocks`: for stages that differ only in which blocks they hold.
fn kinds(pieces: &[Piece]) -> String {
    let blocks = pieces.iter().filter(|piece| matches!(piece, Piece::Block(_))).count();
    with_ends(pieces, Some(counted(blocks, "block")))
}

fn with_ends(pieces: &[Piece], blocks: Option<String>) -> String {
    let end = |piece: Piece| pieces.contains(&piece).then(|| piece.to_string());
    let parts = [end(Piece::Embedding), blocks, end(Piece::Head)];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}
