//! What a search chooses from: a request, and every layout that it leaves.

use crate::{Attention, Estimate, Layout, Planner, Precision, Recompute, SimulatedStep};
use std::ops::ControlFlow;
use trine_mesh::Degrees;
use trine_schedule::ScheduleKind;

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

/// Devices of the cluster.
pub(crate) fn devices_max(planner: &Planner<'_>) -> usize {
    planner.cluster.levels.last().map_or(1, |level| level.devices)
}

/// Calls `each` with every layout of a request that passes [`Layout::check`], until it breaks.
pub(crate) fn for_each_layout(
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
                    with_options(planner, request, base, &mut each)?;
                }
            }
        }
    }
    ControlFlow::Continue(())
}

/// What is computed again, as most software offers it.
const USUAL: [Recompute; 3] = [Recompute::None, Recompute::Selective, Recompute::Full { every: 1 }];

/// ZeRO, recompute and sequence parallelism: nothing about these can be invalid.
fn with_options(
    planner: &Planner<'_>,
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
        let is_trine = runnable || planner.stack.replays_steps;
        let usual = if is_trine { planner.model.ladder() } else { &USUAL };
        for &again in recompute.as_ref().map_or(usual, std::slice::from_ref) {
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

fn divisors(number: usize) -> impl Iterator<Item = usize> {
    (1..=number).filter(move |divisor| number.is_multiple_of(*divisor))
}

/// Every split of the devices into tensor, context, pipeline and data parallelism.
pub(crate) fn degrees(planner: &Planner<'_>, request: &Request) -> Vec<Degrees> {
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
