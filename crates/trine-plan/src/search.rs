//! The search: every layout of a model on so many devices, ranked by the time of a step.

use crate::{
    Attention, Estimate, Layout, PlanError, Planner, Precision, Recompute, SimulatedStep, Time,
    simulate_step,
};
use std::ops::ControlFlow;
use trine_mesh::Degrees;
use trine_schedule::ScheduleKind;

/// So many of the best are simulated on the schedule's lists.
const SIMULATED: usize = 50;
/// A layout that misses by less than this share of the memory is nearly feasible, and one that fits with less than
/// it to spare nearly infeasible.
const NEAR: f64 = 0.1;
/// Sequences of the largest micro-batch that is tried.
const MICRO_BATCH_MAX: usize = 32;

/// What is to be planned.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Request {
    /// Devices; all of them are used.
    pub devices: usize,
    /// Sequences of a step.
    pub global_batch: usize,
    /// Tokens of a sequence.
    pub seq: usize,
    /// Share of a device's memory that stays free.
    pub headroom: f64,
    /// What products are computed in.
    pub precision: Precision,
    /// How attention is computed.
    pub attention: Attention,
    /// What is not to be varied.
    pub fixed: Fixed,
}

/// Values that a search keeps.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Fixed {
    /// Tensor-parallel degree.
    pub tp: Option<usize>,
    /// Pipeline ranks.
    pub pp: Option<usize>,
    /// Context-parallel degree.
    pub cp: Option<usize>,
    /// Stages of a pipeline rank.
    pub virtual_stages: Option<usize>,
    /// Schedule.
    pub pipeline: Option<ScheduleKind>,
    /// Sequences of a micro-batch.
    pub micro_batch: Option<usize>,
    /// ZeRO stage.
    pub zero: Option<u8>,
    /// What backward computes again.
    pub recompute: Option<Recompute>,
    /// Whether the residual stream is split over tensor parallelism.
    pub sequence_parallel: Option<bool>,
    /// Only layouts that trine's own trainer runs ([`Layout::is_runnable`]).
    pub runnable: bool,
}

/// A layout that fits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// The layout.
    pub layout: Layout,
    /// Its memory and time; the bubble is that of the schedule's closed form.
    pub estimate: Estimate,
    /// Its step on the schedule's lists, for the best.
    pub simulated: Option<SimulatedStep>,
}

impl Choice {
    /// Seconds of a step: simulated if that was done.
    pub fn step(&self) -> f64 {
        self.simulated.map_or(self.estimate.time.step, |simulated| simulated.step)
    }

    /// The share of the device's memory that is used at the peak.
    pub fn memory_share(&self) -> f64 {
        self.estimate.memory.total() / self.estimate.memory_bytes
    }
}

/// What a search found.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// Layouts whose memory and time were evaluated.
    pub evaluated: usize,
    /// Those that fit.
    pub feasible: usize,
    /// The best, fastest first; all simulated by [`search`].
    pub best: Vec<Choice>,
    /// Layouts that would be faster than the first but miss the memory by a tenth at most, fastest first.
    pub near: Vec<Choice>,
}

impl Found {
    /// Those of the best that leave little memory beyond the headroom.
    pub fn tight(&self, headroom: f64) -> impl Iterator<Item = &Choice> {
        self.best.iter().filter(move |one| one.memory_share() > (1.0 - headroom) * (1.0 - NEAR))
    }
}

/// Which limit makes a request impossible.
#[derive(Debug, Clone, PartialEq)]
pub enum Limit {
    /// More devices than the cluster has, or none.
    Devices,
    /// No replica count divides the batch.
    Batch,
    /// No layout fits the memory.
    Memory {
        /// The layout that needs least.
        leanest: Box<Choice>,
    },
    /// What the request fixes rules out every layout.
    Fixed,
}

/// Why nothing can be planned, and what can be.
#[derive(Debug, Clone, PartialEq)]
pub struct Impossible {
    /// The limit that binds.
    pub limit: Limit,
    /// The nearest number of devices with which it can be done, if there is one in the cluster; where they cannot share
    /// the batch, with another one.
    pub devices: Option<usize>,
    /// The nearest other batch with which it can be done, if only that is wrong, or with [`Self::devices`].
    pub global_batch: Option<usize>,
    /// The largest headroom that would do, if only that is too large.
    pub headroom: Option<f64>,
}

/// Why a search has no result.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SearchError {
    /// The request cannot be met.
    #[error("no layout is possible")]
    Impossible(Box<Impossible>),
    /// The model or a layout is wrong in itself.
    #[error(transparent)]
    Plan(#[from] PlanError),
}

/// The batch of a request that gives none: the most sequences, in 2^k times the odd part of the devices, that are not
/// above 16 Mi tokens (what Llama 3 405B used at the end; large runs use 4 to 20 million).
pub fn default_global_batch(devices: usize, seq: usize) -> usize {
    let odd = devices.max(1) >> devices.max(1).trailing_zeros();
    let most = ((16 << 20) / seq.max(1)).max(1);
    odd * 2_usize.pow((most / odd).max(1).ilog2())
}

/// Evaluates every layout in closed form, ranks those that fit, and simulates the best.
///
/// # Errors
/// [`SearchError::Impossible`] with the limit that binds and the nearest possible request.
pub fn search(planner: &Planner<'_>, request: &Request) -> Result<Found, SearchError> {
    let mut found = rank(planner, request)?;
    for choice in &mut found.best {
        choice.simulated = Some(simulate_step(planner, &choice.layout, &choice.estimate)?);
    }
    found.best.sort_by(|a, b| a.step().total_cmp(&b.step()));
    let first = found.best[0].step();
    found.near.retain(|one| one.estimate.time.step < first);
    Ok(found)
}

/// The first part of [`search`]: time and memory of every layout in closed form, and the best of them.
///
/// # Errors
/// As [`search`].
pub fn rank(planner: &Planner<'_>, request: &Request) -> Result<Found, SearchError> {
    check_devices(planner, request)?;
    let mut state = Ranking::new(request.headroom);
    let all = for_each_layout(planner, request, |layout| {
        state.add(planner, layout);
        ControlFlow::Continue(())
    });
    debug_assert!(all.is_continue(), "nothing ends it early");
    if state.feasible == 0 {
        return Err(SearchError::Impossible(Box::new(why_not(planner, request, state.leanest))));
    }
    let Ranking { evaluated, feasible, best, near, .. } = state;
    Ok(Found { evaluated, feasible, best, near })
}

fn check_devices(planner: &Planner<'_>, request: &Request) -> Result<(), SearchError> {
    let most = devices_max(planner);
    let nearest = request.devices.clamp(1, most);
    if nearest == request.devices {
        return Ok(());
    }
    Err(SearchError::Impossible(Box::new(Impossible {
        limit: Limit::Devices,
        devices: Some(nearest),
        global_batch: None,
        headroom: None,
    })))
}

/// Devices of the cluster.
pub(crate) fn devices_max(planner: &Planner<'_>) -> usize {
    planner.cluster.levels.last().map_or(1, |level| level.devices)
}

/// The best so far, and what is nearly possible.
struct Ranking {
    headroom: f64,
    evaluated: usize,
    feasible: usize,
    best: Vec<Choice>,
    near: Vec<Choice>,
    leanest: Option<Choice>,
}

impl Ranking {
    fn new(headroom: f64) -> Self {
        let (best, near) = (Vec::new(), Vec::new());
        Self { headroom, evaluated: 0, feasible: 0, best, near, leanest: None }
    }

    fn add(&mut self, planner: &Planner<'_>, layout: &Layout) {
        let estimate = planner.estimate(layout);
        self.evaluated += 1;
        let choice = Choice { layout: *layout, estimate, simulated: None };
        let bytes = |one: &Choice| one.estimate.memory.total();
        if self.leanest.as_ref().is_none_or(|leanest| bytes(&choice) < bytes(leanest)) {
            self.leanest = Some(choice);
        }
        if estimate.fits(self.headroom) {
            self.feasible += 1;
            insert(&mut self.best, choice, SIMULATED);
        } else if choice.memory_share() <= (1.0 - self.headroom) * (1.0 + NEAR) {
            insert(&mut self.near, choice, 5);
        }
    }
}

/// Keeps the `most` fastest, sorted. Of layouts that differ in their ZeRO stage alone and take equally long, the first
/// (with the lowest stage) stands for all.
fn insert(list: &mut Vec<Choice>, choice: Choice, most: usize) {
    let same = |one: &Choice| {
        one.estimate.time.step == choice.estimate.time.step
            && one.layout == Layout { zero: one.layout.zero, ..choice.layout }
    };
    if list.iter().any(same) {
        return;
    }
    let slower = |one: &Choice| one.estimate.time.step <= choice.estimate.time.step;
    let at = list.partition_point(slower);
    if at < most {
        list.truncate(most - 1);
        list.insert(at, choice);
    }
}

/// Calls `each` with every layout of a request that passes [`Layout::check`], until it breaks.
fn for_each_layout(
    planner: &Planner<'_>,
    request: &Request,
    mut each: impl FnMut(&Layout) -> ControlFlow<()>,
) -> ControlFlow<()> {
    for degrees in degrees(planner, request) {
        for (pipeline, virtual_stages) in pipelines(planner, request, degrees.pp) {
            for micro_batch in micro_batches(request, &degrees) {
                let base = Layout {
                    degrees,
                    virtual_stages,
                    pipeline,
                    micro_batch,
                    global_batch: request.global_batch,
                    seq: request.seq,
                    sequence_parallel: false,
                    recompute: Recompute::None,
                    attention: request.attention,
                    zero: 0,
                    precision: request.precision,
                };
                if base.check(planner.model).is_ok() {
                    with_options(request, base, &mut each)?;
                }
            }
        }
    }
    ControlFlow::Continue(())
}

/// ZeRO, recompute and sequence parallelism: nothing about these can be invalid.
fn with_options(
    request: &Request,
    base: Layout,
    each: &mut impl FnMut(&Layout) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let Fixed { zero, recompute, sequence_parallel, runnable, .. } = request.fixed;
    let replicas = base.replicas();
    for stage in 0..=3_u8 {
        // One replica has nothing to share out.
        let sensible = stage == 0 || replicas > 1;
        if !zero.map_or(sensible, |zero| zero == stage) {
            continue;
        }
        let usual = [Recompute::None, Recompute::Selective, Recompute::Full { every: 1 }];
        for &again in recompute.as_ref().map_or(&usual[..], std::slice::from_ref) {
            let splits: &[bool] = if base.degrees.tp > 1 { &[false, true] } else { &[false] };
            let kept = |split: &bool| sequence_parallel.is_none_or(|fixed| fixed == *split);
            for sequence_parallel in splits.iter().copied().filter(kept) {
                let layout = Layout { zero: stage, recompute: again, sequence_parallel, ..base };
                if !runnable || layout.is_runnable() {
                    each(&layout)?;
                }
            }
        }
    }
    ControlFlow::Continue(())
}

/// Whether a request has a layout at all, whatever it needs.
fn is_possible(planner: &Planner<'_>, request: &Request) -> bool {
    for_each_layout(planner, request, |_| ControlFlow::Break(())).is_break()
}

fn divisors(number: usize) -> impl Iterator<Item = usize> {
    (1..=number).filter(move |divisor| number.is_multiple_of(*divisor))
}

/// Every split of the devices into tensor, context, pipeline and data parallelism.
fn degrees(planner: &Planner<'_>, request: &Request) -> Vec<Degrees> {
    let Fixed { tp, pp, cp, .. } = request.fixed;
    let spec = &planner.model.spec;
    let keeps = |fixed: Option<usize>, value: usize| fixed.is_none_or(|fixed| fixed == value);
    let mut all = Vec::new();
    for t in divisors(request.devices).take_while(|t| *t <= spec.heads).filter(|t| keeps(tp, *t)) {
        if spec.check_layout(t, 1).is_err() || planner.stack.check_degree(spec, t).is_err() {
            continue;
        }
        let rest = request.devices / t;
        let ranks = divisors(rest).take_while(|p| *p <= spec.layers).filter(|p| keeps(pp, *p));
        for p in ranks {
            // Long sequences only: below, splitting them leaves too little to a rank.
            let longest = if request.seq < 8192 { 1 } else { request.seq / 4096 };
            let contexts = divisors(rest / p).take_while(|c| *c <= longest || cp == Some(*c));
            for c in contexts.filter(|c| cp.map_or(c.is_power_of_two(), |cp| cp == *c)) {
                let dp = rest / p / c;
                if dp <= request.global_batch {
                    all.push(Degrees { dp, pp: p, tp: t, cp: c, ep: 1 });
                }
            }
        }
    }
    all
}

/// Schedules with their stages a rank.
fn pipelines(planner: &Planner<'_>, request: &Request, pp: usize) -> Vec<(ScheduleKind, usize)> {
    let Fixed { virtual_stages, pipeline, .. } = request.fixed;
    let layers = planner.model.spec.layers;
    let keeps = |&(kind, chunks): &(ScheduleKind, usize)| {
        pipeline.is_none_or(|pipeline| pipeline == kind)
            && virtual_stages.is_none_or(|fixed| fixed == chunks)
    };
    if pp == 1 {
        // Without a pipeline, all orders are one.
        return [(pipeline.unwrap_or(ScheduleKind::OneFOneB), 1)]
            .into_iter()
            .filter(keeps)
            .collect();
    }
    let plain =
        [ScheduleKind::GPipe, ScheduleKind::OneFOneB, ScheduleKind::ZbH1, ScheduleKind::ZbH2];
    let mut all: Vec<(ScheduleKind, usize)> = plain.map(|kind| (kind, 1)).to_vec();
    // Chunks of whole blocks, alike on every rank.
    for chunks in divisors(layers / pp).filter(|v| *v > 1 && layers.is_multiple_of(pp * v)) {
        all.extend(
            [ScheduleKind::Interleaved, ScheduleKind::BreadthFirst].map(|kind| (kind, chunks)),
        );
    }
    if layers.is_multiple_of(2 * pp) {
        all.extend([(ScheduleKind::ZbV, 2), (ScheduleKind::DualPipeV, 2)]);
    }
    all.retain(keeps);
    all
}

/// Sizes of a micro-batch that divide a replica's share of the batch.
fn micro_batches(request: &Request, degrees: &Degrees) -> Vec<usize> {
    if !request.global_batch.is_multiple_of(degrees.dp) {
        return Vec::new();
    }
    match request.fixed.micro_batch {
        Some(fixed) => vec![fixed],
        None => {
            let each = request.global_batch / degrees.dp;
            (1..=each.min(MICRO_BATCH_MAX)).filter(|size| each.is_multiple_of(*size)).collect()
        }
    }
}

/// Names the limit, and finds the nearest request that is possible.
fn why_not(planner: &Planner<'_>, request: &Request, leanest: Option<Choice>) -> Impossible {
    let nearest = || {
        let found = nearest_devices(planner, request);
        let batch = found.map(|(_, batch)| batch).filter(|size| *size != request.global_batch);
        (found.map(|(devices, _)| devices), batch)
    };
    let Some(leanest) = leanest else {
        let found = nearest_batch(planner, request, |wanted| fits(planner, wanted));
        if found.is_some() {
            let (limit, devices, headroom) = (Limit::Batch, None, None);
            return Impossible { limit, devices, global_batch: found, headroom };
        }
        let other = nearest_batch(planner, request, |wanted| is_possible(planner, wanted));
        let limit = if other.is_some() { Limit::Batch } else { Limit::Fixed };
        let (devices, global_batch) = nearest();
        return Impossible { limit, devices, global_batch, headroom: None };
    };
    let share = leanest.memory_share();
    let (devices, global_batch) = nearest();
    let limit = Limit::Memory { leanest: Box::new(leanest) };
    Impossible { limit, devices, global_batch, headroom: (share <= 1.0).then_some(1.0 - share) }
}

/// Whether a request has a layout that fits the memory, looked for among the leanest.
fn fits(planner: &Planner<'_>, request: &Request) -> bool {
    let Fixed { micro_batch, recompute, pipeline, virtual_stages, .. } = request.fixed;
    let lean = Fixed {
        micro_batch: micro_batch.or(Some(1)),
        recompute: recompute.or(Some(Recompute::Full { every: 1 })),
        pipeline: pipeline.or(virtual_stages.is_none().then_some(ScheduleKind::OneFOneB)),
        ..request.fixed
    };
    let allowed = planner.cluster.device.memory_bytes as f64 * (1.0 - request.headroom);
    let found = for_each_layout(planner, &Request { fixed: lean, ..*request }, |layout| {
        match planner.peak_memory(layout).1.total() <= allowed {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    });
    found.is_break()
}

/// The other batch nearest to the one asked for with which a request is as wanted.
fn nearest_batch(
    planner: &Planner<'_>,
    request: &Request,
    is_wanted: impl Fn(&Request) -> bool,
) -> Option<usize> {
    let largest = Request { global_batch: usize::MAX, ..*request };
    let asked = request.global_batch;
    let sizes = degrees(planner, &largest).into_iter().flat_map(|degrees| {
        let unit = degrees.dp.saturating_mul(request.fixed.micro_batch.unwrap_or(1).max(1));
        // Interleaved schedules take whole groups; the others any number.
        let unit = match request.fixed.pipeline {
            Some(ScheduleKind::Interleaved) => unit.saturating_mul(degrees.pp),
            _ => unit,
        };
        [(asked / unit).max(1).saturating_mul(unit), (asked / unit + 1).saturating_mul(unit)]
    });
    let mut sizes: Vec<usize> = sizes.filter(|size| *size != asked).collect();
    sizes.sort_by_key(|size| size.abs_diff(asked));
    sizes.dedup();
    sizes.into_iter().find(|size| is_wanted(&Request { global_batch: *size, ..*request }))
}

/// The fewest devices, of those that doubling finds, with which some layout fits, and the batch: the one asked for, or
/// the next that they can share out.
fn nearest_devices(planner: &Planner<'_>, request: &Request) -> Option<(usize, usize)> {
    let Fixed { tp, pp, cp, micro_batch, .. } = request.fixed;
    let asked = request.global_batch;
    let fitting = |devices: &usize| {
        let whole = asked.next_multiple_of(devices.saturating_mul(micro_batch.unwrap_or(1)));
        let batches = [asked, asked.next_multiple_of(*devices), whole];
        let is_enough = |batch: &usize| {
            fits(planner, &Request { devices: *devices, global_batch: *batch, ..*request })
        };
        batches.into_iter().find(is_enough).map(|batch| (*devices, batch))
    };
    let most = devices_max(planner);
    let replica = [tp, pp, cp].into_iter().flatten().fold(1, usize::saturating_mul);
    let doubled = |from: usize| {
        std::iter::successors(Some(from), |devices| devices.checked_mul(2))
            .take_while(|devices| *devices <= most)
    };
    let mut sizes: Vec<usize> = doubled(request.devices).chain(doubled(replica)).collect();
    sizes.sort_unstable();
    sizes.retain(|devices| *devices > request.devices);
    let (enough, batch) = sizes.iter().find_map(fitting)?;
    // Between half of that, which may be too few, and it, in eighths.
    let step = (enough / 16).max(1);
    let between = (1..8).map(|part| enough / 2 + part * step);
    let between = between.filter(|devices| *devices > request.devices && *devices < enough);
    Some(between.into_iter().find_map(|devices| fitting(&devices)).unwrap_or((enough, batch)))
}

/// Why `a` beats `b`: the items of time that differ, largest first, in seconds that `a` saves (negative: loses).
pub fn explain_lead(a: &Choice, b: &Choice) -> Vec<(&'static str, f64)> {
    let (x, y) = (items(&a.estimate.time), items(&b.estimate.time));
    let mut differences: Vec<(&str, f64)> =
        x.iter().zip(&y).map(|((name, x), (_, y))| (*name, y - x)).collect();
    differences.retain(|(_, saved)| saved.abs() > 1e-3 * b.estimate.time.step);
    differences.sort_by(|x, y| y.1.abs().total_cmp(&x.1.abs()));
    differences
}

/// The items of a step by name.
pub fn items(time: &Time) -> [(&'static str, f64); 10] {
    [
        ("forward", time.forward),
        ("backward", time.backward),
        ("recompute", time.recompute),
        ("tensor parallelism", time.tensor),
        ("context parallelism", time.context),
        ("messages", time.messages),
        ("bubble", time.bubble),
        ("data parallelism", time.data),
        ("optimizer", time.optimizer),
        ("stragglers", time.straggling),
    ]
}
